"""One chat: tries the targets in order until one begins to answer."""

import asyncio
import random
from collections.abc import Callable
from typing import Literal

from gateway.chat.attachments import Attachments
from gateway.chat.attempt import Attempt, Question
from gateway.chat.profiles import Profiles
from gateway.chat.routing import Target
from gateway.conversations.draft import Draft
from gateway.errors import (
    CircuitOpen,
    ConversationNotFound,
    GatewayError,
    Guess,
    InvalidVariable,
    UpstreamFailed,
    UpstreamTimeout,
    clean,
)
from gateway.limits.shares import Holders
from gateway.memory.recall import Recall
from gateway.protocol.messages import ChatRequest, Delta
from gateway.protocol.render import StreamRenderer, WholeRenderer
from gateway.telemetry.traces import NO_TRACE, CallTrace
from gateway.upstream.client import Upstream
from gateway.upstream.deadline import Deadline
from gateway.upstream.timers import Timers

MAX_WAIT_S = 10.0  # with a longer `Retry-After` the caller gets the error
SHORT_WAIT_S = 0.5  # the same if there is another target

Decision = Literal["retry", "next", "give up"]


def decide(error: GatewayError, *, accepted: bool, may_repeat: bool, has_next: bool) -> Decision:
    """What follows a failed attempt: the same target again, the route's next one, or the error.

    `accepted`: the upstream had begun to answer. It may have acted, so only an error that says that
    it could not (a bad key, no credit, an empty answer) goes on to the next target. `may_repeat`:
    the target's `retries` and the time allow another attempt there. docs/failures.md lists what
    this means for each failure.
    """
    is_repeatable = error.retryable and not accepted
    if is_repeatable and may_repeat:
        return "retry"
    is_broken = not accepted and isinstance(error, UpstreamFailed | UpstreamTimeout)
    if has_next and (is_repeatable or is_broken or error.elsewhere):
        return "next"
    return "give up"


