"""One chat: the targets tried in order until one begins to answer, then that answer to its end."""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Mapping
from functools import partial
from math import inf

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
from gateway.platforms.base import Decoder, Step, require_options
from gateway.protocol.exchange import UpstreamRequest
from gateway.protocol.messages import CONTENT, ChatRequest, Delta, Failed, Note, has_media
from gateway.protocol.passthrough import lines_as_events
from gateway.protocol.sse import SHOWN, Life, is_stream
from gateway.protocol.template import EventTemplate
from gateway.telemetry.traces import NO_TRACE, CallTrace
from gateway.upstream.client import MAX_REPLY, Exchange, Upstream, translate
from gateway.upstream.connection import Connection
from gateway.upstream.deadline import Deadline

log = logging.getLogger("gateway")

MAX_EARLY = 5000  # deltas before the first with content
MAX_WAIT_S = 10.0  # a longer `Retry-After` is the caller's to wait for
SHORT_WAIT_S = 0.5  # the same while there is another target
GRACE_S = 2.0  # how long a complete answer waits for what may follow it
_STOP_S = 10.0


class Run:
    """One call from the first attempt to the last byte. Use it in `with`.

    Leaving early closes the upstream's connection and sends the platform's stop call.
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
        """`holders` are whose places at the targets it takes; `hold` takes memory for files."""
        self._upstream = upstream
        self._holders = holders
        self._trace = trace
        self._trace_headers: Mapping[str, str] = {}
        self.chat = chat
        self._asked = chat  # the same with its files as the present target takes them
        self._delivery = (
            Delivery(upstream, attachments, chat, hold) if has_media(chat.messages) else None
        )
        self._targets = targets
        self._loop = upstream.timers.loop  # asking for the running one is a system call
        self._exchange: Exchange | None = None
        self._entered: Target | None = None
        self.timers = upstream.timers
        self._deadline = Deadline(upstream.timers)
        self._early: list[Delta] = []  # of the present attempt, before the first content
        self.read_at = 0.0  # loop time of the last sign of life
        self._grows_from: float | None = None  # and before the event that is still coming, of one
        self._until: float | None = None  # when the answer of the present target must have begun
        self._idle_s = 0.0
        self.received = self.most = 0  # bytes of the present answer, and of any
        self._ended = False  # the upstream has nothing more to say
        self._has_accepted = False  # the upstream has begun to answer
        self._wants_whole = False  # and was not asked for a stream
        self.ends_at = inf  # loop time when `total` is over, from `start` on
        self._is_last = True  # no other target is left
        self.target = targets[0]
        self.decoder: Decoder | None = None
        self.attempts = self.fallbacks = 0
        self.retries: tuple[str, ...] = ()  # the agent of each further try
        self.failures: tuple[tuple[str, str], ...] = ()  # (agent, code) of each failed attempt
        self.reasons: tuple[str, ...] = ()  # why, in the same order
        self.over = False

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the upstream, now. May be called more than once."""
        self._deadline.close()
        self._drop()

    @property
    def total_s(self) -> float:
        """For all of it, whoever answers in the end."""
        return self._targets[0].agent.timeouts.total

    @property
    def is_running(self) -> bool:
        """Whether an answer has begun upstream that is not over."""
        return self.decoder is not None and self._exchange is not None and not self.over

    @property
    def has_accepted(self) -> bool:
        """Whether an upstream has begun to answer, so that nobody must ask again by himself."""
        return self._has_accepted

    @property
    def is_ending(self) -> bool:
        """Whether the answer is whole, if perhaps something may follow it."""
        return self.decoder is not None and self.decoder.ending

    @property
    def connection(self) -> Connection:
        """The connection to the upstream that answers."""
        assert self._exchange is not None
        return self._exchange.connection

    def pattern(self, chunk: bytes, delta: Delta) -> EventTemplate | None:
        """See `Decoder.pattern`."""
        assert self.decoder is not None
        return self.decoder.pattern(chunk, delta)

    def until(self, moment: float) -> Deadline:
        """For `with`: what the current task awaits is interrupted at loop time `moment`, with
        TimeoutError."""
        return self._deadline.until(moment)

    def take_over(self) -> None:
        """From now on it is the task that calls this which reads, or lets a pump do so."""
        self._deadline.close()

    # Until the first delta.

    async def start(self) -> list[Delta]:
        """The first deltas, with content among them. Raises the last error if no target answers,
        and TimeoutError when `total` is over.

        The same target is asked again only after errors that say nothing has begun there, as long
        as `first_delta` lasts; the next one also if this one is of no use (it is silent, broken,
        busy, or its key or credit is refused).
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
                    last = error.with_traceback(None)  # its frames hold it, in a circle
            assert last is not None  # there is at least one target
            raise last
        except asyncio.CancelledError:
            if not self._deadline.expired():
                raise  # the caller has left
            raise TimeoutError from None
        finally:
            self._deadline.clear()
            last = None  # its traceback holds this frame, and all that the question holds

    def _forget_question(self) -> None:
        self.chat.let_go()
        if self._asked is not self.chat:
            self._asked.let_go()
        self._delivery, self._early = None, []

    def _wait_until(self, moment: float | None) -> None:
        """What is awaited from now on is interrupted then, and always when `total` is over."""
        at = self.ends_at if moment is None or moment > self.ends_at else moment
        self._deadline.until(at)

    async def _try(self, target: Target) -> list[Delta]:
        """One target, as often as it is worth it. With another one left nobody waits for long."""
        self._until = None
        attempt, before = 0, None
        while True:
            try:
                return await self._attempt(target, None if self._is_last else 0.0)
            except GatewayError as error:
                if isinstance(error, CircuitOpen) and before is not None:
                    raise before from None  # our own tries opened it: this is why
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
                before = error.with_traceback(None)  # which holds this frame, in a circle
            attempt += 1
            self.retries += (target.name,)
            self._wait_until(None)
            await asyncio.sleep(wait_s)

    async def _attempt(self, target: Target, queue_s: float | None) -> list[Delta]:
        """Ask once. `queue_s` is how long a place may be waited for, None as long as is
        configured; what that takes is not the upstream's fault, so the time to begin follows."""
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
                told = UpstreamTimeout("")  # whoever gave up first: so long it has said nothing
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
        """Ask, and gather the first deltas. Raises if none of them has content."""
        self._wait_until(until)
        try:
            await self._first_deltas(await self._ask(target))
        except asyncio.CancelledError:
            if not self._deadline.expired():
                raise  # the caller has left
            if self._loop.time() >= self.ends_at:
                raise TimeoutError from None
            if self.decoder is None or not self.decoder.ending:
                wait_s = target.agent.timeouts.first_delta
                raise UpstreamTimeout(
                    "The upstream did not answer in its share of the time."
                    if self._wants_whole
                    else f"The upstream did not begin to answer within {wait_s:g} s."
                ) from None
            self._early += self.silence()  # an answer without a word, whose end was not told
        failed = self._early[-1]
        if isinstance(failed, Failed) and not any(isinstance(d, CONTENT) for d in self._early):
            raise failed.error

    def _judge(self, error: GatewayError) -> None:
        """Whether it is worth asking again, or elsewhere."""
        if self._has_accepted:
            error.retryable = error.should_retry = False
            error.elsewhere = type(error).elsewhere  # its key or its credit: nothing has run
        elif isinstance(error, UpstreamTimeout | UpstreamFailed):
            error.elsewhere = True

    async def _first_deltas(self, exchange: Exchange) -> None:
        """Gather deltas until one has content, or the last has come."""
        connection, has_content = exchange.connection, False
        chunk, exchange.first = exchange.first or connection.read_at_once(), b""
        while not self.over:
            try:
                deltas = self.take(await connection.read() if chunk is None else chunk)
            except Exception as error:
                deltas = self.broke(error)
            for delta in deltas:
                is_empty = isinstance(delta, Note) and not (delta.data or delta.text)
                if not is_empty:  # else it only shows life
                    self._early.append(delta)
                    has_content = has_content or isinstance(delta, CONTENT)
            if len(self._early) > MAX_EARLY:
                raise UpstreamFailed("The upstream sends events that say nothing.")
            if has_content:
                return
            if self.decoder is not None and self.decoder.ending:
                self._wait_until(self._loop.time() + GRACE_S)
            elif deltas:  # a step of a workflow: not silent, only not speaking yet
                wait_s = self.target.agent.timeouts.first_delta
                self._wait_until(self._loop.time() + wait_s)
            chunk = connection.read_at_once()

    async def _ask(self, target: Target) -> Exchange:
        """Carry out what the platform describes until the answer itself begins."""
        require_options(target.platform, self.chat)
        if self._delivery is not None:
            self._wait_until(None)  # of a large file only `total` holds
            self._asked = await self._delivery.prepare(target)
            self._wait_until(self._loop.time() + target.agent.timeouts.first_delta)
        describe = partial(target.platform.prepare, self._asked)
        step: Step = describe()
        for _ in range(MAX_STEPS):
            request: UpstreamRequest = await resolve(self._upstream, target, step, describe)
            if not request.stream:
                # A whole answer begins when it is whole: it has all the time there is, or half of
                # it while another agent could use the rest.
                self._wants_whole = True
                now = self._loop.time()
                self._wait_until(None if self._is_last else (now + self.ends_at) / 2)
            exchange = await self._upstream.send(request, target.way, self._trace_headers)
            self._exchange = exchange
            self.show_life(self._loop.time())
            self._has_accepted = exchange.status == 200
            if self._has_accepted:  # before its first bytes have come, for who drains it
                self.decoder = target.platform.decoder(self._asked)
            is_answer = exchange.status == 200 and not exchange.is_page
            if is_answer and (not request.stream or await _is_stream(exchange)):
                return exchange
            reply = await exchange.reply(target.agent.max_answer if is_answer else MAX_REPLY)
            if is_answer and (stream := lines_as_events(reply) or target.platform.as_stream(reply)):
                exchange.first = stream
                return exchange
            exchange.close()
            self._has_accepted, self.decoder = False, None  # it answered, but with something else
            step = target.platform.refused(reply, self._asked)
        raise keeps_asking()

    # After it.

    async def read(self, until: float | None = None) -> list[Delta] | None:
        """The next deltas (perhaps none), or None if nothing came by loop time `until`.

        Raises nothing: a failure is the last delta. Sets `over` with the last of them.
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
        """Loop time when patience with the upstream has run out, if it says nothing till then."""
        assert self.decoder is not None
        return self.read_at + (GRACE_S if self.decoder.ending else self._idle_s)

    def take(self, chunk: bytes) -> list[Delta]:
        """The deltas of one network chunk; b"" is the end of the body."""
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
        except Exception:  # a decoder raises nothing; if one does, only this answer shall fail
            log.exception("The decoder of agent %s failed", self.target.name)
            deltas = [Failed(UpstreamFailed("The upstream's answer could not be understood."))]
            self._end(deltas)
            return deltas
        if not was_ending:
            if decoder.life is SHOWN:  # nearly always
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
        elif self._grows_from is not None:  # what had begun to come was a heartbeat
            self.show_life(self._grows_from)

    def show_life(self, moment: float) -> None:
        """The upstream's silence, if it is silent, counts from loop time `moment`."""
        self.read_at, self._grows_from = moment, None

    def broke(self, error: Exception) -> list[Delta]:
        """The connection broke: good if all that was needed had come, else it has failed."""
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
        """Patience has run out: an answer that was whole is good, any other has failed."""
        assert self.decoder is not None
        if self.decoder.ending:
            deltas = self.decoder.close()
        else:
            words = f"The upstream has been silent for {self._idle_s:g} s."
            deltas = [Failed(UpstreamTimeout(words))]
        self._end(deltas)
        return deltas

    def _end(self, deltas: list[Delta]) -> None:
        """Mark the end; an answer that fails after it began must not be asked for again."""
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
        """Let go of the upstream: for reuse after a good end, else closed and told to stop."""
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
        with contextlib.suppress(GatewayError):  # it ends by itself; nobody is left to be told
            await self._upstream.fetch(request, target.way, _STOP_S)


async def _is_stream(exchange: Exchange) -> bool:
    """Whether what was asked for is coming: platforms also refuse with 200 and JSON.

    Content types are not to be trusted for that: the first bytes are looked at as well.
    """
    first = await exchange.peek_text()
    return bool(is_stream(first)) or not (exchange.is_json or first.startswith((b"{", b"[")))


def _backoff_s(attempt: int) -> float:
    """0.1 s, doubling to 2 s, by up to half less at random so that callers do not march in step."""
    longest = min(0.1 * 2.0**attempt, 2.0)
    return longest * (1 - random.random() / 2)  # noqa: S311 - spreads load, guards nothing
