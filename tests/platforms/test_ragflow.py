"""RAGFlow: chat assistants and agents, of newer servers and of older ones."""

import json
from pathlib import Path

import aiohttp
import orjson
import pytest
from conftest import Script, streamed
from decoding import feed, summary
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.config import kinds
from gateway.config.check import address_problem
from gateway.errors import GatewayError, InvalidRequest, clean
from gateway.platforms.base import Preliminary
from gateway.platforms.ragflow.adapter import RAGFlow
from gateway.platforms.ragflow.decoder import RAGFlowDecoder
from gateway.platforms.ragflow.failures import explain, explain_answer
from gateway.platforms.ragflow.marks import Marks
from gateway.platforms.ragflow.options import RAGFlowOptions
from gateway.protocol.exchange import UpstreamReply
from gateway.protocol.messages import (
    ChatRequest,
    Failed,
    Finish,
    Message,
    Note,
    Replace,
    Text,
)

SAMPLES = Path(__file__).parent / "samples" / "ragflow"
HOST = "http://rag.example.com:9380"


def options(**more) -> RAGFlowOptions:
    bot = {} if "agent_id" in more else {"chat_id": "c1"}
    told = {"platform": "ragflow", "api_key": "ragflow-test-key", "base_url": HOST, **bot, **more}
    return RAGFlowOptions(**told)


def ragflow(url: str = HOST, **more) -> RAGFlow:
    return RAGFlow("kb", options(**more), url)


def question(*turns: str, **more) -> ChatRequest:
    roles = ("user", "assistant") if len(turns) % 2 else ("assistant", "user")
    messages = tuple(Message(roles[i % 2], text) for i, text in enumerate(turns))
    return ChatRequest("kb", messages, "u-1", **more)


def reply(body: object, status: int = 200, kind: str = "application/json") -> UpstreamReply:
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    return UpstreamReply(status, {"Content-Type": kind}, raw)


def frame(answer: str, **flags) -> bytes:
    value = {"code": 0, "data": {"answer": answer, "reference": {}, "session_id": "s", **flags}}
    return b"data:" + orjson.dumps(value) + b"\n\n"


END = b'data:{"code":0,"data":true}\n\n'


def told(*frames: bytes, frames_are: str = "auto", end: bytes = END) -> dict:
    return summary(feed(RAGFlowDecoder(frames_are), b"".join(frames) + end, 7))


# How frames are read.


@pytest.mark.parametrize(
    ("answers", "text"),
    [
        (("你好", "你好，我", "你好，我"), "你好，我"),
        (("你", "你好", "你好！"), "你好！"),
        (("哈", "哈", "!"), "哈哈!"),
        (("哈", "哈哈"), "哈哈"),
        (("好",), "好"),
        (("好", "好"), "好"),
        (("今天", "晴"), "今天晴"),
        (("你好，世", "你好，世界", "你好。"), "你好。"),
    ],
)
def test_frames_without_flags_are_told_apart(answers, text):
    assert told(*map(frame, answers))["text"] == text


def test_a_flag_means_deltas():
    assert told(frame("哈哈", final=False), frame("哈哈", final=False))["text"] == "哈哈哈哈"


def test_options_fix_how_frames_are_read():
    twice = frame("哈哈"), frame("哈哈哈")
    assert told(*twice, frames_are="delta")["text"] == "哈哈哈哈哈"
    assert told(*twice, frames_are="cumulative")["text"] == "哈哈哈"


def test_a_second_try_replaces_the_text():
    raw = frame("今天") + frame("今天晴") + frame("你") + frame("你好") + END
    deltas = feed(RAGFlowDecoder(), raw)
    assert Replace("你", None) in deltas
    assert summary(deltas)["text"] == "你好"


def test_the_final_frame_counts_if_no_text_came_before():
    final = frame("<think>想</think>只有这里", final=True)
    assert told(final)["text"] == "只有这里"
    assert told(final)["reasoning"] == "想"
    thinks = frame("想", start_to_think=True, final=False), frame("", end_to_think=True)
    got = told(*thinks, final)
    assert (got["reasoning"], got["text"]) == ("想", "只有这里")


def test_text_held_for_a_mark_counts_before_the_final_frame():
    assert told(frame("好#", final=False), frame("好#", final=True))["text"] == "好#"
    assert told(frame("#", final=False), frame("#", final=True))["text"] == "#"


