"""Connections of clients: aiohttp's, but bounded, and with our answers to what is not HTTP."""

import logging
import time
from asyncio import BaseTransport, WriteTransport
from collections.abc import Callable
from typing import Any, cast

from aiohttp import web
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web_protocol import RequestHandler
from yarl import URL

from gateway.addresses import canonical
from gateway.direct import SENT, Caller, is_seen
from gateway.errors import (
    GatewayError,
    HeadersTooLarge,
    InternalError,
    InvalidRequest,
    UriTooLong,
    clean,
)
from gateway.flights import Flights
from gateway.headernames import SAFETY, SERVER_NAME
from gateway.keys import FLIGHTS
from gateway.middlewares.errors import error_response
from gateway.middlewares.requestlog import new_request_id
from gateway.middlewares.safety import add_safety

log = logging.getLogger("gateway")

# Longer than proxies keep an idle connection (nginx and ALB 60 s), or they would meet a closed one.
# It is also the time a client has to send a request's head.
IDLE_S = 75.0
_LINGER_S = 1.0  # for a client that is turned away to read why
MAX_LINE = 8190  # bytes of the request line, and of one header

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


class _Connection(Caller, RequestHandler):
    """aiohttp's connection, but what is not HTTP is answered like every other error, and whoever
    writes can be told when the client does not read."""

    __slots__ = ("is_full", "on_full")  # thousands of streams would each keep a dictionary

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.is_full, self.on_full = False, None
        super().__init__(*args, **kwargs)

    def connection_made(self, transport: BaseTransport) -> None:
        server = self._manager
        if isinstance(server, _Server) and len(server.connections) >= server.most:
            self._force_close = True  # it reads nothing any more
            stream = cast(WriteTransport, transport)  # uvloop's own is one but for its name
            stream.write(_FULL % (len(_FULL_BODY), _FULL_BODY))
            # Closed at once it would be reset by what the client sends, and the answer with it.
            self._loop.call_later(_LINGER_S, stream.abort)
            server.refuse()
            return
        super().connection_made(transport)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.become(is_full=True)

    def resume_writing(self) -> None:
        super().resume_writing()
        self.become(is_full=False)

    def resume_reading(self, resume_parser: bool = True) -> None:
        # aiohttp calls this for every body, and parses nothing once more each time.
        if self._reading_paused or not is_seen():
            super().resume_reading(resume_parser)

    @property
    def goes_on(self) -> bool:
        server = self._manager
        flights = server.flights if isinstance(server, _Server) else None
        return flights is not None and not flights.stopping and not self.is_full

    def connection_lost(self, exc: BaseException | None) -> None:
        # The handler learns of it in the loop's next round; nothing must be written before.
        self.become(is_full=True)
        super().connection_lost(exc)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Handlers return whole answers and files; they are sent here, and under way still."""
        if resp is SENT:
            return resp, False
        server = self._manager
        if not isinstance(server, _Server) or server.flights is None:
            return await super().finish_response(request, resp, start_time)
        flights = server.flights
        flights.sending += 1
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            flights.sent()

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


def _refusal(exc: BaseException | None, message: str) -> GatewayError:
    """aiohttp quotes what it could not read, which may be somebody's key: that is cut off."""
    words, _, quoted = " ".join(message.split()).partition(": b")
    if isinstance(exc, LineTooLong) or " bytes when reading" in words:
        if quoted.removeprefix("ytearray(b").startswith(("'/", '"/')):
            return UriTooLong(f"The path and query are longer than {MAX_LINE} bytes.")
        return HeadersTooLarge(f"A header is longer than {MAX_LINE} bytes.")
    if "PRI/Upgrade" in words:  # how llhttp names the preface of HTTP/2
        return InvalidRequest("HTTP/2 is not spoken here without TLS; use HTTP/1.1.")
    if "Too many headers" in words:
        return HeadersTooLarge("There are too many headers.")
    return InvalidRequest(f"The request is not valid HTTP: {clean(words, 100)}")


class _Server(web.Server):
    most = 10_000
    flights: Flights | None = None  # of the application that is served, if it has them
    _told_at = 0.0

    def refuse(self) -> None:
        """Count a connection too many, and say so once a minute."""
        if self.flights is not None:
            self.flights.refused += 1
        if time.monotonic() - self._told_at > 60 or not self._told_at:
            self._told_at = time.monotonic()
            log.warning("All %d connections are in use (server.max_connections)", self.most)

    def __call__(self) -> RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """What callers send wrongly has been answered with a 400; aiohttp logs a traceback as well."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, web.RequestPayloadError)


class Runner(web.AppRunner):
    """AppRunner whose handlers are cancelled when their caller leaves, and whose connections are
    at most `most`.

    aiohttp makes its connections in `Server.__call__`; a test sends bad HTTP and fails if that
    ever changes.
    """

    def __init__(self, app: web.Application, most: int = 10_000, **kwargs: Any) -> None:
        super().__init__(
            app,
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=IDLE_S,
            max_line_size=MAX_LINE,
            max_field_size=MAX_LINE,
            **kwargs,
        )
        self._most = most

    async def setup(self) -> None:
        logging.getLogger("aiohttp.server").addFilter(_is_worth_a_line)
        await super().setup()

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        server.__class__ = _Server
        assert isinstance(server, _Server)
        server.most = self._most
        server.flights = self.app.get(FLIGHTS)
        server.request_factory = _at_canonical(server.request_factory)
        return server


def _at_canonical(make: Callable[..., web.BaseRequest]) -> Callable[..., web.BaseRequest]:
    """`make` a request of its head as if its address had been written in the one right form."""

    def make_request(message: RawRequestMessage, *rest: Any) -> web.BaseRequest:
        path = canonical(message.path)
        if path is not message.path:
            message = message._replace(path=path, url=URL(path, encoded=True))
        return make(message, *rest)

    return make_request
