"""One chat: tries the targets in order until one begins to answer, then reads that answer."""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Mapping
from functools import partial
from math import inf
from typing import cast

from gateway.chat.attachments import Attachments
from gateway.chat.delivery import Delivery
from gateway.chat.routing import Target
from gateway.chat.steps import MAX_STEPS, keeps_asking, resolve
from gateway.errors import (
    CircuitOpen,
    GatewayError,
    Guess,
    UpstreamFailed,
    UpstreamTimeout,
    clean,
)
from gateway.limits.shares import Holders
from gateway.platforms.base import Decoder, Preliminary, Step, require_options
from gateway.protocol.completions import lines_as_events
from gateway.protocol.exchange import UpstreamRequest
from gateway.protocol.messages import CONTENT, ChatRequest, Delta, Failed, Note, has_media
from gateway.protocol.sse import SHOWN, Life, is_stream
from gateway.protocol.template import EventTemplate
from gateway.telemetry.traces import NO_TRACE, CallTrace
from gateway.upstream.client import MAX_REPLY, Exchange, Upstream, translate
from gateway.upstream.connection import Connection
from gateway.upstream.deadline import Deadline

log = logging.getLogger("gateway")

MAX_EARLY = 5000  # deltas before the first one with content
MAX_WAIT_S = 10.0  # with a longer `Retry-After` the caller gets the error
SHORT_WAIT_S = 0.5  # the same if there is another target
GRACE_S = 2.0  # how long a complete answer waits for the end of the body
_STOP_S = 10.0


