"""A deadline for a task's awaits that can be moved for the price of an assignment."""

import asyncio
from math import inf
from types import TracebackType

from gateway.upstream.timers import Timer, Timers


class Deadline:
    """Interrupts what the current task awaits while `at` is set.

        with deadline.until(moment):  # raises TimeoutError
            await something

    `asyncio.timeout` sets and clears a timer every time. A whole answer that is read chunk by chunk
    moves its deadline with every read, so here one timer runs on: if it fires before the current
    deadline, it is set to that.
    """

    __slots__ = ("_fired", "_task", "_timer", "_timers", "at", "fires_at")

    def __init__(self, timers: Timers) -> None:
        self.at: float | None = None  # loop time; None while the task must not be interrupted
        self.fires_at = inf
        self._timers = timers
        self._task: asyncio.Task[object] | None = None
        self._timer: Timer | None = None
        self._fired = False

    def until(self, moment: float) -> "Deadline":
        """For `with`: interrupts the block's awaits at `moment`, in loop time."""
        self.at = moment
        if moment < self.fires_at:
            self.set(moment)
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.at = None
        # The interrupted code may have raised another error.
        if self._fired and self.expired() and kind is asyncio.CancelledError:
            raise TimeoutError from None

    def set(self, moment: float) -> None:
        """Set the timer to `moment`, for the task that calls this."""
        self._task = asyncio.current_task(self._timers.loop)
        self._set(moment)

    def _set(self, moment: float) -> None:
        if self._timer is not None:
            self._timers.forget(self._timer)
        if self._fired:  # the interrupted code caught the cancellation and went on
            self.expired()
        self.fires_at = moment
        self._timer = self._timers.set(moment, self._fire)

    def expired(self) -> bool:
        """Whether the caught cancellation came from this deadline alone."""
        rang, self._fired = self._fired, False
        assert self._task is not None
        return rang and self._task.uncancel() == 0

    def clear(self) -> None:
        """Interrupt nothing until the next `until`."""
        self.at = None
        if self._fired:
            self.expired()

    def close(self) -> None:
        """Drop the timer, and with it the task. The deadline can be set again."""
        if self._timer is not None:
            self._timers.forget(self._timer)
            self._timer = None
        self.fires_at, self.at = inf, None
        if self._fired:
            self.expired()

    def _fire(self) -> None:
        self._timer, self.fires_at = None, inf
        if self.at is None:
            return  # the next `until` sets it again
        if self._timers.now() < self.at:
            self._set(self.at)
            return
        self._fired = True
        assert self._task is not None
        self._task.cancel()
