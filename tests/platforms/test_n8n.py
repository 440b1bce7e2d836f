"""n8n: a stream of lines or one JSON value, whichever the workflow is set to."""

import asyncio
import base64
import json
from pathlib import Path

import aiohttp
import pytest
from conftest import Script, streamed
from decoding import feed, summary
from hypothesis import given
from hypothesis import strategies as st

from gateway.platforms.n8n.decoder import MAX_HELD, N8nDecoder
from gateway.platforms.n8n.form import encode
from gateway.protocol.messages import Failed, Finish, Media
from gateway.protocol.sse import SHOWN

SAMPLES = Path(__file__).parent / "samples" / "n8n"


def read(name: str) -> bytes:
    return (SAMPLES / name).read_bytes()


def line(kind: str, content: object = None, node: str = "a", run: int = 0, **more) -> bytes:
    about = {"nodeId": node, "nodeName": node.upper(), "runIndex": run, "itemIndex": 0}
    said = {} if content is None else {"content": content}
    return json.dumps({"type": kind, **said, "metadata": about, **more}).encode() + b"\n"


def told(raw: bytes, size: int | None = None, nodes: frozenset[str] = frozenset()) -> dict:
    out = summary(feed(N8nDecoder("c-1", nodes), raw, size))
    out.pop("notes", None)
    return out


def said(*lines: bytes, nodes: frozenset[str] = frozenset()) -> str:
    out = told(b"".join(lines), nodes=nodes)
    assert out["finish"] == "stop", out
    return out["text"]


# The contract's samples.


@pytest.mark.parametrize("size", [None, 1, 3, 7, 97])
@pytest.mark.parametrize(
    ("name", "text"),
    [("stream.ndjson", "我查一下 🔍。\n\n杭州今天晴 ☀️。"), ("respond-node.ndjson", "您好，订单已签收 ✅。"),
     ("lastnode.whole.json", "年假一共 10 天 🏖️。")],
)  # fmt: skip
def test_an_answer_reads_the_same_in_pieces_of_any_size(name, text, size):
    want = {"conversation_id": "c-1", "finish": "stop", "usage": None, "text": text}
    assert told(read(name), size) == want
    assert told(read(name).replace(b"\n", b"\r\n"), size) == want


@pytest.mark.parametrize("size", [None, 1, 3])
def test_a_node_that_fails_fails_the_answer(size):
    out = told(read("stream-error.ndjson"), size)
    assert (out["text"], out["error"], out["status"]) == ("正在", "UpstreamFailed", 502)


def test_a_stream_cut_inside_a_line_is_a_failure():
    raw = read("stream.ndjson")
    for at in range(1, len(raw) - 1):
        deltas = feed(N8nDecoder("c-1"), raw[:at])
        ends = [delta for delta in deltas if isinstance(delta, Finish | Failed)]
        assert ends == [deltas[-1]]
        is_whole = raw[:at].endswith((b"}}", b"}}\n"))
        has_text = b'"item"' in raw[:at]
        assert isinstance(ends[0], Finish) == (is_whole and has_text)


def test_the_answer_ends_with_the_connection():
    assert said(line("begin"), line("item", "1")) == "1"
    assert said(line("begin"), line("item", '{"output":"1"}')) == "1"
    waits = [line("begin", node="b"), line("item", "2", node="b")]
    assert said(line("begin"), line("item", "1"), *waits) == "1\n\n2"
    assert told(line("begin"))["error"] == "EmptyAnswer"


@given(st.binary(max_size=300))
def test_any_bytes_end_once(raw):
    deltas = feed(N8nDecoder("c-1"), raw, 7)
    assert sum(isinstance(delta, Finish | Failed) for delta in deltas) == 1


# Several nodes.


