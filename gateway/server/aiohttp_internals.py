"""The one module that touches private names of aiohttp: a connection that bounds what it parses.

aiohttp parses whatever a read brings, and offers no public way to slow that down. It also writes
nothing of its own to a connection while a handler runs, which it does not promise, and which the
gateway's direct writes need (`http.fastwrite`, `http.pump`). So this connection serves only with a
tested version of aiohttp that has every name in `NEEDED`; otherwise `connections.Connection` does,
which uses public names alone, and aiohttp parses and writes everything.
"""

from typing import Any

import aiohttp
from aiohttp import EMPTY_PAYLOAD, StreamReader, web, web_protocol
from aiohttp.web_protocol import RequestHandler

from gateway.errors import HeadersTooLarge
from gateway.http.fastwrite import ALREADY_SENT, ClientConnection
from gateway.language.sentences import say
from gateway.server.connections import Connection, Server

TESTED = ("3.14.",)  # versions of aiohttp: setup.cfg names the oldest

# Names that are private or that aiohttp does not document, by where they are.
NEEDED: dict[object, tuple[str, ...]] = {
    RequestHandler: (
        "_buffer_paused",
        "_close",
        "_force_close",
        "_messages",
        "_reading_paused",
        "_request_count",
        "_request_in_progress",
        "_resume_transport_reading",
        "_waiter",
        "finish_response",
        "handle_error",
        "keep_alive",
        "resume_reading",
    ),
    web_protocol: ("_ErrInfo",),
}

MAX_HEAD = 32 * 1024  # bytes of a request's head, of a body's trailers, or of a chunk's head
MAX_BEHIND = 64 * 1024  # bytes queued after a request; the read that exceeds it is kept
BODY_STEP = 64 * 1024  # the same for a body, whose end another request may follow
STEP = 4 * 1024  # bytes parsed per step if they are expensive to parse
DENSE = 32  # bytes for each line end: fewer mean many chunks, or many requests


def obstacle() -> str:
    """Why this aiohttp cannot serve a `BoundedConnection`; "" if it can."""
    for owner, names in NEEDED.items():
        for name in names:
            if not hasattr(owner, name):
                return f"it has no {getattr(owner, '__name__', owner)}.{name}"
    return "" if aiohttp.__version__.startswith(TESTED) else "the gateway is not tested with it"


class BoundedConnection(ClientConnection, Connection):
    """Parses a bounded part of what the client sends at a time, and nothing after a request before
    that request is answered: parsed heads take twice their bytes. Handlers may write to it
    directly.

    Chunks of a single byte cost a microsecond each, and one read may hold 40,000 of them.
    """

    __slots__ = ("_body", "_rest", "_unfinished", "is_full", "on_full")

    def __init__(self, server: Server, **options: Any) -> None:
        self.is_full, self.on_full = False, None
        self._rest = b""  # received bytes that are not parsed yet
        self._body: StreamReader = EMPTY_PAYLOAD  # of the last parsed request
        self._unfinished = 0  # bytes parsed since the last request or the last byte of a body
        super().__init__(server, **options)

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
                self._pause()
        elif _is_dense(data):
            self._pause()
            self.server.parsing.add(self.parse_more)
        else:
            self._parse_rest()

    def _pause(self) -> None:
        if self.transport is not None:
            self.transport.pause_reading()

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
            if body.is_eof():
                self._body, self._unfinished = self._messages[-1][1], 0
            else:  # an error, which aiohttp would answer after the request that waits for its body
                self._messages.pop()
                self._refuse_body("bytes that are not HTTP")
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
        if not self._body.is_eof():
            self._refuse_body("chunks' heads are too long")
            return
        self._rest = b""
        if self._close or self._force_close:
            return
        self._close = True  # aiohttp reads nothing more from it
        error = HeadersTooLarge(
            say(
                "The request's headers are longer than {most} KiB in all; send fewer.",
                most=MAX_HEAD >> 10,
            )
        )
        self._messages.append((web_protocol._ErrInfo(431, error, ""), EMPTY_PAYLOAD))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _refuse_body(self, reason: str) -> None:
        """Fail the request whose body is being read, and parse nothing more of this connection."""
        self._rest = b""
        if not (self._close or self._force_close):
            self._close = True
            self._body.set_exception(web.RequestPayloadError(reason))

    def _resume_transport_reading(self) -> None:
        if self._rest and not self._is_occupied:
            self.server.parsing.add(self.parse_more)
        elif len(self._rest) <= MAX_BEHIND:
            super()._resume_transport_reading()

    def resume_reading(self, resume_parser: bool = True) -> None:
        # aiohttp calls this for every body, and each call parses zero bytes once more.
        if self._reading_paused:
            super().resume_reading(resume_parser)

    @property
    def goes_on(self) -> bool:
        in_flight = self.server.in_flight
        return in_flight is not None and not in_flight.stopping and not self.is_full

    def pause_writing(self) -> None:
        super().pause_writing()
        self.become(is_full=True)

    def resume_writing(self) -> None:
        super().resume_writing()
        self.become(is_full=False)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._rest = b""
        # The handler learns of it in the next loop iteration and must not write until then.
        self.become(is_full=True)
        super().connection_lost(exc)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        try:
            return (
                (resp, False)
                if resp is ALREADY_SENT
                else await super().finish_response(request, resp, start_time)
            )
        finally:
            if self._body.is_eof():
                self._body = EMPTY_PAYLOAD
            # Parse what follows the request, once aiohttp is done with it.
            if self._rest:
                self.server.parsing.add(self.parse_more)


def _is_dense(data: bytes) -> bool:
    # Counting both characters of a line end would take six times as long.
    return data.count(b"\r") * DENSE > len(data)
