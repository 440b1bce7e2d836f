"""Sphinx: one configuration for the English tree, docs/, and the Chinese one, docs/zh/."""

import re
from pathlib import Path

import repository  # next to this file
from sphinx.application import Sphinx

DOCS = Path(__file__).parent.resolve()
CHINESE = {path.stem for path in (DOCS / "zh").glob("*.md")}
ENGLISH = {path.stem for path in DOCS.glob("*.md")}

project = "AI Gateway"
language = "en"  # docs/build.py sets zh_CN for the other tree
extensions = ["myst_parser"]
exclude_patterns = ["zh"]
templates_path = ["_templates"]
myst_heading_anchors = 3
myst_url_schemes = {
    "http": None,
    "https": None,
    "site": "../{{path}}#{{fragment}}",
}

html_theme = "furo"
html_title = project
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
html_sidebars = {
    "**": [
        "sidebar/brand.html",
        "sidebar/language.html",
        "sidebar/search.html",
        "sidebar/scroll-start.html",
        "sidebar/navigation.html",
        "sidebar/scroll-end.html",
    ]
}
html_context = {"trees": {"en": sorted(ENGLISH), "zh": sorted(CHINESE)}}


def lead_out(app: Sphinx, docname: str, source: list[str]) -> None:
    """Turn links that leave a tree into links to the other one, or to a page of `repository`.

    The sources link by relative paths, as GitHub reads them.
    """
    tree = Path(app.srcdir).resolve()

    def link(found: re.Match[str]) -> str:
        path = (tree / docname).parent.joinpath(found["path"]).resolve()
        if path.parent == tree:
            return found[0]
        return f"[{found['text']}](site:{repository.address(path)}{found['rest']})"

    source[0] = repository.LINK.sub(link, source[0])


def setup(app: Sphinx) -> None:
    """Register `lead_out`."""
    app.connect("source-read", lead_out)