def test_a_chat_without_datasets_ends_without_a_final_frame():
    got = told(frame("", start_to_think=True, final=False), frame("想", final=False),
               frame("", end_to_think=True, final=False), frame("好", final=False))  # fmt: skip
    assert (got["finish"], got["reasoning"], got["text"]) == ("stop", "想", "好")


# Marks.


def marked(text: str, size: int) -> tuple[str, list[str], str]:
    """(text, steps, error) of marked text that comes in pieces of `size`."""
    marks = Marks()
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    out = [piece for part in pieces for piece in marks.feed(part)] + marks.close()
    steps = [piece.data[0]["title"] for piece in out if isinstance(piece, Note)]
    return "".join(p.text for p in out if isinstance(p, Text)), steps, marks.error


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("甲[ID:4]乙[ID:0][ID:4]。", "甲[1]乙[2][1]。"),
        ("甲 ##7$$ 乙##0$$", "甲 [1] 乙[2]"),
        ("【ID: 3】 [ID:12 3]", "[1] [2][1]"),
        ("a[0], [I, [ID, [ID:], ##x, # 标题\n## 二\n$$", "a[0], [I, [ID, [ID:], ##x, # 标题\n## 二\n$$"),
        ("**注意** **ERROR** 是级别，**ERROR**: 也是", "**注意** **ERROR** 是级别，**ERROR**: 也是"),
        ("1 < 2 <retrieve> x</retrieving>", "1 < 2 <retrieve> x</retrieving>"),
    ],
)  # fmt: skip
def test_marks_are_numbered_as_they_appear(text, want, size):
    assert marked(text, size) == (want, [], "")


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_steps_of_deep_research_are_progress(size):
    text = "<retrieving>搜 A<br/>搜 B<br/>\n看</retrieving>答<retrieving>再搜</retrieving>案"
    assert marked(text, size) == ("答案", ["搜 A", "搜 B", "看", "再搜"], "")


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_an_error_is_no_text(size):
    assert marked("**ERROR**: 没有授权", size) == ("", [], "**ERROR**: 没有授权")
    failed = "**ERROR**: SERVER_ERROR - x [ID:0]"
    assert marked(f"半句{failed}", size) == ("半句", [], failed)


@given(st.text("[]ID:0 #$*<>retivngERO/b\n", max_size=60), st.integers(1, 9))
def test_pieces_of_any_size_give_the_same_text(text, size):
    if "\n**ERROR**: " not in text:  # that counts only as the beginning of a piece
        assert marked(text, size) == marked(text, len(text) + 1)


FRAMES = st.lists(
    st.tuples(
        st.text("[ID:0]#$*<think>/ 好\n", max_size=12),
        st.fixed_dictionaries(
            {},
            optional=dict.fromkeys(("final", "start_to_think", "end_to_think"), st.booleans())
            | {"reference": st.sampled_from([None, {"chunks": [{}]}, {"chunks": {"3": None}}])},
        ),
    ),
    max_size=8,
)


@given(FRAMES, st.integers(1, 99), st.sampled_from(["auto", "delta", "cumulative"]))
def test_any_frames_end_once_and_alike(frames, size, frames_are):
    raw = b"".join(frame(answer, **flags) for answer, flags in frames) + END
    deltas = feed(RAGFlowDecoder(frames_are), raw, size)
    assert [type(d) in (Finish, Failed) for d in deltas].index(True) == len(deltas) - 1
    assert summary(deltas) == summary(feed(RAGFlowDecoder(frames_are), raw))


@given(st.lists(st.text("[]ID:0 #$*<>/think好\n", min_size=1, max_size=9), min_size=1, max_size=9))
def test_deltas_and_cumulative_frames_say_the_same(pieces):
    whole = "".join(pieces)
    so_far = ["".join(pieces[: i + 1]) for i in range(len(pieces))]
    assert told(*map(frame, pieces), frames_are="delta") == told(frame(whole), frames_are="delta")
    if "</think>" not in whole:
        growing = told(*map(frame, so_far), frames_are="cumulative")
        assert growing == told(*map(frame, pieces), frames_are="delta")


# Agents.


