"""One try at one target: asks the question, and reads the answer."""

import contextlib
import enum
import logging
from asyncio import CancelledError
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import inf
from typing import cast

from gateway.chat.attachments import Attachments
from gateway.chat.breaker import Permit
from gateway.chat.delivery import Delivery
from gateway.chat.profiles import Profiles
from gateway.chat.routing import Target
from gateway.chat.steps import MAX_STEPS, keeps_asking, resolve
from gateway.errors import ConversationNotFound, GatewayError, UpstreamFailed, UpstreamTimeout
from gateway.language.sentences import say
from gateway.limits.shares import Holders
from gateway.platforms.audio import SpeechDecoder
from gateway.platforms.base import Decoder, Preliminary, Step, endpoint_of, require_options
from gateway.protocol.completions import lines_as_events
from gateway.protocol.exchange import UpstreamReply, UpstreamRequest
from gateway.protocol.messages import CONTENT, ChatRequest, Delta, Failed, Note, has_media
from gateway.protocol.sse import SHOWN, Life, is_stream
from gateway.protocol.template import EventTemplate
from gateway.telemetry.traces import CallTrace
from gateway.upstream.client import MAX_REPLY, Exchange, Upstream, translate
from gateway.upstream.connection import Connection
from gateway.upstream.deadline import Deadline
from gateway.upstream.timers import Timers

log = logging.getLogger("gateway")

MAX_EARLY = 5000  # deltas before the first one with content
GRACE_S = 2.0  # how long a complete answer waits for the end of the body
_STOP_S = 10.0


class State(enum.Enum):
    """How far an attempt is. It only goes forward, except that an upstream may refuse a step after
    it has accepted the request (`ANSWERING` to `ASKING`)."""

    ASKING = enum.auto()  # the upstream has not begun to answer
    ANSWERING = enum.auto()  # it has: from now on it may have acted
    ENDED = enum.auto()  # it sends nothing more, after an answer or a failure
    SILENT = enum.auto()  # it timed out, and may still be at work


class Question:
    """What all attempts of one call share: the question with its files, and the time it has."""

    __slots__ = (
        "chat", "deadline", "delivery", "ends_at", "holders", "loop", "profiles", "trace",
        "upstream",
    )  # fmt: skip

    def __init__(
        self,
        upstream: Upstream,
        attachments: Attachments,
        chat: ChatRequest,
        trace: CallTrace,
        holders: Holders,
        hold: Callable[[int], None],
        profiles: Profiles,
    ) -> None:
        """`holders` are the owners of its slots at the targets; `hold` reserves memory for
        files."""
        self.upstream = upstream
        self.loop = upstream.timers.loop  # `get_running_loop` is a system call
        self.chat = chat
        self.trace = trace
        self.holders = holders
        self.profiles = profiles
        self.delivery = (
            Delivery(upstream, attachments, chat, hold) if has_media(chat.messages) else None
        )
        self.deadline = Deadline(upstream.timers)
        self.ends_at = inf  # loop time when `total` is over

    def wait_until(self, moment: float | None) -> None:
        """Interrupt later awaits at loop time `moment`, and in any case when `total` is over."""
        at = self.ends_at if moment is None or moment > self.ends_at else moment
        self.deadline.until(at)

    def lose_conversation(self) -> bool:
        """The platform has forgotten the conversation that was recalled for this question: ask with
        all turns instead. False if there is none."""
        if not self.chat.home:
            return False
        self.chat = self.chat.at("")
        if self.delivery is not None:
            self.delivery.chat = self.chat
        return True

    def forget(self) -> None:
        """Free the question's text and files; no further attempt can be made."""
        self.chat.free_question()
        self.delivery = None


