"""Heads of requests: their size is bounded before more is parsed or kept."""

import asyncio
import re
import socket
from contextlib import closing, suppress
from typing import Any

import pytest
from conftest import AGENTS, Script
from test_bounds import BOTS, stalled
from test_streaming import chunk, until

from gateway.server import connections


def talk(gw, *pieces: bytes, end: bytes = b"") -> bytes:
    """The gateway's answer until it closes the connection, or `end` has arrived."""
    host, port = gw.url.removeprefix("http://").split(":")
    told = b""
    with closing(socket.create_connection((host, int(port)))) as line:
        line.settimeout(5)
        with suppress(ConnectionError):
            for piece in pieces:
                line.sendall(piece)
            while not (end and end in told) and (data := line.recv(65_536)):
                told += data
    return told


LINES = [b"X-%03d: %b\r\n" % (i, b"a" * 4000) for i in range(124)]


@pytest.mark.parametrize("pieces", [[b"".join(LINES)], LINES[:12]])
async def test_a_head_beyond_32_kib_is_431_before_its_end(gateway, pieces):
    gw = await gateway(agents={"bot": BOTS["openai"]})
    head = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"
    told = await asyncio.to_thread(talk, gw, head, *pieces)
    assert not told or b" 431 " in told[:20]  # bytes still in transit may reset the connection
    assert not told or b'"code":"headers_too_large"' in told.replace(b": ", b":")


async def test_a_head_of_24_kib_and_its_body_are_read(gateway):
    gw = await gateway(agents={"bot": BOTS["openai"]})
    body = b'{"model":"nothing","x":"%s"}' % (b"a" * 300_000)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n"
    whole = head % len(body) + b"".join(LINES[:6]) + b"\r\n" + body
    told = await asyncio.to_thread(talk, gw, whole, end=b"There is no model 'nothing'")
    assert b" 404 " in told[:20]


async def test_trailers_without_end_are_400(gateway):
    gw = await gateway(agents={"bot": BOTS["openai"]})
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
    )
    told = await asyncio.to_thread(talk, gw, head + b"\r\n1\r\n{\r\n0\r\n", *LINES[:12])
    assert not told or b" 400 " in told[:20]  # as above


@pytest.mark.parametrize("rest", [b"zz\r\n", b"1\r\n}x", b"0\r\nX-A: " + b"a" * 20_000])
async def test_a_body_that_is_not_framed_is_400(gateway, rest):
    gw = await gateway(agents={"bot": BOTS["openai"]})
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
    )
    host, port = gw.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    with closing(writer):
        writer.write(head + b"Expect: 100-continue\r\n\r\n")
        assert b" 100 " in await reader.readuntil(b"\r\n\r\n")  # now the handler waits for the body
        writer.write(b"1\r\n{\r\n" + rest)
        async with asyncio.timeout(5):
            told = await reader.read()
    assert (b" 400 " in told[:20], told.count(b"HTTP/1.")) == (True, 1)


async def test_long_heads_after_a_request_are_not_parsed(gateway, scripted, monkeypatch):
    made: list[Any] = []
    make = connections.Server.__call__
    monkeypatch.setattr(
        connections.Server, "__call__", lambda server: made.append(make(server)) or made[-1]
    )
    upstream = await scripted(Script([chunk({"content": "a"})], end="hang"))
    gw = await gateway(agents={"bot": {**AGENTS["openai"], "base_url": upstream.url}})
    head = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n" + b"".join(LINES[:2]) + b"\r\n"
    with closing(await stalled(gw)) as line:
        await until(lambda: made and made[0]._request_in_progress)
        await asyncio.get_running_loop().sock_sendall(line, head * 7)
        await until(lambda: len(made[0]._rest) == 7 * len(head))
        assert not made[0]._messages


async def test_requests_with_long_heads_are_answered_in_order(gateway):
    gw = await gateway(agents={"bot": BOTS["openai"]})
    one = b"GET /%b HTTP/1.1\r\nHost: localhost\r\n" + b"".join(LINES[:2]) + b"\r\n"
    last = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    told = await asyncio.to_thread(talk, gw, one % b"livez" * 60 + one % b"nothing" + last)
    assert re.findall(rb"HTTP/1.1 (\d+)", told) == [b"200"] * 60 + [b"404", b"200"]
