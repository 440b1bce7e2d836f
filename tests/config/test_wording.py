"""pydantic's errors as sentences about config.yaml."""

import pytest
from problems import AGENT, problems


def test_a_typo_in_platform_is_reported_as_a_typo():
    assert problems("agents: {a: {platfrom: dify}}") == [
        "agents.a.platfrom: unknown key; did you mean platform?"
    ]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("x" * 129, "should have at most 128 characters"),
        ("/a", "contains characters that are not allowed here"),
        (r"a\n", "contains characters that are not allowed here"),
        (" a", "contains characters that are not allowed here"),
    ],
)
def test_any_other_name_is_refused_and_why(name, words):
    agents, routes = f'"{name}": {{platform: dify}}', f'"{name}": [a]'
    assert any(words in problem for problem in problems(f"agents: {{{agents}}}"))
    assert any(words in problem for problem in problems(f"{AGENT}routes: {{{routes}}}"))


@pytest.mark.parametrize(
    ("setting", "words"),
    [("auth: {anonymous: flase}", "auth.anonymous: must be 'auto', or true or false"),
     ("auth: {registration: maybe}", "auth.registration: must be true or false"),
     ("server: {port: abc}", "server.port: must be a whole number"),
     ("server: {port: 70000}", "server.port: must be less than or equal to 65535"),
     ("server: {reuse_port: [1]}", "server.reuse_port: must be true or false")],
)  # fmt: skip
def test_a_value_of_another_type_is_one_plain_problem(setting, words):
    assert problems(f"agents: {{a: {{platform: dify}}}}\n{setting}") == [words]