class Attempt:
    """One try at one target, from the wait for a slot to the last byte of its answer."""

    __slots__ = (
        "_asked",
        "_early",
        "_exchange",
        "_grows_from",
        "_idle_s",
        "_question",
        "_wants_whole",
        "decoder",
        "endpoint",
        "has_slot",
        "is_last",
        "most",
        "over",
        "read_at",
        "received",
        "state",
        "target",
        "until",
        "was_sent",
    )  # fmt: skip

    def __init__(
        self, question: Question, target: Target, is_last: bool, until: float | None = None
    ) -> None:
        """`is_last`: no other target remains. `until` is when an answer must have begun, if an
        earlier attempt at the target has set that."""
        self._question = question
        self._asked = question.chat.at(target.name)  # with its files in the form for this target
        self.target = target
        self.endpoint = endpoint_of(target.platform, question.chat)
        self.is_last = is_last
        self.until = until
        self.state = State.ASKING
        self.over = False  # the answer has ended: `state` is ENDED or SILENT
        self.has_slot = self.was_sent = False
        self._exchange: Exchange | None = None
        self._wants_whole = False  # the upstream was not asked for a stream
        self.decoder: Decoder | None = None  # of an answer that has begun
        self._early: list[Delta] = []  # before the first content
        self.read_at = 0.0  # loop time of the last sign of life
        self._grows_from: float | None = None  # `read_at` before the event that is still incomplete
        self._idle_s = target.agent.timeouts.idle
        self.received, self.most = 0, target.agent.max_answer  # bytes of the answer, and the limit

    @property
    def has_accepted(self) -> bool:
        """Whether the upstream has begun to answer, so that the call must not be repeated."""
        return self.state is not State.ASKING

    @property
    def is_running(self) -> bool:
        """Whether the upstream has begun to answer and has not finished."""
        return self.state is State.ANSWERING and self._exchange is not None

    @property
    def is_ending(self) -> bool:
        """Whether the answer is complete, even if more bytes may follow."""
        return self.decoder is not None and self.decoder.ending

    @property
    def timers(self) -> Timers:
        return self._question.upstream.timers

    @property
    def connection(self) -> Connection:
        """The connection to the answering upstream."""
        assert self._exchange is not None
        return self._exchange.connection

    def pattern(self, chunk: bytes, delta: Delta) -> EventTemplate | None:
        """See `Decoder.pattern`."""
        assert self.decoder is not None
        return self.decoder.pattern(chunk, delta)

    # Up to the first delta.

    async def begin(self) -> list[Delta]:
        """The first deltas, including content. Raises GatewayError if the answer fails before
        content, and TimeoutError when the call's `total` is over.

        A wait for a slot is not the upstream's fault, so `first_delta` starts after it.
        """
        question, target = self._question, self.target
        profiles = question.profiles
        if profiles.doubts(target, self._asked) and target.breaker.state != "open":
            question.wait_until(None)
            await profiles.require_fit(question.upstream, target, self._asked)
        permit = target.acquire_now(question.holders)
        if permit is None:
            question.wait_until(None)
            permit = await target.acquire(None if self.is_last else 0.0, question.holders)
        self.has_slot = self.was_sent = True
        began = question.loop.time()
        if self.until is None:
            self.until = began + target.agent.timeouts.first_delta
        question.wait_until(self.until)
        try:
            try:
                await self._first_deltas(await self._ask())
            except CancelledError:
                if not question.deadline.expired():
                    raise  # the client has disconnected
                self._timed_out()
            self._require_content()
        except BaseException as error:
            self._note_failure(permit, began, error)
            raise
        target.breaker.ended(permit)
        return self._early

    def _timed_out(self) -> None:
        """The time to begin is over: that fails the attempt, unless the answer is complete."""
        if self._question.loop.time() >= self._question.ends_at:
            raise TimeoutError from None
        if not self.is_ending:
            wait_s = self.target.agent.timeouts.first_delta
            raise UpstreamTimeout(
                "The upstream did not answer in its share of the time."
                if self._wants_whole
                else say(
                    "The upstream did not begin to answer within {seconds:g} s.", seconds=wait_s
                )
            ) from None
        self._early += self.silence()  # an empty answer without an end mark

    def _require_content(self) -> None:
        failed = self._early[-1]
        if isinstance(failed, Failed) and not any(isinstance(d, CONTENT) for d in self._early):
            raise failed.error

    def _note_failure(self, permit: Permit, began: float, error: BaseException) -> None:
        """Report a failed attempt to the breaker: silence for `first_delta` is an outage, whatever
        ended the wait."""
        is_silent = self._exchange is None and not self._wants_whole
        waited_s = self._question.loop.time() - began
        if is_silent and waited_s >= self.target.agent.timeouts.first_delta:
            error = UpstreamTimeout("")
        self.target.breaker.ended(permit, error, has_answered=self._exchange is not None)

    async def _first_deltas(self, exchange: Exchange) -> None:
        """Collect deltas until one has content, or the answer is over."""
        question, connection, has_content = self._question, exchange.connection, False
        chunk, exchange.first = exchange.first or connection.read_at_once(), b""
        while not self.over:
            try:
                deltas = self.feed(await connection.read() if chunk is None else chunk)
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
            if self.is_ending:
                question.wait_until(question.loop.time() + GRACE_S)
            elif deltas:  # a workflow step: the upstream works but has no content yet
                wait_s = self.target.agent.timeouts.first_delta
                question.wait_until(question.loop.time() + wait_s)
            chunk = connection.read_at_once()

    async def _ask(self) -> Exchange:
        """Send the requests that the platform describes until the answer itself begins."""
        question, target, endpoint = self._question, self.target, self.endpoint
        trace = question.trace.attempt(target.name, target.platform.kind, target.url)
        require_options(endpoint, question.chat)
        if question.delivery is not None:
            question.wait_until(None)  # large files are limited by `total` only
            self._asked = await question.delivery.prepare(target)
            question.wait_until(question.loop.time() + target.agent.timeouts.first_delta)
        request: Step = endpoint.prepare(self._asked)
        for _ in range(MAX_STEPS):
            if isinstance(request, Preliminary):
                again = partial(endpoint.prepare, self._asked)
                request = cast(
                    UpstreamRequest, await resolve(question.upstream, target, request, again)
                )
            if not request.stream:
                self._wait_for_whole()
            exchange = await question.upstream.send(request, target.way, trace)
            self._exchange = exchange
            self.show_life(question.loop.time())
            if exchange.status == 200:  # before the first bytes, so that it can be drained
                self.state, self.decoder = State.ANSWERING, endpoint.decoder(self._asked)
            is_answer = exchange.status == 200 and (request.takes_pages or not exchange.is_page)
            if is_answer and await _is_as_asked(request, exchange):
                return exchange
            reply = await exchange.reply(target.agent.max_answer if is_answer else MAX_REPLY)
            if is_answer and (stream := lines_as_events(reply) or endpoint.as_stream(reply)):
                exchange.first = stream
                return exchange
            exchange.close()
            self.state, self.decoder = State.ASKING, None  # the reply is not the answer
            request = self._recover(reply)
        raise keeps_asking()

    def _recover(self, reply: UpstreamReply) -> Step:
        """The request that follows a reply that is not the answer. Raises the reply's error."""
        asked, endpoint = self._asked, self.endpoint
        try:
            return endpoint.recover(reply, asked)
        except ConversationNotFound:
            has_turns = asked.conversation_id and len(asked.messages) > 1
            if asked.home or not (endpoint.restarts and has_turns):
                raise  # a recalled conversation is given up by the run
        self._asked = replace(asked, conversation_id=None)  # so that it begins again once only
        return endpoint.prepare(self._asked)

    def _wait_for_whole(self) -> None:
        """A whole answer begins when it is complete: it may use all of the remaining time, or half
        of it if another agent could use the rest."""
        self._wants_whole = True
        now, ends_at = self._question.loop.time(), self._question.ends_at
        self._question.wait_until(None if self.is_last else (now + ends_at) / 2)

    def forget(self) -> None:
        """Free the first deltas, which have been handed over, and the question's text."""
        self._early = []
        if self._asked is not self._question.chat:
            self._asked.free_question()

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
            with self._question.deadline.until(ends):
                chunk = await exchange.connection.read()
        except TimeoutError:
            return None if ends == until else self.silence()
        except Exception as error:
            return self.broke(error)
        if not chunk and isinstance(self.decoder, SpeechDecoder):
            return await self._read_on(self.decoder)
        return self.feed(chunk)

    async def _read_on(self, decoder: SpeechDecoder) -> list[Delta]:
        """One of several requests for a long text is answered: send the next one, or end."""
        question, target = self._question, self.target
        try:
            step = decoder.next_part()
            if step is None:
                return self.feed(b"")
            assert self._exchange is not None
            self._exchange.let_end()
            wait_s = target.agent.timeouts.first_delta
            with question.deadline.until(min(question.ends_at, question.loop.time() + wait_s)):
                request = cast(UpstreamRequest, await resolve(question.upstream, target, step))
                self._exchange = exchange = await question.upstream.send(request, target.way)
                if exchange.status != 200 or not await _is_as_asked(request, exchange):
                    self.endpoint.recover(await exchange.reply(MAX_REPLY), self._asked)
                    raise UpstreamFailed("The upstream refused to speak the rest of the text.")
        except TimeoutError:
            if question.loop.time() >= question.ends_at:
                raise
            return self.silence()
        except GatewayError as error:
            deltas: list[Delta] = [Failed(error)]
            self._end(deltas)
            return deltas
        self.show_life(question.loop.time())
        return []

    @property
    def silent_at(self) -> float:
        """Loop time at which the upstream times out if it stays silent."""
        assert self.decoder is not None
        return self.read_at + (GRACE_S if self.decoder.ending else self._idle_s)

    def feed(self, chunk: bytes) -> list[Delta]:
        """The deltas of one network chunk; b"" means the end of the body."""
        decoder = self.decoder
        assert decoder is not None
        was_ending = decoder.ending
        self.received += len(chunk)
        if self.received > self.most:
            message = say(
                "The upstream's answer is longer than {most} bytes (max_answer).", most=self.most
            )
            deltas: list[Delta] = [Failed(UpstreamFailed(message))]
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
                self.read_at, self._grows_from = self._question.loop.time(), None
            else:
                self._note_life(decoder.life)
        if decoder.done or not chunk:
            self._end(deltas)
        return deltas

    def _note_life(self, life: Life) -> None:
        if life is Life.GROWING:
            if self._grows_from is None:
                self._grows_from = self.read_at
            self.read_at = self._question.loop.time()
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
            message = say("The upstream has been silent for {seconds:g} s.", seconds=self._idle_s)
            deltas = [Failed(UpstreamTimeout(message))]
        self._end(deltas)
        return deltas

    def _end(self, deltas: list[Delta]) -> None:
        """The answer is over; a failure that is its last delta becomes the one to report."""
        failed = deltas[-1] if deltas else None
        self.over, self.state = True, State.ENDED
        if isinstance(failed, Failed):
            if isinstance(failed.error, UpstreamTimeout):
                self.state = State.SILENT
            deltas[-1] = Failed(self.explained(failed.error))

    def explained(self, error: GatewayError) -> GatewayError:
        """The error with the target's name or, where that is hidden, the route's. A call that the
        upstream has accepted must not be retried."""
        error = self.target.redacted(error)
        if self._question.chat.route:
            error = error.renamed(self.target.name, self._question.chat.route)
        if self.has_accepted:
            error = error.replace(retryable=False, should_retry=False)
        return error

    def release(self) -> None:
        """Free the slot and the upstream: reuse the connection after a clean end, else close it and
        send the platform's stop call. May be called more than once."""
        exchange, self._exchange = self._exchange, None
        if self.has_slot:
            self.has_slot = False
            self.target.release(self._question.holders)
        if exchange is None:
            return
        if self.state is State.ENDED:
            exchange.let_end()
            return
        exchange.close()
        if self.decoder is None:
            return
        if stop := self.endpoint.stop(self._asked, self.decoder):
            self._question.upstream.spawn(_stop(self._question.upstream, self.target, stop))


async def _stop(upstream: Upstream, target: Target, request: UpstreamRequest) -> None:
    with contextlib.suppress(GatewayError):  # the run ends by itself; no client waits
        await upstream.fetch(request, target.way, _STOP_S)


async def _is_as_asked(request: UpstreamRequest, exchange: Exchange) -> bool:
    """Whether a 200 has the form of the answer that was asked for, so that the decoder reads it."""
    if request.stream:
        return await _is_stream(exchange)
    return not (request.judges_json and exchange.is_json)


async def _is_stream(exchange: Exchange) -> bool:
    """Whether the reply is the requested stream: platforms also refuse with 200 and JSON.

    Content types are unreliable, so this checks the first bytes as well.
    """
    first = await exchange.peek_text()
    return bool(is_stream(first)) or not (exchange.is_json or first.startswith((b"{", b"[")))