def event(name: str, **data) -> bytes:
    value = {"event": name, "message_id": "m", "session_id": "s", "data": data}
    return b"data:" + orjson.dumps(value) + b"\n\n"


FAILED = event("node_finished", outputs={}, error="boom", component_type="Agent")
FINISHED = event("workflow_finished", outputs={})
DONE = b"data:[DONE]\n\n"


@pytest.mark.parametrize(
    ("events", "end"),
    [
        ((event("message", content="好"), FINISHED), "stop"),
        ((event("message", content="好"),), "stop"),
        ((event("message", content="默认"), FAILED, FINISHED), "stop"),
        ((FAILED, event("message", content="好"), FINISHED), "stop"),
        ((event("message", content="好"), FAILED), "UpstreamFailed"),
        ((FAILED,), "UpstreamFailed"),
        ((FAILED, FINISHED), "UpstreamFailed"),
        ((FINISHED,), "EmptyAnswer"),
        ((event("error", message="boom"),), "UpstreamFailed"),
    ],
)
def test_how_an_agents_run_ends(events, end):
    got = told(*events, end=DONE)
    assert (got.get("finish") or got.get("error")) == end


def test_the_end_of_the_connection_is_no_end_of_the_run():
    assert told(event("message", content="好"), end=b"")["error"] == "UpstreamCut"
    assert told(event("message", content="好"), FAILED, end=b"")["error"] == "UpstreamFailed"
    assert told(event("message", content="好"), FINISHED, end=b"")["finish"] == "stop"


@pytest.mark.parametrize(
    ("inputs", "said", "want"),
    [
        ({"city": {"name": "城市", "options": ["杭州", "上海"]}}, "2", {"city": "上海"}),
        ({"city": {"name": "城市", "type": "line"}}, "杭州", {"city": "杭州"}),
        ({"a": {"name": "几位", "type": "integer"}, "b": {"name": "哪天"}}, "几位：3，哪天：周五",
         {"a": 3, "b": "周五"}),
        ({"a": {"name": "甲"}, "b": {"name": "乙"}}, "不知道", {}),
    ],
)  # fmt: skip
def test_the_answer_to_a_pause_fills_its_inputs(inputs, said, want):
    platform = ragflow(agent_id="a1")
    paused = event("user_inputs", inputs=inputs, tips="请填写") + DONE
    got = summary(feed(platform.decoder(question("hi")), paused))
    assert got["text"].startswith("请填写\n- ")
    assert got["notes"]["interaction"]["inputs"] == inputs
    body = orjson.loads(platform.prepare(question(said, conversation_id="s")).body)
    filled = {key: value["value"] for key, value in body.get("inputs", {}).items()}
    assert (body["session_id"], body["query"], filled) == ("s", said, want)
    feed(platform.decoder(question(said, conversation_id="s")), event("message", content="好"))
    body = orjson.loads(platform.prepare(question("1", conversation_id="s")).body)
    assert "inputs" not in body  # the agent waits no more


def test_a_pause_that_shows_nothing_says_that_the_bot_waits():
    assert "waiting" in told(event("user_inputs", inputs={}), end=DONE)["text"]


# Failures.


@pytest.mark.parametrize(
    ("body", "status", "want"),
    [
        ({"code": 109, "message": "Authentication error: API key is invalid!"}, 200, 502),
        ({"code": 401, "message": "<Unauthorized '401: Unauthorized'>"}, 401, 502),
        ({"code": 100, "message": "<Unauthorized '401: Unauthorized'>"}, 200, 502),
        ({"code": 108, "message": "no permission"}, 200, 502),
        ({"code": 102, "message": "You don't own the chat c1"}, 200, 502),
        ({"code": 102, "message": "Agent not found."}, 404, 502),
        ({"code": 102, "message": "Session does not belong to this chat!"}, 200, 404),
        ({"code": 102, "message": "You don't own the session s"}, 200, 404),
        ({"code": 100, "message": "LookupError('Session does not exist')"}, 200, 404),
        ({"code": 102, "message": "Please input your question."}, 200, 400),
        ({"code": 101, "message": "required argument are missing: x"}, 200, 400),
        ({"code": 100, "message": "Exception('boom')"}, 200, 502),
        ({"code": 105, "message": "connect"}, 200, 502),
        ({"code": 500, "message": "boom", "data": {"answer": "**ERROR**: boom"}}, 200, 502),
        ({"code": 500, "message": "**ERROR**: QUOTA_EXCEEDED - x"}, 200, 429),
        ({"code": 500, "message": "TIMEOUT - x"}, 200, 504),
        ({"code": 100, "message": "RATE_LIMIT_EXCEEDED - x"}, 200, 429),
        ({"code": 500, "message": "**ERROR**: Session does not exist"}, 200, 404),
        ({"code": 404, "message": "Not Found: /x"}, 404, 502),
        (b"<html><title>502 Bad Gateway</title></html>", 502, 502),
        (b"<!doctype html><title>RAGFlow</title>", 200, 502),
        ({"detail": "slow down"}, 429, 429),
    ],
)
def test_refusals_in_all_their_shapes(body, status, want):
    assert explain(reply(body, status)).status == want


