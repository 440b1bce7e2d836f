"""Many timers, most of which are cancelled before they fire, at the cost of a heap entry each."""

import asyncio
import logging
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf

log = logging.getLogger("gateway")

_TICK_S = 0.001  # the loop rounds to milliseconds, so a timer may fire a little early
_FEW = 64  # cancelled timers that may stay in the heap in any case


class Timer:
    """`act` is None once the timer has fired or was cancelled."""

    __slots__ = ("act",)

    def __init__(self, act: Callable[[], None]) -> None:
        self.act: Callable[[], None] | None = act


class Timers:
    """Timers that share one timer of the event loop, set for the first of them.

    The loop's own cost five times as much to set and cancel, and four times the memory. A request
    uses one to five of them, an open stream keeps one.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._order = count()  # breaks ties, since actions cannot be compared
        self._heap: list[tuple[float, int, Timer]] = []
        self._cancelled = 0  # approximate number of cancelled entries in the heap
        self._handle: asyncio.TimerHandle | None = None
        self._fires_at = inf

    def __len__(self) -> int:
        return len(self._heap)

    def now(self) -> float:
        """Loop time."""
        return self.loop.time()

    def set(self, moment: float, act: Callable[[], None]) -> Timer:
        """Call `act` at `moment`, in loop time."""
        timer = Timer(act)
        heappush(self._heap, (moment, next(self._order), timer))
        if moment < self._fires_at:
            self._schedule(moment)
        return timer

    def forget(self, timer: Timer) -> None:
        """Cancel the timer, if it has not fired yet."""
        if timer.act is None:
            return
        timer.act = None
        self._cancelled += 1
        if self._cancelled > _FEW and self._cancelled * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].act is not None]
            heapify(self._heap)
            self._cancelled = 0

    def _schedule(self, moment: float) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._fires_at = moment
        self._handle = self.loop.call_at(moment, self._fire_due)

    def _fire_due(self) -> None:
        """Fire the due timers. Timers that they set fire in a later call, even if already due."""
        now = self.loop.time()
        due = []
        while self._heap and self._heap[0][0] <= now:
            due.append(heappop(self._heap)[2])
        self._handle, self._fires_at = None, inf
        for timer in due:
            act, timer.act = timer.act, None
            if act is None:
                self._cancelled = max(0, self._cancelled - 1)
                continue
            try:
                act()
            except Exception:
                log.exception("A timer's action failed")
        if self._heap and self._heap[0][0] < self._fires_at:
            self._schedule(max(self._heap[0][0], now + _TICK_S))
