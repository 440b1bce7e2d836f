"""Background calls are recognised, and chats never are: on requests that clients really send."""

import json
import time
from pathlib import Path

import pytest
from chats import CHATS, with_history

from gateway.background.answers import answer
from gateway.background.recognise import marked, recognise
from gateway.background.tasks import KINDS

REQUESTS = json.loads((Path(__file__).parent / "requests.json").read_text("utf-8"))
CHAT_REQUESTS = [one for one in REQUESTS if one["kind"] == "chat"]
CALLS = [one for one in REQUESTS if one["kind"].startswith("background:")]


def named(requests):
    return [pytest.param(one, id=f"{one['client']}/{one['action']}") for one in requests]


def request(client, action):
    return next(r["body"] for r in REQUESTS if (r["client"], r["action"]) == (client, action))


def test_at_least_nine_of_ten_recorded_calls_are_recognised():
    found = [recognise(one["body"]) for one in CALLS]
    assert len(found) - found.count(None) >= 0.9 * len(CALLS) > 12


KIND_OF = {
    ("open-webui", "title"): "title",
    ("open-webui", "follow-ups"): "follow_ups",
    ("open-webui", "file-query-generation"): "queries",
    ("open-webui", "autocomplete"): "autocomplete",
    ("open-webui", "emoji"): "emoji",
    ("open-webui", "merge-answers"): "merge",
    ("nextchat", "title"): "title",
    ("nextchat", "title-with-reasoning"): "title",
    ("nextchat", "summary-call"): "summary",
    ("lobechat", "title"): "title",
    ("lobechat", "rewrite-query"): "rewrite",
    ("lobechat", "language-detect"): "language",
    ("cherry-studio", "title"): "title",
    ("chatbox-ce", "title"): "title",
    ("obsidian-copilot", "title"): "title",
    ("dify-as-client", "validate"): "probe",
    ("cherry-studio", "check"): "probe",
}


@pytest.mark.parametrize(("client", "action"), KIND_OF)
def test_a_recorded_call_has_its_kind(client, action):
    assert recognise(request(client, action)).kind == KIND_OF[client, action]


@pytest.mark.parametrize("one", named(CHAT_REQUESTS))
def test_no_recorded_chat_is_a_background_call(one):
    assert recognise(one["body"]) is None


def test_a_greeting_without_a_limit_reaches_the_agent():
    # A probe that never reaches the agent could not find a broken one; and people greet, too.
    for client, action in (("lobechat", "check"), ("langbot", "model-test")):
        assert recognise(request(client, action)) is None


def test_a_translation_is_a_question():
    assert recognise(request("lobechat", "translate")) is None


def test_there_are_100_chats_of_our_own():
    assert len(CHATS) >= 100


@pytest.mark.parametrize("text", CHATS)
def test_no_chat_of_our_own_is_a_background_call(text):
    for options in ({"stream": True, "temperature": 0.5}, {"stream": True}, {"stream": False}):
        for messages in (
            [{"role": "user", "content": text}],
            [{"role": "system", "content": "You help."}, {"role": "user", "content": text}],
            with_history(text),
        ):
            assert recognise({"model": "dify", "messages": messages, **options}) is None


PASTED = [one for one in CALLS if one["client"] == "open-webui"]


@pytest.mark.parametrize("one", named(PASTED))
def test_a_prompt_that_a_user_pastes_is_a_question(one):
    prompt = one["body"]["messages"][-1]["content"]
    lone = [{"role": "user", "content": prompt}]
    for body in (
        {"messages": lone, "stream": True},
        {"messages": lone, "stream": True, "tools": [{"type": "function"}]},
        {"messages": lone, "stream": False, "temperature": 0.5},
        {"messages": with_history(prompt), "stream": True},
        {"messages": [{"role": "user", "content": f"What does this do?\n\n{prompt}"}]},
        {"messages": [{"role": "user", "content": f"{prompt}\n\nWhat does this do?"}]},
    ):
        assert recognise(body) is None


@pytest.mark.parametrize("one", named(CALLS))
def test_tools_or_a_conversation_make_it_a_chat(one):
    for extra in ({"tools": [{"type": "function"}]}, {"conversation_id": "c"}, {"chat_id": "c"}):
        assert recognise({**one["body"], **extra}) is None


