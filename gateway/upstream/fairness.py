"""Split long work over several event-loop iterations, so that other tasks run in between."""

import asyncio
from collections.abc import Callable


class OneATurn:
    """Runs its calls in order, each in an event-loop iteration of its own."""

    __slots__ = ("_loop", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: dict[Callable[[], None], None] = {}

    def add(self, call: Callable[[], None]) -> None:
        """Queue a call; a call that is already queued keeps its place."""
        if not self._waiting:
            self._loop.call_soon(self._next)
        self._waiting[call] = None

    def _next(self) -> None:
        call = next(iter(self._waiting))
        del self._waiting[call]
        if self._waiting:
            self._loop.call_soon(self._next)
        call()
