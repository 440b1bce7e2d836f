"""What the documents promise is there."""

import ast
import re
from pathlib import Path

from test_layout import FLOORS

from gateway.config.models import Agent, Config, Server, Timeouts

ROOT = Path(__file__).parent.parent
TESTS = {
    name
    for path in (ROOT / "tests").rglob("test_*.py")
    for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text("utf-8"), re.MULTILINE)
}


def rows(text: str) -> list[str]:
    """The lines of tables without their heads."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    heads = {
        i for i, line in enumerate(lines) if i + 1 < len(lines) and lines[i + 1].startswith("|---")
    }
    return [line for i, line in enumerate(lines) if i not in heads and not line.startswith("|---")]


def test_every_row_of_the_table_of_failures_has_a_test():
    text = (ROOT / "docs" / "failures.md").read_text("utf-8")
    table = rows(text)
    assert len(table) > 40
    for row in table:
        named = re.findall(r"`(test_\w+)`", row)
        assert named, row
    assert set(re.findall(r"`(test_\w+)`", text)) - TESTS == set()


def test_every_row_of_the_table_of_limits_has_a_test():
    text = (ROOT / "docs" / "limits.md").read_text("utf-8")
    table = rows(text)
    assert len(table) > 15
    for row in table:
        named = re.findall(r"`(test_\w+)`", row)
        assert named, row
    assert set(re.findall(r"`(test_\w+)`", text)) - TESTS == set()


def test_every_option_of_servers_and_agents_is_explained():
    text = (ROOT / "docs" / "configuration.md").read_text("utf-8")
    for model in (Server, Agent, Timeouts, Config):
        for name in model.model_fields:
            assert f"`{name}`" in text or f"## {name}" in text or f"{name}:" in text, name


def test_links_between_the_documents_lead_somewhere():
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("config/**/*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text("utf-8")):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_both_readmes_tell_of_the_same_things():
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
