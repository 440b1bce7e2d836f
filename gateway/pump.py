"""The hot path: from an upstream's connection to the caller's, one call for each network read.

While an answer streams no task is woken and nothing is awaited. The upstream's bytes are handed
over by its transport (`Link.listen`), decoded, rendered and written to the caller's transport in
the same call; a caller who does not read makes the upstream wait. Most reads are one event of a
form that has just been seen (`Pattern`): those take the shortcut of `_shortcut`, which does what
the long way does and no more than that. `tests/test_pump.py` holds both to the same answers.

aiohttp writes an answer's head, its first frames and its end. In between its chunked framing is
done here, on the transport that it shows as `request.transport`. That aiohttp adds nothing of its
own there is not promised: with a version that the tests have not seen, or another server than
ours, `open_pump` gives None, and the answer is written with aiohttp's own means.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import aiohttp
import orjson
from aiohttp import web

from gateway.messages import Delta, Raw
from gateway.pattern import Pattern
from gateway.relay import Run
from gateway.render import StreamRenderer
from gateway.sse import KEEP_ALIVE, one_line

_SEEN = ("3.13.", "3.14.")  # versions of aiohttp
MAX_LEARNED = 50  # patterns of one stream; where all events differ, looking for them is in vain


@runtime_checkable
class Caller(Protocol):
    """What `connections` offers beside aiohttp's own: whether the caller is to be waited for."""

    is_full: bool
    on_full: Callable[[bool], None] | None


def open_pump(
    request: web.Request,
    response: web.StreamResponse,
    run: Run,
    renderer: StreamRenderer,
    keepalive_s: float,
    capture: Callable[[bytes], None] | None,
    on_over: Callable[[list[Delta]], None],
) -> "Pump | None":
    """For an answer whose head has been sent. `capture` is given a copy of what is sent, `on_over`
    the last deltas before they are."""
    caller, transport = request.protocol, request.transport
    if not (aiohttp.__version__.startswith(_SEEN) and response.chunked):
        return None
    if transport is None or not isinstance(caller, Caller):
        return None
    return Pump(caller, transport, run, renderer, keepalive_s, capture, on_over)


class Pump:
    """One streamed answer from its first frames on."""

    def __init__(
        self,
        caller: Caller,
        transport: asyncio.Transport,
        run: Run,
        renderer: StreamRenderer,
        keepalive_s: float,
        capture: Callable[[bytes], None] | None,
        on_over: Callable[[list[Delta]], None],
    ) -> None:
        self._caller = caller
        self._transport = transport
        self._run = run
        self._renderer = renderer
        self._keepalive_s = keepalive_s
        self._capture = capture
        self._on_over = on_over
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._left = MAX_LEARNED
        self.written_at = self._loop.time()

    async def carry(self) -> None:
        """Until the answer is over."""
        link = self._run.link
        self._caller.on_full = self._wait_for_caller
        try:
            self._wait_for_caller(self._caller.is_full)
            link.listen(self._received)
            await self._over
        finally:
            self._let_go()
            link.resume()

    def _let_go(self) -> None:
        self._run.link.listen(None)
        self._caller.on_full = None
        if self._timer is not None:
            self._timer.cancel()

    # What comes from the upstream.

    def _received(self, chunk: bytes) -> None:
        run = self._run
        try:
            failure = run.link.failure
            deltas = run.broke(failure) if failure and not chunk else run.take(chunk)
            self._pass_on(deltas)
            if not run.over:
                run.link.quick = self._shortcut(chunk, deltas)
                if run.is_ending:
                    self._look()  # its patience is shorter
        except Exception as error:
            self._end(error)

    def _pass_on(self, deltas: list[Delta]) -> None:
        frames = self._renderer.feed(deltas)
        if self._run.over:
            self._on_over(deltas)
        if frames:
            self._write(frames)
        if self._run.over:
            self._end()

    def _write(self, frames: bytes) -> None:
        if self._capture is not None:
            self._capture(frames)
        self._transport.write(b"%x\r\n%b\r\n" % (len(frames), frames))
        self.written_at = self._loop.time()

    def _end(self, error: Exception | None = None) -> None:
        self._let_go()
        if self._over.done():
            return
        if error is not None:
            self._over.set_exception(error)
        else:
            self._over.set_result(None)

    # The shortcut.

    def _shortcut(self, chunk: bytes, deltas: list[Delta]) -> Callable[[bytes], bool] | None:
        """For more events like the one in `chunk`, if that only added to the answer's text."""
        if len(deltas) != 1 or self._capture is not None or not self._left:
            return None
        pattern = self._run.pattern(chunk, deltas[0])
        if pattern is None:
            return None
        self._left -= 1
        if type(deltas[0]) is Raw:
            return _unchanged(pattern, self._run, self, self._transport.write, self._loop.time)
        head, tail = self._renderer.around_text
        return _translated(
            pattern, head, tail, self._run, self, self._transport.write, self._loop.time
        )

    # Time, and a caller who does not read.

    def _look(self) -> None:
        """What is due by now: to give up on an upstream, or to show that the answer goes on."""
        if self._timer is not None:
            self._timer.cancel()
        now = self._loop.time()
        if now >= self._run.silent_at:
            try:
                self._pass_on(self._run.silence())
            except Exception as error:
                self._end(error)
            return
        if now >= self.written_at + self._keepalive_s:
            self._write(KEEP_ALIVE)
        due = min(self._run.silent_at, self.written_at + self._keepalive_s)
        self._timer = self._loop.call_at(due, self._look)

    def _wait_for_caller(self, is_full: bool) -> None:
        """While the caller does not read the upstream is not listened to, and so not silent."""
        if is_full:
            self._run.link.pause()
            if self._timer is not None:
                self._timer.cancel()
        else:
            self._run.read_at = self._loop.time()
            self._run.link.resume()
            self._look()


