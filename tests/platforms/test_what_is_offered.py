"""What each platform can do with a conversation: it works, or is refused by name."""

import pytest
from conversing import carried, reply, told

from gateway.config import kinds
from gateway.errors import ConversationNotFound, NotOffered, UpstreamMisconfigured, api_body
from gateway.platforms.base import BasePlatform, Platform, Preliminary
from gateway.protocol.history import Feedback

TALK = MESSAGE = "b89eee78-b9d0-4bff-832b-43c1007a0e9b"
CALLS = {
    "past_turns": lambda p: p.past_turns(TALK, "u", "", 20),
    "rename": lambda p: p.rename(TALK, "u", "t"),
    "make_title": lambda p: p.make_title(TALK, "u"),
    "delete": lambda p: p.delete(TALK, "u"),
    "clear": lambda p: p.clear(TALK, "u"),
    "give_feedback": lambda p: p.give_feedback(TALK, "u", MESSAGE, Feedback("like")),
    "suggest": lambda p: p.suggest(TALK, "u", MESSAGE),
}
OFFERED = {
    "dify": set(CALLS) - {"clear"},
    "fastgpt": set(CALLS) - {"clear", "make_title"},
    "coze": set(CALLS) - {"make_title"},
    "zhipu application": {"suggest"},
    "zhipu glms": set(),
    "zhipu models": set(),
    "ragflow": {"past_turns", "rename", "delete", "give_feedback"},
    "ragflow agent": {"past_turns", "delete"},
    "n8n": set(),
    "openai": set(),
}
SPEAK = {"dify", "fastgpt", "coze", "zhipu models", "openai"}
TRANSCRIBE = SPEAK - {"fastgpt"}
OPTIONS = {
    "fastgpt": {"app_id": "66f0a1b2c3d4e5f6071829ff"},
    "coze": {"bot_id": "7"},
    "ragflow": {"chat_id": "c"},
    "ragflow agent": {"agent_id": "a"},
    "zhipu glms": {"api": "glms", "assistant_id": "a"},
    "zhipu application": {"api": "application", "app_id": "a"},
    "openai": {"model": "m"},
}


def platform(name: str) -> Platform:
    kind = kinds.built_in()[name.partition(" ")[0]]
    options = {"platform": kind.name, "api_key": "id.secret", **OPTIONS.get(name, {})}
    return kind.adapter("bot", kind.options(**options), "https://x.test")


def test_every_platform_is_in_the_table():
    assert {name.partition(" ")[0] for name in OFFERED} == set(kinds.built_in())


@pytest.mark.parametrize("name", OFFERED)
@pytest.mark.parametrize("call", CALLS)
def test_a_call_works_or_is_refused_by_name(name, call):
    one = platform(name)
    if call in OFFERED[name]:
        assert isinstance(CALLS[call](one), Preliminary)
        return
    with pytest.raises(NotOffered) as raised:
        CALLS[call](one)
    error = raised.value
    assert kinds.built_in()[name.partition(" ")[0]].title in error.message
    assert (error.status, error.code, error.outage, error.should_retry) == (
        501, "not_offered", False, False,
    )  # fmt: skip
    assert api_body(error, "zh")["msg"] != error.message


@pytest.mark.parametrize("name", OFFERED)
def test_audio_is_offered_by_some(name):
    one = platform(name)
    assert (one.speech is not None, one.transcription is not None) == (
        name in SPEAK, name in TRANSCRIBE,
    )  # fmt: skip


def test_a_platform_of_another_package_may_have_no_name():
    with pytest.raises(NotOffered, match=r"This agent's platform cannot rename"):
        BasePlatform().rename(TALK, "u", "t")


# Zhipu's applications, which suggest and no more.

SAMPLE = {
    "data": {"problems": ["需要哪些材料？", "多久能办完？"]}, "code": 200, "message": "SUCCESS",
    "timestamp": 1795312801000,
}  # fmt: skip


def test_suggestions_of_a_zhipu_application():
    step = platform("zhipu application").suggest("75/", "u", "")
    result, asked = carried(step, reply(SAMPLE))
    assert result == ("需要哪些材料？", "多久能办完？")
    path = "/api/llm-application/open/history_session_record/a/75%2F"
    assert told(asked[0])[:2] == ("GET", path)


@pytest.mark.parametrize("data", [None, [], {"problems": None}, {"problems": [5, {}, ""]}])
def test_a_zhipu_application_without_suggestions(data):
    step = platform("zhipu application").suggest("75", "u", "")
    assert carried(step, reply({**SAMPLE, "data": data}))[0] == ()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (reply({"code": 10404, "message": "conversation not found"}), ConversationNotFound),
        (
            reply({"error": {"code": "1000", "message": "身份验证失败。"}}, 401),
            UpstreamMisconfigured,
        ),
    ],
)
def test_a_refusal_of_a_zhipu_application(answer, error):
    with pytest.raises(error):
        carried(platform("zhipu application").suggest("75", "u", ""), answer)
