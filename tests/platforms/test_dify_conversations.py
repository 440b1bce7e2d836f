"""Conversations of a Dify app, from the answers of real servers."""

import json

import pytest
from conversing import carried, reply, told
from hypothesis import given
from hypothesis import strategies as st
from test_dify_captures import FOLDER, read_capture

from gateway.errors import (
    ConversationNotFound,
    GatewayError,
    InvalidRequest,
    MessageNotFound,
    NotOffered,
    UpstreamMisconfigured,
    openai_body,
)
from gateway.platforms.dify.adapter import Dify
from gateway.platforms.dify.conversations import read_page
from gateway.platforms.dify.options import DifyOptions
from gateway.protocol.exchange import UpstreamReply
from gateway.protocol.history import Feedback

VERSIONS = ("0.15.3", "1.16.0")
TALK, MESSAGE = "b89eee78-b9d0-4bff-832b-43c1007a0e9b", "a8dcdc23-eed7-4fa8-8067-66edd6c5bc13"
FOUND = reply({"limit": 1, "has_more": False, "data": []})  # Dify has messages before this one
MISSING = reply({"code": "not_found", "message": "First Message Not Exists."}, 404)


def dify(**options) -> Dify:
    return Dify("d", DifyOptions(platform="dify", api_key="app-k", **options), "https://d.test")


def captured(version: str, name: str) -> UpstreamReply:
    status, headers, body = read_capture(FOLDER / version / f"{name}.http")
    return UpstreamReply(status, headers, body)


def page(name: str, version: str):
    result, _ = carried(dify().past_turns(TALK, "u", "", 20), captured(version, name))
    return result


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("app", ["chat", "chatflow"])
def test_a_message_is_a_turn(version, app):
    turn = page(f"{app}_get_messages", version).turns[0].data()
    real = json.loads(captured(version, f"{app}_get_messages").body)["data"][0]
    assert (turn["id"], turn["created"]) == (real["id"], real["created_at"])
    assert (turn["question"], turn["answer"], turn["reasoning"]) == ("短", "好的👌", "")
    assert (turn["status"], turn["error"], turn["feedback"]) == ("completed", "", None)
    assert (turn["files"], turn["citations"]) == ([], [])
    usage = {"prompt_tokens": 11, "completion_tokens": 2, "total_tokens": 13}
    if app == "chat":
        assert turn["usage"] == (usage if version == "1.16.0" else None)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_agents_thoughts_are_not_repeated(version):
    turn = page("agent-chat_get_messages", version).turns[0]
    assert turn.question == "现在时间？"
    assert turn.answer.startswith("现在时间是 2026-11-23")
    assert turn.answer.endswith("🕒。")
    assert turn.answer.count("现在时间") == 1


def test_messages_are_asked_for_by_user_and_cursor():
    step = dify().past_turns(TALK, "甲 &=乙", MESSAGE, 1000)
    assert told(step.request) == (
        "GET",
        "/v1/messages",
        {"conversation_id": TALK, "user": "甲 &=乙", "limit": "100", "first_id": MESSAGE},
        None,
    )
    assert step.request.headers["Authorization"] == "Bearer app-k"


def test_a_page_leads_to_the_older_one():
    messages = [{"id": "a"}, {"id": "b"}]
    assert read_page({"data": messages, "has_more": True}).before == "a"
    assert read_page({"data": messages, "has_more": False}).before == ""
    assert read_page({"data": [], "has_more": True}).before == ""


def test_a_turn_has_all_that_dify_keeps():
    file = {"id": "f", "filename": "图.png", "type": "image", "url": "https://d.test/f?sign=1",
            "mime_type": "image/png", "size": 5, "transfer_method": "local_file",
            "belongs_to": "user", "upload_file_id": "u"}  # fmt: skip
    made = {**file, "type": "document", "belongs_to": "assistant", "url": "/files/tools/x.pdf"}
    source = {"document_name": "手册.pdf", "content": "十天", "score": 0.81, "segment_id": "s"}
    message = {
        "id": MESSAGE, "query": "年假？", "answer": "<think>\n看手册\n</think>\n十天。",
        "created_at": 1795379444, "status": "error", "error": "[openai] Error: app-k\nbroke",
        "feedback": {"rating": "dislike"}, "message_files": [file, made],
        "retriever_resources": [source],
    }  # fmt: skip
    turn = read_page({"data": [message]}).turns[0]
    assert (turn.answer, turn.reasoning) == ("十天。", "看手册")
    assert (turn.status, turn.error) == ("failed", "[openai] Error: app-k broke")
    assert turn.feedback == Feedback("dislike")
    assert turn.citations == ({"title": "手册.pdf", "text": "十天", "score": 0.81},)
    first, second = (each.data() for each in turn.files)
    assert first == {"name": "图.png", "type": "image", "url": "https://d.test/f?sign=1",
                     "mime_type": "image/png", "size": 5, "belongs_to": "question"}  # fmt: skip
    assert (second["type"], second["url"], second["belongs_to"]) == ("document", "", "answer")


