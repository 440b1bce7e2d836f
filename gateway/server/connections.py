"""Client connections: aiohttp's, with bounds, and with the gateway's answers to bad HTTP."""

import asyncio
import logging
import os
import socket
import time
from asyncio import BaseTransport, TimerHandle, WriteTransport
from collections.abc import Callable
from typing import Any, cast

from aiohttp import web
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import RequestHandler, _ErrInfo
from yarl import URL

from gateway.errors import (
    GatewayError,
    HeadersTooLarge,
    InternalError,
    InvalidRequest,
    UriTooLong,
    clean,
)
from gateway.headers import SAFETY, SERVER_NAME
from gateway.http.addresses import USUAL, canonical
from gateway.http.context import IN_FLIGHT
from gateway.http.fastwrite import ALREADY_SENT, ClientConnection, is_tested
from gateway.http.finish import add_safety
from gateway.http.inflight import InFlight
from gateway.middlewares.errors import error_response
from gateway.middlewares.requestlog import new_request_id
from gateway.system import CAN_LISTEN_TWICE, unsent_bytes
from gateway.upstream.fairness import OneATurn

log = logging.getLogger("gateway")

# Longer than proxies keep an idle connection (nginx and ALB 60 s), or they would reuse one that is
# already closed. It is also the time a client has to send a request's head.
IDLE_S = 75.0
_LINGER_S = 1.0  # for a refused client to read the answer
MAX_LINE = 8190  # bytes of the request line, and of one header
MAX_HEAD = 32 * 1024  # bytes of a request's head, of a body's trailers, or of a chunk's head
MAX_BEHIND = 64 * 1024  # bytes queued after a request; the read that exceeds it is kept
BODY_STEP = 64 * 1024  # the same for a body, whose end another request may follow
SEND_S = 60.0  # server.send_timeout
AT_ONCE = 16  # connections accepted per loop iteration
STEP = 4 * 1024  # bytes parsed per step if they are expensive to parse
DENSE = 32  # bytes for each line end: fewer mean many chunks, or many requests
LEAST_READ = 16 * 1024  # bytes that a caller must take in `send_timeout` while more are queued

_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\n"
    b"x-should-retry: true\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
    + "".join(f"{name}: {value}\r\n" for name, value in SAFETY.items()).encode()
    + b"\r\n%s"
)
_FULL_BODY = (
    b'{"error":{"message":"The gateway has as many connections as it takes; try again shortly.",'
    b'"type":"server_error","param":null,"code":"too_many_connections"}}'
)


