"""Threads in the database, for a gateway without Redis: written in batches, read once.

A call never waits for a write. Between it and its writing the process itself knows the thread, so
replicas that share a PostgreSQL but no Redis may miss each other's latest turns, and start a new
conversation.
"""

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from gateway.database import Database, Rows, ValueRefused, fetch
from gateway.errors import DatabaseUnavailable
from gateway.memory.judgement import Found
from gateway.memory.local import MAX_LISTED, LocalStore
from gateway.memory.thread import Thread, load
from gateway.times import now_ms

DEADLINE_S = 0.05
_EVERY_S = 0.5  # between two batches
_BATCH = 500
MAX_PENDING = 10_000
_CLEAN_S = 600.0
_LONGEST_MS = 30 * 86_400_000  # that a thread may be kept, and a key is
_MAX_READ = 60_000


class DatabaseStore(LocalStore):
    """`is_shared`: other processes write the same tables, so what was read is not kept."""

    def __init__(
        self, database: Database, is_shared: bool, clock: Callable[[], float] = time.time
    ) -> None:
        super().__init__(clock)
        self._database = database
        self._sql = database.queries
        self._is_shared = is_shared
        self._read: OrderedDict[str, None] = OrderedDict()  # keys whose rows are known
        self._pending: OrderedDict[str, tuple[Thread, dict[str, int], int]] = OrderedDict()
        self._writing: asyncio.Task[None] | None = None
        self._loading: set[asyncio.Task[None]] = set()
        self._cleaned = float("-inf")

    async def find(self, scope: str, keys: Sequence[str]) -> list[Found]:
        names = [scope + key for key in keys]
        found = [self.look(name) for name in names]
        if all(name in self._read for name in names) and all(each.is_whole for each in found):
            return found
        loading = asyncio.ensure_future(self._load(names))
        self._loading.add(loading)
        loading.add_done_callback(self._loaded)
        await asyncio.wait({loading}, timeout=DEADLINE_S)  # not cancelled: what it reads is kept
        if not loading.done():
            raise TimeoutError
        loading.result()
        return [self.look(name) for name in names]

    def _loaded(self, loading: asyncio.Task[None]) -> None:
        self._loading.discard(loading)
        if not loading.cancelled():
            loading.exception()  # the call may have gone on without it

    async def _load(self, names: list[str]) -> None:
        """Read what the database knows under these two keys."""
        async with self._database.transaction() as conn:
            rows = await fetch(
                self._sql.memory_find(conn, first=names[0], second=names[-1], most=MAX_LISTED + 1)
            )
        for name in names:
            listed = [row["thread_id"] for row in rows if row["name"] == name]
            self.list_older(name, listed)
            if not self._is_shared:
                self._read[name] = None
        for row in rows:
            id_ = row["thread_id"]
            if row["body"] is not None and id_ not in self._pending:
                self.keep(load(row["body"].encode()), row["until_ms"] / 1000)
        while len(self._read) > _MAX_READ:
            self._read.popitem(last=False)

    async def save(
        self, scope: str, thread: Thread, keys: Sequence[str], keep_s: float, holder: str
    ) -> None:
        await super().save(scope, thread, keys, keep_s, holder)
        at_ms = now_ms()
        _, names, _ = self._pending.pop(thread.id, (None, {}, 0))
        names |= {scope + key: at_ms for key in keys}
        self._pending[thread.id] = (thread, names, int((self._clock() + keep_s) * 1000))
        if len(self._pending) > MAX_PENDING:  # the database does not answer: drop the oldest
            self._pending.popitem(last=False)
        if self._writing is None:
            self._writing = asyncio.ensure_future(self._write())

    async def _write(self) -> None:
        """Write until nothing is pending."""
        try:
            while self._pending:
                await asyncio.sleep(_EVERY_S)
                with contextlib.suppress(DatabaseUnavailable):
                    await self.flush()
        finally:
            self._writing = None

    async def flush(self) -> None:
        """Write a batch. Raises DatabaseUnavailable, and then keeps it; drops a batch with a value
        that the database refuses."""
        batch = dict(list(self._pending.items())[:_BATCH])
        threads = [
            {"id": id_, "body": thread.dump().decode(), "until_ms": until_ms}
            for id_, (thread, _, until_ms) in sorted(batch.items())
        ]
        keys = [
            {"name": name, "thread_id": id_, "at_ms": at_ms}
            for id_, (_, names, _) in sorted(batch.items())
            for name, at_ms in sorted(names.items())
        ]
        with contextlib.suppress(ValueRefused):
            await self._write_batch(threads, keys)
        for id_, written in batch.items():
            if self._pending.get(id_) is written:
                del self._pending[id_]

    async def _write_batch(self, threads: Rows, keys: Rows) -> None:
        async with self._database.transaction() as conn:
            await self._sql.memory_keep_threads(conn, threads)
            await self._sql.memory_keep_keys(conn, keys)
            if time.monotonic() - self._cleaned > _CLEAN_S:
                await self._clean(conn)

    async def _clean(self, conn: object) -> None:
        self._cleaned = time.monotonic()
        now = now_ms()
        await self._sql.memory_forget_threads(conn, now_ms=now, most=_BATCH * 10)
        await self._sql.memory_forget_keys(conn, before_ms=now - _LONGEST_MS, most=_BATCH * 10)

    async def close(self) -> None:
        """Write what is pending, if the database takes it."""
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.wait({self._writing})
        with contextlib.suppress(DatabaseUnavailable):
            while self._pending:
                await self.flush()
