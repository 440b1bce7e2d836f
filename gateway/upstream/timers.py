"""Many timers, most of which are forgotten before their time, for the price of a heap's entry."""

import asyncio
import logging
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf

log = logging.getLogger("gateway")

_TICK_S = 0.001  # the loop counts whole milliseconds, and rounds: it may ring a little early
_FEW = 64  # forgotten timers that may lie about, however few others there are


class Timer:
    """`act` is None once it has gone off or has been forgotten."""

    __slots__ = ("act",)

    def __init__(self, act: Callable[[], None]) -> None:
        self.act: Callable[[], None] | None = act


class Timers:
    """All timers here share one of the event loop's, which is set for the first of them.

    The loop's own cost five times as much to set and forget, and four times the memory. A request
    takes one to five of them, an open stream keeps one.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._order = count()  # of timers for the same moment; actions cannot be compared
        self._heap: list[tuple[float, int, Timer]] = []
        self._forgotten = 0  # about so many of the heap
        self._bell: asyncio.TimerHandle | None = None
        self._rings_at = inf

    def __len__(self) -> int:
        return len(self._heap)

    def now(self) -> float:
        """Loop time."""
        return self.loop.time()

    def set(self, moment: float, act: Callable[[], None]) -> Timer:
        """`act` is called at `moment`, in loop time."""
        timer = Timer(act)
        heappush(self._heap, (moment, next(self._order), timer))
        if moment < self._rings_at:
            self._ring_at(moment)
        return timer

    def forget(self, timer: Timer) -> None:
        """It does not go off any more, if it has not yet."""
        if timer.act is None:
            return
        timer.act = None
        self._forgotten += 1
        if self._forgotten > _FEW and self._forgotten * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].act is not None]
            heapify(self._heap)
            self._forgotten = 0

    def _ring_at(self, moment: float) -> None:
        if self._bell is not None:
            self._bell.cancel()
        self._rings_at = moment
        self._bell = self.loop.call_at(moment, self._ring)

    def _ring(self) -> None:
        """Call what is due. What that sets anew is for another time, even if it is due as well."""
        now = self.loop.time()
        due = []
        while self._heap and self._heap[0][0] <= now:
            due.append(heappop(self._heap)[2])
        self._bell, self._rings_at = None, inf
        for timer in due:
            act, timer.act = timer.act, None
            if act is None:
                self._forgotten = max(0, self._forgotten - 1)
                continue
            try:
                act()
            except Exception:
                log.exception("A timer's action failed")
        if self._heap and self._heap[0][0] < self._rings_at:
            self._ring_at(max(self._heap[0][0], now + _TICK_S))
