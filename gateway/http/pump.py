"""The hot path: from an upstream's connection to the caller's, one call for each network read.

While an answer streams, no task is woken and nothing is awaited. The upstream's transport hands
over its bytes (`Connection.listen`); they are decoded, rendered and written to the caller's
transport in the same call. If the caller does not read, reading from the upstream pauses. Most
reads are one event that matches a known `EventTemplate`; those take a `FastPath`, which has the
same effect as the full path. `tests/http/test_pump.py` compares the answers of both.

The answer's head, first frames and end are written before and after, perhaps by aiohttp. In
between, this module writes the chunked framing (see `fastwrite`). Where that is not possible,
`open_pump` returns None and aiohttp writes the answer.
"""

import asyncio
from collections.abc import Callable

from aiohttp import web
from orjson import loads

from gateway.chat.attempt import Attempt
from gateway.chat.run import Run
from gateway.http.fastwrite import ClientConnection, Stream, connection_of
from gateway.memory.recall import MAX_TEXT
from gateway.protocol.messages import Delta, Raw
from gateway.protocol.render import StreamRenderer
from gateway.protocol.sse import one_line
from gateway.protocol.template import EventTemplate
from gateway.upstream.timers import Timer

MAX_LEARNED = 50  # templates per stream; if every event differs, learning more is useless


def open_pump(
    request: web.Request,
    response: Stream | web.StreamResponse,
    run: Run,
    renderer: StreamRenderer,
    keepalive_s: float,
    comment: bytes,
    capture: Callable[[bytes], None] | None,
    on_over: Callable[[list[Delta], bytes], None],
) -> "Pump | None":
    """A pump for an answer whose head has been sent. `capture` receives a copy of what is sent;
    `on_over` receives the last deltas and their frames and has to send them."""
    caller, transport = connection_of(request), request.transport
    if caller is None or transport is None or not response.chunked:
        return None
    request.protocol.keep_alive(False)  # its keep-alive timer would exist for the whole stream
    run.take_over()
    return Pump(
        caller,
        transport,
        run.attempt,
        run.ends_at,
        renderer,
        keepalive_s,
        comment,
        capture,
        on_over,
    )


class Pump:
    """One streamed answer from its first frames on."""

    __slots__ = (
        "_attempt", "_caller", "_capture", "_comment", "_ends_at", "_keepalive_s", "_left", "_loop",
        "_on_over", "_over", "_renderer", "_timer", "_timers", "_transport", "written_at",
    )  # fmt: skip

    def __init__(
        self,
        caller: ClientConnection,
        transport: asyncio.Transport,
        attempt: Attempt,
        ends_at: float,
        renderer: StreamRenderer,
        keepalive_s: float,
        comment: bytes,
        capture: Callable[[bytes], None] | None,
        on_over: Callable[[list[Delta], bytes], None],
    ) -> None:
        """`ends_at` is when the call's `total` is over, in loop time."""
        self._caller = caller
        self._transport = transport
        self._attempt = attempt
        self._timers = attempt.timers
        self._ends_at = ends_at
        self._renderer = renderer
        self._keepalive_s = keepalive_s
        self._comment = comment
        self._capture = capture
        self._on_over = on_over
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._timer: Timer | None = None
        self._left = MAX_LEARNED
        self.written_at = self._loop.time()

    def carry(self) -> asyncio.Future[None]:
        """Begin, and return a future that ends with the answer; call `stop` afterwards in any case.

        The future raises TimeoutError when the call's `total` expires. It is no coroutine: a
        coroutine's frame would stay in memory for the whole stream.
        """
        self._caller.on_full = self._wait_for_caller
        self._attempt.connection.listen(self._received)
        if not self._over.done():
            self._wait_for_caller(self._caller.is_full)
        return self._over

    def stop(self) -> None:
        """Detach from both sides. May be called more than once."""
        self._sync_fast_path()
        connection = self._attempt.connection
        connection.listen(None)
        connection.resume()
        self._caller.on_full = None
        if self._timer is not None:
            self._timers.forget(self._timer)

    # Bytes from the upstream.

    def _received(self, chunk: bytes) -> None:
        attempt = self._attempt
        self._sync_fast_path()
        was_read_at = attempt.read_at
        try:
            failure = attempt.connection.failure
            deltas = attempt.broke(failure) if failure and not chunk else attempt.feed(chunk)
            self._pass_on(deltas)
            if attempt.received > MAX_TEXT:
                self._renderer.texts = self._renderer.thoughts = None
            if not attempt.over:
                attempt.connection.fast_path = self._fast_path(chunk, deltas)
                if attempt.is_ending or attempt.read_at < was_read_at:
                    # The time limit became shorter, or the chunk was a heartbeat.
                    self._check_deadlines()
        except Exception as error:
            self._end(error)

    def _pass_on(self, deltas: list[Delta]) -> None:
        frames = self._renderer.feed(deltas)
        if self._attempt.over:
            self._on_over(deltas, frames)
            self._end()
        elif frames:
            self._write(frames)

    def _write(self, frames: bytes) -> None:
        if self._capture is not None:
            self._capture(frames)
        self._transport.write(b"%x\r\n%b\r\n" % (len(frames), frames))
        self.written_at = self._loop.time()

    def _end(self, error: Exception | None = None) -> None:
        self.stop()
        if self._over.done():
            return
        if error is None:
            self._over.set_result(None)
        else:
            self._over.set_exception(error)

    # The fast path.

    def _fast_path(self, chunk: bytes, deltas: list[Delta]) -> "FastPath | None":
        """A fast path for events like the one in `chunk`, if that event only added to the answer's
        text."""
        if len(deltas) != 1 or self._capture is not None or not self._left:
            return None
        pattern = self._attempt.pattern(chunk, deltas[0])
        if pattern is None:
            return None
        self._left -= 1
        around = None if type(deltas[0]) is Raw else self._renderer.around_text
        room = self._attempt.most - self._attempt.received
        keep = None
        if self._renderer.texts is not None:
            keep = self._renderer.texts.append
            room = min(room, MAX_TEXT - self._attempt.received)
        return FastPath(pattern, around, self._transport.write, self._loop.time, room, keep)

    def _sync_fast_path(self) -> None:
        """Account for the bytes that the fast path has forwarded, as the full path does."""
        fast_path = self._attempt.connection.fast_path
        if isinstance(fast_path, FastPath) and fast_path.used_at:
            self._attempt.received += fast_path.received
            self._attempt.show_life(fast_path.used_at)
            self.written_at = fast_path.used_at
            fast_path.used_at = 0.0

    # Deadlines and back pressure.

    def _check_deadlines(self) -> None:
        """Handle what is due: fail a silent upstream, or send a keep-alive comment."""
        if self._timer is not None:
            self._timers.forget(self._timer)
        self._sync_fast_path()
        now, due = self._loop.time(), self._ends_at
        if now >= due:
            self._end(TimeoutError())
            return
        if not self._caller.is_full:
            if now >= self._attempt.silent_at:
                try:
                    self._pass_on(self._attempt.silence())
                except Exception as error:
                    self._end(error)
                return
            if now >= self.written_at + self._keepalive_s:
                self._write(self._comment)
            due = min(due, self._attempt.silent_at, self.written_at + self._keepalive_s)
        if self._timer is not None:  # set by a comment that filled the caller's buffer
            self._timers.forget(self._timer)
        self._timer = self._timers.set(due, self._check_deadlines)

    def _wait_for_caller(self, is_full: bool) -> None:
        """While the caller does not read, pause the upstream; its silence does not count then."""
        if is_full:
            self._attempt.connection.pause()
        else:
            self._sync_fast_path()
            self._attempt.show_life(self._loop.time())
            self._attempt.connection.resume()
        self._check_deadlines()