# Each of these is called some fifty times a second for every stream, with caches gone cold in
# between: all they need is in their cells, and nothing is called that need not be. `data` is what
# came from the network, of which they deal with one whole chunk that holds one whole event:
#
#     1a3\r\n <before> "one JSON string" <after> \r\n
#
# A JSON string holds no line end, so whatever lies between `before` and `after` is one chunk. What
# is not of this form is left to the parser.


def _translated(
    pattern: Pattern,
    head: bytes,
    tail: bytes,
    run: Run,
    pump: Pump,
    write: Callable[[bytes], None],
    now: Callable[[], float],
) -> Callable[[bytes], bool]:
    before, after, add = pattern
    after += b"\r\n"
    begin, end = len(before), -len(after)
    around, tail = len(head) + len(tail), tail + b"\r\n"
    loads, most = orjson.loads, run.most

    def quick(data: bytes) -> bool:
        size = len(data)
        at = data.find(b"\n", 0, 10) + 1
        if not (data.startswith(before, at) and data.endswith(after)):
            return False
        literal = data[at + begin : end]
        try:
            if int(data[:at], 16) != size - at - 2:
                return False
            text = loads(literal)
        except ValueError:
            return False
        if not text or type(text) is not str or run.received + size > most:
            return False
        run.received += size
        if add is not None:
            add(text)
        if not literal.isascii():
            literal = one_line(literal)
        write(b"%x\r\n%b%b%b" % (around + len(literal), head, literal, tail))
        run.read_at = pump.written_at = now()
        return True

    return quick


def _unchanged(
    pattern: Pattern,
    run: Run,
    pump: Pump,
    write: Callable[[bytes], None],
    now: Callable[[], float],
) -> Callable[[bytes], bool]:
    before, after, _ = pattern
    after += b"\r\n"
    begin, end = len(before), -len(after)
    loads, most = orjson.loads, run.most

    def quick(data: bytes) -> bool:
        size = len(data)
        at = data.find(b"\n", 0, 10) + 1
        if not (data.startswith(before, at) and data.endswith(after)):
            return False
        try:
            if int(data[:at], 16) != size - at - 2:
                return False
            text = loads(data[at + begin : end])
        except ValueError:
            return False
        if not text or type(text) is not str or run.received + size > most:
            return False
        run.received += size
        write(data)
        run.read_at = pump.written_at = now()
        return True

    return quick
