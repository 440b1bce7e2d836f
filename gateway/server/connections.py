"""Client connections: aiohttp's, with bounds, and with the gateway's answers to bad HTTP."""

import asyncio
import logging
import time
from asyncio import BaseTransport, TimerHandle, WriteTransport
from collections.abc import Callable
from functools import cache
from typing import Any, cast

import orjson
from aiohttp import web
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web_protocol import RequestHandler
from yarl import URL

from gateway.errors import (
    GatewayError,
    HeadersTooLarge,
    InternalError,
    InvalidRequest,
    TooManyConnections,
    UriTooLong,
    clean,
    openai_body,
)
from gateway.http.addresses import USUAL, canonical
from gateway.http.commonheaders import complete
from gateway.http.fastwrite import fixed_head
from gateway.http.inflight import InFlight
from gateway.http.language import choose
from gateway.ids import new_request_id
from gateway.language.sentences import Language, say
from gateway.middlewares.errors import error_response
from gateway.system import unsent_bytes
from gateway.times import http_date
from gateway.upstream.fairness import OneATurn

log = logging.getLogger("gateway")

# Longer than proxies keep an idle connection (nginx and ALB 60 s), or they would reuse one that is
# already closed. It is also the time a client has to send a request's head.
IDLE_S = 75.0
_LINGER_S = 1.0  # for a refused client to read the answer
MAX_LINE = 8190  # bytes of the request line, and of one header
SEND_S = 60.0  # server.send_timeout
LEAST_READ = 16 * 1024  # bytes that a caller must take in `send_timeout` while more are queued


@cache
def _full(language: Language) -> tuple[str, bytes]:
    """Most of the head, and the body, for a connection too many: its request is not read."""
    error = TooManyConnections(
        "The gateway has as many connections as it takes; try again shortly."
    )
    body = orjson.dumps(openai_body(error, language))
    head = {
        "Connection": "close",
        "Content-Language": language,
        "Content-Length": str(len(body)),
        "Content-Type": "application/json",
        "Retry-After": "1",
        "x-should-retry": "true",
    }
    return fixed_head("503 Service Unavailable", head), body


class Connection(RequestHandler):
    """aiohttp's connection with two additions: bad HTTP gets the same error format as everything
    else, and a client that keeps not reading is cut off, since it holds an agent's slot or memory.

    It uses public names of aiohttp only; `aiohttp_internals` adds what needs private ones.
    """

    # Slots in place of a dictionary per connection.
    __slots__ = ("_stalled", "server")

    def __init__(self, server: "Server", **options: Any) -> None:
        self.server = server
        self._stalled: TimerHandle | None = None
        super().__init__(server, **options)

    def connection_made(self, transport: BaseTransport) -> None:
        server = self.server
        if len(server.connections) >= server.most:
            self.close()  # aiohttp reads nothing more from it
            # uvloop's transport has the interface, not the base class
            stream = cast(WriteTransport, transport)
            own = f"x-request-id: {new_request_id()}\r\nDate: {http_date(time.time())}\r\n\r\n"
            head, body = _full(server.language())
            stream.write(f"{head}{own}".encode() + body)
            # If closed now, the client's data would cause a reset, which discards the answer.
            server.loop.call_later(_LINGER_S, stream.abort)
            server.refuse()
            return
        super().connection_made(transport)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_stall()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._forget_stall()

    def _watch_stall(self) -> None:
        """After `send_timeout`, check whether the client has taken enough of the queued bytes."""
        transport, server = self.transport, self.server
        if transport is not None:
            waits = _unsent(cast(WriteTransport, transport))
            self._stalled = server.loop.call_later(server.send_s, self._check_stall, waits)

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

    def connection_lost(self, exc: BaseException | None) -> None:
        self._forget_stall()
        super().connection_lost(exc)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send the whole answer or file that a handler returns; until then it counts as
        in flight."""
        in_flight = self.server.in_flight
        if in_flight is None:
            return await super().finish_response(request, resp, start_time)
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
        response = error_response(request, error, choose(request, self.server.language()))
        complete(request, response)
        response.force_close()
        return response


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
            return UriTooLong(
                say("The path and query are longer than {most} bytes.", most=MAX_LINE)
            )
        return HeadersTooLarge(say("A header is longer than {most} bytes.", most=MAX_LINE))
    if "PRI/Upgrade" in text:  # llhttp's name for the preface of HTTP/2
        return InvalidRequest("HTTP/2 is not spoken here without TLS; use HTTP/1.1.")
    if "Too many headers" in text:
        return HeadersTooLarge("There are too many headers.")
    return InvalidRequest(say("The request is not valid HTTP: {reason}", reason=clean(text, 100)))


class Server(web.Server):
    """Serves what `served` serves, on at most `most` connections of the class `kind`.

    It closes those whose client takes nothing for `send_s`, and counts in `in_flight` the answers
    that are being sent. `language` returns that of requests whose headers cannot be read.
    """

    def __init__(
        self,
        served: web.Server,
        kind: type[Connection] = Connection,
        most: int = 10_000,
        send_s: float = SEND_S,
        in_flight: InFlight | None = None,
        language: Callable[[], Language] = lambda: "en",
    ) -> None:
        self.loop = asyncio.get_running_loop()
        super().__init__(
            served.request_handler,
            request_factory=_at_canonical(served.request_factory),
            handler_cancellation=True,
        )
        self.kind, self.most, self.send_s, self.in_flight = kind, most, send_s, in_flight
        self.language = language
        self.parsing = OneATurn(self.loop)  # connections whose queued bytes are expensive to parse
        self.refused_at = 0.0  # when a refused connection was last logged

    def refuse(self) -> None:
        """Count a refused connection, and log it at most once a minute."""
        if self.in_flight is not None:
            self.in_flight.refused += 1
        if time.monotonic() - self.refused_at > 60 or not self.refused_at:
            self.refused_at = time.monotonic()
            log.warning("All %d connections are in use (server.max_connections)", self.most)

    def __call__(self) -> Connection:
        return self.kind(
            self,
            loop=self.loop,
            access_log=None,
            # Bodies arrive as they were sent: `http.body` decodes their Content-Encoding, and an
            # unread body is only dropped.
            auto_decompress=False,
            keepalive_timeout=IDLE_S,
            max_line_size=MAX_LINE,
            max_field_size=MAX_LINE,
        )


def _at_canonical(make: Callable[..., web.BaseRequest]) -> Callable[..., web.BaseRequest]:
    """Wrap `make` so that it builds requests whose path is in canonical form."""

    def make_request(message: RawRequestMessage, *rest: Any) -> web.BaseRequest:
        request = make(message, *rest)
        if message.path in USUAL:
            return request
        path = canonical(message.path)
        return request if path is message.path else request.clone(rel_url=URL(path, encoded=True))

    return make_request