class _Connection(ClientConnection, RequestHandler):
    """aiohttp's connection with three additions: bad HTTP gets the same error format as everything
    else, writers learn when the client does not read, and a client that keeps not reading is cut
    off, since it holds an agent's slot or memory."""

    # Slots in place of a dictionary per connection.
    __slots__ = ("_body", "_rest", "_stalled", "_unfinished", "is_full", "on_full")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.is_full, self.on_full = False, None
        self._stalled: TimerHandle | None = None
        self._rest = b""  # received bytes that are not parsed yet
        self._body: StreamReader = EMPTY_PAYLOAD  # of the last parsed request
        self._unfinished = 0  # bytes parsed since the last request or the last byte of a body
        super().__init__(*args, **kwargs)

    def connection_made(self, transport: BaseTransport) -> None:
        server = self._manager
        if isinstance(server, _Server) and len(server.connections) >= server.most:
            self._force_close = True  # aiohttp reads nothing more from it
            # uvloop's transport has the interface, not the base class
            stream = cast(WriteTransport, transport)
            stream.write(_FULL % (len(_FULL_BODY), _FULL_BODY))
            # If closed now, the client's data would cause a reset, which discards the answer.
            self._loop.call_later(_LINGER_S, stream.abort)
            server.refuse()
            return
        super().connection_made(transport)

    # Chunks of a single byte cost a microsecond each, and one read may hold 40,000 of them. Nothing
    # after a request is parsed before that request is answered: parsed heads take twice their
    # bytes.

    def data_received(self, data: bytes) -> None:
        is_idle = not (self._rest or self._messages or self._request_in_progress)
        if is_idle and self._body is EMPTY_PAYLOAD and len(data) <= STEP:
            super().data_received(data)  # nearly always: a request's head and its body
            if self._messages:
                self._body, self._unfinished = self._messages[-1][1], 0
            else:
                self._count_unfinished(len(data))
            return
        if len(data) <= STEP and not (data and (self._rest or self._is_occupied)):
            self._parse(data)
            return
        is_waiting = bool(self._rest)
        self._rest += data
        if is_waiting or self._is_occupied:
            if len(self._rest) > MAX_BEHIND:
                self._pause_transport_reading()
        elif _is_dense(data) and isinstance(self._manager, _Server):
            self._pause_transport_reading()
            self._manager.parsing.add(self.parse_more)
        else:
            self._parse_rest()

    @property
    def _is_occupied(self) -> bool:
        """Whether a request has arrived whole and is not yet answered."""
        return bool(self._messages or self._request_in_progress) and self._body.is_eof()

    @property
    def _takes_more(self) -> bool:
        return not (self._reading_paused or self._buffer_paused or self._is_occupied)

    def parse_more(self) -> None:
        """Parse one step, and the next in a later loop iteration, unless parsing is paused: then
        `_resume_transport_reading` continues it."""
        if not self._takes_more:
            return
        if _is_dense(self._rest):
            piece, self._rest = self._rest[:STEP], self._rest[STEP:]
            self._parse(piece)
        else:
            self._parse_rest()
        if not (self._reading_paused or self._buffer_paused):
            self._resume_transport_reading()

    def _parse_rest(self) -> None:
        while self._rest and self._takes_more:
            step = STEP if self._body.is_eof() else BODY_STEP
            piece, self._rest = self._rest[:step], self._rest[step:]
            self._parse(piece)

    def _parse(self, data: bytes) -> None:
        body, requests = self._body, self._request_count
        size = body.total_bytes
        super().data_received(data)
        if self._request_count != requests and self._messages:
            self._body, self._unfinished = self._messages[-1][1], 0
        elif body.total_bytes != size:
            self._unfinished = 0
        else:
            self._count_unfinished(len(data))

    def _count_unfinished(self, size: int) -> None:
        self._unfinished += size
        if self._unfinished > MAX_HEAD:
            self._refuse_head()

    def _refuse_head(self) -> None:
        """Answer a head that is too long, and parse nothing more of this connection."""
        self._rest = b""
        if self._close or self._force_close:
            return
        self._close = True  # aiohttp reads nothing more from it
        if not self._body.is_eof():
            self._body.set_exception(web.RequestPayloadError("chunks' heads are too long"))
            return
        error = HeadersTooLarge(
            f"The request's headers are longer than {MAX_HEAD >> 10} KiB in all; send fewer."
        )
        self._messages.append((_ErrInfo(431, error, ""), EMPTY_PAYLOAD))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _resume_transport_reading(self) -> None:
        if self._rest and not self._is_occupied and isinstance(self._manager, _Server):
            self._manager.parsing.add(self.parse_more)
        elif len(self._rest) <= MAX_BEHIND:
            super()._resume_transport_reading()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.become(is_full=True)
        self._watch_stall()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._forget_stall()
        self.become(is_full=False)

    def _watch_stall(self) -> None:
        """After `send_timeout`, check whether the client has taken enough of the queued bytes."""
        transport, server = self.transport, self._manager
        if transport is not None:
            send_s = server.send_s if isinstance(server, _Server) else SEND_S
            waits = _unsent(cast(WriteTransport, transport))
            self._stalled = self._loop.call_later(send_s, self._check_stall, waits)

    def _check_stall(self, waited: int) -> None:
        self._stalled = None
        transport = cast(WriteTransport, self.transport)
        if transport is None or transport.is_closing():
            return
        if waited - _unsent(transport) < LEAST_READ:
            transport.abort()
        else:
            self._watch_stall()

    def _forget_stall(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def resume_reading(self, resume_parser: bool = True) -> None:
        # aiohttp calls this for every body, and each call parses zero bytes once more.
        if self._reading_paused or not is_tested():
            super().resume_reading(resume_parser)

    @property
    def goes_on(self) -> bool:
        server = self._manager
        in_flight = server.in_flight if isinstance(server, _Server) else None
        return in_flight is not None and not in_flight.stopping and not self.is_full

    def connection_lost(self, exc: BaseException | None) -> None:
        self._forget_stall()
        self._rest = b""
        # The handler learns of it in the next loop iteration and must not write until then.
        self.become(is_full=True)
        super().connection_lost(exc)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send the whole answer or file that a handler returns; until then it counts as
        in flight."""
        try:
            return (
                (resp, False)
                if resp is ALREADY_SENT
                else await self._finish(request, resp, start_time)
            )
        finally:
            if self._body.is_eof():
                self._body = EMPTY_PAYLOAD
            # Parse what follows the request, once aiohttp is done with it.
            if self._rest and isinstance(self._manager, _Server):
                self._manager.parsing.add(self.parse_more)

    async def _finish(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        server = self._manager
        if not isinstance(server, _Server) or server.in_flight is None:
            return await super().finish_response(request, resp, start_time)
        in_flight = server.in_flight
        in_flight.sending += 1
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            in_flight.sent()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun; another cannot be sent")
        if status >= 500:
            log.error("Unexpected error below the middlewares", exc_info=exc)
            error: GatewayError = InternalError("The gateway met an unexpected condition.")
        else:
            error = _refusal(exc, message or "")
        response = error_response(request, error)
        response.headers["x-request-id"] = new_request_id()
        response.headers["Server"] = SERVER_NAME
        add_safety(request, response)
        response.force_close()
        return response


def _is_dense(data: bytes) -> bool:
    # Counting both characters of a line end would take six times as long.
    return is_tested() and data.count(b"\r") * DENSE > len(data)


def _unsent(transport: WriteTransport) -> int:
    """Bytes that the client has not taken. The kernel buffers megabytes and accepts no more until a
    third of them is gone, so without its count a slow client would seem to take nothing."""
    return transport.get_write_buffer_size() + unsent_bytes(transport.get_extra_info("socket"))


def _refusal(exc: BaseException | None, message: str) -> GatewayError:
    """The error for bad HTTP. aiohttp quotes the unreadable input, which may hold a key: the quote
    is cut off."""
    if isinstance(exc, GatewayError):
        return exc
    text, _, quoted = " ".join(message.split()).partition(": b")
    if isinstance(exc, LineTooLong) or " bytes when reading" in text:
        if quoted.removeprefix("ytearray(b").startswith(("'/", '"/')):
            return UriTooLong(f"The path and query are longer than {MAX_LINE} bytes.")
        return HeadersTooLarge(f"A header is longer than {MAX_LINE} bytes.")
    if "PRI/Upgrade" in text:  # llhttp's name for the preface of HTTP/2
        return InvalidRequest("HTTP/2 is not spoken here without TLS; use HTTP/1.1.")
    if "Too many headers" in text:
        return HeadersTooLarge("There are too many headers.")
    return InvalidRequest(f"The request is not valid HTTP: {clean(text, 100)}")


class _Server(web.Server):
    most = 10_000
    send_s = SEND_S
    parsing: OneATurn  # connections whose queued bytes are expensive to parse
    in_flight: InFlight | None = None  # of the served application, if it has one
    _logged_at = 0.0

    def refuse(self) -> None:
        """Count a refused connection, and log it at most once a minute."""
        if self.in_flight is not None:
            self.in_flight.refused += 1
        if time.monotonic() - self._logged_at > 60 or not self._logged_at:
            self._logged_at = time.monotonic()
            log.warning("All %d connections are in use (server.max_connections)", self.most)

    def __call__(self) -> RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """Whether to log the record: bad input was answered with a 400, and aiohttp would add a
    traceback."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, web.RequestPayloadError)


class Runner(web.AppRunner):
    """AppRunner that cancels handlers when their caller disconnects, accepts at most `most`
    connections, and closes those whose client takes nothing for `send_s`. Bodies arrive as they
    were sent: `http.body` decodes their Content-Encoding, and an unread body is only dropped.

    aiohttp makes its connections in `Server.__call__`; a test sends bad HTTP and fails if that ever
    changes.
    """

    def __init__(
        self, app: web.Application, most: int = 10_000, send_s: float = SEND_S, **kwargs: Any
    ) -> None:
        super().__init__(
            app,
            handler_cancellation=True,
            auto_decompress=False,
            access_log=None,
            keepalive_timeout=IDLE_S,
            max_line_size=MAX_LINE,
            max_field_size=MAX_LINE,
            **kwargs,
        )
        self._most, self._send_s = most, send_s

    async def setup(self) -> None:
        logging.getLogger("aiohttp.server").addFilter(_is_worth_a_line)
        await super().setup()

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        server.__class__ = _Server
        assert isinstance(server, _Server)
        server.most, server.send_s = self._most, self._send_s
        server.parsing = OneATurn(asyncio.get_running_loop())
        server.in_flight = self.app.get(IN_FLIGHT)
        server.request_factory = _at_canonical(server.request_factory)
        return server


class Site(web.TCPSite):
    """TCPSite that accepts up to AT_ONCE connections per loop iteration. uvloop accepts one per
    listening socket and iteration, so a client that opens many would delay others by as many
    iterations. So each socket is listened to through AT_ONCE descriptors."""

    __slots__ = ()

    async def start(self) -> None:
        await super().start()
        assert self._server is not None
        sockets: list[socket.socket] = self._server.sockets  # type: ignore[attr-defined]
        if not CAN_LISTEN_TWICE:
            return
        for number in [one.fileno() for one in sockets for _ in range(AT_ONCE - 1)]:
            again = socket.socket(fileno=os.dup(number))
            await web.SockSite(
                self._runner, again, backlog=self._backlog, ssl_context=self._ssl_context
            ).start()


def _at_canonical(make: Callable[..., web.BaseRequest]) -> Callable[..., web.BaseRequest]:
    """Wrap `make` so that it builds requests whose path is in canonical form."""

    def make_request(message: RawRequestMessage, *rest: Any) -> web.BaseRequest:
        if message.path in USUAL:
            return make(message, *rest)
        path = canonical(message.path)
        if path is not message.path:
            message = message._replace(path=path, url=URL(path, encoded=True))
        return make(message, *rest)

    return make_request