def test_nodes_that_write_at_the_same_time_follow_each_other():
    assert said(
        line("begin", node="a"), line("item", "one ", node="a"), line("begin", node="b"),
        line("item", "two ", node="b"), line("item", "one", node="a"), line("item", "two", node="b"),
        line("end", node="b"), line("end", node="a"),
    ) == "one one\n\ntwo two"  # fmt: skip


def test_a_waiting_node_streams_once_it_is_its_turn():
    decoder = N8nDecoder("c-1")
    start = [line("begin"), line("begin", node="b"), line("item", "1"), line("item", "2", node="b")]
    assert summary(decoder.feed(b"".join(start)))["text"] == "1"
    assert summary(decoder.feed(line("end")))["text"] == "\n\n2"
    assert summary(decoder.feed(line("item", "3", node="b")))["text"] == "3"


def test_only_the_nodes_that_are_named_are_heard():
    lines = [line("begin"), line("item", "no"), line("end"), line("begin", node="b"),
             line("item", "yes", node="b"), line("end", node="b")]  # fmt: skip
    assert said(*lines, nodes=frozenset(["B"])) == "yes"


def test_a_tool_that_fails_on_the_way_does_not_fail_the_answer():
    failed = [line("begin", node="t"), line("error", "tool broke", node="t")]
    assert said(*failed, line("begin"), line("item", "ok"), line("end")) == "ok"


