"""Sphinx: one configuration for the English tree, docs/, and the Chinese one, docs/zh/."""

import os
import re
from pathlib import Path

from sphinx.application import Sphinx

DOCS = Path(__file__).parent.resolve()
ROOT = DOCS.parent
CHINESE = {path.stem for path in (DOCS / "zh").glob("*.md")}
ENGLISH = {path.stem for path in DOCS.glob("*.md")}

# Where the repository's files can be read, as GitHub Actions tells. Without it the site names them
# without a link.
REPOSITORY = "{GITHUB_SERVER_URL}/{GITHUB_REPOSITORY}/blob/{GITHUB_SHA}/"
REPOSITORY = REPOSITORY.format_map(os.environ) if "GITHUB_SHA" in os.environ else ""
LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<path>(?!\w+:)[^)#]+)(?P<rest>[^)]*)\)")

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
    """Turn links that leave a tree into links to the other one, or to the repository.

    The sources link by relative paths, as GitHub reads them.
    """
    tree = Path(app.srcdir).resolve()

    def link(found: re.Match[str]) -> str:
        path = (tree / docname).parent.joinpath(found["path"]).resolve()
        folder = path.parent
        if folder == tree:
            return found[0]
        if folder in (DOCS, DOCS / "zh"):
            name = "en" if folder == DOCS else "zh"
            return f"[{found['text']}](site:{name}/{path.stem}.html{found['rest']})"
        url = f"{REPOSITORY}{path.relative_to(ROOT).as_posix()}{found['rest']}"
        return f"[{found['text']}]({url})" if REPOSITORY else found["text"]

    source[0] = LINK.sub(link, source[0])


def setup(app: Sphinx) -> None:
    """Register `lead_out`."""
    app.connect("source-read", lead_out)