@pytest.mark.parametrize(
    ("status", "error", "neutral"),
    [
        ("normal", None, "completed"),
        ("error", "x", "failed"),
        ("paused", None, "waiting"),
        ("stopped", None, "stopped"),
        ("something new", None, "completed"),
        (5, "x", "failed"),
    ],
)
def test_the_status_of_a_turn(status, error, neutral):
    assert read_page({"data": [{"status": status, "error": error}]}).turns[0].status == neutral


MEMBERS = (
    "id created_at query answer message_files retriever_resources feedback status error "
    "message_tokens answer_tokens total_tokens"
).split()
ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(MEMBERS), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(MEMBERS), ODD) | ODD)
def test_members_of_any_type_never_raise(message):
    assert json.dumps(read_page({"data": [message], "has_more": True}).data())
    assert json.dumps(read_page({"data": message}).data())


# The other calls.


@pytest.mark.parametrize("version", VERSIONS)
def test_rename(version):
    result, asked = carried(
        dify().rename(TALK, "u", "新" * 300), captured(version, "chat_rename_conversation")
    )
    assert result is None
    method, path, _, body = told(asked[0])
    assert (method, path) == ("POST", f"/v1/conversations/{TALK}/name")
    assert body == {"name": "新" * 255, "user": "u"}


def test_make_title_gives_the_new_name():
    result, asked = carried(
        dify().make_title(TALK, "u"), captured("1.16.0", "chat_rename_conversation")
    )
    assert result == "新名字"
    assert told(asked[0])[3] == {"auto_generate": True, "user": "u"}


@pytest.mark.parametrize(
    ("version", "name"),
    [
        ("0.15.3", "chat_delete_conversation"),
        ("1.16.0", "chat_delete_conversation"),
        ("0.15.3", "chat_delete_conversation_again"),
        ("1.16.0", "chat_get_messages_unknown_conversation"),
    ],
)
def test_delete_is_done_also_if_it_was_gone(version, name):
    result, asked = carried(dify().delete(TALK, "u"), captured(version, name))
    assert result is None
    assert told(asked[0]) == ("DELETE", f"/v1/conversations/{TALK}", {}, {"user": "u"})


@pytest.mark.parametrize("version", VERSIONS)
def test_feedback_follows_proof_that_the_message_is_there(version):
    opinion = Feedback("like", "好", ("清楚",))
    step = dify().give_feedback(TALK, "u", MESSAGE, opinion)
    result, asked = carried(step, FOUND, captured(version, "chat_post_feedback"))
    assert result is None
    look, post = map(told, asked)
    assert look[:2] == ("GET", "/v1/messages")
    assert look[2] == {"conversation_id": TALK, "user": "u", "limit": "1", "first_id": MESSAGE}
    assert post[:2] == ("POST", f"/v1/messages/{MESSAGE}/feedbacks")
    assert post[3] == {"rating": "like", "user": "u", "content": "清楚\n好"}


def test_feedback_is_taken_back_also_if_there_is_none():
    problem = "rating cannot be None when feedback not exists"
    none = reply({"code": "invalid_param", "message": problem, "status": 400}, 400)
    step = dify().give_feedback(TALK, "u", MESSAGE, Feedback(None, "x"))
    result, asked = carried(step, FOUND, none)
    assert result is None
    assert told(asked[1])[3] == {"rating": None, "user": "u"}


@pytest.mark.parametrize(
    ("version", "name"),
    [("0.15.3", "chat_get_suggested"), ("1.16.0", "chat_get_suggested"),
     ("0.15.3", "chat_inputs_get_suggested"), ("1.16.0", "chat_inputs_get_suggested")],
)  # fmt: skip
def test_suggestions_that_are_switched_off_are_none(version, name):
    result, _ = carried(dify().suggest(TALK, "u", MESSAGE), FOUND, captured(version, name))
    assert result == ()


def test_suggestions_that_a_later_dify_refuses_are_none():
    off = {"code": "app_suggested_questions_after_answer_disabled", "message": "x"}
    assert carried(dify().suggest(TALK, "u", MESSAGE), FOUND, reply(off, 403))[0] == ()


