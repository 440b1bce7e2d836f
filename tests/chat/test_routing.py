import random
from collections import Counter

import pytest

from gateway.chat.routing import Routing, pin
from gateway.config.load import parse
from gateway.errors import AgentNotFound

CONFIG = """
agents:
  Dify: {platform: dify}
  coze: {platform: coze}
  llm: {platform: openai, models: [a, org/b]}
routes:
  support: [Dify, coze]
  shared: [{agent: Dify, weight: 3}, {agent: coze, weight: 1}]
  with/slash: [coze]
"""


@pytest.fixture
def routing():
    config = parse(CONFIG, {})
    return Routing(config, dict.fromkeys(config.agents, "http://demo"), random.Random(7))


def names(targets):
    return [target.name for target in targets]


def test_agents_and_routes_are_found_in_any_case(routing):
    assert names(routing.resolve("DIFY")) == ["Dify"]
    assert names(routing.resolve(" Support ")) == ["Dify", "coze"]
    assert names(routing.resolve("with/slash")) == ["coze"]


def test_agent_slash_model_is_for_openai_compatible_agents_only(routing):
    assert names(routing.resolve("llm/anything/at-all")) == ["llm"]
    for name in ("dify/x", "support/x", "nobody/x", "", "/", "llm2"):
        with pytest.raises(AgentNotFound):
            routing.resolve(name)


@pytest.mark.parametrize(
    ("name", "model", "asked"),
    [
        (" LLM ", None, "llm"), ("LLM/Org/B", None, "llm/Org/B"), ("llm/a", "b", "llm/a"),
        ("llm", "Org/B", "llm/Org/B"), ("llm", "LLM/a", "llm/a"), ("llm", "llm", "llm"),
        ("llm", " ", "llm"), ("llm", {"id": "a"}, "llm"), ("dify", "a", "Dify"),
        ("SUPPORT", "a", "support"),
    ],
)  # fmt: skip
def test_a_model_is_chosen_after_the_name_or_on_its_own(routing, name, model, asked):
    assert routing.asked(name, model) == asked


def test_a_near_miss_is_suggested(routing):
    with pytest.raises(AgentNotFound, match="Did you mean 'support'"):
        routing.resolve("suport")


def test_weights_share_calls_and_the_rest_are_fallbacks(routing):
    first = Counter(names(routing.resolve("shared"))[0] for _ in range(4000))
    assert 0.70 < first["Dify"] / 4000 < 0.80
    assert sorted(names(routing.resolve("shared"))) == ["Dify", "coze"]


def test_models_are_agents_their_models_and_routes(routing):
    assert [name for name, _ in routing.models()] == [
        "Dify", "coze", "llm", "llm/a", "llm/org/b", "support", "shared", "with/slash",
    ]  # fmt: skip


def test_a_conversation_stays_with_the_agent_that_its_id_names(routing):
    targets = routing.resolve("support")
    (target,), conversation = pin(targets, "coze:c-1", True, None)
    assert (target.name, conversation) == ("coze", "c-1")
    assert names(pin(targets, None, True, None)[0]) == ["Dify", "coze"]
    assert pin(routing.resolve("coze"), "a:b", False, None)[1] == "a:b"


def test_an_id_invented_by_the_caller_keeps_its_agent(routing):
    for conversation in ("user-1", "user-2", "x:y", "nobody:1"):
        drawn = {
            names(pin(routing.resolve("shared"), conversation, True, None)[0])[0] for _ in range(20)
        }
        assert len(drawn) == 1
