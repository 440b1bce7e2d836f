"""Work that may be much: a piece in each turn of the loop, so that others have theirs between."""

import asyncio
from collections.abc import Callable


class OneATurn:
    """Calls what it is given, in order, each in a turn of the loop of its own."""

    __slots__ = ("_loop", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: dict[Callable[[], None], None] = {}

    def add(self, call: Callable[[], None]) -> None:
        """What waits already keeps its place."""
        if not self._waiting:
            self._loop.call_soon(self._next)
        self._waiting[call] = None

    def _next(self) -> None:
        call = next(iter(self._waiting))
        del self._waiting[call]
        if self._waiting:
            self._loop.call_soon(self._next)
        call()
