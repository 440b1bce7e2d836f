"""Requests to FastGPT: conversations, instructions, and replies to a question of its bot."""

import json
import re
from typing import Any

import orjson
import pytest
from decoding import feed, summary
from test_fastgpt_captures import capture, fastgpt

from gateway.platforms.base import Preliminary
from gateway.platforms.fastgpt.adapter import FastGPT
from gateway.platforms.fastgpt.decoder import FastGPTDecoder
from gateway.protocol.exchange import UpstreamReply, UpstreamRequest
from gateway.protocol.messages import ChatRequest, Failed, Message


def turn(text: str, conversation_id: str | None = "c-1") -> ChatRequest:
    return ChatRequest("f", (Message("user", text),), "u", conversation_id=conversation_id)


def sent(step: Any) -> Any:
    """The content of the last message of a completion."""
    assert isinstance(step, UpstreamRequest)
    assert step.url.endswith("/api/v1/chat/completions")
    return orjson.loads(step.body)["messages"][-1]["content"]


def hear(platform: FastGPT, chat: ChatRequest, name: str) -> None:
    """Feed a captured answer of 4.9.7 to `chat`."""
    feed(platform.decoder(chat), capture("4.9.7", name).body)


def test_a_number_is_sent_as_its_option():
    platform = fastgpt()
    hear(platform, turn("我要请假"), "select_pause_stream_detail")
    assert sent(platform.prepare(turn("2"))) == "财务部 💰"
    assert sent(platform.prepare(turn("人事部"))) == "人事部"
    assert sent(platform.prepare(turn("2", "c-2"))) == "2"  # that conversation has no open question


def test_a_retry_sends_the_option_again():
    platform = fastgpt()
    hear(platform, turn("我要请假"), "select_pause_stream_detail")
    assert [sent(platform.prepare(turn("2"))) for _ in range(2)] == ["财务部 💰"] * 2


def test_once_answered_a_number_is_a_number():
    platform = fastgpt()
    hear(platform, turn("我要请假"), "select_pause_stream_detail")
    hear(platform, turn("2"), "select_continue_stream_detail")
    assert sent(platform.prepare(turn("2"))) == "2"


def test_a_refused_call_leaves_the_question_open():
    platform = fastgpt()
    hear(platform, turn("我要请假"), "select_pause_stream_detail")
    hear(platform, turn("2"), "auth_bad_key_stream")
    assert sent(platform.prepare(turn("2"))) == "财务部 💰"


def test_a_question_inside_a_tool_is_answered_in_the_same_way():
    platform = fastgpt()
    hear(platform, turn("用工具"), "tools_select_pause")
    assert sent(platform.prepare(turn("1"))) == "人事部"


def test_lines_fill_the_form():
    platform = fastgpt()
    hear(platform, turn("请假"), "form_pause_stream_detail")
    lines = "原因：回家 🏠\n天数：3\n类型：年假"
    assert json.loads(sent(platform.prepare(turn(lines)))) == {
        "reason": "回家 🏠", "days": 3, "kind": "年假",
    }  # fmt: skip


# Another process, or this one before a restart, has shown the question.

ASKED = {
    "type": "userSelect",
    "params": {
        "description": "请选择部门 🏢",
        "userSelectOptions": [
            {"key": "option1", "value": "人事部"},
            {"key": "option2", "value": "财务部 💰"},
        ],
    },
}


def records(*values: Any) -> UpstreamReply:
    items = [{"obj": "Human", "value": [{"type": "text", "text": {"content": "我要请假"}}]}]
    items += [{"obj": "AI", "value": [value]} for value in values]
    body = {"code": 200, "statusText": "", "message": "", "data": {"list": items, "total": 2}}
    return UpstreamReply(200, {}, orjson.dumps(body))


def test_fastgpt_is_asked_for_a_numbers_option():
    step = fastgpt(app_id="6b").prepare(turn("2"))
    assert isinstance(step, Preliminary)
    assert step.request.url == "http://fastgpt.test/api/core/chat/getPaginationRecords"
    assert orjson.loads(step.request.body) == {
        "appId": "6b", "chatId": "c-1", "offset": 0, "pageSize": 2,
    }  # fmt: skip
    pause = {"type": "interactive", "interactive": ASKED}
    assert sent(step.learn(records(pause))) == "财务部 💰"
    nested = {"interactive": {"type": "loopInteractive", "params": {"childrenResponse": ASKED}}}
    assert sent(step.learn(records(nested))) == "财务部 💰"


def test_newer_servers_have_their_records_elsewhere():
    step = fastgpt(app_id="6b").prepare(turn("2"))
    moved = step.learn(UpstreamReply(404, {}, b"<!DOCTYPE html>"))
    assert moved.request.url == "http://fastgpt.test/api/core/chat/record/getPaginationRecords"
    assert sent(moved.learn(records({"interactive": ASKED}))) == "财务部 💰"
    assert sent(moved.learn(UpstreamReply(404, {}, b""))) == "2"


