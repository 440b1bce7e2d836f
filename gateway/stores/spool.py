"""Rows on their way to the database, on disk: a process that is killed loses none of them.

Every process has a folder of its own in the spool's, with a lock on it. A folder whose lock is free
was left by a process that is gone; whoever starts next takes over what is in it.
"""

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from gateway.call import COLUMNS

MAX_SEGMENT = 1 << 20  # bytes; a file that is longer is not added to


@dataclass(slots=True)
class Segment:
    """Some rows: in a file, and in memory for as long as that saves reading it."""

    path: Path | None
    rows: list[Any] | None
    count: int
    size: int = 0


class Spool:
    """Methods do file I/O: call them in a thread. They raise OSError."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._parent = folder
        self._max = max_bytes
        self._own: Path | None = None
        self._lock: Any = None
        self._number = 0
        self.size = 0  # bytes of all segments

    def open(self) -> list[Segment]:
        """Make this process's folder; gives what other processes have left behind."""
        self._parent.mkdir(parents=True, exist_ok=True)
        with open(self._parent / ".lock", "w") as door:
            fcntl.flock(door, fcntl.LOCK_EX)  # processes that start at once come in one by one
            own = self._parent / f"{os.getpid()}-{secrets.token_hex(4)}"
            own.mkdir()
            self._own, self._lock = own, _lock(own)
            found: list[Segment] = []
            for other in sorted(self._parent.iterdir()):
                if other != own and other.is_dir() and (left := _lock(other)) is not None:
                    with left:
                        found += self._take_over(other)
        return found

    def _take_over(self, other: Path) -> Iterator[Segment]:
        assert self._own is not None
        for file in sorted(other.glob("*.jsonl")):
            self._number += 1
            path = self._own / f"{self._number:08d}.jsonl"
            file.rename(path)
            size = path.stat().st_size
            self.size += size
            yield Segment(path, None, _count(path), size)
        shutil.rmtree(other, ignore_errors=True)

    def keep(self, rows: list[Any], last: Segment | None) -> Segment:
        """Write rows down: behind those of `last` if that is given and not long, else anew.

        Raises OSError, also where the spool is full.
        """
        data = bytearray()  # not thousands of rows at once, and the memory that they would take
        for row in rows:
            data += orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
        if self._own is None or self.size + len(data) > self._max:
            raise OSError("the spool is full" if self._own else "there is no spool")
        if last and last.path and last.size < MAX_SEGMENT:
            _append(last.path, data)
            self.size += len(data)
            last.size += len(data)
            last.count += len(rows)
            last.rows = None
            return last
        self._number += 1
        path = self._own / f"{self._number:08d}.jsonl"
        try:
            _append(path, data)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        self.size += len(data)
        return Segment(path, rows, len(rows), len(data))

    def read(self, segment: Segment) -> Iterable[Any]:
        """The segment's rows, each (row, bodies or None). What is no such line is left out: the
        last one may have been cut by a crash. Raises OSError if the file is gone."""
        if segment.rows is not None:
            return segment.rows
        assert segment.path is not None
        rows = []
        for line in segment.path.read_bytes().splitlines():
            with contextlib.suppress(ValueError, TypeError):
                row, bodies = orjson.loads(line)
                if len(row) == len(COLUMNS):
                    rows.append((row, bodies))
        return rows

    def remove(self, segment: Segment) -> None:
        if segment.path is not None:
            segment.path.unlink(missing_ok=True)
            self.size -= segment.size

    def close(self) -> None:
        """What is left stays, for the next process."""
        if self._own is not None:
            if not any(self._own.glob("*.jsonl")):
                shutil.rmtree(self._own, ignore_errors=True)
            self._lock.close()
            self._own = None


def _lock(folder: Path) -> Any:
    """The locked file of a folder; None if another process holds it, or has just removed it."""
    try:
        file = open(folder / "lock", "w")  # noqa: SIM115 - open for as long as it is locked
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def _append(path: Path, data: bytearray) -> None:
    """Whole or not at all: half a line would spoil the next one."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        before = os.fstat(handle).st_size
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(handle, view) :]
        except OSError:
            os.ftruncate(handle, before)
            raise
    finally:
        os.close(handle)


def _count(path: Path) -> int:
    return path.read_bytes().count(b"\n")
