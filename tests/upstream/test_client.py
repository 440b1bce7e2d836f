import asyncio
import socket
import ssl
from collections.abc import AsyncGenerator

import pytest
from wire import listening

from gateway.config.outgoing import Way
from gateway.errors import GatewayError
from gateway.protocol.exchange import Source, UploadRequest, UpstreamRequest
from gateway.upstream.client import _no_connection, open_upstream, translate
from gateway.upstream.connection import AnswerCut, NoAnswer, NotHttp


@pytest.mark.parametrize(
    ("error", "status", "code", "retryable"),
    [
        (NoAnswer(), 502, "upstream_cut", False),
        (AnswerCut(), 502, "upstream_cut", False),
        (NotHttp(), 502, "upstream_failed", False),
        (ConnectionResetError(), 502, "upstream_cut", False),
        (RuntimeError(), 502, "upstream_cut", False),
        (TimeoutError(), 504, "upstream_timeout", False),
        (OSError(), 502, "upstream_failed", False),
        (ValueError(), 502, "upstream_failed", False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_error_of_an_exchange_has_a_counterpart(error, status, code, retryable):
    translated = translate(error)
    assert isinstance(translated, GatewayError)
    assert (translated.status, translated.code, translated.retryable) == (status, code, retryable)


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        (ConnectionRefusedError(), "upstream_unreachable", True),
        (socket.gaierror(), "upstream_unreachable", True),
        (OSError(), "upstream_unreachable", True),
        (ssl.SSLCertVerificationError(), "upstream_auth_failed", False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_keeps_a_connection_from_being_made_says_so(error, code, retryable):
    translated = _no_connection(error)
    assert (translated.status, translated.code, translated.retryable) == (502, code, retryable)


def test_a_bug_of_ours_is_not_the_networks_fault():
    bug = KeyError("x")
    assert translate(bug) is bug


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://127.0.0.1:1/x", "upstream_unreachable"),
        ("http://no-such-host.invalid/x", "upstream_unreachable"),
        ("ftp://127.0.0.1/x", "upstream_auth_failed"),
        ("http:///x", "upstream_auth_failed"),
    ],
)
async def test_an_address_that_leads_nowhere_is_named(url, code):
    async with open_upstream() as upstream:
        with pytest.raises(GatewayError) as caught:
            await upstream.send(UpstreamRequest("GET", url), Way())
    assert caught.value.code == code


@pytest.mark.parametrize("bad", ["a\r\nb: c", "a\nb", "a\0"])
async def test_a_header_cannot_smuggle_another_one_in(bad):
    async with open_upstream() as upstream:
        with pytest.raises(GatewayError) as caught:
            await upstream.send(
                UpstreamRequest("GET", "http://127.0.0.1:1/", {"x-key": bad}), Way()
            )
    assert caught.value.code == "upstream_auth_failed"


class Served:
    """A server of one kind of exchange, which counts its connections."""

    def __init__(self) -> None:
        self.connections = 0
        self._listening = listening(self._serve)

    async def start(self) -> str:
        return f"http://127.0.0.1:{await self._listening.__aenter__()}"

    async def stop(self) -> None:
        await self._listening.__aexit__(None, None, None)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        await self.exchange(reader, writer)

    async def exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError


class Echo(Served):
    """Answers each request with its path, on persistent connections."""

    async def exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            path = head.split()[1]
            writer.write(b"HTTP/1.1 400 No\r\nContent-Length: %d\r\n\r\n%b" % (len(path), path))


class Taking(Served):
    """Accepts uploads; refuses after `no_after` bytes if that is set."""

    def __init__(self, no_after: int | None = None) -> None:
        super().__init__()
        self.body = b""
        self._no_after = no_after

    async def exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        while size := int(await reader.readline(), 16):
            self.body += await reader.readexactly(size)
            await reader.readline()
            if self._no_after is not None and len(self.body) >= self._no_after:
                writer.write(b"HTTP/1.1 413 No\r\nContent-Length: 2\r\n\r\nno")
                await reader.read()
                return
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await reader.read()


async def upload(url: str, pieces: AsyncGenerator[bytes, None]) -> tuple[int, bytes]:
    async with open_upstream() as upstream:
        source = Source("a.txt", "text/plain", None, pieces)
        reply = await upstream.send_file(UploadRequest(url, {}), source, lambda: "u", Way(), 10.0)
        assert len(upstream._pool._open) <= 1
        idle = [connection for pool in upstream._pool._idle.values() for connection in pool]
        return len(idle), reply.body


async def test_an_empty_piece_of_a_file_is_not_its_end():
    async def pieces():
        for piece in (b"one ", b"", b"two"):
            yield piece

    server = Taking()
    assert await upload(await server.start(), pieces()) == (1, b"ok")
    await server.stop()
    assert b"one two" in server.body


async def test_an_early_refusal_ends_the_upload_and_its_connection():
    sent = []

    async def pieces():
        for i in range(1000):
            sent.append(i)
            yield b"x" * 1000
            await asyncio.sleep(0)

    server = Taking(no_after=2000)
    url = await server.start()
    assert await upload(url, pieces()) == (0, b"no")
    await server.stop()
    assert len(sent) < 1000


async def test_a_connection_let_go_twice_is_one_connection():
    echo = Echo()
    url = await echo.start()
    async with open_upstream() as upstream:
        exchange = await upstream.send(UpstreamRequest("GET", f"{url}/first"), Way())
        assert (await exchange.reply()).body == b"/first"
        exchange.close()  # by the reader of the refusal
        exchange.close()  # and by the abandoned attempt
        asked = [upstream.send(UpstreamRequest("GET", f"{url}/{i}"), Way()) for i in range(3)]
        exchanges = await asyncio.gather(*asked)
        assert len({id(one.connection) for one in exchanges}) == 3
        assert [(await one.reply()).body for one in exchanges] == [b"/0", b"/1", b"/2"]
        exchange.close()  # late: the connection already serves another exchange
        for one in exchanges:
            one.close()
    await echo.stop()
    assert echo.connections == 3
