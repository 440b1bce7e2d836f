"""Callers who disconnect, in each of four windows, under both policies, streamed and whole.

Afterwards the upstream's connection is closed immediately and the platform's run is stopped, or the
answer is read to its end for its usage. Either way the call is recorded once.
"""

import asyncio

import aiohttp
import orjson
import pytest
from conftest import Script, stopped
from test_streaming import END, HELLO, agent, dify, until

from gateway.http.context import IN_FLIGHT, METRICS, SERVICES, STATE

SLOW = 60.0
# The upstream's script, and the point at which the caller disconnects.
WINDOWS = {
    "before the upstream answers": Script(before_headers_s=SLOW),
    "before the first delta": Script([dify("workflow_started"), SLOW, *HELLO]),
    "in the middle": Script([HELLO[0], SLOW, *HELLO[1:]]),
    "at the end": Script([*HELLO[:2], SLOW, END]),
}


@pytest.fixture
async def serve(gateway, scripted, tmp_path):
    """`await serve(script, on_disconnect)`: (gateway with a database, upstream)."""

    async def start(script: Script, policy, **server):
        upstream = await scripted(script, stopped())
        bot = agent(upstream.url, on_disconnect=policy)
        database = f"sqlite:///{tmp_path / 'gateway.db'}"
        record = {"spool": str(tmp_path / "spool")}
        gw = await gateway(
            agents={"bot": bot}, database=database, record=record, server=server,
            auth={"anonymous": True},
        )  # fmt: skip
        return gw, upstream

    return start


