"""The requests under way, and how they end when the process is to stop."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

_LAST_WORDS_S = 5.0  # for those that are told to end, to say so


class InFlight:
    """`stopping` is set once and for good: nothing new begins from then on. `tell` is called for
    each request that has to end for a stop, before its task is cancelled."""

    def __init__(self, tell: Callable[[Any], None]) -> None:
        self._tell = tell
        self._under_way: dict[asyncio.Task[object], object] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = asyncio.Event()  # one of them has, while the process stops
        self.sending = 0  # whole answers; nobody has to be told, but none shall be cut
        self.stopping = False
        self.refused = 0  # connections beyond those that are taken

    def __len__(self) -> int:
        return len(self._under_way) + self.sending

    def begin(self, request: object) -> asyncio.Task[object]:
        """The current task is one of them, until `end`."""
        if self._loop is None:  # asking for the running one is a system call
            self._loop = asyncio.get_running_loop()
        task = asyncio.current_task(self._loop)
        assert task is not None
        self._under_way[task] = request
        return task

    def end(self, task: asyncio.Task[object]) -> None:
        del self._under_way[task]
        if self.stopping:
            self._ended.set()

    def sent(self) -> None:
        """One of `sending` has been sent, or could not be."""
        self.sending -= 1
        if self.stopping:
            self._ended.set()

    async def drain(self, patience_s: float) -> int:
        """Wait until all have ended, so long at most; then tell the rest to end. Gives how many
        had to be told."""
        self.stopping = True
        if await self._are_over(patience_s):
            return 0
        rest = list(self._under_way.items())
        for task, request in rest:
            self._tell(request)
            task.cancel()
        await self._are_over(_LAST_WORDS_S)
        return len(rest)

    async def _are_over(self, patience_s: float) -> bool:
        """Whether none is left, as soon as it is so or when patience has run out."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while len(self):
                    self._ended.clear()
                    await self._ended.wait()
        return not len(self)


def forget_cancellation() -> None:
    """The current task goes on, however often it was told to end."""
    task = asyncio.current_task()
    while task is not None and task.uncancel():
        pass
