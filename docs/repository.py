"""Files of the repository as pages of the site: those that the documentation links to, and those
that these link to in turn, such as the examples.

A Markdown file becomes HTML, a folder the list of its files, any other text is shown as it is.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from html import escape
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from markdown_it import MarkdownIt
from mdit_py_plugins.anchors import anchors_plugin

DOCS = Path(__file__).parent.resolve()
ROOT = DOCS.parent
PAGE = """<!doctype html>
<html>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
  body {{ max-width: 60rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.5 sans-serif; }}
  pre {{ overflow-x: auto; }}
  td, th {{ padding: 0.2rem 0.5rem; text-align: left; vertical-align: top; }}
</style>
<h1><code>{title}</code></h1>
{body}
</html>
"""
# A link of the sources to another file, and one of the HTML that becomes of them.
LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<path>(?!\w+:)[^)#]+)(?P<rest>[^)]*)\)")
_HREF = re.compile(r'(?<= href=")(?!\w+:|#)([^"#]+)(#[^"]*)?(?=")')
_IMAGES = (".svg", ".png")


def address(path: Path) -> str:
    """Where the site shows a file or folder of the repository, relative to the site's root."""
    shown = path.relative_to(ROOT).as_posix()
    if path.parent in (DOCS, DOCS / "zh") and path.suffix == ".md":
        return f"{'en' if path.parent == DOCS else 'zh'}/{path.stem}.html"
    if path.is_dir():
        return f"files/{shown}/index.html"
    return f"files/{shown}" if path.suffix in _IMAGES else f"files/{shown}.html"


def linked() -> Iterator[Path]:
    """What the documentation links to, its own pages among it."""
    for page in [*DOCS.glob("*.md"), *DOCS.glob("zh/*.md")]:
        for found in LINK.finditer(page.read_text("utf-8")):
            yield _resolved(page, found["path"])


def write(site: Path) -> None:
    """Write the pages of what the documentation links to, and of what these link to, into `site`.

    Raises ValueError for a link to a file that git does not track: it may hold secrets.
    """
    tracked = _tracked()
    left, done = list(linked()), set[Path]()
    while left:
        path = left.pop()
        target = site / address(path)
        if path in done or not target.is_relative_to(site / "files"):
            continue
        done.add(path)
        inside = sorted(file for file in tracked if path in file.parents)
        if path not in tracked and not inside:
            raise ValueError(f"git tracks no {path.relative_to(ROOT)}")
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in _IMAGES:
            shutil.copy(path, target)
            continue
        body, links = _body(path, inside)
        title = escape(path.relative_to(ROOT).as_posix())
        target.write_text(PAGE.format(title=title, body=body), "utf-8")
        left += links


def _tracked() -> set[Path]:
    listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True)  # noqa: S607
    return {ROOT / name for name in listed.split("\0") if name}


def _body(path: Path, inside: list[Path]) -> tuple[str, list[Path]]:
    """The HTML of a page, and what it links to; `inside` are the files of a folder."""
    if inside:
        return "\n".join(_items(path, inside)), inside
    text = path.read_text("utf-8")
    if path.suffix != ".md":
        return f"<pre>{escape(text)}</pre>", []
    html = MarkdownIt("commonmark").enable("table").use(anchors_plugin, max_level=4).render(text)
    links = [_resolved(path, found[1]) for found in _HREF.finditer(html)]

    def relative(found: re.Match[str]) -> str:
        return _relative(path, _resolved(path, found[1])) + (found[2] or "")

    return _HREF.sub(relative, html), links


def _items(folder: Path, files: list[Path]) -> Iterator[str]:
    yield "<ul>"
    for file in files:
        name = escape(file.relative_to(folder).as_posix())
        yield f'<li><a href="{_relative(folder, file)}">{name}</a>'
    yield "</ul>"


def _resolved(path: Path, link: str) -> Path:
    return (path.parent / unquote(link)).resolve()


def _relative(path: Path, target: Path) -> str:
    return os.path.relpath(address(target), PurePosixPath(address(path)).parent)