HISTORY = "<chat_history>\nUSER: 怎么清洁自行车链条？\nASSISTANT: 先用刷子。\n</chat_history>"


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (  # 2.x of a web client, Chinese
            "title",
            {
                "stream": False,
                "messages": with_history(
                    "使用四到五个字直接返回这句话的简要主题，不要解释、不要标点、不要语气词、"
                    "不要多余文本，不要加粗，如果没有主题，请直接返回“闲聊”"
                ),
            },
        ),
        (
            "summary",
            {
                "stream": True,
                "messages": [
                    *with_history("多久一次？"),
                    {"role": "assistant", "content": "每月一次。"},
                    {"role": "system", "content": "简要总结以上内容，作为后续提示，200 字以内"},
                ],
            },
        ),
        (
            "title",
            {
                "messages": [
                    {"role": "system", "content": "把会话总结为 10 个字以内的标题，不要标点符号"},
                    {"role": "user", "content": "用户：怎么清洁链条？\n助手：先用刷子。"},
                ]
            },
        ),
        (
            "tags",
            {
                "messages": [
                    {
                        "role": "user",
                        "content": '### Task:\n生成标签\n### 输出:\n{ "tags": ["标签"] }\n'
                        f"### 历史:\n{HISTORY}",
                    }
                ]
            },
        ),
        (
            "title",
            {
                "messages": [
                    {"role": "system", "content": "Name the topic of the chat as a title."},
                    {"role": "user", "content": "user: hi\nassistant: hello"},
                ],
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"schema": {"properties": {"title": {"type": "string"}}}},
                },
            },
        ),
        (
            "summary",
            {
                "messages": [
                    {"role": "system", "content": "You summarize conversations."},
                    {
                        "role": "user",
                        "content": f"{HISTORY}\n\nKeep what matters, in 400 tokens at most.",
                    },
                ]
            },
        ),
        ("probe", {"messages": [{"role": "user", "content": "Hi!"}], "max_tokens": 1}),
        ("probe", {"messages": [{"role": "user", "content": "ping"}], "max_completion_tokens": 5}),
    ],
)
def test_other_forms_are_recognised(kind, body):
    assert recognise(body).kind == kind


def test_a_short_question_with_a_limit_of_tokens_is_a_question():
    body = {"messages": [{"role": "user", "content": "Is 7 prime?"}], "max_tokens": 10}
    assert recognise(body) is None


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": None},
        {"messages": []},
        {"messages": ["x"]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        {"messages": [{"role": 5, "content": {}}]},
        {"messages": [{"role": "user", "content": "ping"}], "max_tokens": "5"},
        {"messages": [{"role": "user", "content": "x"}] * 3, "response_format": "json"},
    ],
)
def test_a_body_of_any_form_is_looked_at_without_an_error(body):
    assert recognise(body) is None
    assert marked("title", body).kind == "title"


def test_a_file_makes_it_a_chat():
    content = [
        {"type": "text", "text": "ping"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}},
    ]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 5}
    assert recognise(body) is None


def test_parts_of_text_are_read_like_plain_text():
    body = request("open-webui", "title")
    text = body["messages"][0]["content"]
    parts = [{"role": "user", "content": [{"type": "text", "text": text}]}]
    assert recognise({**body, "messages": parts}) == recognise(body)


def cost_us(body, repeats=2000):
    """The least of five measurements."""
    best = 1e9
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(repeats):
            recognise(body)
        best = min(best, time.perf_counter() - began)
    return best / repeats * 1e6


def test_an_ordinary_chat_costs_next_to_nothing():
    # Under 3 µs on the machine that this was written on; other machines may be several times slower.
    for one in CHAT_REQUESTS[:20]:
        assert cost_us(one["body"]) < 20


def test_a_huge_text_costs_no_more_than_a_long_one():
    head = '### Task:\n{ "title": "x" }\n<chat_history>\nUSER: '
    for text in (head + "user: a\n" * 1_250_000 + "</chat_history>", "title 5 words\n" * 700_000):
        for messages in ([{"role": "user", "content": text}], with_history(text)):
            assert cost_us({"messages": messages}, repeats=1) < 50_000


def test_the_caller_may_name_any_kind():
    body = {"messages": [{"role": "user", "content": "How do I clean a chain?"}], "tools": [{}]}
    assert {marked(kind, body).kind for kind in KINDS} == set(KINDS)
    assert answer(marked("title", body)) == "How do I clean a chain"


def test_an_example_in_a_marked_prompt_decides_the_form():
    text = 'Name it: {"title": "…"}\nUSER: How do I clean a chain?'
    body = {"messages": [{"role": "user", "content": text}]}
    assert json.loads(answer(marked("title", body))) == {"title": "How do I clean a chain"}