class Run:
    """One call from the first attempt to the last byte. Use it in `with`.

    An early exit closes the upstream connection and sends the platform's stop call.
    """

    __slots__ = (
        "_earlier", "_question", "_repeats", "_targets", "attempt", "chat", "draft", "failures",
        "fallbacks", "reasons", "recall", "renderer", "retries", "texts", "thoughts", "timers",
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
        profiles: Profiles | None = None,
    ) -> None:
        """For `holders` and `hold` see `Question`; `targets` are never empty."""
        profiles = profiles or Profiles()
        self._question = Question(upstream, attachments, chat, trace, holders, hold, profiles)
        self.chat = chat
        self.recall: Recall | None = None  # what the gateway remembers of the chat's history
        self.draft: Draft | None = None  # what will stay of the call
        # The pieces of the answer and of its reasoning, if one of them needs it.
        self.texts: list[str] | None = None
        self.thoughts: list[str] | None = None
        self.renderer: StreamRenderer | WholeRenderer | None = None  # once the answer has begun
        self._targets = targets
        self._earlier = 0  # attempts before the current one
        self._repeats = 0  # of them at the current target
        self.timers: Timers = upstream.timers
        self.attempt = Attempt(self._question, targets[0], is_last=len(targets) == 1)
        self.fallbacks = 0  # targets that were passed over
        self.retries: tuple[str, ...] = ()  # the agent of each repeated attempt
        self.failures: tuple[tuple[str, str], ...] = ()  # (agent, code) of each failed attempt
        self.reasons: tuple[str, ...] = ()  # the messages of failed attempts, in order

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def conversation_id(self) -> str:
        """The conversation, at the platform or else at the gateway; "" if it is not known."""
        attempt = self.attempt
        known = attempt.decoder.conversation_id if attempt.decoder else ""
        return known or self.chat.own_at(attempt.target.name)

    def close(self) -> None:
        """Release the upstream immediately. May be called more than once."""
        self._question.deadline.close()
        self.attempt.release()

    @property
    def attempts(self) -> int:
        """How often an upstream was asked."""
        return self._earlier + self.attempt.was_sent

    @property
    def total_s(self) -> float:
        """The limit of the whole call, whichever target answers: the first target's `total`."""
        return self._targets[0].agent.timeouts.total

    @property
    def ends_at(self) -> float:
        """Loop time when `total` is over; infinite before `start`."""
        return self._question.ends_at

    def until(self, moment: float) -> Deadline:
        """A context manager that interrupts the current task's awaits at loop time `moment` with
        TimeoutError."""
        return self._question.deadline.until(moment)

    def take_over(self) -> None:
        """Hand the run to the calling task, which reads it from now on, or lets a pump read it."""
        self._question.deadline.close()

    async def start(self) -> list[Delta]:
        """The first deltas, including content. Raises the last error if no target answers, and
        TimeoutError when `total` is over."""
        question, failure = self._question, None
        now = question.loop.time()
        question.ends_at = now + self.total_s
        first_s = self.attempt.target.agent.timeouts.first_delta
        question.deadline.set(min(question.ends_at, now + first_s))
        try:
            while True:
                try:
                    deltas = await self.attempt.begin()
                except GatewayError as error:
                    failure = self._failed(error, failure)
                else:
                    self.attempt.forget()
                    question.forget()
                    return deltas
                wait_s = self._go_on(failure)
                if wait_s is None:
                    raise failure
                if wait_s:
                    question.wait_until(None)
                    await asyncio.sleep(wait_s)
        except asyncio.CancelledError:
            if not question.deadline.expired():
                raise  # the client has disconnected
            raise TimeoutError from None
        finally:
            question.deadline.clear()
            failure = None  # its traceback refers to this frame, and so to the question

    def _failed(self, error: GatewayError, before: GatewayError | None) -> GatewayError:
        """Note the failed attempt and release its upstream. Returns the error to judge and report;
        `before` is that of the attempt before."""
        attempt = self.attempt
        attempt.release()
        if isinstance(error, CircuitOpen) and self._repeats and before is not None:
            return before  # our attempts opened it
        if isinstance(error, InvalidVariable) and self.fallbacks and before is not None:
            return before  # the caller's variables are those of the first target
        failure = attempt.explained(error.with_traceback(None))  # its frames refer to it: a cycle
        self.reasons += (clean(failure.message, 200),)
        if attempt.was_sent:
            self._question.trace.failed(failure)
            self.failures += ((attempt.target.name, failure.code or failure.type),)
        return failure

    def _go_on(self, failure: GatewayError) -> float | None:
        """Set the attempt that follows a failed one. Returns the seconds to wait before it, or None
        if no other follows. If other targets remain, waits are short."""
        attempt, target = self.attempt, self.attempt.target
        if isinstance(failure, ConversationNotFound) and self._question.lose_conversation():
            self._earlier += attempt.was_sent
            self.attempt = Attempt(self._question, target, attempt.is_last, attempt.until)
            return 0.0
        has_next = self.fallbacks + 1 < len(self._targets)
        wait_s = _wait_s(failure, self._repeats)
        decision = decide(
            failure,
            accepted=attempt.has_accepted,
            may_repeat=attempt.was_sent
            and self._repeats < target.agent.retries
            and wait_s <= (SHORT_WAIT_S if has_next else MAX_WAIT_S)
            and (attempt.until is None or self._question.loop.time() + wait_s <= attempt.until),
            has_next=has_next,
        )
        if decision == "give up":
            return None
        self._earlier += attempt.was_sent
        if decision == "retry":
            self._repeats += 1
            self.retries += (target.name,)
            self.attempt = Attempt(self._question, target, not has_next, attempt.until)
            return wait_s
        self._repeats = 0
        self.fallbacks += 1
        is_last = self.fallbacks + 1 == len(self._targets)
        self.attempt = Attempt(self._question, self._targets[self.fallbacks], is_last)
        return 0.0


def _wait_s(error: GatewayError, repeats: int) -> float:
    """As long as the upstream says, and at least 0.1 s, doubling up to 2 s, minus up to half at
    random so that callers do not synchronise."""
    longest = min(0.1 * 2.0**repeats, 2.0)
    wait_s = longest * (1 - random.random() / 2)  # noqa: S311 - spreads load, guards nothing
    said_s = error.retry_after_s or 0.0
    return wait_s if isinstance(said_s, Guess) else max(wait_s, said_s)