@pytest.mark.parametrize(
    ("text", "status", "code"),
    [
        ("RATE_LIMIT_EXCEEDED - slow down", 429, "rate_limit_exceeded"),
        ("QUOTA_EXCEEDED - x", 429, "insufficient_quota"),
        ("AUTH_ERROR - x", 502, None),
        ("TIMEOUT - x", 504, None),
        ("CONTENT_FILTERED - x", 400, None),
        ("INVALID_REQUEST - x", 502, None),
        ("INVALID_REQUEST - maximum context length is 8192 tokens", 400, None),
        ("MAX_RETRIES_EXCEEDED - Error code: 429 - x", 429, "rate_limit_exceeded"),
        ("MODEL_ERROR - x", 502, None),
        ("rate limit of your plan", 429, "rate_limit_exceeded"),
        ("Model(x) not authorized", 502, None),
    ],
)
def test_an_answer_that_is_an_error_has_the_status_of_its_class(text, status, code):
    error = explain_answer(f"**ERROR**: {text}")
    assert error.status == status
    assert code in (None, error.code)
    assert not error.retryable  # the bot has run
    got = told(frame(f"**ERROR**: {text}", final=False), frame("", final=True))
    assert (got["status"], got["text"]) == (status, "")


def test_a_failed_frames_answer_tells_its_class():
    data = {"answer": "**ERROR**: RATE_LIMIT_EXCEEDED - x", "reference": []}
    failed = b"data:" + orjson.dumps({"code": 500, "message": "boom", "data": data}) + b"\n\n"
    assert told(failed)["status"] == 429


def test_a_failure_after_text_ends_it():
    got = told(frame("年假", final=False), b'data:{"code":102,"message":"boom","data":false}\n\n')
    assert (got["text"], got["status"]) == ("年假", 502)
    got = told(frame("年假"), frame("年假十天"), frame("年假十天\n**ERROR**: 503"))
    assert (got["text"], got["error"]) == ("年假十天", "UpstreamFailed")


# Requests.


@pytest.mark.parametrize(
    "given",
    ["", "/", "/api/v1", "/api/v1/", "/v1", "/api", "/api/v1/chat/completions",
     "/api/v1/chats/c1/completions", "/api/v1/chats_openai/c1/chat/completions",
     "/api/v1/openai/c1/chat/completions", "/api/v1/agents/a1/completions",
     "/api/v1/chats/c1/sessions/s1/completions", "/api/v1/agents_openai/a1/chat/completions"],
)  # fmt: skip
def test_every_form_of_the_address_leads_to_the_api(given):
    request = ragflow(f"{HOST}{given}").prepare(question("hi"))
    assert request.url == f"{HOST}/api/v1/chat/completions"
    assert not address_problem("ragflow", f"{HOST}{given}".rstrip("/"))


def test_a_page_leads_to_the_api():
    problem = address_problem("ragflow", "https://rag.example.com/next-chats/chat/c1")
    assert "https://rag.example.com/api/v1" in problem


def test_one_bot_is_needed():
    with pytest.raises(ValidationError, match="chat_id or agent_id"):
        options(chat_id=None)
    with pytest.raises(ValidationError, match="not both"):
        options(chat_id="c", agent_id="a")
    assert RAGFlowOptions(platform="ragflow").is_demo


