"""Write answers to a client connection directly, past aiohttp.

aiohttp exposes its transport as `request.transport` but does not promise that it writes nothing of
its own there. So the gateway uses it only on connections that `server.aiohttp_internals` makes with
tested versions; where `connection_of` returns None, aiohttp writes everything.

Heads are nearly constant text here and go out in one write with the whole answer or with the first
frames of a stream. aiohttp instead builds a dictionary of a dozen headers, lets hooks complete it
and serializes it; that costs a tenth of the rest of a request.
"""

import asyncio
import time
from collections.abc import Callable

from aiohttp import HttpVersion11, web

from gateway import headers as headernames
from gateway.http.commonheaders import CONSTANT, add_own, is_plain
from gateway.http.context import Context
from gateway.times import http_date

MAX_BODY = 64 << 10  # bytes; a larger body may have to wait for the caller


class ClientConnection:
    """What `server.aiohttp_internals` adds to aiohttp's connections: whether writes must wait
    because the client does not read or has disconnected."""

    is_full = False
    on_full: Callable[[bool], None] | None = None

    @property
    def goes_on(self) -> bool:
        """Whether the connection accepts writes without delay and stays open for another
        request."""
        return False

    def become(self, is_full: bool) -> None:
        self.is_full = is_full
        if self.on_full is not None:
            self.on_full(is_full)


def connection_of(request: web.Request) -> ClientConnection | None:
    """The client's connection, or None if the gateway may not write to it directly."""
    caller = request.protocol
    return caller if isinstance(caller, ClientConnection) else None


class _AlreadySent(web.StreamResponse):
    """Tells aiohttp and its middlewares that the answer is already sent."""

    keep_alive = True


ALREADY_SENT = _AlreadySent()


def fixed_head(status: str, headers: dict[str, str]) -> str:
    """The status line and the headers that all answers of a kind begin with."""
    every = CONSTANT | headers
    lines = [f"{name}: {value}\r\n" for name, value in every.items()]
    return "".join([f"HTTP/1.1 {status}\r\n", *lines])


_JSON: dict[str, str] = {headernames.CONTENT_TYPE: "application/json"}
_STREAM: dict[str, str] = {
    headernames.CONTENT_TYPE: "text/event-stream; charset=utf-8",
    headernames.CACHE_CONTROL: "no-cache",
    headernames.BUFFERING: "no",
}
_JSON_HEAD = fixed_head("200 OK", _JSON)
_STREAM_HEAD = fixed_head("200 OK", _STREAM) + "Transfer-Encoding: chunked\r\n"


def _transport(request: web.Request) -> asyncio.Transport | None:
    """The transport, or None if the fast path may not be used for this request."""
    transport, caller = request.transport, connection_of(request)
    if (
        caller is None
        or transport is None
        or not caller.goes_on
        or transport.is_closing()
        or request.version != HttpVersion11
        or not request.keep_alive
        or not is_plain(request)
        or "Upgrade" in request.headers  # aiohttp refuses it
    ):
        return None
    return transport


def _head(fixed: str, context: Context, headers: dict[str, str]) -> str:
    """The whole head but for the empty line that ends it."""
    add_own(headers, context)
    lines = "\r\n".join(map(": ".join, headers.items()))
    return f"{fixed}{lines}\r\nDate: {http_date(time.time())}\r\n"


def answer_json(
    request: web.Request, context: Context, headers: dict[str, str], body: bytes
) -> web.StreamResponse:
    """Answer with JSON and 200. `headers` are specific to this answer, in printable ASCII; the
    common headers are added here or by `commonheaders.complete`."""
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
        # only the close marks its end; aiohttp would keep the connection open
        response.force_close()
    await response.prepare(request)
    response.headers.clear()  # already sent; they hold kilobytes for the whole stream
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
        """Raises ConnectionResetError if the caller has disconnected."""
        head, self._head = self._head, b""
        chunk = b"%b%x\r\n%b\r\n" % (head, len(frames), frames) if frames else head
        _send(self._request, self._transport, chunk)

    async def write_eof(self, frames: bytes) -> None:
        """Send the last frames and the end. Waits while the caller does not read; raises
        ConnectionResetError if it has disconnected."""
        head, self._head = self._head, b""
        end = b"%x\r\n%b\r\n0\r\n\r\n" % (len(frames), frames) if frames else b"0\r\n\r\n"
        _send(self._request, self._transport, head + end)
        await self._request.writer.drain()


def _send(request: web.Request, transport: asyncio.Transport, data: bytes) -> None:
    if transport.is_closing():
        raise ConnectionResetError("the caller has left")
    request.writer.output_size += len(data)  # tells aiohttp that an answer has begun
    transport.write(data)
