"""A circuit breaker: an upstream that keeps failing is left alone for a while, then tried once."""

import time
from collections.abc import Callable
from typing import Literal

from gateway.config import BreakerSettings
from gateway.errors import CircuitOpen, GatewayError

State = Literal["closed", "half-open", "open"]


class Breaker:
    """`closed` while the upstream works. After `failures` outages in a row `open` for `cooldown`
    seconds, in which nothing is sent there; then `half-open`: one call goes through, and its end
    decides. Each call that `admit` let in is told to `ended`."""

    def __init__(
        self, settings: BreakerSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._failures = 0  # in a row
        self._open_until: float | None = None
        self._is_probing = False
        self._why = ""
        self.opened = 0  # how often, since the start

    @property
    def state(self) -> State:
        if self._open_until is None:
            return "closed"
        return "open" if self._clock() < self._open_until else "half-open"

    def admit(self) -> None:
        """Raises CircuitOpen if nothing is to be sent at the moment."""
        if self._open_until is None:
            return
        left = self._open_until - self._clock()
        if left > 0 or self._is_probing:
            raise CircuitOpen(
                f"It has failed {self._failures} times in a row and is left alone for a moment."
                f" The last failure: {self._why}",
                retry_after_s=max(left, 1.0),
            )
        self._is_probing = True

    def ended(self, error: BaseException | None = None, has_answered: bool = False) -> None:
        """An outage is when it does not answer, or only to say that it is down. A refusal (its
        limit, our key, the question) is an answer, and so is a run of the bot that failed.

        Without either, nothing is known: the caller has left, or was refused here.
        """
        was_probe, self._is_probing = self._is_probing, False
        if isinstance(error, GatewayError) and error.outage:
            self._failures += 1
            self._why = error.message
            if was_probe or self._failures >= self._settings.failures:
                self._open_until = self._clock() + self._settings.cooldown
                self.opened += 1
        elif error is None or (has_answered and isinstance(error, GatewayError)):
            self._failures, self._open_until = 0, None
