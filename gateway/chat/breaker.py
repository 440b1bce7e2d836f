"""A circuit breaker: an upstream that keeps failing is left alone for a while, then tried once."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from gateway.config.models import BreakerSettings
from gateway.errors import CircuitOpen, GatewayError, UpstreamUnreachable

State = Literal["closed", "half-open", "open"]


@dataclass(frozen=True, slots=True)
class Pass:
    """What a call that was let in shows at its end."""

    era: int
    is_probe: bool


class Breaker:
    """`closed` while the upstream works. After `failures` outages in a row `open` for `cooldown`
    seconds, in which nothing is sent there; then `half-open`: one call goes through, and its end
    decides. One that takes longer than another cooldown keeps nobody else from trying.

    An era ends when the state changes; what began in an earlier one says nothing of the present.
    """

    def __init__(
        self, settings: BreakerSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._era = 0
        self._plain = Pass(0, is_probe=False)  # for all calls of an era in which it is closed
        self._failures = 0  # in a row
        self._open_until: float | None = None
        self._probe_until: float | None = None  # a call is trying, and alone until then
        self._last = ""  # the latest failure: its code, and its words if they are our own
        self.opened = 0  # how often, since the start

    @property
    def state(self) -> State:
        if self._open_until is None:
            return "closed"
        return "open" if self._clock() < self._open_until else "half-open"

    def admit(self) -> Pass:
        """Let a call in, whose end `ended` is to be told. Raises CircuitOpen if nothing is to be
        sent at the moment."""
        if self._open_until is None:
            return self._plain
        now = self._clock()
        left = max(self._open_until, self._probe_until or 0.0) - now
        if left > 0:
            raise CircuitOpen(
                f"It has failed {self._failures} times in a row and is left alone for a moment;"
                f" try again then. The last failure: {self._last}",
                retry_after_s=max(left, 1.0),
            )
        self._probe_until = now + self._settings.cooldown
        return Pass(self._era, is_probe=True)

    def ended(
        self, pass_: Pass, error: BaseException | None = None, has_answered: bool = False
    ) -> None:
        """An outage is when it does not answer, or only to say that it is down. A refusal (its
        limit, our key, the question) is an answer, and so is a run of the bot that failed.

        Without either, nothing is known: the caller has left, or was refused here.
        """
        if pass_.era != self._era:
            return
        if isinstance(error, GatewayError) and error.outage:
            self._failures += 1
            self._last = _reason(error)
            if pass_.is_probe or self._failures >= self._settings.failures:
                self._begin_era(self._clock() + self._settings.cooldown)
                self.opened += 1
        elif error is None or (has_answered and isinstance(error, GatewayError)):
            self._failures = 0
            if pass_.is_probe:
                self._begin_era(None)
        elif pass_.is_probe:
            self._probe_until = None

    def _begin_era(self, open_until: float | None) -> None:
        self._era += 1
        self._plain = Pass(self._era, is_probe=False)
        self._open_until, self._probe_until = open_until, None


def _reason(error: GatewayError) -> str:
    """The code, and why no connection could be made.

    An upstream's own words are left out: they were about another caller's question.
    """
    code = error.code or error.type
    return f"{code}: {error.message}" if isinstance(error, UpstreamUnreachable) else f"{code}."
