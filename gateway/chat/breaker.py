"""A circuit breaker: after repeated outages of an upstream calls pause, then one call tests it."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from gateway.config.models import BreakerSettings
from gateway.errors import CircuitOpen, GatewayError, UpstreamUnreachable
from gateway.language.sentences import say

log = logging.getLogger("gateway")

State = Literal["closed", "half-open", "open"]


@dataclass(frozen=True, slots=True)
class Permit:
    """Held by an admitted call, which hands it back at its end."""

    generation: int
    is_probe: bool


class Breaker:
    """`closed` while the upstream works. After `failures` consecutive outages it is `open` for
    `cooldown` seconds, in which nothing is sent to the upstream; then `half-open`: one call, the
    probe, goes through, and its outcome decides. If the probe takes longer than another cooldown,
    the next call becomes a probe too.

    A generation ends when the state changes; calls of an earlier generation do not count.

    The log has a line when it opens and one when it closes, with `name`, the agent's. A failed
    probe between the two adds none.
    """

    def __init__(
        self, name: str, settings: BreakerSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._name = name
        self._settings = settings
        self._clock = clock
        self._generation = 0
        self._plain = Permit(0, is_probe=False)  # for all calls while closed
        self._failures = 0  # consecutive
        self._open_until: float | None = None
        self._probe_until: float | None = None  # until then only the probe is sent
        self._last = ""  # the latest failure: its code, and the message if the gateway wrote it
        self.opened = 0  # how often it opened since the start

    @property
    def state(self) -> State:
        if self._open_until is None:
            return "closed"
        return "open" if self._clock() < self._open_until else "half-open"

    def admit(self) -> Permit:
        """Admit a call, whose end must be reported to `ended`. Raises CircuitOpen if nothing may be
        sent at the moment."""
        if self._open_until is None:
            return self._plain
        now = self._clock()
        left = max(self._open_until, self._probe_until or 0.0) - now
        if left > 0:
            raise CircuitOpen(
                say(
                    "It has failed {times} times in a row and is left alone for a moment; try "
                    "again then. The last failure: {failure}",
                    times=self._failures,
                    failure=self._last,
                ),
                retry_after_s=max(left, 1.0),
            )
        self._probe_until = now + self._settings.cooldown
        return Permit(self._generation, is_probe=True)

    def ended(
        self, permit: Permit, error: BaseException | None = None, has_answered: bool = False
    ) -> None:
        """Report the end of a call. Only no answer, or an answer that the upstream is down, counts
        as an outage. A refusal (rate limit, bad key, bad question) resets the count, and so does a
        failed run of the bot.

        A call without an outage or an answer changes nothing but ends a probe: its client has
        disconnected, or the gateway rejected it.
        """
        if permit.generation != self._generation:
            return
        if isinstance(error, GatewayError) and error.outage:
            self._failures += 1
            self._last = _reason(error)
            if permit.is_probe or self._failures >= self._settings.failures:
                if not permit.is_probe:
                    log.warning(
                        "Agent %s: the circuit is open after %d failures in a row; a call tests "
                        "the agent every %g s. The last failure: %s",
                        self._name,
                        self._failures,
                        self._settings.cooldown,
                        self._last,
                    )
                self._begin_generation(self._clock() + self._settings.cooldown)
                self.opened += 1
        elif error is None or (has_answered and isinstance(error, GatewayError)):
            self._failures = 0
            if permit.is_probe:
                log.warning("Agent %s: the circuit is closed; the agent answers again", self._name)
                self._begin_generation(None)
        elif permit.is_probe:
            self._probe_until = None

    def _begin_generation(self, open_until: float | None) -> None:
        self._generation += 1
        self._plain = Permit(self._generation, is_probe=False)
        self._open_until, self._probe_until = open_until, None


def _reason(error: GatewayError) -> str:
    """The code, and the reason if no connection could be made.

    The upstream's own message is left out, since it is about another caller's question.
    """
    code = error.code or error.type
    if isinstance(error, UpstreamUnreachable):
        return say("{code}: {reason}", code=code, reason=error.message)
    return f"{code}."
