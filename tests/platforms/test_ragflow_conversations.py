"""Sessions of RAGFlow, in the forms of its older and newer versions."""

import json

import pytest
from conversing import carried, reply, told
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import (
    ConversationNotFound,
    GatewayError,
    InvalidRequest,
    MessageNotFound,
    NotOffered,
    UpstreamMisconfigured,
)
from gateway.platforms.ragflow.adapter import RAGFlow
from gateway.platforms.ragflow.options import RAGFlowOptions
from gateway.protocol.exchange import UpstreamReply
from gateway.protocol.history import Feedback

GREETING = {"role": "assistant", "content": "你好，我能帮你什么？"}
OLD_CHUNK = {"id": "k", "content": "十天", "document_name": "手册.pdf", "similarity": 0.81}
NEW_CHUNK = {"content_with_weight": "十天", "docnm_kwd": "手册.pdf", "similarity": 0.81}
CITATION = {"title": "手册.pdf", "text": "十天", "score": 0.81}


def ragflow(**options) -> RAGFlow:
    options = options or {"chat_id": "bot/1"}
    agent = RAGFlowOptions(platform="ragflow", api_key="ragflow-k", **options)
    return RAGFlow("r", agent, "https://r.test")


def asked(text: str, **more) -> dict:
    return {"role": "user", "content": text, **more}


def said(text: str, **more) -> dict:
    return {"role": "assistant", "content": text, **more}


def session(*messages: dict, **more) -> UpstreamReply:
    about = {"id": "s", "name": "n", "messages": list(messages), **more}
    return reply({"code": 0, "message": "", "data": [about]})


def turns(*messages: dict, **more) -> list[dict]:
    page, _ = carried(ragflow().past_turns("s", "u", "", 20), session(*messages, **more))
    return page.data()["turns"]


def test_a_session_is_asked_for_by_its_id():
    step = ragflow().past_turns("s", "u", "", 20)
    query = {"id": "s", "page": "1", "page_size": "1", "dsl": "false"}
    assert told(step.request) == ("GET", "/api/v1/chats/bot%2F1/sessions", query, None)
    agent = ragflow(agent_id="a").past_turns("s", "u", "", 20)
    assert told(agent.request)[1] == "/api/v1/agents/a/sessions"


@pytest.mark.parametrize(
    ("mark", "in_message", "in_session"),
    [
        (" ##0$$", {"reference": [OLD_CHUNK]}, {}),
        (" [ID:0]", {}, {"reference": [{"chunks": [NEW_CHUNK]}]}),
        (" [ID:0]", {}, {"reference": [[NEW_CHUNK]]}),
    ],
)
def test_a_turn_of_each_version(mark, in_message, in_session):
    answer = said(
        f"<think>看手册</think>十天。{mark}", id="m", created_at=1795312801.5, **in_message
    )
    found = turns(GREETING, asked("年假？"), answer, **in_session)
    assert len(found) == 1
    turn = found[0]
    assert (turn["id"], turn["created"], turn["status"]) == ("m", 1795312801, "completed")
    assert (turn["question"], turn["answer"]) == ("年假？", "十天。 [1]")
    assert (turn["reasoning"], turn["citations"]) == ("看手册", [CITATION])


def test_an_agents_messages_and_its_references_by_hash():
    body = {"id": "s", "message": [asked("q"), said("a [ID:347]")]}
    body["reference"] = [{"chunks": {"347": NEW_CHUNK}}]
    step = ragflow(agent_id="a").past_turns("s", "u", "", 20)
    page, _ = carried(step, reply({"code": 0, "data": [body]}))
    assert (page.turns[0].answer, page.turns[0].citations) == ("a [1]", (CITATION,))


def test_a_failure_that_was_stored_as_an_answer_is_one():
    text = "**ERROR**: RATE_LIMIT_EXCEEDED - Error code: 429 - too many requests"
    turn = turns(asked("q"), said(text))[0]
    assert (turn["status"], turn["answer"]) == ("failed", "")
    assert "too many requests" in turn["error"]


@pytest.mark.parametrize(
    ("messages", "statuses"),
    [
        ([GREETING], []),
        ([asked("q")], ["running"]),
        ([asked("q"), said("")], ["failed"]),
        ([asked("q1"), asked("q2"), said("a")], ["failed", "completed"]),
        ([asked("q"), said("a"), said("b")], ["completed", "completed"]),
    ],
)
def test_the_status_of_turns(messages, statuses):
    assert [turn["status"] for turn in turns(*messages)] == statuses


@pytest.mark.parametrize(
    ("members", "feedback"),
    [
        ({"thumbup": True}, Feedback("like")),
        ({"thumbup": False, "feedback": "错"}, Feedback("dislike", "错")),
        ({"thumbup": None}, None),
        ({"thumbup": 1}, None),
    ],
)
def test_feedback_is_read_back(members, feedback):
    turn = turns(asked("q"), said("a", **members))[0]
    assert turn["feedback"] == (feedback and feedback.data())


