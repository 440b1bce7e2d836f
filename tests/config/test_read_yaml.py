"""YAML as people write it: names and ids stay as written, and mistakes come with advice."""

import re
from typing import Any

import pytest
from problems import problems

from gateway.config.load import parse


def test_ids_that_yaml_takes_for_numbers_are_texts():
    text = "agents: {1: {platform: coze, base_url: 'http://x', api_key: 123456789, bot_id: 7553123412341234123}, yes: {platform: dify}}"
    agents: dict[str, Any] = parse(text, {}).agents
    assert list(agents) == ["1", "yes"]
    assert agents["1"].bot_id == "7553123412341234123"
    assert agents["1"].api_key.reveal() == "123456789"


@pytest.mark.parametrize(
    "written",
    ["0123", "12:34:56", "0777123456", "7_553", "1.10", "0x10", "1e3", "2026-11-22", "no"],
)
def test_words_that_look_like_numbers_stay_as_they_are_written(written):
    text = f"agents: {{a: {{platform: coze, bot_id: {written}, headers: {{X: {written}}}}}}}"
    agent: Any = parse(text, {}).agents["a"]
    assert (agent.bot_id, agent.headers["X"].reveal()) == (written, written)
    assert str(agent.headers["X"]) == "***"


def test_a_route_may_name_agents_that_look_like_numbers():
    text = "agents: {1: {platform: dify}, yes: {platform: dify}}\nroutes: {x: [1, yes]}"
    assert [target.agent for target in parse(text, {}).routes["x"]] == ["1", "yes"]


@pytest.mark.parametrize(
    "text", ["", "- a", "a: [", "agents: &a {x: *a}", "? [a]\n: 1", "agents: 3", "agents: {d: 4}",
             "\t", "agents: {a: {platform: [dify]}}", "x" * 100_000, "a: !!python/object:os.system x",
             "agents: {a: {platform: dify, headers: {X: \"a\\nb\"}}}"],
)  # fmt: skip
def test_a_file_of_another_shape_is_a_problem_not_a_traceback(text):
    assert problems(text)


def test_a_section_that_is_no_yaml_does_not_hide_the_others():
    found = problems(
        "server: {host: x\nauth: {tokn_ttl: 1m}\nagents:\n  a: {platform: dfy}\nroutes: {x: [nobody]}\n"
    )
    assert found[0].startswith("line 2: not valid YAML")
    assert [line.partition(":")[0] for line in found[1:]] == [
        "auth.tokn_ttl", "agents.a.platform", "routes.x[0]",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "agents", ["agents:\n  a: {platform: dify\n", "agents\n  a: {platform: dify}\n"]
)
def test_agents_that_are_no_yaml_are_not_reported_as_missing(agents):
    rest = "auth: {keys: [{name: web, key: sk-12345678, agents: [a]}]}\nroutes: {x: [a]}\n"
    (line,) = problems(agents + rest)
    assert re.match(r"line \d: not valid YAML", line)
    assert problems(rest)[0] == "agents: is missing"


@pytest.mark.parametrize(
    ("text", "words"),
    [("agents:\n  a: {platform: dify\n  b: {platform: coze}\n",
      "the bracket that opens on line 2 is not closed, or a comma is missing"),
     ("agents:\n  a: {platform: dify}\nauth: {keys: [{name: a\n",
      "the bracket that opens on line 3 is not closed"),
     ("agents:\n\ta: {platform: dify}\n", "line 2: not valid YAML: a tab stands there; indent with"),
     ("agents:\n  a:\n    platform: dify\n      api_key: x\n", "check the indentation"),
     ("agents:\n  a:\n    platform: dify\n   api_key: x\n", "begins in the same column"),
     ("agents:\n  a: {platform: dify}\n   b: {platform: dify}\n", "begins in the same column"),
     ("agents:\n  a:\n    api_key: \"app-x\" secret\n", "text follows a closing quote"),
     ("agents:\n  a:\n    api_key: x: y\n", "a value with ': ' in it needs quotes"),
     ("agents:\n  a:\n    api_key: \"x\n", "the quote that opens on line 3 is not closed"),
     ("agents:\n  a:\n    api_key: \"C:\\path\"\n", "use single quotes"),
     ("agents:\n  a:\n    api_key: @x\n", "put odd values in quotes")],
)  # fmt: skip
def test_advice_on_yaml_fits_the_mistake(text, words):
    found = "\n".join(problems(text))
    assert words in found
    assert ("put odd values" in found) == ("put odd values" in words)
