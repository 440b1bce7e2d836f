"""What the documents promise is there."""

import re
from pathlib import Path

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
