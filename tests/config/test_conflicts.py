"""Options that are valid alone but not together."""

import pytest
from problems import problems

from gateway.config.load import parse


def test_a_missing_key_is_a_problem_except_for_openai():
    assert problems("agents: {a: {platform: dify, base_url: 'http://x'}}") == [
        "agents.a.api_key: is empty; the platform at base_url will ask for one"
    ]
    assert parse("agents: {a: {platform: openai, base_url: 'http://localhost:11434'}}", {})


@pytest.mark.parametrize(
    "agent",
    ["{platform: fastgpt, upload: platform}", "{platform: openai, upload: platform}",
     "{platform: zhipu, upload: platform}", "{platform: zhipu, api: application, upload: platform}"],
)  # fmt: skip
def test_a_platform_that_keeps_no_files_cannot_be_given_uploads(agent):
    assert "agents.x.upload: this platform keeps no files" in problems(f"agents: {{x: {agent}}}")[0]


def test_demo_false_refuses_simulators():
    text = 'demo: false\nagents: {a: {platform: dify, base_url: "${DIFY_BASE_UR:-demo:}"}}'
    (problem,) = problems(text, DIFY_BASE_URL="http://h")
    assert problem.startswith("agents.a.base_url: is demo:, which `demo: false` refuses")


def test_background_calls_need_an_agent_that_exists():
    text = "agents: {dify: {platform: dify}, gpt: {platform: openai}}\nbackground: {model: %s}"
    assert problems(text % "difi") == [
        "background.model: there is no agent or route 'difi'; did you mean dify?"
    ]
    for name in ("dify", "GPT", "gpt/gpt-4o-mini"):
        assert parse(text % name, {}).background.model == name


def test_a_rule_for_an_unknown_kind_is_a_problem():
    (problem,) = problems("agents: {a: {platform: dify}}\nbackground: {rules: {titel: false}}")
    assert problem.startswith("background.rules.titel")


def test_the_limit_of_background_calls_follows_that_of_chats():
    limits = parse("agents: {a: {platform: dify}}\nrate_limits: {chat: 10/min}", {}).rate_limits
    assert (limits.tasks.capacity, round(limits.tasks.per_s, 3)) == (40, 0.667)
    none = parse("agents: {a: {platform: dify}}\nrate_limits: {tasks: null}", {}).rate_limits
    assert none.tasks is None