def test_a_conversation_gets_its_new_question_alone():
    request = ragflow(variables={"lang": "zh"}).prepare(
        question("一", "答", "二", conversation_id="s", variables={"who": "HR"})
    )
    want = {"question": "二", "session_id": "s", "chat_id": "c1", "stream": True}
    assert orjson.loads(request.body) == {"lang": "zh", "who": "HR", **want}


def test_turns_without_a_conversation_leave_none():
    chat = question("一", "答", "二")
    chat.messages = (Message("system", "简短"), *chat.messages)
    body = orjson.loads(ragflow().prepare(chat).body)
    assert [turn["role"] for turn in body["messages"]] == ["user", "assistant", "user"]
    assert body["messages"][0]["content"] == "简短\n\n一"
    assert (body["pass_all_history_messages"], body["store_history_messages"]) == (True, False)
    assert "session_id" not in body


@pytest.mark.parametrize("name", ["llm_id", "chat_id", "store_history_messages"])
def test_variables_cannot_be_settings(name):
    with pytest.raises(InvalidRequest):
        ragflow().prepare(question("hi", variables={name: "x"}))


@pytest.mark.parametrize("missing", [reply(b"404 page", 404, "text/plain"), reply(b"", 405),
                                     reply({"code": 404, "message": "Not Found: /api/v1/x"})])  # fmt: skip
@pytest.mark.parametrize("more", [{}, {"agent_id": "a1"}])
def test_an_older_server_gets_a_session_first(missing, more):
    platform, chat = ragflow(**more), question("一", "答", "二")
    own = f"{HOST}/api/v1/" + ("agents/a1" if more else "chats/c1")
    step = platform.recover(missing, chat)
    assert isinstance(step, Preliminary)
    assert step.request.url == f"{own}/sessions"
    asked = step.learn(reply({"code": 0, "data": {"id": "s-1"}}))
    body = orjson.loads(asked.body)
    assert asked.url == f"{own}/completions"
    assert body["session_id"] == "s-1"
    assert body["question"] == "User: 一\n\nAssistant: 答\n\nUser: 二"
    with pytest.raises(GatewayError):
        step.learn(missing)  # neither of the endpoints is there
    assert platform.prepare(question("hi")).url.endswith("/chat/completions")


@pytest.mark.parametrize("status", [200, 404])
def test_a_lost_conversation_is_no_missing_endpoint(status):
    platform = ragflow()
    lost = reply({"code": 404, "message": "Session not found!"}, status)
    with pytest.raises(GatewayError, match="does not know this conversation"):
        platform.recover(lost, question("hi", conversation_id="s"))
    assert platform.prepare(question("hi")).url.endswith("/api/v1/chat/completions")


# Whole answers.


def whole(body: object, **more) -> dict:
    platform = ragflow(**more)
    return summary(feed(RAGFlowDecoder(), platform.as_stream(reply(body))))


def test_a_whole_answer_is_read_as_its_stream():
    body = orjson.loads((SAMPLES / "chat.whole.json").read_bytes())
    got, want = whole(body), json.loads((SAMPLES / "chat.json").read_text("utf-8"))
    assert (got["text"], got["notes"]) == (want["text"], want["notes"])
    body["data"]["answer"] = "**ERROR**: QUOTA_EXCEEDED - x"
    assert whole(body)["status"] == 429


def test_an_agents_whole_answer_is_read_as_its_stream():
    chunks = {"chunks": {"9": {"content": "x", "document_name": "d"}}}
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    run = {"content": "好[ID:9]", "reference": chunks, "trace": [], "usage": usage}
    got = whole({"code": 0, "data": {"data": run, "session_id": "s", "message_id": "m"}})
    assert (got["conversation_id"], got["text"], got["usage"]) == ("s", "好[1]", [1, 2, 3])
    assert got["notes"]["citations"] == [{"title": "d", "text": "x", "score": None}]
    assert whole({"code": 0, "data": {"session_id": "s"}})["error"] == "EmptyAnswer"


def test_a_whole_completion_is_read_as_its_stream():
    chunks = [{"content": "x", "document_name": "d"}]
    message = {"role": "assistant", "content": "好[ID:0]", "reference": chunks}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    got = whole({"id": "chatcmpl-c1", "object": "chat.completion", "choices": choices})
    assert (got["text"], got["finish"], got["usage"]) == ("好[1]", "stop", None)
    assert got["notes"]["citations"] == [{"title": "d", "text": "x", "score": None}]
    message["content"] = "**ERROR**: RATE_LIMIT_EXCEEDED - x"
    assert whole({"choices": choices})["status"] == 429