class Run:
    """One call from the first attempt to the last byte. Use it in `with`.

    An early exit closes the upstream connection and sends the platform's stop call.
    """

    __slots__ = (
        "_asked",
        "_deadline",
        "_delivery",
        "_early",
        "_ended",
        "_entered",
        "_exchange",
        "_grows_from",
        "_has_accepted",
        "_holders",
        "_idle_s",
        "_is_last",
        "_loop",
        "_targets",
        "_trace",
        "_trace_headers",
        "_until",
        "_upstream",
        "_wants_whole",
        "attempts",
        "chat",
        "decoder",
        "ends_at",
        "failures",
        "fallbacks",
        "most",
        "over",
        "read_at",
        "reasons",
        "received",
        "retries",
        "target",
        "timers",
    )  # fmt: skip

    def __init__(
        self,
        upstream: Upstream,
        attachments: Attachments,
        chat: ChatRequest,
        targets: list[Target],
        trace: CallTrace = NO_TRACE,
        holders: Holders = (),
        hold: Callable[[int], None] = lambda size: None,
    ) -> None:
        """`holders` are the owners of its slots at the targets; `hold` reserves memory for
        files."""
        self._upstream = upstream
        self._holders = holders
        self._trace = trace
        self._trace_headers: Mapping[str, str] = {}
        self.chat = chat
        self._asked = chat  # `chat` with its files in the form for the current target
        self._delivery = (
            Delivery(upstream, attachments, chat, hold) if has_media(chat.messages) else None
        )
        self._targets = targets
        self._loop = upstream.timers.loop  # `get_running_loop` is a system call
        self._exchange: Exchange | None = None
        self._entered: Target | None = None
        self.timers = upstream.timers
        self._deadline = Deadline(upstream.timers)
        self._early: list[Delta] = []  # of the current attempt, before the first content
        self.read_at = 0.0  # loop time of the last sign of life
        self._grows_from: float | None = None  # `read_at` before the event that is still incomplete
        self._until: float | None = None  # when the current target's answer must have begun
        self._idle_s = 0.0
        self.received = self.most = 0  # bytes of the current answer, and their limit
        self._ended = False  # the upstream sends nothing more
        self._has_accepted = False  # the upstream has begun to answer
        self._wants_whole = False  # the upstream was not asked for a stream
        self.ends_at = inf  # loop time when `total` is over; `start` sets it
        self._is_last = True  # no other target remains
        self.target = targets[0]
        self.decoder: Decoder | None = None
        self.attempts = self.fallbacks = 0
        self.retries: tuple[str, ...] = ()  # the agent of each repeated attempt
        self.failures: tuple[tuple[str, str], ...] = ()  # (agent, code) of each failed attempt
        self.reasons: tuple[str, ...] = ()  # the messages of failed attempts, in order
        self.over = False

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the upstream immediately. May be called more than once."""
        self._deadline.close()
        self._drop()

    @property
    def total_s(self) -> float:
        """The limit of the whole call, whichever target answers: the first target's `total`."""
        return self._targets[0].agent.timeouts.total

    @property
    def is_running(self) -> bool:
        """Whether an upstream has begun to answer and has not finished."""
        return self.decoder is not None and self._exchange is not None and not self.over

    @property
    def has_accepted(self) -> bool:
        """Whether an upstream has begun to answer, so that a client must not retry by itself."""
        return self._has_accepted

    @property
    def is_ending(self) -> bool:
        """Whether the answer is complete, even if more bytes may follow."""
        return self.decoder is not None and self.decoder.ending

    @property
    def connection(self) -> Connection:
        """The connection to the answering upstream."""
        assert self._exchange is not None
        return self._exchange.connection

    def pattern(self, chunk: bytes, delta: Delta) -> EventTemplate | None:
        """See `Decoder.pattern`."""
        assert self.decoder is not None
        return self.decoder.pattern(chunk, delta)

    def until(self, moment: float) -> Deadline:
        """A context manager that interrupts the current task's awaits at loop time `moment` with
        TimeoutError."""
        return self._deadline.until(moment)

    def take_over(self) -> None:
        """Hand the run to the calling task, which reads it from now on, or lets a pump read it."""
        self._deadline.close()

    # Up to the first delta.

    async def start(self) -> list[Delta]:
        """The first deltas, including content. Raises the last error if no target answers, and
        TimeoutError when `total` is over.

        The same target is retried only after errors that prove that nothing has begun there, within
        `first_delta`. The run falls back to the next target also if this one is unusable (it is
        silent, broken or busy, or it rejects the key or has no credit).
        """
        last: GatewayError | None = None
        now = self._loop.time()
        self.ends_at = now + self.total_s
        self._deadline.set(min(self.ends_at, now + self.target.agent.timeouts.first_delta))
        try:
            for i, target in enumerate(self._targets):
                self._is_last = i == len(self._targets) - 1
                self.fallbacks = i
                try:
                    deltas = await self._try(target)
                    self._forget_question()
                    return deltas
                except GatewayError as error:
                    if not (error.retryable or error.elsewhere):
                        raise
                    last = error.with_traceback(None)  # its frames refer to it: a cycle
            assert last is not None  # targets are never empty
            raise last
        except asyncio.CancelledError:
            if not self._deadline.expired():
                raise  # the client has disconnected
            raise TimeoutError from None
        finally:
            self._deadline.clear()
            last = None  # its traceback refers to this frame, and so to the question

    def _forget_question(self) -> None:
        self.chat.let_go()
        if self._asked is not self.chat:
            self._asked.let_go()
        self._delivery, self._early = None, []

    def _wait_until(self, moment: float | None) -> None:
        """Interrupt later awaits at loop time `moment`, and in any case when `total` is over."""
        at = self.ends_at if moment is None or moment > self.ends_at else moment
        self._deadline.until(at)

    async def _try(self, target: Target) -> list[Delta]:
        """Try one target, retrying while useful. If other targets remain, back off only briefly."""
        self._until = None
        attempt, before = 0, None
        while True:
            try:
                return await self._attempt(target, None if self._is_last else 0.0)
            except GatewayError as error:
                if isinstance(error, CircuitOpen) and before is not None:
                    raise before from None  # our attempts opened it: report their error
                self.reasons += (clean(target.explain(error).message, 200),)
                self._drop()
                told_s = error.retry_after_s or 0.0
                wait_s = max(_backoff_s(attempt), 0.0 if isinstance(told_s, Guess) else told_s)
                if (
                    not error.retryable
                    or attempt >= target.agent.retries
                    or wait_s > (MAX_WAIT_S if self._is_last else SHORT_WAIT_S)
                    or (self._until and self._loop.time() + wait_s > self._until)
                ):
                    raise
                before = error.with_traceback(None)  # refers to this frame: a cycle
            attempt += 1
            self.retries += (target.name,)
            self._wait_until(None)
            await asyncio.sleep(wait_s)

    async def _attempt(self, target: Target, queue_s: float | None) -> list[Delta]:
        """Ask once. `queue_s` limits the wait for a slot; None means the configured `queue`. The
        upstream does not cause that wait, so `first_delta` starts after it."""
        self.target, self.decoder, self.over, self._early = target, None, False, []
        self._has_accepted = self._wants_whole = False
        pass_ = target.enter_at_once(self._holders)
        if pass_ is None:
            self._wait_until(None)
            pass_ = await target.enter(queue_s, self._holders)
        self._entered = target
        began = self._loop.time()
        wait_s = target.agent.timeouts.first_delta
        if self._until is None:
            self._until = began + wait_s
        self.attempts += 1
        self._trace_headers = self._trace.attempt(target.name, target.platform.kind, target.url)
        self._idle_s = target.agent.timeouts.idle
        self.received, self.most = 0, target.agent.max_answer
        try:
            await self._begin(target, self._until)
        except BaseException as error:
            told: BaseException | None = error
            is_silent = self._exchange is None and not self._wants_whole
            if is_silent and self._loop.time() - began >= wait_s:
                told = UpstreamTimeout("")  # it was silent for that long, whatever ended the wait
            target.breaker.ended(pass_, told, has_answered=self._exchange is not None)
            told = None
            if isinstance(error, GatewayError):
                self._judge(error)
                self._trace.failed(error)
                self.failures += ((target.name, error.code or error.type),)
            raise
        target.breaker.ended(pass_)
        return self._early

    async def _begin(self, target: Target, until: float) -> None:
        """Ask, and collect the first deltas. Raises an error if the answer fails before content."""
        self._wait_until(until)
        try:
            await self._first_deltas(await self._ask(target))
        except asyncio.CancelledError:
            if not self._deadline.expired():
                raise  # the client has disconnected
            if self._loop.time() >= self.ends_at:
                raise TimeoutError from None
            if self.decoder is None or not self.decoder.ending:
                wait_s = target.agent.timeouts.first_delta
                raise UpstreamTimeout(
                    "The upstream did not answer in its share of the time."
                    if self._wants_whole
                    else f"The upstream did not begin to answer within {wait_s:g} s."
                ) from None
            self._early += self.silence()  # an empty answer without an end mark
        failed = self._early[-1]
        if isinstance(failed, Failed) and not any(isinstance(d, CONTENT) for d in self._early):
            raise failed.error

    def _judge(self, error: GatewayError) -> None:
        """Set whether a retry or a fallback makes sense after `error`."""
        if self._has_accepted:
            error.retryable = error.should_retry = False
            error.elsewhere = type(error).elsewhere  # bad key or no credit: nothing has run
        elif isinstance(error, UpstreamTimeout | UpstreamFailed):
            error.elsewhere = True

    async def _first_deltas(self, exchange: Exchange) -> None:
        """Collect deltas until one has content, or the answer is over."""
        connection, has_content = exchange.connection, False
        chunk, exchange.first = exchange.first or connection.read_at_once(), b""
        while not self.over:
            try:
                deltas = self.take(await connection.read() if chunk is None else chunk)
            except Exception as error:
                deltas = self.broke(error)
            for delta in deltas:
                is_empty = isinstance(delta, Note) and not (delta.data or delta.text)
                if not is_empty:  # an empty Note is only a sign of life
                    self._early.append(delta)
                    has_content = has_content or isinstance(delta, CONTENT)
            if len(self._early) > MAX_EARLY:
                raise UpstreamFailed("The upstream sends events that say nothing.")
            if has_content:
                return
            if self.decoder is not None and self.decoder.ending:
                self._wait_until(self._loop.time() + GRACE_S)
            elif deltas:  # a workflow step: the upstream works but has no content yet
                wait_s = self.target.agent.timeouts.first_delta
                self._wait_until(self._loop.time() + wait_s)
            chunk = connection.read_at_once()

    async def _ask(self, target: Target) -> Exchange:
        """Send the requests that the platform describes until the answer itself begins."""
        require_options(target.platform, self.chat)
        if self._delivery is not None:
            self._wait_until(None)  # large files are limited by `total` only
            self._asked = await self._delivery.prepare(target)
            self._wait_until(self._loop.time() + target.agent.timeouts.first_delta)
        request: Step = target.platform.prepare(self._asked)
        for _ in range(MAX_STEPS):
            if isinstance(request, Preliminary):
                again = partial(target.platform.prepare, self._asked)
                request = cast(
                    UpstreamRequest, await resolve(self._upstream, target, request, again)
                )
            if not request.stream:
                # A whole answer begins when it is complete: it may use all of the remaining time,
                # or half of it if another agent could use the rest.
                self._wants_whole = True
                now = self._loop.time()
                self._wait_until(None if self._is_last else (now + self.ends_at) / 2)
            exchange = await self._upstream.send(request, target.way, self._trace_headers)
            self._exchange = exchange
            self.show_life(self._loop.time())
            self._has_accepted = exchange.status == 200
            if self._has_accepted:  # before the first bytes, so that it can be drained
                self.decoder = target.platform.decoder(self._asked)
            is_answer = exchange.status == 200 and not exchange.is_page
            if is_answer and (not request.stream or await _is_stream(exchange)):
                return exchange
            reply = await exchange.reply(target.agent.max_answer if is_answer else MAX_REPLY)
            if is_answer and (stream := lines_as_events(reply) or target.platform.as_stream(reply)):
                exchange.first = stream
                return exchange
            exchange.close()
            self._has_accepted, self.decoder = False, None  # the reply is not the answer
            request = target.platform.refused(reply, self._asked)
        raise keeps_asking()

    # After the first delta.

    async def read(self, until: float | None = None) -> list[Delta] | None:
        """The next deltas (perhaps none), or None if nothing arrives by loop time `until`.

        A failure of the upstream is the last delta, not an exception. The last deltas set `over`.
        """
        exchange, ends = self._exchange, self.silent_at
        assert exchange is not None
        if until is not None and until < ends:
            ends = until
        try:
            with self._deadline.until(ends):
                chunk = await exchange.connection.read()
        except TimeoutError:
            return None if ends == until else self.silence()
        except Exception as error:
            return self.broke(error)
        return self.take(chunk)

    @property
    def silent_at(self) -> float:
        """Loop time at which the upstream times out if it stays silent."""
        assert self.decoder is not None
        return self.read_at + (GRACE_S if self.decoder.ending else self._idle_s)

    def take(self, chunk: bytes) -> list[Delta]:
        """The deltas of one network chunk; b"" means the end of the body."""
        decoder = self.decoder
        assert decoder is not None
        was_ending = decoder.ending
        self.received += len(chunk)
        if self.received > self.most:
            words = f"The upstream's answer is longer than {self.most} bytes (max_answer)."
            deltas: list[Delta] = [Failed(UpstreamFailed(words))]
            self._end(deltas)
            return deltas
        try:
            deltas = decoder.feed(chunk) if chunk else decoder.close()
        except Exception:  # a bug in a decoder must fail this answer only
            log.exception("The decoder of agent %s failed", self.target.name)
            deltas = [Failed(UpstreamFailed("The upstream's answer could not be understood."))]
            self._end(deltas)
            return deltas
        if not was_ending:
            if decoder.life is SHOWN:  # the common case
                self.read_at, self._grows_from = self._loop.time(), None
            else:
                self._note_life(decoder.life)
        if decoder.done or not chunk:
            self._end(deltas)
        return deltas

    def _note_life(self, life: Life) -> None:
        if life is Life.GROWING:
            if self._grows_from is None:
                self._grows_from = self.read_at
            self.read_at = self._loop.time()
        elif self._grows_from is not None:  # the incomplete event was a heartbeat
            self.show_life(self._grows_from)

    def show_life(self, moment: float) -> None:
        """Record a sign of life: the idle timeout counts from loop time `moment`."""
        self.read_at, self._grows_from = moment, None

    def broke(self, error: Exception) -> list[Delta]:
        """The connection broke: the answer succeeds if it is complete, else it fails."""
        assert self.decoder is not None
        translated = translate(error)
        if not isinstance(translated, GatewayError):
            raise translated
        deltas = self.decoder.close()
        if deltas and (isinstance(deltas[-1], Failed) or self.decoder.ends_with_connection):
            deltas[-1] = Failed(translated)
        self._end(deltas)
        return deltas

    def silence(self) -> list[Delta]:
        """The upstream timed out: a complete answer succeeds, any other fails."""
        assert self.decoder is not None
        if self.decoder.ending:
            deltas = self.decoder.close()
        else:
            words = f"The upstream has been silent for {self._idle_s:g} s."
            deltas = [Failed(UpstreamTimeout(words))]
        self._end(deltas)
        return deltas

    def _end(self, deltas: list[Delta]) -> None:
        """Mark the end; a call whose answer failed after it began must not be retried."""
        self.over = True
        failed = deltas[-1] if deltas else None
        if isinstance(failed, Failed):
            self.target.explain(failed.error)
            if self.chat.route:
                failed.error.rename(self.target.name, self.chat.route)
            failed.error.retryable = False
            failed.error.should_retry = False
            self._ended = not isinstance(failed.error, UpstreamTimeout)
        else:
            self._ended = True

    def _drop(self) -> None:
        """Release the upstream: reuse the connection after a clean end, else close it and send the
        stop call."""
        exchange, self._exchange = self._exchange, None
        target, self._entered = self._entered, None
        if target:
            target.leave(self._holders)
        if exchange is None:
            return
        if self.over and self._ended:
            exchange.let_end()
            return
        exchange.close()
        if self.decoder is None or self._ended:
            return
        if stop := self.target.platform.stop(self._asked, self.decoder):
            self._upstream.spawn(self._stop(self.target, stop))

    async def _stop(self, target: Target, request: UpstreamRequest) -> None:
        with contextlib.suppress(GatewayError):  # the run ends by itself; no client waits
            await self._upstream.fetch(request, target.way, _STOP_S)


async def _is_stream(exchange: Exchange) -> bool:
    """Whether the reply is the requested stream: platforms also refuse with 200 and JSON.

    Content types are unreliable, so this checks the first bytes as well.
    """
    first = await exchange.peek_text()
    return bool(is_stream(first)) or not (exchange.is_json or first.startswith((b"{", b"[")))


def _backoff_s(attempt: int) -> float:
    """0.1 s, doubling up to 2 s, minus up to half at random so that callers do not synchronise."""
    longest = min(0.1 * 2.0**attempt, 2.0)
    return longest * (1 - random.random() / 2)  # noqa: S311 - spreads load, guards nothing
