"""Real clients: slow, impatient, greedy, or not speaking HTTP at all."""

import asyncio
import resource
import socket
import time
from contextlib import suppress

import aiohttp
import orjson
import pytest
import yaml
from conftest import Script, stopped
from test_cli import serving
from test_streaming import HELLO, agent, dify, until

from gateway.http.context import IN_FLIGHT, METRICS, STATE

QUESTION = orjson.dumps({"query": "hi", "stream": True})


@pytest.fixture
async def connect(stack):
    """`await connect(gateway or port)`: (reader, writer), closed at the end."""

    async def to(where):
        port = where if isinstance(where, int) else int(where.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        stack.push_async_callback(close, writer)
        return reader, writer

    return to


async def close(writer) -> None:
    writer.transport.abort()
    with suppress(OSError):
        await writer.wait_closed()


def request(body: bytes = QUESTION, path: str = "/api/v1/chat", **headers: str) -> bytes:
    lines = {"Host": "localhost", "Agent": "bot", "Content-Length": str(len(body)), **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body


def nothing_is_left(gw) -> bool:
    bot = gw.app[STATE].now.routing.targets["bot"]
    return len(gw.app[IN_FLIGHT]) == 0 and bot.running == 0


@pytest.fixture
async def serve(gateway, scripted):
    async def start(*scripts: Script, server=None, **settings):
        upstream = await scripted(*scripts)
        gw = await gateway(agents={"bot": agent(upstream.url, **settings)}, server=server or {})
        return gw, upstream

    return start


# Clients that do not read


async def test_a_caller_that_does_not_read_pauses_the_upstream(connect, serve, monkeypatch):
    """The gateway takes from the upstream only what the network and one buffer hold."""
    monkeypatch.setattr("gateway.http.answer.END_S", 0.5)
    endless = Script([dify("message", answer="长" * 4000)] * 5000)
    gw, upstream = await serve(endless, stopped(), timeouts={"total": "1s"})
    reader, writer = await connect(gw)
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    writer.write(request())
    await reader.read(1)
    reader._transport.pause_reading()
    bot = gw.app[STATE].now.routing.targets["bot"]
    await until(lambda: bot.running == 1)
    await until(lambda: bot.running == 0)
    assert upstream.written < 30_000_000  # of 60 MB
    await until(lambda: nothing_is_left(gw))
    writer.transport.abort()


async def test_who_reads_slowly_gets_everything(connect, serve):
    gw, _ = await serve(Script([*[dify("message", answer="长" * 500)] * 200, *HELLO]))
    reader, writer = await connect(gw)
    writer.write(request(Connection="close"))
    got = b""
    while piece := await reader.read(20_000):
        got += piece
        await asyncio.sleep(0.005)
    assert got.count("长".encode()) == 100_000
    assert b"data: [DONE]" in got


# Clients that send slowly, or only half


async def test_a_head_that_does_not_come_is_not_waited_for(
    connect, serve, monkeypatch, gateway, scripted
):
    monkeypatch.setattr("gateway.server.connections.IDLE_S", 0.2)
    gw, upstream = await serve(Script(HELLO))
    for start in (b"", b"POST /api/v1/chat HTTP/1.1\r\nHost: localhost\r\nAge"):
        reader, writer = await connect(gw)
        writer.write(start)
        async with asyncio.timeout(20):
            assert await reader.read() == b""
        assert upstream.requests == []


async def test_a_head_that_comes_byte_by_byte_has_no_more_time(connect, serve, monkeypatch):
    monkeypatch.setattr("gateway.server.connections.IDLE_S", 0.3)
    gw, _ = await serve(Script(HELLO))
    reader, writer = await connect(gw)
    began = time.monotonic()
    with pytest.raises(ConnectionError):
        for byte in b"GET / HTTP/1.1\r\nX: " + b"a" * 1000:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.02)
    assert time.monotonic() - began < 15


async def test_a_body_that_stops_coming_is_408(connect, serve, monkeypatch):
    monkeypatch.setattr("gateway.http.body.BODY_S", 0.2)
    gw, upstream = await serve(Script(HELLO))
    reader, writer = await connect(gw)
    writer.write(request()[:-5])
    async with asyncio.timeout(20):
        answer = await reader.readuntil(b"}}")
    assert b" 408 " in answer.split(b"\r\n")[0]
    assert b"request_timeout" in answer
    assert upstream.requests == []


async def test_a_client_that_breaks_off_in_its_body_leaves_nothing(connect, serve):
    gw, upstream = await serve(Script(HELLO))
    for _ in range(20):
        _, writer = await connect(gw)
        writer.write(request()[:-5])
        await writer.drain()
        writer.transport.abort()
    await until(lambda: nothing_is_left(gw))
    assert upstream.requests == []


# Clients that send much


async def test_pipelined_requests_are_answered_in_their_order(connect, serve):
    gw, _ = await serve(Script(HELLO))
    reader, writer = await connect(gw)
    body = orjson.dumps({"query": "hi"})
    writer.write(
        request(body)
        + b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
        + request(Connection="close")
    )
    async with asyncio.timeout(20):
        got = await reader.read()
        while piece := await reader.read():
            got += piece
    whole, health, stream = (
        got.find(b'chat.completion"'),
        got.find(b'"healthy"'),
        got.find(b"[DONE]"),
    )
    assert -1 < whole < health < stream


async def test_a_pipelined_request_after_a_disconnect_is_not_begun(connect, serve):
    gw, upstream = await serve(Script([HELLO[0]], end="hang"), stopped())
    reader, writer = await connect(gw)
    writer.write(request() * 3)
    await reader.readuntil("你".encode())
    writer.transport.abort()
    await until(lambda: nothing_is_left(gw))
    asked = [line for line, _, _ in upstream.requests if "stop" not in line]
    assert len(asked) == 1


async def test_connections_beyond_the_limit_get_an_error(connect, scripted, tmp_path):
    upstream = await scripted(Script(HELLO))
    path = tmp_path / "c.yaml"
    config = {"server": {"max_connections": 10}, "agents": {"bot": agent(upstream.url)}}
    path.write_text(yaml.safe_dump(config))
    async with serving("--config", str(path)) as (_, port, _):
        held = [await connect(port) for _ in range(10)]
        await asyncio.sleep(0.1)
        reader, _ = await connect(port)
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"Retry-After: 1\r\n" in answer
        assert b"too_many_connections" in answer
        for _, writer in held:
            await close(writer)
        async with aiohttp.ClientSession() as client:
            async with asyncio.timeout(20):
                while True:
                    async with client.get(f"http://127.0.0.1:{port}/health") as health:
                        if health.status == 200:
                            break


@pytest.fixture
def many_files():
    """As many open files as the system allows this process."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield before[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_5000_concurrent_connections_are_served(connect, scripted, tmp_path, many_files):
    """All open simultaneously, each with a request; the process keeps answering."""
    upstream = await scripted(Script(HELLO))
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"agents": {"bot": agent(upstream.url)}}))
    count = min(5000, many_files - 500)
    async with serving("--config", str(path)) as (_, port, log):
        room = asyncio.Semaphore(200)  # connections that are opened simultaneously

        async def one() -> asyncio.StreamWriter:
            async with room:
                reader, writer = await connect(port)
                writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                answer = await reader.readuntil(b"}")
                assert b"200 OK" in answer
                return writer

        writers = await asyncio.gather(*(one() for _ in range(count)))
        assert len(writers) == count
        async with aiohttp.ClientSession() as client:
            began = time.monotonic()
            async with client.get(f"http://127.0.0.1:{port}/livez") as answer:
                assert answer.status == 200
            assert time.monotonic() - began < 10
            async with client.get(f"http://127.0.0.1:{port}/metrics") as answer:
                (fds,) = (
                    line for line in (await answer.text()).splitlines()
                    if line.startswith("process_open_fds ")
                )  # fmt: skip
        assert float(fds.split()[1]) >= count
        await asyncio.gather(*(close(writer) for writer in writers))


async def test_concurrent_streams_are_whole_and_leave_nothing(connect, serve):
    gw, _ = await serve(Script([HELLO[0], 0.3, *HELLO[1:]]), concurrency=1000)

    async def one() -> bool:
        reader, writer = await connect(gw)
        writer.write(request(Connection="close"))
        whole = b"data: [DONE]" in await reader.read(-1)
        return whole

    assert await asyncio.gather(*(one() for _ in range(300))) == [True] * 300
    await until(lambda: nothing_is_left(gw))
    assert gw.app[METRICS].registry.get_sample_value("gateway_open_streams") == 0


async def test_http_2_without_tls_gets_a_clear_error(connect, serve):
    gw, _ = await serve(Script(HELLO))
    reader, writer = await connect(gw)
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    answer = await reader.read()
    assert answer.split()[1] == b"400"
    assert b"use HTTP/1.1" in answer


async def test_an_offer_of_http_2_is_ignored(connect, serve):
    gw, _ = await serve(Script(HELLO))
    reader, writer = await connect(gw)
    offer = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMA"}
    writer.write(request(orjson.dumps({"query": "hi"}), **offer))
    assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200")


async def test_a_body_that_is_too_large_is_refused_before_it_is_sent(connect, serve):
    gw, upstream = await serve(Script(HELLO))
    reader, writer = await connect(gw)
    head = request(b"", **{"Content-Length": "90000000", "Expect": "100-continue"})
    writer.write(head)
    answer = await reader.readuntil(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413")
    assert upstream.requests == []


async def test_a_body_that_is_asked_for_is_read(connect, serve):
    gw, _ = await serve(Script(HELLO))
    reader, writer = await connect(gw)
    body = orjson.dumps({"query": "hi"})
    writer.write(request(b"", **{"Content-Length": str(len(body)), "Expect": "100-continue"}))
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(body)
    assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200")
