"""The requests in flight, and their drain when the process stops."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

_CANCEL_S = 5.0  # for cancelled requests to send their error


class InFlight:
    """Counts requests in flight. `stopping` is set once and for good: no request begins after that.
    `on_cancel` is called for each request that the drain cancels, before its task is cancelled."""

    def __init__(self, on_cancel: Callable[[Any], None]) -> None:
        self._on_cancel = on_cancel
        self._tasks: dict[asyncio.Task[object], object] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = asyncio.Event()  # set when a request ends while the process stops
        # complete answers still being sent; drain waits for them without cancelling
        self.sending = 0
        self.stopping = False
        self.refused = 0  # connections beyond the limit

    def __len__(self) -> int:
        return len(self._tasks) + self.sending

    def begin(self, request: object) -> asyncio.Task[object]:
        """Register the current task until `end`."""
        if self._loop is None:  # looking up the running loop is a system call
            self._loop = asyncio.get_running_loop()
        task = asyncio.current_task(self._loop)
        assert task is not None
        self._tasks[task] = request
        return task

    def running(self) -> list[tuple[asyncio.Task[object], Any]]:
        """The tasks and requests in flight."""
        return list(self._tasks.items())

    def end(self, task: asyncio.Task[object]) -> None:
        del self._tasks[task]
        if self.stopping:
            self._ended.set()

    def sent(self) -> None:
        """One answer of `sending` has been sent, or could not be."""
        self.sending -= 1
        if self.stopping:
            self._ended.set()

    async def drain(self, patience_s: float) -> int:
        """Wait up to `patience_s` until all requests have ended, then cancel the rest. Returns how
        many were cancelled."""
        self.stopping = True
        if await self._all_ended(patience_s):
            return 0
        rest = list(self._tasks.items())
        for task, request in rest:
            self._on_cancel(request)
            task.cancel()
        await self._all_ended(_CANCEL_S)
        return len(rest)

    async def _all_ended(self, patience_s: float) -> bool:
        """Wait until none is left, at most `patience_s`. Returns whether none is left."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while len(self):
                    self._ended.clear()
                    await self._ended.wait()
        return not len(self)


def forget_cancellation() -> None:
    """Let the current task go on, however often it was cancelled."""
    task = asyncio.current_task()
    while task is not None and task.uncancel():
        pass
