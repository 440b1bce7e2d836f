"""The documents keep their promises."""

import ast
import io
import re
import subprocess
import sys
import tokenize
import unicodedata
from pathlib import Path
from urllib.parse import unquote

import pytest
from test_layout import FLOORS

from gateway.config.models import Model

ROOT = Path(__file__).parent.parent
TESTS = {
    name
    for path in (ROOT / "tests").rglob("test_*.py")
    for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text("utf-8"), re.MULTILINE)
}


ENGLISH = {path.name for path in (ROOT / "docs").glob("*.md")}
CHINESE = {path.name for path in (ROOT / "docs/zh").glob("*.md")}
# Files of docs/ that docs/zh/ still lacks; this set only shrinks.
NOT_YET_CHINESE: set[str] = set()


def pages() -> list[Path]:
    return [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]


def entries(name: str) -> list[str]:
    """The items of the lists in a page of docs/."""
    text = (ROOT / "docs" / name).read_text("utf-8")
    return re.findall(r"^- .*(?:\n  .*)*", text, re.MULTILINE)


@pytest.mark.parametrize(("name", "at_least"), [("failures.md", 100), ("limits.md", 25)])
def test_each_entry_of_failures_and_limits_has_a_test(name, at_least):
    found = entries(name)
    assert len(found) > at_least
    assert [entry for entry in found if not re.search(r"`test_\w+`", entry)] == []
    named = re.findall(r"`(test_\w+)`", (ROOT / "docs" / name).read_text("utf-8"))
    assert set(named) - TESTS == set()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    # Takes some five seconds: Sphinx reads and writes 28 pages, in a process of its own because it
    # changes docutils for the whole process.
    site = tmp_path_factory.mktemp("docs") / "site"
    build = [sys.executable, "-W", "ignore", ROOT / "docs/build.py", site]
    built = subprocess.run(build, capture_output=True, text=True, check=False)
    assert (built.returncode, built.stderr) == (0, "")
    return site


def test_the_site_builds_in_both_languages_without_a_warning(site):
    for tree, names in (("en", ENGLISH), ("zh", CHINESE)):
        assert {p.stem for p in (site / tree).glob("*.html")} > {
            name.removesuffix(".md") for name in names
        }


def test_the_first_page_of_the_site_is_in_the_readers_language(site):
    page = (site / "index.html").read_text("utf-8")
    assert "navigator.language.startsWith('zh') ? 'zh' : 'en'" in page
    assert re.findall(r'<a href="(\w+/index.html)"', page) == ["en/index.html", "zh/index.html"]


def test_every_link_of_the_site_leads_to_a_page(site):
    dead = [
        f"{page.relative_to(site)}: {link}"
        for page in site.rglob("*.html")
        for link in re.findall(r'<a[^>]* href="(?!\w+:|#)([^"#]+)', page.read_text("utf-8"))
        if not (page.parent / unquote(link)).exists()
    ]
    assert dead == []


def test_the_site_shows_the_examples(site):
    readme = (site / "files/examples/README.md.html").read_text("utf-8")
    assert 'href="mini-program/index.html"' in readme
    assert "class Gateway" in (site / "files/examples/mini-program/gateway.js.html").read_text()
    front_end = (site / "zh/front-end.html").read_text("utf-8")
    assert 'href="../files/examples/mini-program/gateway.js.html#"' in front_end


def test_the_chinese_tree_lacks_only_what_is_listed():
    assert ENGLISH - CHINESE == NOT_YET_CHINESE
    assert CHINESE <= ENGLISH


def test_chinese_pages_have_the_structure_of_english_ones():
    for name in CHINESE - {"index.md"}:
        english, chinese = (
            (ROOT / "docs" / tree / name).read_text("utf-8") for tree in (".", "zh")
        )
        for pattern in (r"^```\w*$", r"^#+ ", r"^\|", r"^\s*- ", r"`test_\w+`"):
            counts = [len(re.findall(pattern, text, re.MULTILINE)) for text in (english, chinese)]
            assert counts[0] == counts[1], (name, pattern)
        json = [re.findall(r"```json\n.*?```", text, re.DOTALL) for text in (english, chinese)]
        assert json[0] == json[1], name


def columns(line: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line)


def test_no_line_is_wider_than_120_columns():
    wide = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in pages()
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if columns(line) > 120
    ]
    assert wide == []


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_a_readme_is_short(name):
    shown = (ROOT / name).read_text("utf-8").partition("<details>")[0]
    assert len(shown.split()) < 500


def sections(model: type[Model]) -> list[type[Model]]:
    """Every part of config.yaml."""
    parts = [part for kind in model.__subclasses__() for part in [kind, *sections(kind)]]
    return [part for part in parts if part.__module__.startswith("gateway.")]