def test_nodes_cannot_make_the_gateway_hold_without_end():
    lines = [line("begin"), line("item", "x"), line("begin", node="b")]
    lines += [line("item", "y" * 100_000, node="b")] * (MAX_HELD // 100_000 + 1)
    assert told(b"".join(lines))["error"] == "UpstreamFailed"
    many = b"".join(line("begin", node=f"n{i}") for i in range(1100))
    assert told(many)["error"] == "UpstreamFailed"


def test_text_that_only_begins_like_an_object_stays_as_it_is():
    assert (
        said(line("begin"), line("item", '{"a": '), line("item", "1}"), line("end")) == '{"a": 1}'
    )
    assert said(line("begin"), line("item", "{not json"), line("end")) == "{not json"
    assert said(line("begin"), line("item", '{"other": 1}'), line("end")) == '{"other": 1}'


def test_a_nodes_steps_keep_their_text_while_another_writes():
    step = [line("begin", node="b"), line("item", "x", node="b"), line("end", node="b")]
    assert said(line("begin"), line("item", "1"), *step, *step, line("end")) == "1\n\nx\n\nx"


def test_the_first_to_write_comes_first_then_the_order_of_begin():
    begun = [line("begin", node=node) for node in "abc"]
    written = [line("item", node, node=node) for node in "cba"]
    assert said(*begun, *written, line("end", node="c"), line("end", node="b"),
                line("end", node="a")) == "c\n\na\n\nb"  # fmt: skip


def test_an_object_that_waits_its_turn_is_unpacked():
    first = [line("begin"), line("item", "1"), line("begin", node="b")]
    waits = line("item", '{"output":"好"}', node="b")
    assert said(*first, waits, line("end"), line("end", node="b")) == "1\n\n好"
    assert said(*first, waits, line("end", node="b"), line("end")) == "1\n\n好"
    assert said(line("begin"), line("item", {"output": "好"}), line("end")) == "好"


def test_an_error_is_the_last_word_though_text_still_waits():
    lines = [line("begin"), line("item", "1"), line("begin", node="b"), line("item", "2", node="b")]
    out = told(b"".join([*lines, line("error", "broke", node="b"), line("end")]))
    assert (out["text"], out["error"]) == ("1\n\n2", "UpstreamFailed")


@pytest.mark.parametrize(
    ("frame", "status"),
    [(b'{"type":"error"}\n', 502), (b'{"type":"error","content":"429 Too many requests"}', 429),
     (line("error", {"message": "429 Too many requests"}), 429), (line("error"), 502)],
)  # fmt: skip
def test_an_error_frame_needs_no_other_member(frame, status):
    assert told(frame)["status"] == status


def test_an_item_without_begin_or_after_the_end_is_text():
    assert said(line("item", "1"), line("item", "2")) == "12"
    assert said(b'{"type":"item","content":"1"}\n') == "1"
    assert said(line("begin"), line("item", "1"), line("end"), line("item", "2")) == "12"
    other = [line("begin", node="b"), line("item", "b", node="b"), line("end", node="b")]
    late = line("item", "2")
    assert said(line("begin"), line("item", "1"), line("end"), *other, late) == "1\n\nb\n\n2"


RUN = [line("begin"), line("item", "1"), line("end")]


@pytest.mark.parametrize("size", [None, 1, 3])
@pytest.mark.parametrize(
    ("more", "text"),
    [(line("tool-call", "x"), "1"), (b'{"type":"usage"}\n', "1"), (b'{"a":1}\n42\n"x"\n', "1"),
     (b"\n \r\n", "1"), ("好的\n".encode(), "1\n\n好的"), (b"<b>x</b>\n", "1\n\n<b>x</b>"),
     (b"{hello} all\n", "1\n\n{hello} all"), (b"a\nb", "1\n\na\n\nb")],
)  # fmt: skip
def test_other_lines_are_text_unless_they_are_json(more, text, size):
    assert told(b"".join(RUN) + more, size)["text"] == text
    assert told(b"".join(RUN) + more, size)["finish"] == "stop"


@pytest.mark.parametrize("size", [None, 1, 3])
def test_a_byte_order_mark_is_no_text(size):
    assert told(b"\xef\xbb\xbf" + line("item", "1"), size)["text"] == "1"
    assert told(b"\xef\xbb\xbfhi", size)["text"] == "hi"


def test_lines_before_the_frames_count_too():
    assert said(b"hello\n", *RUN) == "hello\n\n1"
    assert said(line("tool-call", "x"), *RUN) == "1"
    assert told(b"<!DOCTYPE html>\n" + b"".join(RUN))["error"] == "UpstreamFailed"


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><html>", b"<HTML><head>\n</head>"])
def test_a_page_in_the_stream_is_a_failure(page):
    out = told(b"".join([line("begin"), line("item", "1"), page]))
    assert (out["text"], out["error"]) == ("1", "UpstreamFailed")


# Whole answers.


@pytest.mark.parametrize(
    ("value", "text"),
    [({"output": "a"}, "a"), ({"text": "b"}, "b"), ({"message": {"text": "c"}}, "c"),
     ({"response": {"text": "d"}}, "d"), ([{"output": "e"}], "e"), ({"n": 1}, '{"n":1}'),
     ({"output": "f", "intermediateSteps": [{"action": "x"}]}, "f"), ({"output": 7}, "7"),
     ({"output": {"city": "x"}, "intermediateSteps": [{}]}, '{"city":"x"}'), ({"n": 0}, '{"n":0}'),
     ({"output": "", "text": "g"}, "g"), ({"output": "h", "message": "Workflow was started"}, "h"),
     ([{"output": "i"}, {"text": "j"}], "i\n\nj"), (["k", "l"], "k\n\nl"), ("m", "m"), (42, "42"),
     ([{"id": 1}, {"id": 2}], '[{"id":1},{"id":2}]'), (False, "false"), ("{n}\ud83d", "{n}\ufffd"),
     ({"type": "item", "name": "bread"}, '{"type":"item","name":"bread"}')],
)  # fmt: skip
def test_the_text_is_where_nodes_put_it(value, text):
    assert said(json.dumps(value).encode()) == text
    assert said(json.dumps(value, indent=2).encode()) == text


@pytest.mark.parametrize("size", [None, 1, 3])
@pytest.mark.parametrize(
    "text", ["第一段\n\n  - 缩进\n", "[注意] 今天休息", "{name}，你好", "<p>您好</p>", "您好"]
)
def test_an_answer_may_be_plain_text(text, size):
    assert told(text.encode(), size)["text"] == text.strip()
    assert told(text.replace("\n", "\r\n").encode(), size)["text"] == text.strip()


@pytest.mark.parametrize(
    ("raw", "words"),
    [(b"", "off in the answering node"), (b'{"executionStarted":true,"executionId":"1"}', "WebSocket"),
     (b'{"message":"Workflow was started"}', "before it has run"), (b"<!DOCTYPE html><html>", "page"),
     (b'{"message":"Workflow executed successfully but no data was returned"}', "empty"),
     (b"null", "empty"), (b"[]", "empty"), (b"[null]", "empty"), (b'{"output":null}', "empty"),
     (b"\x89PNG\r\n\x1a\n\0", "a file"), (b"%PDF-1.7\n%\xe2\xe3", "a file"),
     ('{"output":"半'.encode()[:-1], "before it was complete"),
     (b'{"output":""}', "empty"), (b'{"output":"half', "before it was complete")],
)  # fmt: skip
def test_what_is_no_answer_is_a_failure_that_says_what_to_do(raw, words):
    deltas = feed(N8nDecoder("c-1"), raw)
    assert isinstance(deltas[-1], Failed)
    assert words in deltas[-1].error.message


# End to end.


AGENT = {"platform": "n8n", "api_key": "n8n-test-key"}


@pytest.fixture
async def n8n(gateway, demo):
    """(a gateway in front of a simulated workflow, the simulator)."""
    served = await demo("n8n", key="n8n-test-key")
    agent = {**AGENT, "base_url": f"{served.url}/webhook/1/chat"}
    return await gateway(agents={"flow": agent}), served.demo


@pytest.mark.parametrize("streams", [True, False])
async def test_a_conversation_goes_on(n8n, streams):
    gw, simulator = n8n
    simulator.streams = streams
    answer = await gw.chat("flow", "第一个问题")
    assert answer.status == 200, await answer.text()
    first = await answer.json()
    assert "第一个问题" in first["data"]["answer"] if "data" in first else first
    conversation = answer.headers["x-conversation-id"]
    again = await gw.chat("flow", "second?", conversation_id=conversation)
    assert "第一个问题" in await again.text()
    sessions = {body["sessionId"] for _, body in simulator.requests}
    assert len(sessions) == 1
    assert conversation not in sessions  # the caller's id is of no use at n8n itself
    fresh = await gw.chat("flow", "third?")
    assert "第一个问题" not in await fresh.text()


@pytest.mark.parametrize("streams", [True, False])
async def test_both_surfaces_stream_whatever_the_workflow_does(n8n, streams):
    gw, simulator = n8n
    simulator.streams = streams
    async with gw.complete("flow", "hello there", stream=True) as answer:
        told = streamed(await answer.read())
    assert "hello there" in told["text"]
    assert told["done"]


@pytest.mark.parametrize(
    ("question", "streams", "status"),
    [("#fail", True, 502), ("#fail", False, 502), ("#limit", True, 429)],
)
async def test_failures_keep_their_status(n8n, question, streams, status):
    gw, simulator = n8n
    simulator.streams = streams
    answer = await gw.chat("flow", question)
    assert answer.status == status


async def test_a_run_that_failed_is_not_started_again(n8n):
    gw, simulator = n8n
    simulator.streams = False
    await gw.chat("flow", "#fail")
    assert len(simulator.requests) == 1


async def test_a_cut_stream_is_an_error(n8n):
    gw, _ = n8n
    async with gw.complete("flow", "tell me a lot #cut", stream=True) as answer:
        body = await answer.read()
    assert b'"error"' in body
    assert b"[DONE]" not in body


@pytest.mark.parametrize(("raw", "shown"), [(b"\n \r\n", False), (b"\na\n", True)])
def test_blank_lines_are_no_sign_of_life(raw, shown):
    decoder = N8nDecoder("c-1")
    decoder.feed(b"hello\n")
    decoder.feed(raw)
    assert (decoder.life is SHOWN) == shown


async def test_a_connection_broken_between_nodes_is_an_error(gateway, scripted):
    frames = line("begin") + line("item", "half") + line("end")
    upstream = await scripted(
        Script([frames], headers={"Content-Type": "application/json"}, end="reset")
    )
    gw = await gateway(agents={"flow": {**AGENT, "base_url": f"{upstream.url}/webhook/1/chat"}})
    async with gw.complete("flow", "hi", stream=True) as answer:
        assert b'"error"' in await answer.read()


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("name", "want"),
    [("stream.ndjson", "我查一下 🔍。\n\n杭州今天晴 ☀️。"), ("respond-node.ndjson", "您好，订单已签收 ✅。"),
     ("lastnode.whole.json", "年假一共 10 天 🏖️。"), ("stream-error.ndjson", None)],
)  # fmt: skip
async def test_samples_on_both_surfaces(gateway, scripted, name, want, stream, size):
    raw = read(name)
    pieces = [raw[at : at + size] for at in range(0, len(raw), size)]
    upstream = await scripted(Script(pieces, headers={"Content-Type": "application/json"}))
    gw = await gateway(agents={"flow": {**AGENT, "base_url": f"{upstream.url}/webhook/1/chat"}})
    own = await (await gw.chat("flow", stream=stream)).text()
    async with gw.complete("flow", stream=stream) as answer:
        body = await answer.read()
    if want is None:
        assert b'"error"' in body
        assert b"[DONE]" not in body
        assert "a node failed" in own
    elif stream:
        assert (streamed(body)["text"], streamed(body)["finish"]) == (want, ["stop"])
    else:
        assert json.loads(body)["choices"][0]["message"]["content"] == want
        assert json.loads(own)["choices"][0]["message"]["content"] == want