@pytest.mark.parametrize("body", [{"code": 102, "message": "x"}, {"code": 0, "data": True}, {}])
def test_what_is_no_answer_is_no_stream(body):
    assert ragflow().as_stream(reply(body)) == b""


def test_the_contracts_refusal_names_the_setting():
    error = explain(reply((SAMPLES / "error-102.whole.json").read_bytes()))
    assert "chat_id" in error.message


def test_keys_are_masked_in_errors():
    kinds.built_in()
    assert "ragflow-IwNTMz" not in clean("wrong key ragflow-IwNTMzNDQwNTk3ZTExZWY5")


# End to end.


@pytest.fixture(params=["delta", "cumulative"])
async def served(request, gateway, demo):
    """(a gateway in front of a chat and an agent of one tenant, the simulator)."""
    served = await demo("ragflow", key="ragflow-test-key", version=request.param)
    kb = {"platform": "ragflow", "api_key": "ragflow-test-key", "base_url": served.url}
    agents = {"kb": {**kb, "chat_id": "c1"}, "flow": {**kb, "agent_id": "a1"}}
    return await gateway(agents=agents), served.demo


@pytest.mark.parametrize("agent", ["kb", "flow"])
async def test_a_conversation_goes_on(served, agent):
    gw, _ = served
    answer = await gw.chat(agent, "第一个问题")
    assert answer.status == 200, await answer.text()
    said = await answer.text()
    assert "第一个问题" in said
    assert said.count("你好！我是") == 1
    conversation = answer.headers["x-conversation-id"]
    again = await gw.chat(agent, "second?", conversation_id=conversation)
    assert "第一个问题" in await again.text()
    fresh = await gw.chat(agent, "third?")
    assert "第一个问题" not in await fresh.text()
    unknown = await gw.chat(agent, "hi", conversation_id="f" * 32)
    assert unknown.status == 404, await unknown.text()


@pytest.mark.parametrize("agent", ["kb", "flow"])
@pytest.mark.parametrize("stream", [True, False])
async def test_both_surfaces_give_the_same_answer(served, agent, stream):
    gw, _ = served
    async with gw.complete(agent, "hello there #think", stream=stream) as answer:
        assert answer.status == 200, await answer.text()
        if stream:
            got = streamed(await answer.read())
            text, reasoning = got["text"], got["reasoning"]
            assert (got["done"], got["finish"]) == (True, ["stop"])
        else:
            message = (await answer.json())["choices"][0]["message"]
            text, reasoning = message["content"], message["reasoning_content"]
    assert "hello there" in text
    assert reasoning.startswith("The user wants")
    assert "think>" not in text + reasoning
    own = await gw.chat(agent, "hello there #think", detail=True, stream=False)
    body = await own.json()
    assert text in json.dumps(body, ensure_ascii=False).replace('\\"', '"').replace("\\n", "\n")
    assert "AI Gateway.md" in json.dumps(body)


@pytest.mark.parametrize("agent", ["kb", "flow"])
@pytest.mark.parametrize(("fault", "status"), [("#fail", 502), ("#limit", 429)])
async def test_failures_keep_their_status(served, agent, fault, status):
    gw, _ = served
    assert (await gw.chat(agent, f"hi {fault}")).status == status
    async with gw.complete(agent, f"hi {fault}", stream=True) as answer:
        assert answer.status == status


@pytest.mark.parametrize("agent", ["kb", "flow"])
@pytest.mark.parametrize("fault", ["#cut", "#break"])
async def test_a_stream_that_breaks_is_an_error(served, agent, fault):
    gw, _ = served
    async with gw.complete(agent, f"tell me a lot {fault}", stream=True) as answer:
        body = await answer.read()
    assert b'"error"' in body
    assert b"[DONE]" not in body


async def test_an_agent_that_waits_goes_on_with_the_choice(served):
    gw, simulator = served
    answer = await gw.chat("flow", "订票 #form")
    assert "1. 杭州" in await answer.text()
    conversation = answer.headers["x-conversation-id"]
    assert (await gw.chat("flow", "2", conversation_id=conversation)).status == 200
    _, body = simulator.requests[-1]
    assert body["inputs"] == {"city": {"type": "line", "value": "上海"}}


