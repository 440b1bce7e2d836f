"""A caller's connection written to directly, beside aiohttp.

aiohttp shows its transport as `request.transport`. That it adds nothing of its own there is not
promised: it is used with versions that the tests have seen, on connections of our own server, and
everything is written with aiohttp's own means where `connection_of` gives None.

Heads are text here that hardly changes, and go out in one write with the whole answer, or with
the first frames of a stream. aiohttp makes a dictionary of some dozen headers, lets hooks complete
it and writes it out, which is a tenth of what all else of a request costs.
"""

import asyncio
import time
from collections.abc import Callable

import aiohttp
from aiohttp import HttpVersion11, web

from gateway import headers as headernames
from gateway.http.context import Context
from gateway.times import http_date

TESTED_AIOHTTP = ("3.13.", "3.14.")  # versions of aiohttp
MAX_BODY = 64 << 10  # bytes; more may have to wait for the caller


class ClientConnection:
    """What `server.connections` adds to aiohttp's connections: whether the gateway has to wait for
    the client, because it does not read or has left."""

    is_full = False
    on_full: Callable[[bool], None] | None = None

    @property
    def goes_on(self) -> bool:
        """Whether it takes an answer without delay, and may ask again here."""
        return False

    def become(self, is_full: bool) -> None:
        self.is_full = is_full
        if self.on_full is not None:
            self.on_full(is_full)


def connection_of(request: web.Request) -> ClientConnection | None:
    """The caller's, if it may be written to beside aiohttp."""
    caller = request.protocol
    return caller if isinstance(caller, ClientConnection) and is_tested() else None


def is_tested() -> bool:
    """Whether what is relied upon of aiohttp, beyond what it promises, has been tested."""
    return aiohttp.__version__.startswith(TESTED_AIOHTTP)


class _AlreadySent(web.StreamResponse):
    """For aiohttp and its middlewares: an answer of which nothing is left to be sent."""

    keep_alive = True


ALREADY_SENT = _AlreadySent()


def _fixed(headers: dict[str, str]) -> str:
    """The lines that all answers of a kind begin with."""
    every: dict[str, str] = {
        headernames.SERVER: headernames.SERVER_NAME,
        **headernames.SAFETY,
        **headers,
    }
    lines = [f"{name}: {value}\r\n" for name, value in every.items()]
    return "".join(["HTTP/1.1 200 OK\r\n", *lines])


_JSON: dict[str, str] = {headernames.CONTENT_TYPE: "application/json"}
_STREAM: dict[str, str] = {
    headernames.CONTENT_TYPE: "text/event-stream; charset=utf-8",
    headernames.CACHE_CONTROL: "no-cache",
    headernames.BUFFERING: "no",
}
_JSON_HEAD = _fixed(_JSON)
_STREAM_HEAD = _fixed(_STREAM) + "Transfer-Encoding: chunked\r\n"


def _transport(request: web.Request) -> asyncio.Transport | None:
    """That of a caller with whom there is nothing to be heeded."""
    transport, caller = request.transport, connection_of(request)
    if (
        caller is None
        or transport is None
        or not caller.goes_on
        or transport.is_closing()
        or request.version != HttpVersion11
        or not request.keep_alive
        or request.secure
        or "Origin" in request.headers
        or "Upgrade" in request.headers  # for aiohttp to refuse
    ):
        return None
    return transport


def _head(fixed: str, context: Context, headers: dict[str, str]) -> str:
    """But for the empty line that ends it."""
    headers[headernames.REQUEST_ID] = context.request_id
    if context.limits:
        headers |= context.limits
        context.limits = None
    lines = "\r\n".join(map(": ".join, headers.items()))
    return f"{fixed}{lines}\r\nDate: {http_date(time.time())}\r\n"


def answer_json(
    request: web.Request, context: Context, headers: dict[str, str], body: bytes
) -> web.StreamResponse:
    """Answer with JSON and 200. `headers` are those of this answer, printable ASCII; what all
    answers carry is added here or by `on_response_prepare`."""
    transport = _transport(request)
    if transport is None or len(body) > MAX_BODY:
        return web.Response(body=body, headers=headers | _JSON)
    head = f"{_head(_JSON_HEAD, context, headers)}Content-Length: {len(body)}\r\n\r\n"
    _send(request, transport, head.encode("ascii") + body)
    return ALREADY_SENT


async def begin_stream(
    request: web.Request, context: Context, headers: dict[str, str]
) -> "Stream | web.StreamResponse":
    """Begin to answer with an event stream and 200; `headers` as for `answer_json`."""
    transport = _transport(request)
    if transport is not None:
        head = _head(_STREAM_HEAD, context, headers) + "\r\n"
        return Stream(request, transport, head.encode("ascii"))
    response = web.StreamResponse(headers=headers | _STREAM)
    if request.version >= HttpVersion11:
        response.enable_chunked_encoding()
    else:
        response.force_close()  # nothing else tells where it ends; aiohttp would keep it open
    await response.prepare(request)
    response.headers.clear()  # which were sent; they are kilobytes, for as long as it lasts
    return response


class Stream:
    """An answer that is written directly, in chunks. Its head goes out with the first of them."""

    __slots__ = ("_head", "_request", "_transport")

    chunked = True

    def __init__(self, request: web.Request, transport: asyncio.Transport, head: bytes) -> None:
        self._request = request
        self._transport = transport
        self._head = head

    async def write(self, frames: bytes) -> None:
        """Raises ConnectionResetError if the caller has left."""
        head, self._head = self._head, b""
        chunk = b"%b%x\r\n%b\r\n" % (head, len(frames), frames) if frames else head
        _send(self._request, self._transport, chunk)

    async def write_eof(self, frames: bytes) -> None:
        """The last frames, and the end. Waits for a caller who does not read; raises
        ConnectionResetError if he has left."""
        head, self._head = self._head, b""
        end = b"%x\r\n%b\r\n0\r\n\r\n" % (len(frames), frames) if frames else b"0\r\n\r\n"
        _send(self._request, self._transport, head + end)
        await self._request.writer.drain()


def _send(request: web.Request, transport: asyncio.Transport, data: bytes) -> None:
    if transport.is_closing():
        raise ConnectionResetError("the caller has left")
    request.writer.output_size += len(data)  # which tells that an answer has begun
    transport.write(data)
