"""Threads of this process."""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from gateway.memory.judgement import Found
from gateway.memory.thread import Thread

MAX_LISTED = 8  # threads under one key; with more of them none is certain
MAX_KEPT = 20_000  # turns; about 15 MB
_MAX_KEYS = 3 * MAX_KEPT


class LocalStore:
    """Beyond `most` turns the threads that were used least recently are dropped. Their ids stay
    under their keys, so that another person's equal thread is not taken for the only one."""

    def __init__(self, clock: Callable[[], float] = time.time, most: int = MAX_KEPT) -> None:
        self._clock = clock
        self._most = most
        self._size = 0
        self._threads: OrderedDict[str, tuple[Thread, float]] = OrderedDict()  # until when
        self._listed: OrderedDict[str, tuple[str, ...]] = OrderedDict()  # newest first
        self._claims: dict[str, tuple[str, float]] = {}  # holder, until when

    async def find(self, scope: str, keys: Sequence[str]) -> list[Found]:
        return [self.look(scope + key) for key in keys]

    def look(self, key: str) -> Found:
        ids = self._listed.get(key, ())
        found = [thread for id_ in ids[:MAX_LISTED] if (thread := self._get(id_))]
        return Found(found, len(found) == len(ids))

    def _get(self, id_: str) -> Thread | None:
        thread, until = self._threads.get(id_, (None, 0.0))
        return thread if until > self._clock() else None

    async def claim(self, scope: str, thread: Thread, holder: str, lease_s: float) -> bool:
        """Reserve the thread for one call; False if another one has it, or has continued it."""
        now = self._clock()
        if self._claims.get(thread.id, ("", 0.0))[1] > now or self._get(thread.id) != thread:
            return False
        self._claims[thread.id] = (holder, now + lease_s)
        return True

    async def release(self, scope: str, id_: str, holder: str) -> None:
        self.unclaim(id_, holder)

    def unclaim(self, id_: str, holder: str) -> None:
        if id_ in self._claims and self._claims[id_][0] == holder:
            del self._claims[id_]

    async def save(
        self, scope: str, thread: Thread, keys: Sequence[str], keep_s: float, holder: str
    ) -> None:
        self.keep(thread, self._clock() + keep_s)
        for key in [scope + key for key in keys]:
            others = [id_ for id_ in self._listed.pop(key, ()) if id_ != thread.id]
            self._list(key, (thread.id, *others))
        self.unclaim(thread.id, holder)

    def list_older(self, key: str, ids: Sequence[str]) -> None:
        """Add ids, newest first, that are older than those already under the key."""
        known = self._listed.pop(key, ())
        self._list(key, (*known, *[id_ for id_ in ids if id_ not in known]))

    def _list(self, key: str, ids: tuple[str, ...]) -> None:
        if ids:
            self._listed[key] = ids[: MAX_LISTED + 1]
        while len(self._listed) > _MAX_KEYS:
            self._listed.popitem(last=False)

    def keep(self, thread: Thread, until: float) -> None:
        """Keep a thread until then, in seconds since the epoch."""
        before = self._threads.pop(thread.id, None)
        self._size += len(thread.turns) - (len(before[0].turns) if before else 0)
        self._threads[thread.id] = (thread, until)
        while self._size > self._most and len(self._threads) > 1:
            id_, (dropped, _) = self._threads.popitem(last=False)
            self._size -= len(dropped.turns)
            self._claims.pop(id_, None)

    def missed(self, scope: str) -> None: ...

    async def close(self) -> None: ...