class FastPath:
    """Forwards a network read that is one whole chunk with one whole event of a known template:

        1a3\\r\\n <before> "a JSON string" <after> \\r\\n

    A JSON string holds no line end, so the bytes between `before` and `after` are one chunk. The
    fast path writes the string unchanged into the caller's chunk, or the whole event where events
    are passed through. Anything else is left to the parser.

    This runs fifty times a second for every stream. With hundreds of streams its data has left the
    processor's caches each time, so all of it is in the slots of one object.
    """

    __slots__ = (
        "_add", "_after", "_before", "_begin", "_end", "_first_room", "_head", "_keep", "_now",
        "_room", "_size", "_tail", "_verbatim", "_write", "used_at",
    )  # fmt: skip

    def __init__(
        self,
        pattern: EventTemplate,
        around: tuple[bytes, bytes] | None,
        write: Callable[[bytes], None],
        now: Callable[[], float],
        room: int,
        keep: Callable[[str], None] | None,
    ) -> None:
        """`around` is what surrounds the string in the caller's event; None if the event passes
        through. `room` is how many more bytes the upstream may send. `keep` receives each
        string."""
        before, after, add = pattern
        self._before, self._after, self._add = before, after + b"\r\n", add
        self._begin, self._end = len(before), -len(self._after)
        self._verbatim = around is None
        self._head, tail = around or (b"", b"")
        self._tail, self._size = tail + b"\r\n", len(self._head) + len(tail)
        self._write, self._now = write, now
        self._room = self._first_room = room
        self._keep = keep
        self.used_at = 0.0  # loop time

    @property
    def received(self) -> int:
        """How many bytes were forwarded since this was asked last."""
        received, self._first_room = self._first_room - self._room, self._room
        return received

    def __call__(self, data: bytes) -> bool:
        """Forward `data` if it matches the template. Returns whether it did."""
        at = data.find(b"\n", 0, 10) + 1
        if not (data.startswith(self._before, at) and data.endswith(self._after)):
            return False
        literal = data[at + self._begin : self._end]
        size = len(data)
        try:
            if int(data[:at], 16) != size - at - 2:
                return False
            text = loads(literal)
        except ValueError:
            return False
        if not text or type(text) is not str or size > self._room:
            return False
        if self._add is not None and self._add(text):
            return False
        self._room -= size
        if self._keep is not None:
            self._keep(text)
        if self._verbatim:
            self._write(data)
        else:
            if not literal.isascii():
                literal = one_line(literal)
            chunk = (b"%x\r\n" % (self._size + len(literal)), self._head, literal, self._tail)
            self._write(b"".join(chunk))
        self.used_at = self._now()
        return True
