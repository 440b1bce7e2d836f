"""A deadline for a task's waiting that can be moved for the price of an assignment."""

import asyncio


class Alarm:
    """Interrupts what the current task awaits while `at` is set.

    `asyncio.timeout` sets and clears a timer every time. A stream reads some fifty times a second
    and its deadline moves with every read, so here one timer runs on: when it goes off before the
    deadline as it stands by then, it is set anew.

        alarm.at = moment
        if moment < alarm.goes_off_at:
            alarm.set(moment)
        try:
            await something
        except asyncio.CancelledError:
            if not alarm.has_rung():
                raise
        finally:
            alarm.at = None
    """

    __slots__ = ("_loop", "_rang", "_task", "_timer", "at", "goes_off_at")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.at: float | None = None  # loop time; None while the task is not to be interrupted
        self.goes_off_at = float("inf")
        self._loop = loop
        self._task: asyncio.Task[object] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._rang = False

    def set(self, moment: float) -> None:
        """Let the timer go off at `moment`. The task that calls this is the one that waits."""
        self._task = asyncio.current_task(self._loop)
        self._set(moment)

    def _set(self, moment: float) -> None:
        self.close()
        self.goes_off_at = moment
        self._timer = self._loop.call_at(moment, self._go_off)

    def has_rung(self) -> bool:
        """Whether the cancellation just caught was the alarm's own, and nobody else's as well."""
        rang, self._rang = self._rang, False
        assert self._task is not None
        return rang and self._task.uncancel() == 0

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.goes_off_at = float("inf")
        if self._rang:  # and what was interrupted has made another error of it
            self.has_rung()

    def _go_off(self) -> None:
        self._timer, self.goes_off_at = None, float("inf")
        if self.at is None:
            return  # whoever waits next sets it again
        if self._loop.time() < self.at:
            self._set(self.at)
            return
        self._rang = True
        assert self._task is not None
        self._task.cancel()
