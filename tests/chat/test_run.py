"""Reliable routes: tries, fallback, breaker, queue and their deadlines, over sockets."""

import asyncio
import gc
import socket
import time
from contextlib import suppress

import orjson
import pytest
from conftest import AGENTS, Script, stopped, streamed
from test_streaming import HELLO, agent, dify, until

from gateway.http.context import STATE

JSON = {"Content-Type": "application/json"}
BUSY = Script([b'{"code":"x"}'], status="429 Too Many", headers={**JSON, "Retry-After": "0.2"})
GOOD = Script(HELLO)


def refuses() -> str:
    """An address without a listener."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{s.getsockname()[1]}"


def questions(upstream):
    return [line for line, _, _ in upstream.requests if "chat-messages " in line]


@pytest.fixture
async def route(gateway, scripted):
    """`await route(first)`: a gateway whose route `r` asks `a`, which follows the script, and then
    `b`, which answers; (gateway, a's upstream, b's upstream)."""

    async def make(*first: Script, url: str = "", a=None, **config):
        one, two = await scripted(*(first or [GOOD])), await scripted(GOOD)
        settings = {"retries": 0, **(a or {})}
        agents = {"a": agent(url or one.url, **settings), "b": agent(two.url)}
        gw = await gateway(agents=agents, routes={"r": ["a", "b"]}, **config)
        return gw, one, two

    return make


@pytest.fixture
async def connect_raw(stack):
    async def to(gw):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(gw.url.rpartition(":")[2]))

        async def close():
            writer.transport.abort()
            with suppress(OSError):
                await writer.wait_closed()

        stack.push_async_callback(close)
        return reader, writer

    return to


async def test_a_route_with_a_dead_target_answers_from_the_next(route):
    gw, _, _ = await route(url=refuses())
    for stream in (False, True):
        for answer in (await gw.complete("r", stream=stream), await gw.chat("r", stream=stream)):
            assert answer.status == 200
            assert answer.headers["x-gateway-agent"] == "b"
            assert answer.headers["x-gateway-attempts"] == "2"
            text = await answer.text()
            assert "stop" in text


SHORT = {"timeouts": {"first_delta": "300ms"}}


@pytest.mark.parametrize(
    ("script", "a"),
    [
        (Script([b"{}"], status="429 Too Many", headers=JSON), {}),
        (
            Script(
                [b"<h1>bad gateway</h1>"], status="502 X", headers={"Content-Type": "text/html"}
            ),
            {},
        ),
        (Script(status="503 X"), {}),
        (Script(status="504 X"), {}),
        (Script([b'{"code":"internal_server_error"}'], status="500 X", headers=JSON), {}),
        (Script([b'{"code":"unauthorized"}'], status="401 X", headers=JSON), {}),
        (Script(status="302 X", headers={"Location": "http://127.0.0.1:1/"}), {}),
        (Script(before_headers_s=60), SHORT),
        (Script(status="\r\n", end="reset"), {}),
    ],
    ids=["429", "502", "503", "504", "500", "401", "302", "silent", "garbage"],
)
async def test_what_is_no_answer_is_asked_elsewhere(route, script, a):
    gw, one, two = await route(script, a=a)
    answer = await gw.complete("r", stream=True)
    assert answer.status == 200
    assert answer.headers["x-gateway-agent"] == "b"
    assert streamed(await answer.read())["text"] == "你好"
    assert len(questions(one)) == len(questions(two)) == 1


async def test_a_busy_agent_is_skipped_while_another_can_answer(route):
    gw, one, _ = await route(
        Script([HELLO[0]], end="hang"), stopped(), a={"concurrency": 1, "timeouts": {"queue": "1m"}}
    )
    first = await gw.complete("r", stream=True)
    async with asyncio.timeout(20):
        second = await gw.complete("r", stream=True)
        assert second.headers["x-gateway-agent"] == "b"
        await second.read()
    first.close()
    await until(lambda: gw.app[STATE].now.routing.targets["a"].running == 0)


@pytest.mark.parametrize(
    "script",
    [
        Script([], end="reset"),
        Script([dify("workflow_started")], end="reset"),
        Script([dify("error", code="x", message="the node failed", status=500)]),
        Script([dify("error", code="x", message="timed out", status=504)]),
    ],
    ids=["cut at once", "cut after a step", "failed", "timed out in the bot"],
)
async def test_an_accepted_call_is_not_tried_elsewhere(route, script):
    gw, one, two = await route(script, a={"retries": 3})
    answer = await gw.complete("r", stream=True)
    assert answer.status in (502, 504)
    assert answer.headers["x-should-retry"] == "false"
    assert answer.headers["x-gateway-agent"] == "a"
    assert (await answer.json())["error"]["message"].startswith("Agent 'a'")
    assert (len(questions(one)), len(questions(two))) == (1, 0)


async def test_a_question_that_is_wrong_is_asked_nowhere_else(route):
    body = b'{"code":"invalid_param","message":"query is required","status":400}'
    gw, _, two = await route(Script([body], status="400 X", headers=JSON))
    answer = await gw.complete("r")
    assert answer.status == 400
    assert two.requests == []


async def test_a_wrong_key_is_not_tried_twice_but_elsewhere(route):
    body = b'{"code":"unauthorized","message":"Access token is invalid"}'
    gw, one, _ = await route(Script([body], status="401 X", headers=JSON), a={"retries": 5})
    answer = await gw.complete("r")
    assert (answer.status, answer.headers["x-gateway-agent"]) == (200, "b")
    assert len(questions(one)) == 1


async def test_the_log_says_why_an_agent_was_passed_over(route, caplog):
    caplog.set_level("INFO", "gateway.access")
    wrong = Script([b'{"code":"unauthorized"}'], status="401 Unauthorized", headers=JSON)
    gw, _, _ = await route(wrong)
    async with gw.chat("r") as answer:
        assert answer.status == 200
    (line,) = [orjson.loads(message) for message in caplog.messages if "/api/v1/chat" in message]
    assert "error" not in line
    (reason,) = line["failures"]
    assert reason.startswith("Agent 'a': ")
    assert "key" in reason


@pytest.mark.parametrize("status", ["429", "502", "503", "504"])
async def test_an_agent_is_retried_if_nothing_has_begun(gateway, scripted, status):
    upstream = await scripted(Script(status=f"{status} X", headers={"Retry-After": "0"}), GOOD)
    gw = await gateway(agents={"bot": agent(upstream.url)})
    answer = await gw.complete("bot")
    assert (answer.status, answer.headers["x-gateway-attempts"]) == (200, "2")


async def test_failed_tries_leave_nothing_in_memory(route):
    """Errors hold their frames; in a cycle they would stay until a garbage collection, which is
    rare."""

    def runs() -> list[object]:
        return [
            o for o in gc.get_objects() if type(o).__name__ in ("Run", "Attempt", "ChatRequest")
        ]

    failed = Script([b'{"code":"internal_server_error"}'], status="503 X", headers=JSON)
    error = Script([dify("error", code="provider_quota_exceeded", message="x", status=400)])
    gw, _, _ = await route(failed, error, failed, a={"retries": 1})
    await (await gw.complete("r")).read()
    gc.collect()
    before = {id(o) for o in runs()}
    gc.disable()
    try:
        answer = await gw.complete("r")
        assert answer.headers["x-gateway-agent"] == "b"
        await answer.read()
        for _ in range(5):
            await asyncio.sleep(0.01)
        assert [o for o in runs() if id(o) not in before] == []
    finally:
        gc.enable()


async def test_a_retry_waits_as_long_as_the_upstream_says(gateway, scripted):
    upstream = await scripted(BUSY, GOOD)
    gw = await gateway(agents={"bot": agent(upstream.url)})
    began = time.monotonic()
    answer = await gw.complete("bot")
    assert answer.status == 200
    assert time.monotonic() - began >= 0.2


async def test_an_upstream_without_retry_after_is_retried_soon(gateway, scripted):
    """The wait that callers are advised then is a guess."""
    upstream = await scripted(Script([b"{}"], status="429 X", headers=JSON))
    gw = await gateway(agents={"bot": agent(upstream.url)})
    began = time.monotonic()
    answer = await gw.complete("bot")
    assert (answer.status, answer.headers["Retry-After"]) == (429, "5")
    assert len(questions(upstream)) == 3
    assert time.monotonic() - began < 4


async def test_a_wait_past_the_deadline_is_left_to_the_caller(gateway, scripted):
    limit = Script([b"{}"], status="429 X", headers={**JSON, "Retry-After": "3"})
    upstream = await scripted(limit, GOOD)
    gw = await gateway(agents={"bot": agent(upstream.url, timeouts={"first_delta": "2s"})})
    began = time.monotonic()
    answer = await gw.complete("bot")
    assert (answer.status, answer.headers["Retry-After"]) == (429, "3")
    assert time.monotonic() - began < 2


async def test_with_another_agent_left_the_first_is_not_awaited(route):
    limit = Script([b"{}"], status="429 X", headers={**JSON, "Retry-After": "5"})
    gw, _, _ = await route(limit, a={"retries": 3})
    began = time.monotonic()
    answer = await gw.complete("r")
    assert (answer.status, answer.headers["x-gateway-agent"]) == (200, "b")
    assert time.monotonic() - began < 4


async def test_all_tries_at_one_agent_share_the_time_to_begin(gateway, scripted):
    upstream = await scripted(Script(before_headers_s=60))
    timeouts = {"first_delta": "400ms"}
    gw = await gateway(agents={"bot": agent(upstream.url, timeouts=timeouts, retries=5)})
    answer = await gw.complete("bot")
    assert answer.status == 504
    assert len(questions(upstream)) == 1


async def test_one_deadline_is_over_all_agents_of_a_route(route):
    slow = {"timeouts": {"first_delta": "300ms", "total": "400ms"}}
    gw, _, two = await route(Script(before_headers_s=60), a=slow)
    two.scripts = [Script(before_headers_s=60)]
    for stream in (False, True):
        async with asyncio.timeout(20):
            answer = await gw.complete("r", stream=stream)
        assert answer.status == 504
        assert "longer than 0.4 s" in (await answer.json())["error"]["message"]


async def test_a_failing_agent_is_skipped_and_recovers(gateway, scripted):
    broken = Script(status="503 X")
    upstream = await scripted(broken, broken, GOOD)
    settings = {"retries": 0, "breaker": {"failures": 2, "cooldown": "150ms"}}
    gw = await gateway(agents={"bot": agent(upstream.url, **settings)})
    assert [(await gw.complete("bot")).status for _ in range(2)] == [502, 502]
    answer = await gw.complete("bot")
    assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
    error = (await answer.json())["error"]
    assert error["code"] == "circuit_open"
    assert "upstream_failed" in error["message"]
    assert len(questions(upstream)) == 2
    await until(lambda: gw.app[STATE].now.routing.targets["bot"].breaker.state == "half-open")
    assert [(await gw.complete("bot")).status for _ in range(3)] == [200] * 3


async def test_a_route_passes_over_an_agent_that_is_left_alone(route):
    gw, one, _ = await route(
        Script(status="503 X"), a={"breaker": {"failures": 1, "cooldown": "1m"}}
    )
    for attempts in ("2", "1"):
        answer = await gw.complete("r")
        assert answer.headers["x-gateway-agent"] == "b"
        assert answer.headers["x-gateway-attempts"] == attempts
    assert len(questions(one)) == 1


async def test_a_disconnect_does_not_keep_a_half_open_circuit_open(gateway, scripted):
    upstream = await scripted(Script(status="503 X"), Script(before_headers_s=60), GOOD)
    settings = {"retries": 0, "breaker": {"failures": 1, "cooldown": "50ms"}}
    gw = await gateway(agents={"bot": agent(upstream.url, **settings)})
    assert (await gw.complete("bot")).status == 502
    breaker = gw.app[STATE].now.routing.targets["bot"].breaker
    await until(lambda: breaker.state == "half-open")
    leaver = asyncio.ensure_future(gw.complete("bot"))
    await until(lambda: len(questions(upstream)) == 2)
    leaver.cancel()
    await asyncio.wait({leaver})
    await upstream.gone.wait()
    await until(lambda: gw.app[STATE].now.routing.targets["bot"].running == 0)
    assert (await gw.complete("bot")).status == 200
    assert breaker.state == "closed"


async def test_a_call_waits_in_the_queue_for_a_place(gateway, scripted):
    upstream = await scripted(Script([HELLO[0], 0.1, *HELLO[1:]]), GOOD)
    gw = await gateway(agents={"bot": agent(upstream.url, concurrency=1)})
    answers = await asyncio.gather(*(gw.complete("bot") for _ in range(3)))
    assert [answer.status for answer in answers] == [200] * 3


@pytest.fixture
async def models(gateway, scripted):
    """`await models(first, …)`: a route of two OpenAI-compatible agents, the second of which
    answers."""

    async def make(first: Script, **settings):
        body = b'{"choices":[{"message":{"content":"hi"},"finish_reason":"stop"}]}'
        one, two = await scripted(first), await scripted(Script([body], headers=JSON))
        agents = {
            name: {**AGENTS["openai"], "base_url": upstream.url, "retries": 0, **settings}
            for name, upstream in (("a", one), ("b", two))
        }
        return await gateway(agents=agents, routes={"r": ["a", "b"]}), one, two

    return make


async def test_a_missing_whole_answer_leaves_time_for_the_next(models):
    gw, _, _ = await models(Script(before_headers_s=60), timeouts={"total": "1s"})
    answer = await gw.complete("r")
    assert (answer.status, answer.headers["x-gateway-agent"]) == (200, "b")


async def test_a_page_in_place_of_a_whole_answer_is_asked_elsewhere(models):
    page = Script([b"<!doctype html><h1>login</h1>"], headers={"Content-Type": "text/html"})
    gw, _, _ = await models(page)
    answer = await gw.complete("r")
    assert (answer.status, answer.headers["x-gateway-agent"]) == (200, "b")
    alone = await gw.complete("a")
    assert (alone.status, (await alone.json())["error"]["code"]) == (502, "upstream_auth_failed")


async def test_impatient_callers_do_not_open_the_circuit(models):
    """A whole answer has no beginning that could be late."""
    settings = {"timeouts": {"first_delta": "50ms"}, "breaker": {"failures": 1}}
    gw, one, _ = await models(Script(before_headers_s=60), **settings)
    leaver = asyncio.ensure_future(gw.complete("a"))
    await until(lambda: len(one.requests) == 1)
    await asyncio.sleep(0.1)
    leaver.cancel()
    await asyncio.wait({leaver})
    target = gw.app[STATE].now.routing.targets["a"]
    await until(lambda: target.running == 0)
    assert target.breaker.state == "closed"


async def test_time_in_the_queue_is_not_the_upstreams(gateway, scripted):
    slow = Script([HELLO[0], 0.4, *HELLO[1:]])
    upstream = await scripted(slow, GOOD)
    settings = {"concurrency": 1, "timeouts": {"first_delta": "200ms", "queue": "5s"}}
    gw = await gateway(agents={"bot": agent(upstream.url, **settings)})
    answers = await asyncio.gather(*(gw.complete("bot") for _ in range(2)))
    assert [answer.status for answer in answers] == [200, 200]


async def test_a_conversation_never_moves_to_another_agent(route):
    gw, one, two = await route(GOOD, Script(status="503 X"))
    begun = await (await gw.chat("r")).json()
    assert begun["id"] == "a:c-1"
    answer = await gw.chat("r", conversation_id=begun["id"])
    assert answer.status == 502
    assert answer.headers["x-gateway-agent"] == "a"
    assert two.requests == []


async def test_retries_that_open_the_circuit_report_the_failure(gateway):
    settings = {"retries": 5, "breaker": {"failures": 2, "cooldown": "1m"}}
    gw = await gateway(agents={"bot": agent(refuses(), **settings)})
    answer = await gw.complete("bot")
    assert answer.status == 502
    assert (await answer.json())["error"]["code"] == "upstream_unreachable"


async def test_slow_callers_are_no_outage_of_the_upstream(gateway, scripted, connect_raw):
    """A caller that does not read a forwarded answer, and one that sends a file slowly."""
    big = Script([b"x" * 50_000] * 2000, headers={"Content-Type": "application/octet-stream"})
    upstream = await scripted(big)
    settings = {"breaker": {"failures": 1}, "timeouts": {"total": "300ms"}}
    bot = {**AGENTS["openai"], "base_url": upstream.url, **settings}
    gw = await gateway(agents={"bot": bot})
    reader, writer = await connect_raw(gw)
    body = b'{"model":"bot","input":"hi"}'
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    writer.write(head % len(body) + body)
    await reader.readexactly(10)
    target = gw.app[STATE].now.routing.targets["bot"]
    await until(lambda: target.running == 0)
    assert target.breaker.state == "closed"


async def test_what_was_never_asked_uses_up_no_quota(with_accounts, tmp_path):
    gw = await with_accounts(f"sqlite:///{tmp_path / 'gateway.db'}")
    _, key = await gw.key(await gw.login(), max_calls=2)
    target = gw.app[STATE].now.routing.targets["dify"]
    places, target.running = target.running, target.agent.concurrency
    target.agent = target.agent.model_copy(update={"queue": 0})
    assert [(await gw.ask(key))[0] for _ in range(4)] == [503] * 4
    target.running = places
    assert [(await gw.ask(key))[0] for _ in range(3)] == [200, 200, 429]
