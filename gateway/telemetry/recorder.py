"""The writer of the record: takes calls, writes batches, and loses none on the way.

    add() → queue in memory → spool on disk (twice a second) → database → spool file removed

No request waits for it. Killing the process loses the queue, at most half a second of calls. While
the database is unavailable the spool grows up to its bound; afterwards it is written in order. A
batch whose commit was not confirmed is written again; the calls' ids prevent double counting.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter, deque
from collections.abc import Iterable
from typing import Any

from gateway.accounts.directory import Directory
from gateway.config.models import Record
from gateway.database import ValueRefused
from gateway.errors import DatabaseUnavailable, why
from gateway.telemetry.call import Call, scopes
from gateway.telemetry.spool import Segment, Spool
from gateway.telemetry.store import Calls

log = logging.getLogger("gateway")

INTERVAL_S = 0.5
MAX_QUEUED = 100_000  # rows in memory
MAX_QUEUED_BYTES = 64 << 20  # of bodies in memory; beyond that rows are recorded without them
_BATCH = 1000  # rows in one transaction
_RETRY_S = 1.0
_FLUSH_S = 8.0
_SWEEP_S = 3600.0
_CHANGES_KEPT_MS = 86_400_000


class Recorder:
    """Records calls. It reports to the directory, for quotas, which calls wait and which have
    reached the database."""

    def __init__(
        self,
        calls: Calls,
        spool: Spool,
        settings: Record,
        directory: Directory | None = None,
    ) -> None:
        self._calls = calls
        self._spool = spool
        self._settings = settings
        self._directory = directory
        self._queued_bytes = 0  # of bodies
        self._queue: list[Any] = []
        self._segments: deque[Segment] = deque()
        self._tasks: list[asyncio.Task[None]] = []
        self._flushes: set[asyncio.Task[None]] = set()
        self._spooling = asyncio.Lock()
        self._writing = asyncio.Lock()
        self._more = asyncio.Event()
        self._refused_at = 0.0
        self.unavailable = False
        self.written = self.lost = self.rejected = 0

    @property
    def damaged(self) -> int:
        """Spool files that were set aside."""
        return self._spool.damaged

    @property
    def waiting(self) -> int:
        """Calls that the database does not have yet."""
        return len(self._queue) + sum(segment.count for segment in self._segments)

    def add(self, call: Call, status: int, error: str, reason: str = "") -> None:
        """Record a finished call. Never waits and never raises."""
        if len(self._queue) >= MAX_QUEUED:
            self.lost += 1
            return
        row = call.row(status, error, reason)
        bodies = call.bodies(row)
        if bodies is not None:
            self._queued_bytes += len(bodies[2]) + len(bodies[3])
            if self._queued_bytes > MAX_QUEUED_BYTES:
                bodies = None
        self._queue.append((row, bodies))

    async def open(self) -> None:
        try:
            self._segments += await asyncio.to_thread(self._spool.open)
        except OSError as error:
            log.warning(
                "No spool: %s. Calls wait in memory while the database is unavailable", error
            )
        if self._segments:
            log.info("%d calls left by an earlier process are written now", self.waiting)
            await self._count_leftovers()
            self._more.set()
        for loop in (self._spool_loop, self._write_loop, self._sweep_loop):
            self._tasks.append(asyncio.ensure_future(loop()))

    async def _count_leftovers(self) -> None:
        """Count the calls of an earlier process in the quotas before they are written."""
        for segment in self._segments:
            with contextlib.suppress(OSError):  # writing the segment reports the same error
                rows = await asyncio.to_thread(self._spool.read, segment)
                if self._directory is not None:
                    self._directory.calls_waiting(_counts(rows))

    async def close(self) -> None:
        """Write the queued calls; what the database does not take stays in the spool."""
        async with self._spooling:  # not between the queue and the disk
            for task in self._tasks:
                task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        try:
            async with asyncio.timeout(_FLUSH_S):
                await self.flush()
        except (DatabaseUnavailable, TimeoutError):
            pass
        except Exception:
            log.exception("Writing the last calls failed")
        await self._to_spool()
        if self.waiting:
            log.warning("%d calls wait in the spool for the next start", self.waiting)
        await asyncio.to_thread(self._spool.close)

    async def flush(self) -> None:
        """Write everything recorded so far to the database. Raises DatabaseUnavailable.

        A disconnecting caller does not cancel it: rows could be lost between queue and database.
        """
        task = asyncio.ensure_future(self._flush())
        self._flushes.add(task)
        task.add_done_callback(self._flushed)
        await asyncio.shield(task)

    async def _flush(self) -> None:
        await self._to_spool()
        await self._to_database()

    def _flushed(self, task: asyncio.Task[None]) -> None:
        self._flushes.discard(task)
        if not task.cancelled():
            task.exception()  # raised to the caller that still waits

    # The loops.

    async def _spool_loop(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL_S)
            await self._to_spool()

    async def _write_loop(self) -> None:
        while True:
            await self._more.wait()
            self._more.clear()
            try:
                await self._to_database()
            except DatabaseUnavailable:
                await asyncio.sleep(_RETRY_S)
                self._more.set()
            except Exception:
                log.exception("Writing the record failed")
                await asyncio.sleep(_RETRY_S)
                self._more.set()

    async def _sweep_loop(self) -> None:
        while True:
            try:
                is_more = await self.sweep()
            except DatabaseUnavailable:
                is_more = True
            except Exception:
                log.exception("Deleting old calls failed")
                is_more = False
            await asyncio.sleep(_RETRY_S if is_more else _SWEEP_S)

    async def sweep(self) -> bool:
        """Delete some rows past their retention. Returns whether more may be left."""
        now = int(time.time() * 1000)
        return await self._calls.expire(
            now - int(self._settings.keep * 1000),
            now - int(self._settings.keep_bodies * 1000),
            now - _CHANGES_KEPT_MS,
        )

    # The steps.

    async def _to_spool(self) -> None:
        async with self._spooling:
            for segment in self._segments:
                if segment.path is None:  # the disk refused it; try again
                    await self._to_disk(segment)
            rows, self._queue, self._queued_bytes = self._queue, [], 0
            if not rows:
                return
            # While the database is unavailable, batches share files; else each batch has its own.
            last = self._segments[-1] if self.unavailable and len(self._segments) > 1 else None
            try:
                segment = await asyncio.to_thread(self._spool.keep, rows, last)
            except (OSError, TypeError) as error:  # a disk error, or a value that is not JSON
                self._keep_in_memory(rows, error)
            else:
                if segment is not last:
                    self._segments.append(segment)
            if self.unavailable:  # memory keeps only rows without a file
                for segment in self._segments:
                    if segment.path is not None:
                        segment.rows = None
            self._more.set()

    async def _to_disk(self, segment: Segment) -> None:
        with contextlib.suppress(OSError, TypeError):
            kept = await asyncio.to_thread(self._spool.keep, segment.rows or [], None)
            segment.path, segment.size = kept.path, kept.size

    def _keep_in_memory(self, rows: list[Any], error: Exception) -> None:
        """The disk refuses the rows: keep them in memory, up to a bound and without bodies."""
        held = sum(segment.count for segment in self._segments if segment.path is None)
        kept = [(row, None) for row, _ in rows[: max(0, MAX_QUEUED - held)]]
        self.lost += len(rows) - len(kept)
        if kept:
            self._segments.append(Segment(None, kept, len(kept)))
        if time.monotonic() - self._refused_at > 60:
            self._refused_at = time.monotonic()
            log.error("The spool takes no calls (%s); %d calls lost so far", error, self.lost)

    async def _to_database(self) -> None:
        async with self._writing:
            while self._segments:
                segment = self._segments[0]
                count, size = segment.count, segment.size
                try:
                    rows = await asyncio.to_thread(self._spool.read, segment)
                except OSError as error:
                    log.error("%d calls are lost with a file of the spool: %s", count, error)
                    self.lost += count
                    segment.odd = max(count, 1)
                    async with self._spooling:
                        await self._drop_first()
                    continue
                try:
                    await self._write(list(rows))
                except DatabaseUnavailable as error:
                    if not self.unavailable:
                        reason = why(error)
                        log.warning(
                            "The database takes no calls (%s); they wait in the spool", reason
                        )
                    self.unavailable = True
                    raise
                if self.unavailable:
                    log.info("The database takes calls again")
                self.unavailable = False
                async with self._spooling:  # it may have grown since it was read
                    if (segment.count, segment.size) == (count, size):
                        await self._drop_first()

    async def _drop_first(self) -> None:
        """Drop the first segment and its file. The caller must hold `_spooling`."""
        await asyncio.to_thread(self._spool.remove, self._segments.popleft())

    async def _write(self, rows: list[Any]) -> None:
        for start in range(0, len(rows), _BATCH):
            await self._write_batch(rows[start : start + _BATCH])

    async def _write_batch(self, rows: list[Any]) -> None:
        """Write one transaction. If the database refuses a value, write the halves separately,
        until only the offending row is left out."""
        calls = [tuple(row) for row, _ in rows]
        bodies = [tuple(bodies) for _, bodies in rows if bodies]
        try:
            totals = await self._calls.write(calls, bodies, int(time.time() * 1000))
        except ValueRefused as error:
            if len(rows) == 1:
                self.rejected += 1
                log.error("The database refuses a call: %s", error)
                self._update_quotas(rows, {})
                return
            middle = len(rows) // 2
            await self._write_batch(rows[:middle])
            await self._write_batch(rows[middle:])
        else:
            self.written += len(rows)
            self._update_quotas(rows, totals)

    def _update_quotas(self, rows: list[Any], totals: dict[tuple[str, str], int]) -> None:
        if self._directory is not None:
            self._directory.calls_written(_counts(rows), totals)


def _counts(rows: Iterable[Any]) -> Counter[tuple[str, str]]:
    return Counter(which for row, _ in rows for which in scopes(row))
