"""A deadline for a task's waiting that can be moved for the price of an assignment."""

import asyncio


class Alarm:
    """Interrupts what the current task awaits between `wait_until` and `stop_waiting`.

    `asyncio.timeout` sets and clears a timer every time. A stream reads some fifty times a second
    and its deadline moves with every read, so here one timer runs on: when it goes off before the
    deadline as it stands by then, it is set anew.

        alarm.wait_until(moment)
        try:
            await something
        except asyncio.CancelledError:
            if not alarm.has_rung():
                raise
        finally:
            alarm.stop_waiting()
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._at: float | None = None  # None while the task is not waiting
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._rang = False

    def wait_until(self, moment: float) -> None:
        """From now on interrupt the task at loop time `moment`."""
        self._at = moment
        if self._timer is None or self._timer_at > moment:
            self._set(moment)

    def stop_waiting(self) -> None:
        """The task does something else now, which is not to be interrupted."""
        self._at = None

    def has_rung(self) -> bool:
        """Whether the cancellation just caught was the alarm's own, and nobody else's as well."""
        rang, self._rang = self._rang, False
        assert self._task is not None
        return rang and self._task.uncancel() == 0

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set(self, moment: float) -> None:
        self.close()
        self._timer, self._timer_at = self._loop.call_at(moment, self._ring), moment

    def _ring(self) -> None:
        self._timer = None
        if self._at is None:
            return
        if self._loop.time() < self._at:
            self._set(self._at)
            return
        self._rang = True
        assert self._task is not None
        self._task.cancel()