@pytest.mark.parametrize(
    ("status", "kind", "body", "words"),
    [
        ("200 OK", "text/html; charset=utf-8", "您好".encode(), "您好"),
        ("200 OK", "text/html; charset=utf-8", b"<!DOCTYPE html><title>n8n</title>", "page"),
        ("200 OK", "image/png", b"\x89PNG\r\n\x1a\n\0", "a file"),
        ("503 Service Unavailable", "application/json",
         b'{"status":"credential_readiness_check_failed"}', "connect credentials"),
        ("428 Precondition Required", "application/json", b"[]", "connect credentials"),
        ("504 Gateway Timeout", "text/html", b"<html><title>504</title></html>", "504"),
    ],
)  # fmt: skip
async def test_replies_of_all_kinds_start_one_run(gateway, scripted, status, kind, body, words):
    upstream = await scripted(Script([body], status=status, headers={"Content-Type": kind}))
    agent = {**AGENT, "base_url": f"{upstream.url}/webhook/1/chat", "retries": 2}
    gw = await gateway(agents={"flow": agent})
    answer = await gw.chat("flow", stream=False)
    assert words in await answer.text()
    assert (answer.status == 200) == (words == "您好")
    assert len(upstream.requests) == 1


async def test_a_wrong_key_is_told_as_the_operators(gateway, demo):
    served = await demo("n8n", key="another-key")
    gw = await gateway(agents={"flow": {**AGENT, "base_url": served.url}})
    answer = await gw.chat("flow")
    assert answer.status == 502
    assert "refuses the credentials" in (await answer.json())["msg"]