async def test_turns_are_sent_along_and_remembered_by_the_caller_alone(served):
    gw, _ = served
    turns = [("user", "第一问"), ("assistant", "答"), ("user", "第二问")]
    messages = [{"role": role, "content": text} for role, text in turns]
    async with gw.complete("kb", messages=messages) as answer:
        said = (await answer.json())["choices"][0]["message"]["content"]
    assert "第二问" in said


async def test_a_wrong_key_is_the_operators_fault(gateway, demo):
    served = await demo("ragflow", key="ragflow-another-key")
    agent = {"platform": "ragflow", "api_key": "ragflow-wrong-key", "chat_id": "c1"}
    gw = await gateway(agents={"kb": {**agent, "base_url": served.url}})
    answer = await gw.chat("kb")
    assert answer.status == 502
    assert "check api_key" in await answer.text()
    assert "ragflow-wrong-key" not in await answer.text()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("http", "body", "status", "words"),
    [
        ("200 OK", {"code": 0, "data": {"answer": "年假 10 天 🏖️", "session_id": "s"}}, 200, "🏖️"),
        ("200 OK", {"code": 0, "data": {"answer": "**ERROR**: QUOTA_EXCEEDED - x"}}, 429, "credit"),
        ("200 OK", {"code": 102, "message": "You don't own the chat c1"}, 502, "chat_id"),
        ("200 OK", {"code": 101, "message": "required argument"}, 400, "does not accept"),
        ("200 OK", {"code": 0, "data": {"answer": "", "session_id": "s"}}, 502, "empty answer"),
        ("401 Unauthorized", {"code": 401, "message": "<Unauthorized>"}, 502, "api_key"),
        ("200 OK", {"choices": [{"message": {"content": "好 🙂"}}]}, 200, "🙂"),
    ],
)  # fmt: skip
async def test_whole_replies_on_both_surfaces(gateway, scripted, stream, http, body, status, words):
    raw = json.dumps(body, ensure_ascii=False).encode()
    pieces = [raw[at : at + 3] for at in range(0, len(raw), 3)]
    json_type = {"Content-Type": "application/json"}
    upstream = await scripted(Script(pieces, status=http, headers=json_type))
    agent = {"platform": "ragflow", "api_key": "ragflow-test-key", "chat_id": "c1"}
    gw = await gateway(agents={"kb": {**agent, "base_url": upstream.url}})
    async with gw.complete("kb", stream=stream) as answer:
        assert (answer.status, words in await answer.text()) == (status, True)
    answer = await gw.chat("kb", stream=stream)
    assert (answer.status, words in await answer.text()) == (status, True)


async def test_a_page_in_place_of_the_api_is_an_error(gateway, scripted):
    page = Script([b"<!doctype html><title>RAGFlow</title>"], headers={"Content-Type": "text/html"})
    upstream = await scripted(page)
    agent = {"platform": "ragflow", "api_key": "ragflow-test-key", "chat_id": "c1"}
    gw = await gateway(agents={"kb": {**agent, "base_url": upstream.url}})
    answer = await gw.chat("kb")
    assert answer.status == 502
    assert "check base_url" in await answer.text()


@pytest.mark.parametrize("version", ["delta", "cumulative"])
@pytest.mark.parametrize(
    ("bot", "want"),
    [({"chat_id": "c1"}, "chat '演示助手 Demo'"), ({"agent_id": "a1"}, "agent 'a1'")],
)
async def test_a_probe_finds_the_bot(demo, version, bot, want):
    served = await demo("ragflow", key="ragflow-test-key", version=version)

    async def judge(key: str) -> str:
        platform = ragflow(served.url, **bot, api_key=key)
        step, judge = platform.probe(), platform.describe
        async with aiohttp.ClientSession() as client:
            while True:
                answer = await client.get(step.url, headers=step.headers)
                found = judge(UpstreamReply(answer.status, answer.headers, await answer.read()))
                if isinstance(found, str):
                    return found
                step, judge = found.request, found.learn

    assert await judge("ragflow-test-key") == want
    with pytest.raises(GatewayError, match="check api_key"):
        await judge("ragflow-wrong-key")