async def ask_raw(gw, stream: bool):
    """(reader, writer) of a connection on which a question has been sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gw.url.rpartition(":")[2]))
    body = orjson.dumps({"query": "hi", "stream": stream})
    head = "POST /api/v1/chat HTTP/1.1\r\nHost: localhost\r\nAgent: bot\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return reader, writer


async def leave(gw, upstream, stream: bool, after: bytes = b"") -> None:
    """Ask, wait until the upstream has the question (and `after` has arrived), and disconnect."""
    reader, writer = await ask_raw(gw, stream)
    await until(lambda: bool(upstream.requests))
    if after:
        await reader.readuntil(after)
    elif upstream.written == 0:
        await asyncio.sleep(0.05)  # for the upstream's bytes so far to arrive
    writer.close()
    await writer.wait_closed()


async def rows(gw):
    await gw.app[SERVICES].recorder.flush()
    async with gw.app[SERVICES].calls._database.transaction() as conn:
        columns = "status, client_gone, usage, total_tokens"
        async with conn.execute(f"SELECT {columns} FROM calls") as cursor:
            return [tuple(row) for row in await cursor.fetchall()]


def nothing_is_left(gw) -> bool:
    bot = gw.app[STATE].now.routing.targets["bot"]
    return len(gw.app[IN_FLIGHT]) == 0 and bot.running == bot.draining == 0


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("window", WINDOWS)
async def test_a_disconnect_closes_the_upstream_and_stops_the_run(serve, window, stream):
    gw, upstream = await serve(WINDOWS[window], "cancel")
    after = {"in the middle": "你", "at the end": "好"}.get(window, "") if stream else ""
    await leave(gw, upstream, stream, after.encode())
    async with asyncio.timeout(20):
        await upstream.gone.wait()
    await until(lambda: nothing_is_left(gw))
    # the run has no name yet by which it could be stopped
    if window != "before the upstream answers":
        await until(lambda: any("/stop" in line for line, _, _ in upstream.requests))
        stop = upstream.bodies("/stop")
        assert stop == [{"user": upstream.bodies("chat-messages ")[0]["user"]}]
    assert await rows(gw) == [(499, 1, "unknown", 0)]


DRAINED = {
    "before the first delta": Script([dify("workflow_started"), 0.5, *HELLO]),
    "in the middle": Script([HELLO[0], 0.5, *HELLO[1:]]),
    "at the end": Script([*HELLO[:2], 0.5, END]),
}


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("window", DRAINED)
async def test_with_drain_the_usage_of_the_rest_is_recorded(serve, window, stream):
    gw, upstream = await serve(DRAINED[window], "drain")
    after = {"in the middle": "你", "at the end": "好"}.get(window, "") if stream else ""
    await leave(gw, upstream, stream, after.encode())
    await until(lambda: nothing_is_left(gw))
    assert not upstream.gone.is_set()
    assert not any("/stop" in line for line, _, _ in upstream.requests)
    assert await rows(gw) == [(499, 1, "exact", 5)]


async def test_a_whole_answer_that_has_only_headers_yet_is_drained_too(gateway, scripted):
    """A whole answer of an OpenAI-compatible upstream: 200, and then silence for a while."""
    from conftest import AGENTS

    body = b'{"choices":[{"message":{"content":"hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}'
    upstream = await scripted(Script([0.3, body], headers={"Content-Type": "application/json"}))
    bot = {**AGENTS["openai"], "base_url": upstream.url, "on_disconnect": "drain"}
    gw = await gateway(agents={"bot": bot})
    await leave(gw, upstream, False)
    await until(lambda: nothing_is_left(gw))
    assert not upstream.gone.is_set()


async def test_nobody_drains_what_the_platform_has_not_accepted(serve):
    gw, upstream = await serve(WINDOWS["before the upstream answers"], "drain")
    await leave(gw, upstream, True)
    async with asyncio.timeout(20):
        await upstream.gone.wait()
    await until(lambda: nothing_is_left(gw))


async def test_draining_has_a_longest_time_and_then_stops_the_run(serve):
    gw, upstream = await serve(Script([HELLO[0], SLOW]), {"policy": "drain", "max_time": "100ms"})
    await leave(gw, upstream, True, "你".encode())
    await until(lambda: gw.app[STATE].now.routing.targets["bot"].draining == 1)
    async with asyncio.timeout(20):
        await upstream.gone.wait()
    await until(lambda: any("/stop" in line for line, _, _ in upstream.requests))
    assert await rows(gw) == [(499, 1, "unknown", 0)]


async def test_concurrent_drains_are_limited(serve):
    gw, upstream = await serve(Script([HELLO[0], SLOW]), {"policy": "drain", "max_calls": 1})
    upstream.scripts = [Script([HELLO[0], SLOW])]
    await leave(gw, upstream, True, "你".encode())
    bot = gw.app[STATE].now.routing.targets["bot"]
    await until(lambda: bot.draining == 1)
    await leave(gw, upstream, True, "你".encode())
    async with asyncio.timeout(20):
        await upstream.gone.wait()
    await until(lambda: bot.running == 1)
    assert bot.draining == 1


async def test_a_drain_that_the_upstream_cuts_is_recorded_as_partial(serve):
    usage_so_far = dify("message_end", metadata={})
    gw, upstream = await serve(Script([HELLO[0], 0.1, usage_so_far[:40]], end="reset"), "drain")
    await leave(gw, upstream, True, "你".encode())
    await until(lambda: nothing_is_left(gw))
    assert await rows(gw) == [(499, 1, "unknown", 0)]


async def test_who_closes_only_the_sending_half_is_a_leaver(serve):
    """TCP does not distinguish the two, and a disconnected caller must not keep the bot running."""
    gw, upstream = await serve(WINDOWS["in the middle"], "cancel")
    reader, writer = await ask_raw(gw, stream=True)
    await reader.readuntil("你".encode())
    writer.write_eof()
    async with asyncio.timeout(20):
        await upstream.gone.wait()
        await reader.read()
    writer.close()
    await until(lambda: nothing_is_left(gw))


async def test_leavers_are_counted_by_agent_and_phase(serve):
    gw, upstream = await serve(WINDOWS["in the middle"], "cancel")
    await leave(gw, upstream, True, "你".encode())
    await until(lambda: nothing_is_left(gw))
    value = gw.app[METRICS].registry.get_sample_value
    labels = {"agent": "bot", "phase": "streaming"}
    await until(lambda: value("gateway_client_disconnects_total", labels) == 1)
    assert value("gateway_open_streams") == 0


# Whole answers that are kept alive.


async def test_spaces_before_its_json_keep_a_whole_answer_alive(serve):
    gw, _ = await serve(
        Script([HELLO[0], 0.25, *HELLO[1:]]), "cancel", keepalive="50ms", keepalive_whole=True
    )
    answer = await gw.chat("bot")
    raw = await answer.read()
    assert answer.status == 200
    assert answer.content_type == "application/json"
    assert 2 <= len(raw) - len(raw.lstrip()) <= 6
    assert orjson.loads(raw)["choices"][0]["message"]["content"] == "你好"
    assert answer.headers["x-gateway-agent"] == "bot"
    assert await rows(gw) == [(200, 0, "exact", 5)]


async def test_a_quick_one_is_as_it_would_be_without(serve):
    gw, upstream = await serve(Script(HELLO), "cancel", keepalive="5s", keepalive_whole=True)
    answer = await gw.chat("bot")
    assert "Content-Length" in answer.headers
    assert (await answer.json())["choices"][0]["finish_reason"] == "stop"
    upstream.scripts = [Script(status="404 X")]
    assert (await gw.chat("bot")).status == 502


async def test_a_failure_after_that_is_the_errors_json(serve):
    gw, _ = await serve(
        Script([HELLO[0], 0.2], end="reset"), "cancel", keepalive="50ms", keepalive_whole=True
    )
    answer = await gw.chat("bot")
    assert answer.status == 200
    body = await answer.json()
    assert (body["code"], body["detail"]["error"]) == (502, "upstream_cut")


async def test_a_disconnect_during_keepalive_whole_is_noticed(serve):
    gw, upstream = await serve(
        Script([HELLO[0], SLOW]), "cancel", keepalive="20ms", keepalive_whole=True
    )
    await leave(gw, upstream, False, b" ")
    async with asyncio.timeout(20):
        await upstream.gone.wait()
    await until(lambda: nothing_is_left(gw))
    assert await rows(gw) == [(499, 1, "unknown", 0)]


async def test_a_whole_answer_that_is_kept_alive_can_be_drained(serve):
    gw, upstream = await serve(
        Script([HELLO[0], 0.3, *HELLO[1:]]), "drain", keepalive="20ms", keepalive_whole=True
    )
    await leave(gw, upstream, False, b" ")
    await until(lambda: nothing_is_left(gw))
    assert await rows(gw) == [(499, 1, "exact", 5)]


# Limits of a stream.


async def test_an_answer_of_too_many_bytes_is_cut_with_an_error(gateway, scripted):
    upstream = await scripted(Script([HELLO[0], dify("message", answer="x" * 5000)]), stopped())
    gw = await gateway(agents={"bot": agent(upstream.url, max_answer="2KB")})
    answer = await gw.complete("bot", stream=True)
    text = await answer.text()
    assert "max_answer" in text
    assert '"finish_reason":"stop"' not in text
    assert "[DONE]" not in text
    whole = await gw.complete("bot")
    assert whole.status in (200, 502)


async def test_a_stream_ends_with_an_error_when_its_time_is_over(gateway, scripted):
    upstream = await scripted(Script([HELLO[0], SLOW]), stopped())
    gw = await gateway(agents={"bot": agent(upstream.url, timeouts={"total": "300ms"})})
    try:
        async with asyncio.timeout(20):
            text = await (await gw.complete("bot", stream=True)).text()
    except aiohttp.ClientError as error:
        raise AssertionError from error
    assert "longer than 0.3 s" in text
    assert "[DONE]" not in text