@pytest.mark.parametrize(
    "reply",
    [
        records({"type": "text", "text": {"content": "2 + 2 = ?"}}),
        records(),
        UpstreamReply(200, {}, capture("4.8.11", "records").body),
        UpstreamReply(200, {}, capture("4.9.7", "records").body),
        UpstreamReply(500, {}, b"oops"),
    ],
)
def test_where_nothing_was_asked_a_number_is_a_number(reply):
    assert sent(fastgpt(app_id="6b").prepare(turn("2")).learn(reply)) == "2"


@pytest.mark.parametrize("chat", [turn("2", None), turn("two"), turn("2 天")])
def test_nothing_is_looked_up_for_other_questions(chat):
    assert sent(fastgpt(app_id="6b").prepare(chat)) == chat.question.text


# Instructions.


def test_instructions_lead_the_first_turn():
    turns = (
        Message("system", "你是海盗"),
        Message("user", "旧问题"),
        Message("assistant", "旧回答"),
    )
    chat = ChatRequest("f", (*turns, Message("user", "历史")), "u")
    step = fastgpt().prepare(chat)
    assert isinstance(step, UpstreamRequest)
    assert orjson.loads(step.body)["messages"] == [
        {"role": "user", "content": "你是海盗\n\n旧问题"},
        {"role": "assistant", "content": "旧回答"},
        {"role": "user", "content": "历史"},
    ]


def test_instructions_lead_a_first_question():
    chat = ChatRequest("f", (Message("system", "你是海盗"), Message("user", "历史")), "u")
    assert sent(fastgpt().prepare(chat)) == "你是海盗\n\n历史"


# A failed node's message.


@pytest.mark.parametrize(
    ("node", "code", "words"),
    [
        ({"errorText": "aiPointsNotEnough"}, "insufficient_quota", "no credit left"),
        (
            {"errorText": "common:code_error.team_error.ai_points_not_enough"},
            "insufficient_quota", "no credit left",
        ),
        ({"error": "common:code_error.error_message.511"}, "upstream_auth_failed", "Check app_id"),
        ({"errorText": "401 令牌无效"}, "upstream_auth_failed", "HTTP 401 令牌无效"),
        ({"errorText": "chat:LLM_model_response_empty"}, "upstream_failed", "sent an empty answer"),
        ({"errorText": "chat:some_new_key"}, "upstream_failed", "did not say why"),
        ({"error": {"message": "null The server had an error"}}, "upstream_failed", ": The server"),
        (
            {"errorText": "502 <html>\r\n<head><title>502 Bad Gateway</title></head></html>"},
            "upstream_failed", "HTTP 502 it got a web page",
        ),
        ({"errorText": "http://x:80/a.b is away"}, "upstream_failed", "http://x:80/a.b is away"),
        (
            {"httpResult": {"error": {"message": "Request failed with status code 429"}}},
            "upstream_failed", "failed in its HTTP request",
        ),
        (
            {"httpResult": {"error": {"message": "Request failed with status code 401"}}},
            "upstream_failed", "failed in its HTTP request",
        ),
    ],
)  # fmt: skip
def test_a_failed_node_is_explained_in_plain_text(node, code, words):
    nodes = orjson.dumps([{"moduleName": "AI", **node}])
    body = b"event: answer\ndata: [DONE]\n\nevent: flowResponses\ndata: " + nodes + b"\n\n"
    failed = feed(FastGPTDecoder("c", detail=True), body)[-1]
    assert isinstance(failed, Failed)
    assert failed.error.code == code
    assert words in failed.error.message
    assert not re.search(r"common:|chat:|<html|null ", failed.error.message)


@pytest.mark.parametrize(
    ("nodes", "fails"),
    [
        ([{"error": "x"}, {}], False),
        ([{}, {"error": "x"}], True),
        ([{}, {"error": "x", "errorCaptured": True}], False),
        ([{}, {"error": {}, "errorText": ""}], False),
        ([{"moduleType": "pluginModule", "pluginDetail": [{}, {"errorText": "x"}]}], True),
        ([{"moduleType": "pluginModule", "pluginDetail": [{"errorText": "x"}, {}]}], False),
        ([{"moduleType": "tools", "toolDetail": [{"httpResult": {"error": {"message": "x"}}}]}], False),
        ([{"moduleType": "agent", "childrenResponses": [{"errorText": "x"}]}], False),
        ([{"httpResult": "plain text"}], False),
        (["odd", 7], False),
    ],
)  # fmt: skip
def test_only_the_last_node_cuts_an_answer(nodes, fails):
    said = {"choices": [{"delta": {"content": "好"}, "finish_reason": "stop"}]}
    body = b"event: answer\ndata: " + orjson.dumps(said) + b"\n\nevent: answer\ndata: [DONE]\n\n"
    body += b"event: flowResponses\ndata: " + orjson.dumps(nodes) + b"\n\n"
    got = summary(feed(FastGPTDecoder("c", detail=True), body))
    assert (got["text"], "error" in got) == ("好", fails)


def test_a_huge_result_of_a_tool_is_left_out():
    found = {"tool": {"id": "t", "response": "x" * (2 << 20)}}
    body = b"event: toolResponse\ndata: " + orjson.dumps(found) + b"\n\n"
    body += capture("4.9.7", "tools_stream_detail").body
    assert summary(feed(FastGPTDecoder("c", detail=True), body))["text"] == "杭州今天晴 ☀️。"