@given(count=st.integers(0, 30), limit=st.integers(1, 12), more=st.integers(0, 5))
def test_pages_give_every_turn_once_while_the_session_grows(count, limit, more):
    messages = [m for n in range(count + more) for m in (asked(f"q{n}"), said(f"a{n}", id=f"{n}"))]
    shown, before, size = [], "", count
    while True:
        step = ragflow().past_turns("s", "u", before, limit)
        page, _ = carried(step, session(*messages[: 2 * size]))
        assert len(page.turns) <= limit
        shown[:0] = [turn.question for turn in page.turns]
        before, size = page.before, count + more
        if not before:
            break
    assert shown == [f"q{n}" for n in range(count)]


@pytest.mark.parametrize("before", ["x", "-1", "1e3", "9" * 11, "١"])
def test_another_cursor_is_400(before):
    with pytest.raises(InvalidRequest):
        ragflow().past_turns("s", "u", before, 5)


MEMBERS = "id role content created_at reference chunks thumbup feedback messages message".split()
ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["user", "assistant"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(MEMBERS), inner),
    max_leaves=8,
)


@given(st.lists(st.dictionaries(st.sampled_from(MEMBERS), ODD) | ODD, max_size=4) | ODD, ODD)
def test_members_of_any_type_never_raise(messages, reference):
    data = [{"id": "s", "messages": messages, "reference": reference}]
    step = ragflow().past_turns("s", "u", "", 5)
    page = step.learn(reply({"code": 0, "data": data}))
    assert json.dumps(page.data())


# The other calls.

SESSION = session(GREETING, asked("q", id="m"), said("a", id="m"))
NO_PATH = UpstreamReply(404, {}, b'{"code":404,"message":"Not Found: /x","data":null}')


def test_rename_in_newer_and_older_versions():
    good = reply({"code": 0, "data": {}})
    result, requests = carried(ragflow().rename("s/1", "u", "新" * 300), good)
    assert result is None
    path = "/api/v1/chats/bot%2F1/sessions/s%2F1"
    assert told(requests[0]) == ("PATCH", path, {}, {"name": "新" * 255})
    _, requests = carried(ragflow().rename("s/1", "u", "新"), NO_PATH, good)
    assert told(requests[1]) == ("PUT", path, {}, {"name": "新"})


@pytest.mark.parametrize(
    "answer",
    [
        reply({"code": 0, "data": True}),
        reply({"code": 102, "message": "The chat doesn't own the session s"}),
    ],
)
def test_delete_is_done_also_if_it_was_gone(answer):
    result, requests = carried(ragflow().delete("s", "u"), answer)
    assert result is None
    path = "/api/v1/chats/bot%2F1/sessions"
    assert told(requests[0]) == ("DELETE", path, {}, {"ids": ["s"]})


def test_delete_without_an_id_deletes_nothing():
    with pytest.raises(ConversationNotFound):
        ragflow().delete("", "u")


@pytest.mark.parametrize(
    ("feedback", "body"),
    [
        (Feedback("like"), {"thumbup": True, "feedback": ""}),
        (Feedback("dislike", "错", ("短",)), {"thumbup": False, "feedback": "短\n错"}),
    ],
)
def test_feedback(feedback, body):
    step = ragflow().give_feedback("s", "u", "m", feedback)
    result, requests = carried(step, SESSION, reply({"code": 0, "data": {}}))
    assert result is None
    path = "/api/v1/chats/bot%2F1/sessions/s/messages/m/feedback"
    assert told(requests[1]) == ("PUT", path, {}, body)


@pytest.mark.parametrize("message", ["", "x"])
def test_a_message_of_another_session_is_404(message):
    with pytest.raises(MessageNotFound):
        carried(ragflow().give_feedback("s", "u", message, Feedback("like")), SESSION)


def test_feedback_is_not_taken_back_nor_by_an_old_version():
    with pytest.raises(NotOffered):
        ragflow().give_feedback("s", "u", "m", Feedback())
    with pytest.raises(NotOffered, match="too old"):
        carried(ragflow().give_feedback("s", "u", "m", Feedback("like")), SESSION, NO_PATH)


def calls(platform: RAGFlow) -> list:
    return [
        platform.past_turns("s", "u", "", 5),
        platform.rename("s", "u", "t"),
        platform.give_feedback("s", "u", "m", Feedback("like")),
    ]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (reply({"code": 102, "message": "Session not found!"}), ConversationNotFound),
        (reply({"code": 109, "message": "no authorization"}), UpstreamMisconfigured),
        (reply({"code": 102, "message": "You don't own the chat x"}), UpstreamMisconfigured),
        (UpstreamReply(502, {}, b"<html>"), GatewayError),
        (UpstreamReply(200, {}, b"<html>"), GatewayError),
    ],
)
def test_a_refusal_is_its_error(answer, error):
    for step in calls(ragflow()):
        with pytest.raises(error) as raised:
            step.learn(answer)
        assert raised.value.outage is (answer.status == 502)


@pytest.mark.parametrize("data", [[], None, [{"id": "another"}], [5]])
def test_a_session_that_is_not_listed_is_404(data):
    with pytest.raises(ConversationNotFound):
        ragflow().past_turns("s", "u", "", 5).learn(reply({"code": 0, "data": data}))