async def test_the_user_is_told_and_secrets_are_not(n8n):
    gw, simulator = n8n
    await gw.chat("flow", "hi", variables={"city": "杭州"}, user="u-1")
    await asyncio.sleep(0)
    _, body = simulator.requests[-1]
    assert body["metadata"] == {"city": "杭州", "user": "u-1"}
    assert "n8n-test-key" not in json.dumps(body)


# Files.

PNG = b"\x89PNG\r\n\x1a\n" + b"pixels"


@pytest.fixture
async def takes_files(gateway, demo):
    """(a gateway in front of a workflow whose trigger takes files, the simulator)."""
    served = await demo("n8n", key="n8n-test-key")
    agent = {**AGENT, "base_url": f"{served.url}/webhook/1/chat", "accepts": ["image", "file"]}
    return await gateway(agents={"flow": agent}), served.demo


def data_url(mime: str, content: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


@pytest.mark.parametrize("streams", [True, False])
async def test_files_are_parts_of_the_form(takes_files, streams):
    gw, simulator = takes_files
    simulator.streams = streams
    files = [
        {"url": data_url("image/png", PNG), "type": "image", "name": '图 "1".png'},
        {"url": data_url("text/plain", b"two lines\r\n--gateway"), "type": "file", "name": "b.txt"},
    ]
    answer = await gw.chat("flow", "看图", files=files, variables={"city": "杭州"}, user="u-1")
    assert answer.status == 200, await answer.text()
    _, fields = simulator.requests[-1]
    assert (fields["action"], fields["chatInput"]) == ("sendMessage", "看图")
    assert json.loads(fields["metadata"]) == {"city": "杭州", "user": "u-1"}
    first, second = simulator.uploads
    assert (first.name, first.mime, first.head) == ("图 %221%22.png", "image/png", PNG)
    assert (second.mime, second.head) == ("text/plain", b"two lines\r\n--gateway")


async def test_an_upload_reaches_the_workflow_without_a_link(takes_files):
    gw, simulator = takes_files
    form = aiohttp.FormData()
    form.add_field("file", PNG, filename="photo.png")
    async with gw.client.post(f"{gw.url}/v1/files", data=form) as uploaded:
        id_ = (await uploaded.json())["id"]
    answer = await gw.chat("flow", "see", files=[id_])
    assert answer.status == 200, await answer.text()
    assert [(file.name, file.head) for file in simulator.uploads] == [("photo.png", PNG)]


async def test_files_need_a_trigger_that_takes_them(n8n):
    gw, simulator = n8n
    answer = await gw.chat("flow", "see", files=[data_url("image/png", PNG)])
    assert answer.status == 400
    assert "text only" in (await answer.json())["msg"]
    assert simulator.requests == []


def test_no_name_can_add_a_part_or_a_header():
    evil = 'a"\r\nContent-Type: text/html\r\n\r\n--x'
    content_type, body = encode(
        {evil: "text"}, [Media("file", data_url("te xt/<html>", b"content"), evil)]
    )
    boundary = content_type.partition("boundary=")[2].encode()
    assert body.count(b"--" + boundary) == 3
    assert body.count(b"\r\nContent-Type: ") == 1
    assert b"Content-Type: application/octet-stream\r\n\r\ncontent\r\n" in body


# The probe.

CHAT = "/webhook/1b2f7c3a-9d4e-4f60-8a51-0c2d3e4f5a6b/chat"


@pytest.mark.parametrize(
    ("path", "key", "words", "healthy"),
    [(CHAT, "n8n-test-key", "accepts the credentials", True),
     (CHAT, "another", "refuses the credentials", False),
     ("/webhook/orders/chat", "another", "the workflow is active", True)],
)  # fmt: skip
async def test_a_probe_starts_no_workflow(gateway, demo, path, key, words, healthy):
    served = await demo("n8n", key="n8n-test-key")
    agent = {"platform": "n8n", "api_key": key, "base_url": served.url + path}
    gw = await gateway(agents={"flow": agent})
    async with gw.client.get(f"{gw.url}/api/v1/agents/flow/health") as answer:
        body = await answer.json()
    assert words in str(body)
    assert body["data"]["status"] == ("healthy" if healthy else "unhealthy")
    assert not any("chatInput" in (sent or {}) for _, sent in served.demo.requests)