def test_every_option_is_explained_in_both_languages():
    for tree in (".", "zh"):
        text = (ROOT / "docs" / tree / "configuration.md").read_text("utf-8")
        explained = set(re.findall(r"^##+ (\w+)$", text, re.MULTILINE))
        for span in re.findall(r"`([^`]+)`", text):
            explained |= set(re.findall(r"\w+", span))
        options = {(part.__name__, name) for part in sections(Model) for name in part.model_fields}
        assert {option for option in options if option[1] not in explained} == set(), tree


def test_links_between_the_documents_lead_somewhere():
    for path in [*pages(), *ROOT.glob("config/**/*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text("utf-8")):
            # On GitHub, two folders up from a README is the repository's own page.
            target = re.sub(r"^\.\./\.\./actions/(workflows/[\w.-]+).*", r".github/\1", target)
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_both_readmes_have_the_same_commands_and_links():
    english, chinese = (
        (ROOT / name).read_text("utf-8") for name in ("README.md", "README.zh-CN.md")
    )
    for pattern in (r"```\w*\n(.*?)```", r"\]\(((?!README)[^)]+)\)"):
        commands = [
            sorted(set(re.findall(pattern, text, re.DOTALL))) for text in (english, chinese)
        ]
        assert len(commands[0]) == len(commands[1]), pattern


def rooms() -> str:
    """The table of rooms in docs/architecture.md: one line each, from its docstring."""
    lines = ["| room | what is in it |", "|---|---|"]
    for floor in FLOORS:
        for room in sorted(floor):
            folder = ROOT / "gateway" / room
            path = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
            first = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").split("\n")[0]
            lines.append(f"| `{room}{'/' if folder.is_dir() else ''}` | {first} |")
    return "\n".join(lines)


def test_the_table_of_rooms_is_what_the_rooms_say():
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    _, _, rest = text.partition("<!-- rooms")
    table = rest.partition("-->\n")[2].partition("<!-- end of rooms -->")[0]
    assert table.strip() == rooms(), f"docs/architecture.md needs this table:\n{rooms()}"
    assert all(line.endswith(". |") for line in rooms().splitlines()[2:])


# English: terms that other projects' comments hardly use.
ODD = (
    "shall", "whom", "whoever", "beside", "anew", "told", "away", "behind", "nobody", "anybody",
    "everybody", "stands", "words", "at once", "for ever",
)  # fmt: skip
ODD_TERM = re.compile(rf"\b({'|'.join(ODD)})\b".replace(" ", r"[\s#]+"), re.IGNORECASE)
CODE_MOST, DOCUMENTS_MOST = 5, 70  # per 10,000; lower the second bound as documents improve
NOT_YET: set[str] = set()  # rooms whose comments are not rewritten yet


def prose(source: str) -> str:
    """The comments and docstrings of a module."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    out = [token.string for token in tokens if token.type == tokenize.COMMENT]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            out.append(ast.get_docstring(node) or "")
    return "\n".join(out)


def odd_terms(texts: dict[Path, str]) -> tuple[float, str]:
    """(ODD terms per 10,000, where they are)."""
    words = sum(len(re.findall(r"[A-Za-z][A-Za-z'’-]*", text)) for text in texts.values())
    found = [
        f"{path.relative_to(ROOT)}: {match[0]!r}"
        for path, text in texts.items()
        for match in ODD_TERM.finditer(text)
    ]
    return 10_000 * len(found) / words, "\n".join(found)


def modules() -> list[Path]:
    gateway = ROOT / "gateway"
    rooms = [p for p in gateway.rglob("*.py") if p.relative_to(gateway).parts[0] not in NOT_YET]
    return [*rooms, *(ROOT / "tests").rglob("*.py"), ROOT / "run.py"]


def test_comments_are_in_plain_english():
    rate, found = odd_terms({path: prose(path.read_text("utf-8")) for path in modules()})
    assert rate <= CODE_MOST, found


def test_documents_become_plainer():
    paths = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    rate, _ = odd_terms({path: path.read_text("utf-8") for path in paths})
    assert rate <= DOCUMENTS_MOST, f"{rate:.1f} per 10,000"


def test_odd_terms_count_in_comments_and_docstrings_only():
    source = '"""Told at\nonce."""\nwords = "nobody"  # for ever, beside\n'
    rate, found = odd_terms({ROOT / "a.py": prose(source)})
    assert [line.partition(": ")[2] for line in found.splitlines()] == [
        "'for ever'", "'beside'", "'Told'", r"'at\nonce'",
    ]  # fmt: skip
    assert rate == 10_000 * 4 / 6


def test_names_of_tests_have_at_most_60_characters():
    assert [name for name in TESTS if len(name) > 60] == []
