"""The first-delta rule, keep-alive, time limits, disconnects and slow readers, over real
sockets."""

import asyncio
import gc

import aiohttp
import orjson
import pytest
from aiohttp import web
from conftest import AGENTS, Script, leave_all_to_aiohttp, stopped, streamed

from gateway.chat.attempt import Attempt, Question
from gateway.chat.run import Run
from gateway.http import pump
from gateway.http.context import CONTEXT, IN_FLIGHT, STATE
from gateway.platforms.dify.decoder import DifyDecoder
from gateway.protocol.messages import ChatRequest, Message
from gateway.protocol.render import StreamRenderer


@pytest.fixture(params=["direct", "aiohttp"])
def _both_ways(request, monkeypatch):
    """Written directly to the connection, and by aiohttp."""
    if request.param == "aiohttp":
        leave_all_to_aiohttp(monkeypatch)


both_ways = pytest.mark.usefixtures("_both_ways")


def dify(event: str, **members) -> bytes:
    ids = {"conversation_id": "c-1", "message_id": "m-1", "task_id": "t-1", "created_at": 1}
    return b"data: " + orjson.dumps({"event": event, **ids, **members}) + b"\n\n"


def chunk(delta: dict, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return b"data: " + orjson.dumps({**head, "choices": [choice]}) + b"\n\n"


END = dify("message_end", metadata={"usage": {"prompt_tokens": 3, "completion_tokens": 2}})
HELLO = [dify("message", answer="你"), dify("message", answer="好"), END]


def agent(url: str, **more):
    return {**AGENTS["dify"], "base_url": url, "mode": "chat", **more}


async def start(gateway, upstream, server=None, **more):
    return await gateway(agents={"bot": agent(upstream.url, **more)}, server=server or {})


@both_ways
async def test_a_failure_before_the_first_delta_keeps_its_status(gateway, scripted):
    refusal = b'{"code":"unauthorized","message":"Access token is invalid","status":401}'
    upstream = await scripted(
        Script([refusal], status="401 UNAUTHORIZED", headers={"Content-Type": "application/json"})
    )
    gw = await start(gateway, upstream)
    answer = await gw.complete("bot", stream=True)
    assert answer.status == 502
    assert answer.content_type == "application/json"
    assert answer.headers["x-should-retry"] == "false"
    error = (await answer.json())["error"]
    assert error["code"] == "upstream_auth_failed"
    assert "Agent 'bot'" in error["message"]
    assert "api_key" in error["message"]


async def test_an_error_event_before_the_first_delta_is_a_status_too(gateway, scripted):
    fault = (
        b'data: {"event":"error","code":"completion_request_error","status":400,"message":"x"}\n\n'
    )
    upstream = await scripted(Script([b"event: ping\n\n", fault]))
    gw = await start(gateway, upstream)
    answer = await gw.chat("bot", stream=True)
    assert answer.status == 502
    body = await answer.json()
    assert body["code"] == 502
    assert "x-should-retry" in answer.headers


@both_ways
async def test_a_failure_after_the_first_delta_is_one_error_event(gateway, scripted):
    fault = (
        b'data: {"event":"error","code":"completion_request_error","status":400,"message":"x"}\n\n'
    )
    upstream = await scripted(Script([HELLO[0], fault]))
    gw = await start(gateway, upstream)
    answer = await gw.complete("bot", stream=True)
    got = streamed(await answer.read())
    assert answer.status == 200
    assert got["text"] == "你"
    assert got["error"]["code"] == "upstream_failed"
    assert got["finish"] == []
    assert "done" not in got


@both_ways
@pytest.mark.parametrize("end", ["close", "reset"])
async def test_a_stream_that_is_cut_is_never_finished_with_stop(gateway, scripted, end):
    upstream = await scripted(Script([HELLO[0], HELLO[1][:40]], end=end))
    gw = await start(gateway, upstream)
    got = streamed(await (await gw.complete("bot", stream=True)).read())
    assert got["text"] == "你"
    assert got["error"]["code"] == "upstream_cut"
    assert got["finish"] == []
    whole = await gw.complete("bot")
    assert whole.status == 502


@both_ways
@pytest.mark.parametrize("end", ["close", "reset"])
async def test_a_passed_through_stream_that_is_cut_ends_with_an_error(gateway, scripted, end):
    pieces = [chunk({"role": "assistant", "content": ""}), chunk({"content": "你"}), b'data: {"id"']
    upstream = await scripted(Script(pieces, end=end))
    bot = {**AGENTS["openai"], "base_url": upstream.url}
    gw = await gateway(agents={"bot": bot})
    got = streamed(await (await gw.complete("bot", stream=True)).read())
    assert got["text"] == "你"
    assert got["error"]["code"] == "upstream_cut"
    assert got["finish"] == []


async def test_silence_before_the_answer_is_504_after_first_delta(gateway, scripted):
    upstream = await scripted(Script([b"event: ping\n\n"] * 3, end="hang"))
    gw = await start(gateway, upstream, timeouts={"first_delta": "300ms"})
    answer = await gw.complete("bot", stream=True)
    assert answer.status == 504
    assert (await answer.json())["error"]["code"] == "upstream_timeout"
    assert (await gw.chat("bot")).status == 504


async def test_headers_that_never_come_are_504(gateway, scripted):
    upstream = await scripted(Script(before_headers_s=3600))
    gw = await start(gateway, upstream, timeouts={"first_delta": "300ms"})
    assert (await gw.complete("bot")).status == 504


async def test_an_openai_whole_answer_has_the_total_time(gateway, scripted):
    body = b'{"choices":[{"message":{"content":"hi"},"finish_reason":"stop"}]}'
    headers = {"Content-Type": "application/json"}
    upstream = await scripted(Script([0.3, body], headers=headers, before_headers_s=0.3))
    bot = {**AGENTS["openai"], "base_url": upstream.url, "timeouts": {"first_delta": "100ms"}}
    gw = await gateway(agents={"bot": bot})
    assert (await gw.complete("bot")).status == 200


async def test_steps_of_a_workflow_are_no_silence(gateway, scripted):
    step = dify("node_started", data={"node_type": "llm", "title": "t"})
    pieces = [dify("workflow_started"), *([0.2, step] * 4), HELLO[0], END,
              dify("workflow_finished", data={"status": "succeeded"})]  # fmt: skip
    upstream = await scripted(Script(pieces))
    gw = await start(gateway, upstream, timeouts={"first_delta": "500ms"})
    answer = await gw.complete("bot")
    assert answer.status == 200


@both_ways
async def test_silence_after_the_first_delta_is_an_error_and_a_stop(gateway, scripted):
    upstream = await scripted(Script([HELLO[0]], end="hang"), stopped())
    gw = await start(gateway, upstream, timeouts={"idle": "300ms"})
    got = streamed(await (await gw.chat("bot", stream=True, user="u-1")).read())
    assert got["text"] == "你"
    assert got["error"]["detail"]["error"] == "upstream_timeout"
    await until(lambda: len(upstream.requests) == 2)
    assert "/v1/chat-messages/t-1/stop" in upstream.requests[1][0]
    assert upstream.bodies("stop") == [{"user": "u-1"}]


@pytest.mark.parametrize("kind", ["dify", "openai"])
@pytest.mark.parametrize("ping", [b": ping\n\n", b": ping\n", b"\n"])
@both_ways
async def test_comments_are_no_sign_of_life(kind, ping, gateway, scripted):
    first = HELLO[0] if kind == "dify" else chunk({"content": "你"})
    upstream = await scripted(Script([first, *([0.05, ping] * 60)], end="hang"), stopped())
    bot = {**AGENTS[kind], "base_url": upstream.url, "timeouts": {"idle": "300ms"}}
    gw = await gateway(agents={"bot": bot | ({"mode": "chat"} if kind == "dify" else {})})
    async with asyncio.timeout(2):
        got = streamed(await (await gw.complete("bot", stream=True)).read())
    assert got["error"]["code"] == "upstream_timeout"


@pytest.mark.parametrize("kind", ["dify", "openai"])
@both_ways
async def test_a_long_event_that_is_coming_is_alive(kind, gateway, scripted):
    events = HELLO if kind == "dify" else [chunk({"content": "你"}), chunk({"content": "好"}),
                                           chunk({}, "stop") + b"data: [DONE]\n\n"]  # fmt: skip
    slow = [piece for i in range(0, len(events[1]), 20) for piece in (0.1, events[1][i : i + 20])]
    upstream = await scripted(Script([events[0], *slow, *events[2:]]))
    bot = {**AGENTS[kind], "base_url": upstream.url, "timeouts": {"idle": "400ms"}}
    gw = await gateway(agents={"bot": bot | ({"mode": "chat"} if kind == "dify" else {})})
    got = streamed(await (await gw.complete("bot", stream=True)).read())
    assert (got["text"], got["finish"]) == ("你好", ["stop"])


@pytest.mark.parametrize("size", [3, 50, 500])
@both_ways
async def test_heartbeats_are_no_sign_of_life_however_they_come(
    size, gateway, scripted, monkeypatch
):
    """An event that its decoder calls a heartbeat does not count as life, though its bytes did."""
    read = DifyDecoder.event
    monkeypatch.setattr(
        DifyDecoder, "event", lambda self, *given: b'"beat"' not in given[1] and read(self, *given)
    )
    beat = dify("beat")
    pieces = [piece for i in range(0, len(beat), size) for piece in (0.005, beat[i : i + size])]
    upstream = await scripted(Script([HELLO[0], *(pieces * 60)], end="hang"), stopped())
    gw = await start(gateway, upstream, timeouts={"idle": "300ms"})
    async with asyncio.timeout(3):
        got = streamed(await (await gw.complete("bot", stream=True)).read())
    assert got["error"]["code"] == "upstream_timeout"


@both_ways
async def test_the_whole_call_has_an_end(gateway, scripted):
    endless = Script([HELLO[0], 0.1] * 100, end="hang")
    upstream = await scripted(endless, stopped(), endless, stopped())
    gw = await start(gateway, upstream, timeouts={"total": "1s"})
    got = streamed(await (await gw.complete("bot", stream=True)).read())
    assert got["error"]["code"] == "upstream_timeout"
    assert (await gw.complete("bot")).status == 504


async def test_an_answer_complete_in_the_moment_of_a_stop_is_sent(gateway, scripted, monkeypatch):
    going_on = asyncio.Event()
    upstream = await scripted(Script([HELLO[0], going_on, HELLO[1] + END]))
    gw = await start(gateway, upstream)
    in_flight, end = gw.app[IN_FLIGHT], pump.Pump._end

    def end_and_stop(self, error=None):
        end(self, error)
        monkeypatch.undo()
        for task, request in in_flight._tasks.items():
            in_flight._tell(request)
            task.cancel()

    async with gw.complete("bot", stream=True) as answer:
        raw = await answer.content.readany()
        monkeypatch.setattr(pump.Pump, "_end", end_and_stop)
        going_on.set()
        got = streamed(raw + await answer.read())
    assert (got["text"], got.get("error"), got["done"]) == ("你好", None, True)


@pytest.mark.parametrize("length", [1000, 200_000], ids=["at once", "in pieces"])
async def test_an_open_stream_does_not_keep_its_question(gateway, scripted, length):
    no_form = Script([b"{}"], status="500 X")  # the answer to a look-up of the bot's inputs
    upstream = await scripted(no_form, Script([HELLO[0]], end="hang"), stopped())
    gw = await start(gateway, upstream)
    question = "问" * length

    def kept() -> list[object]:
        known = (Message, ChatRequest, web.Request)
        return [o for o in gc.get_objects() if isinstance(o, known) and holds(o)]

    def holds(it: object) -> bool:
        if isinstance(it, web.Request):
            return bool(it[CONTEXT].body or it._read_bytes)
        return question in getattr(it, "text", "") or bool(getattr(it, "raw", None))

    async with gw.complete("bot", question, stream=True, inputs={"a": "b"}) as answer:
        assert "你".encode() in await answer.content.readany()
        assert kept() == []
    await until(lambda: upstream.bodies("stop"))


@both_ways
async def test_after_keepalive_200_is_sent_and_comments_follow(gateway, scripted):
    upstream = await scripted(Script([0.5, *HELLO]))
    gw = await start(gateway, upstream, server={"keepalive": "100ms"})
    answer = await gw.complete("bot", stream=True)
    raw = await answer.read()
    assert raw.startswith(b": keep-alive\n\n: keep-alive\n\n")
    assert streamed(raw)["text"] == "你好"
    assert streamed(raw)["done"]


@both_ways
async def test_a_late_failure_after_keepalive_is_an_error_event(gateway, scripted):
    upstream = await scripted(Script([b"no"], status="500 X", before_headers_s=0.3))
    gw = await start(gateway, upstream, server={"keepalive": "100ms"})
    answer = await gw.complete("bot", stream=True)
    raw = await answer.read()
    assert answer.status == 200
    assert raw.startswith(b": keep-alive\n\n")
    assert streamed(raw)["error"]["type"] == "upstream_error"


@both_ways
async def test_comments_keep_a_silent_stream_alive_in_the_middle(gateway, scripted):
    upstream = await scripted(Script([HELLO[0], 0.5, *HELLO[1:]]))
    gw = await start(gateway, upstream, server={"keepalive": "100ms"})
    raw = await (await gw.complete("bot", stream=True)).read()
    assert raw.count(b": keep-alive\n\n") >= 3
    assert streamed(raw)["text"] == "你好"


@both_ways
async def test_the_first_delta_is_not_held_back(gateway, scripted):
    upstream = await scripted(Script([HELLO[0]], end="hang"), stopped())
    gw = await start(gateway, upstream)
    answer = await gw.complete("bot", stream=True)
    first = await asyncio.wait_for(answer.content.readany(), 20)
    assert "你".encode() in first
    answer.close()


async def until(condition, seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def idle(gw) -> bool:
    targets = gw.app[STATE].now.routing.targets.values()
    return all(target.running == 0 for target in targets)


@both_ways
@pytest.mark.parametrize(
    "pieces", [[], [b"event: ping\n\n"], [HELLO[0]]], ids=["before headers", "before delta", "mid"]
)
async def test_a_client_that_leaves_closes_the_upstream_request(gateway, scripted, pieces):
    script = Script(pieces, end="hang", before_headers_s=0 if pieces else 3600)
    upstream = await scripted(script, stopped())
    gw = await start(gateway, upstream)
    async with aiohttp.ClientSession() as leaver:
        body = {"model": "bot", "stream": True, "user": "u-9",
                "messages": [{"role": "user", "content": "hi"}]}  # fmt: skip
        call = asyncio.ensure_future(leaver.post(f"{gw.url}/v1/chat/completions", json=body))
        await until(lambda: upstream.requests)
        if pieces == [HELLO[0]]:
            answer = await call
            await answer.content.readany()
            answer.close()
        else:
            await asyncio.sleep(0.1)
            call.cancel()
    await asyncio.wait_for(upstream.gone.wait(), 20)
    await until(lambda: idle(gw))
    if pieces == [HELLO[0]]:
        await until(lambda: len(upstream.requests) == 2)
        assert upstream.bodies("/stop") == [{"user": "u-9"}]


@both_ways
async def test_a_client_that_leaves_a_whole_answer_stops_the_run_too(gateway, scripted):
    upstream = await scripted(Script([HELLO[0]], end="hang"), stopped())
    gw = await start(gateway, upstream)
    async with aiohttp.ClientSession() as leaver:
        headers = {"Agent": "bot"}
        call = leaver.post(
            f"{gw.url}/api/v1/chat", json={"query": "hi", "user": "u"}, headers=headers
        )
        asking = asyncio.ensure_future(call)
        await until(lambda: upstream.requests)
        await asyncio.sleep(0.1)
        asking.cancel()
    await until(lambda: len(upstream.requests) == 2)
    assert "/stop" in upstream.requests[1][0]


@both_ways
async def test_a_slow_reader_slows_the_upstream(gateway, scripted):
    big = dify("message", answer="长" * 5000)
    upstream = await scripted(Script([big] * 4000))  # 60 MB
    gw = await start(gateway, upstream)
    answer = await gw.complete("bot", stream=True)
    await asyncio.sleep(1.0)  # the reader does nothing, and the sockets' buffers fill
    assert upstream.written < 25_000_000
    answer.close()


async def test_the_rest_after_a_complete_answer_gets_little_time(gateway, scripted):
    """1.x chatflows send `workflow_finished` after `message_end`; here it never arrives."""
    upstream = await scripted(Script([dify("workflow_started"), *HELLO], end="hang"))
    gw = await start(gateway, upstream)
    async with asyncio.timeout(20):
        got = streamed(await (await gw.complete("bot", stream=True)).read())
    assert got["text"] == "你好"
    assert got["finish"] == ["stop"]


async def test_an_empty_answer_ends_without_the_closing_event(gateway, scripted):
    """Coze says that the chat is completed, and the closing `done` never arrives."""
    done = b'event:conversation.chat.completed\ndata:{"id":"1","conversation_id":"2"}\n\n'
    upstream = await scripted(Script([done], end="hang"))
    gw = await gateway(agents={"bot": {**AGENTS["coze"], "base_url": upstream.url}})
    async with asyncio.timeout(20):
        body = await (await gw.chat("bot")).json()
    assert body["id"] == "2"
    assert body["choices"][0]["message"]["content"] == ""


async def test_connection_refused_is_tried_again_and_then_502(gateway):
    gw = await gateway(agents={"bot": agent("http://127.0.0.1:9", retries=1)})
    answer = await gw.complete("bot")
    assert answer.status == 502
    assert (await answer.json())["error"]["code"] == "upstream_unreachable"


async def test_the_next_target_answers_when_the_first_is_down(gateway, scripted):
    upstream = await scripted(Script(HELLO))
    agents = {"down": agent("http://127.0.0.1:9", retries=0), "up": agent(upstream.url)}
    gw = await gateway(agents=agents, routes={"any": ["down", "up"]})
    answer = await gw.complete("any")
    assert (await answer.json())["choices"][0]["message"]["content"] == "你好"
    assert answer.headers["x-gateway-agent"] == "up"
    assert answer.headers["x-gateway-attempts"] == "2"


async def test_a_call_that_was_accepted_is_not_tried_again(gateway, scripted):
    upstream = await scripted(Script([dify("workflow_started")], end="reset"))
    gw = await start(gateway, upstream, retries=3)
    answer = await gw.complete("bot")
    assert answer.status == 502
    assert answer.headers["x-should-retry"] == "false"
    assert len([r for r in upstream.requests if "chat-messages " in r[0]]) == 1


async def test_an_upstream_limit_is_429_with_retry_after(gateway, scripted):
    headers = {"Content-Type": "application/json", "Retry-After": "17"}
    upstream = await scripted(Script([b'{"code":"x"}'], status="429 Too Many", headers=headers))
    gw = await start(gateway, upstream)
    answer = await gw.complete("bot")
    assert answer.status == 429
    assert answer.headers["Retry-After"] == "17"
    assert len(upstream.requests) == 1


@both_ways
async def test_more_calls_than_the_agent_may_have_are_refused(gateway, scripted):
    upstream = await scripted(Script([HELLO[0]], end="hang"), stopped())
    gw = await start(gateway, upstream, concurrency=1, timeouts={"queue": "50ms"})
    first = await gw.complete("bot", stream=True)
    second = await gw.complete("bot", stream=True)
    assert second.status == 503
    assert second.headers["Retry-After"] == "1"
    first.close()
    await until(lambda: idle(gw))


@pytest.mark.parametrize(
    ("script", "status", "word"),
    [
        (Script([b"<html>nginx</html>"], headers={"Content-Type": "text/html"}), 502, "base_url"),
        (Script([b"[1,2]"], headers={"Content-Type": "application/json"}), 502, "base_url"),
        (Script([b"\x00\xff\xfe garbage \n\n"]), 502, "ended before"),
        (Script([b"data: {half\n\n"]), 502, "not JSON"),
        (Script([b"data: [1]\n\n"]), 502, "ended before"),
        (Script([]), 502, "ended before"),
        (Script([b"x" * 65536] * 40), 502, "more than"),
        (Script(status="302 Found", headers={"Location": "http://127.0.0.1:1/"}), 502, "redirect"),
        (Script([b"oops"], status="503 Unavailable"), 502, "503"),
        (Script([b"<h1>504</h1>"], status="504 Gateway Time-out"), 504, "in time"),
        (Script([b"HTTP"], status="999"), 502, "999"),
    ],
    ids=[
        "html",
        "json",
        "bytes",
        "half",
        "array",
        "empty",
        "endless",
        "redirect",
        "503",
        "504",
        "999",
    ],
)
async def test_whatever_an_upstream_sends_is_a_clear_error(gateway, scripted, script, status, word):
    upstream = await scripted(script)
    gw = await start(gateway, upstream, retries=0)
    answer = await gw.complete("bot", stream=True)
    assert answer.status == status
    message = (await answer.json())["error"]["message"]
    assert word in message
    assert "app-test-key" not in message


async def test_a_stream_that_is_over_leaves_no_circle_of_references(gateway, scripted):
    """A cycle would stay until a garbage collection, which is rare."""
    going_on = asyncio.Event()
    upstream = await scripted(Script([HELLO[0], going_on, HELLO[1] + END]))
    gw = await start(gateway, upstream)
    gc.collect()
    gc.disable()
    try:
        async with gw.complete("bot", stream=True) as answer:
            raw = await answer.content.readany()
            going_on.set()
            assert streamed(raw + await answer.read())["text"] == "你好"
        ours = (pump.Pump, Run, Attempt, Question, StreamRenderer, ChatRequest)
        await until(lambda: not any(isinstance(o, ours) for o in gc.get_objects()))
    finally:
        gc.enable()


@both_ways
@pytest.mark.parametrize("begins", [False, True], ids=["before", "after"])
async def test_an_error_has_one_shape_before_and_after_the_first_word(gateway, scripted, begins):
    failure = b'data: {"event": "error", "code": "", "status": 500, "message": "boom"}\n\n'
    upstream = await scripted(Script([HELLO[0], failure] if begins else [failure]))
    gw = await start(gateway, upstream)
    raw = await (await gw.chat("bot", stream=True)).read()
    told = orjson.loads(raw.rpartition(b"data: ")[2])
    assert (told["code"], told["detail"]["error"]) == (502, "upstream_failed")
    assert "boom" in told["msg"]
    if begins:  # `error` distinguishes it from a chunk, and holds the same
        inside = told.pop("error")
        assert (inside["message"], inside["type"]) == (told["msg"], "upstream_error")
        assert {name: inside[name] for name in told} == told
    raw = await (await gw.complete("bot", stream=True)).read()
    error = orjson.loads(raw.rpartition(b"data: ")[2])["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["code"] == "upstream_failed"


# The form of keep-alive comments, by client.

SDK = {"x-stainless-lang": "go"}


@both_ways
@pytest.mark.parametrize(
    ("form", "headers", "path", "comment"),
    [
        ("auto", {}, "/v1/chat/completions", b": keep-alive\n\n"),
        ("auto", SDK, "/v1/chat/completions", b": keep-alive\n"),
        ("auto", SDK, "/api/v1/chat", b": keep-alive\n\n"),
        ("comment", SDK, "/v1/chat/completions", b": keep-alive\n\n"),
        ("line", {}, "/v1/chat/completions", b": keep-alive\n"),
        ("line", {}, "/api/v1/chat", b": keep-alive\n"),
    ],
)
async def test_keep_alive_comments_have_the_form_that_the_client_takes(
    gateway, scripted, form, headers, path, comment
):
    pieces = [0.25, HELLO[0], 0.25, HELLO[1], END]
    upstream = await scripted(Script(pieces))
    server = {"keepalive": "50ms", "keepalive_form": form}
    gw = await start(gateway, upstream, server)
    body = {"model": "bot", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    if path.startswith("/api"):
        body = {"query": "hi", "stream": True}
    async with gw.post(path, body, headers={"Agent": "bot", **headers}) as answer:
        raw = await answer.read()
    head, _, rest = raw.partition(b"data: ")
    assert set(head.split(comment)) == {b""}
    before, _, after = rest.partition("你".encode())[2].partition("好".encode())
    assert comment + b"data: " in before
    assert b": keep-alive" not in after
    kept = raw.replace(comment, b"")
    assert streamed(kept)["text"] == "你好"