def test_suggestions():
    answer = reply({"result": "success", "data": ["病假怎么请？", 5, "", "年假能跨年吗？"]})
    result, asked = carried(dify().suggest(TALK, "u&", MESSAGE), FOUND, answer)
    assert result == ("病假怎么请？", "年假能跨年吗？")
    assert told(asked[1])[1:3] == (f"/v1/messages/{MESSAGE}/suggested", {"user": "u&"})


# Refusals.


def calls(platform: Dify, message: str = MESSAGE) -> dict:
    return {
        "past_turns": lambda talk: platform.past_turns(talk, "u", "", 20),
        "rename": lambda talk: platform.rename(talk, "u", "t"),
        "make_title": lambda talk: platform.make_title(talk, "u"),
        "feedback": lambda talk: platform.give_feedback(talk, "u", message, Feedback("like")),
        "suggest": lambda talk: platform.suggest(talk, "u", message),
    }


CALLS = sorted(calls(dify()))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["unknown_conversation", "other_user"])
def test_an_unknown_or_foreign_conversation_is_404(call, version, name):
    step = calls(dify())[call](TALK)
    with pytest.raises(ConversationNotFound) as raised:
        step.learn(captured(version, f"chat_get_messages_{name}"))
    assert "did you mean" not in raised.value.message


@pytest.mark.parametrize("call", [*CALLS, "delete"])
@pytest.mark.parametrize("id_", ["", "abc", "../apps", "a b", f"{TALK}/name"])
def test_an_id_that_is_no_uuid_is_404_without_a_request(call, id_):
    with pytest.raises(ConversationNotFound):
        (calls(dify()) | {"delete": lambda talk: dify().delete(talk, "u")})[call](id_)


@pytest.mark.parametrize("call", ["feedback", "suggest"])
@pytest.mark.parametrize("id_", ["", "abc", "../x"])
def test_a_message_id_that_is_no_uuid_is_404(call, id_):
    with pytest.raises(MessageNotFound):
        calls(dify(), id_)[call](TALK)


@pytest.mark.parametrize("call", ["feedback", "suggest"])
def test_a_message_of_another_conversation_is_404(call):
    with pytest.raises(MessageNotFound):
        calls(dify())[call](TALK).learn(MISSING)


@pytest.mark.parametrize("call", ["feedback", "suggest"])
def test_a_message_that_went_meanwhile_is_404(call):
    gone = {"code": "not_found", "message": "Message Not Exists. You have requested", "status": 404}
    with pytest.raises(MessageNotFound):
        carried(calls(dify())[call](TALK), FOUND, reply(gone, 404))


@pytest.mark.parametrize("before", [MESSAGE, "x", "../"])
def test_an_unknown_cursor_is_400(before):
    with pytest.raises(InvalidRequest) as raised:
        dify().past_turns(TALK, "u", before, 5).learn(MISSING)
    assert raised.value.param == "before"


@pytest.mark.parametrize("mode", ["completion", "workflow"])
def test_an_app_without_conversations_offers_none(mode):
    for call in calls(dify(mode=mode)).values():
        with pytest.raises(NotOffered):
            call(TALK)


def test_an_app_that_turns_out_to_be_no_chat_offers_none():
    with pytest.raises(NotOffered) as raised:
        dify().past_turns(TALK, "u", "", 5).learn(captured("0.15.3", "workflow_get_messages"))
    assert (raised.value.status, raised.value.code) == (501, "not_offered")
    assert (raised.value.outage, raised.value.retryable) == (False, False)


def test_clear_is_not_offered():
    with pytest.raises(NotOffered, match="Dify cannot clear"):
        dify().clear(TALK, "u")


def test_a_bad_key_is_the_operators():
    bad = reply({"code": "unauthorized", "message": "Access token is invalid"}, 401)
    for call in calls(dify()).values():
        with pytest.raises(UpstreamMisconfigured):
            call(TALK).learn(bad)


@pytest.mark.parametrize("status", [200, 502])
def test_a_web_page_is_the_upstreams_failure(status):
    page = UpstreamReply(status, {"Content-Type": "text/html"}, b"<html>x</html>")
    for call in calls(dify()).values():
        with pytest.raises(GatewayError) as raised:
            call(TALK).learn(page)
        assert raised.value.outage is (status == 502)


def test_a_text_of_several_lines_is_one_line():
    answer = captured("1.16.0", "chat_get_messages_no_conversation")
    with pytest.raises(GatewayError) as raised:
        dify().past_turns(TALK, "u", "", 5).learn(answer)
    assert raised.value.status == 400
    assert "\n" not in openai_body(raised.value)["error"]["message"]
