"""Rows on their way to the database, on disk: a killed process loses none of them.

Every process has its own folder in the spool's, with a lock on it. A folder whose lock is free was
left by a process that ended; the next process that starts takes over its files. A damaged or
foreign file is moved to the folder `damaged`; its readable calls are kept.
"""

import logging
import os
import secrets
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from gateway.private import make_folder, opener
from gateway.system import lock, lock_now
from gateway.telemetry.call import read_bodies, read_row

log = logging.getLogger("gateway")

MAX_SEGMENT = 1 << 20  # bytes; a longer file is not extended
_DAMAGED = "damaged"
_MOST_DAMAGED = 100  # files in that folder; further ones are deleted
_BLOCK = 1 << 20


@dataclass(slots=True)
class Segment:
    """Some rows: in a file, and in memory for as long as that saves reading it."""

    path: Path | None
    rows: list[Any] | None
    count: int
    size: int = 0
    odd: int = 0  # lines that are not calls, counted when the file is read


class Spool:
    """The files of one process. Methods do file I/O: call them in a thread. They raise OSError."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._parent = folder
        self._max = max_bytes
        self._own: Path | None = None
        self._lock: Any = None
        self._number = 0
        self.size = 0  # bytes of all segments
        self.damaged = 0  # files that were set aside

    def open(self) -> list[Segment]:
        """Make this process's folder; returns the segments that ended processes left."""
        make_folder(self._parent)
        with open(self._parent / ".lock", "w", opener=opener) as door:
            lock(door)  # serialize processes that start together
            own = self._parent / f"{os.getpid()}-{secrets.token_hex(4)}"
            own.mkdir(0o700)
            self._own, self._lock = own, _lock(own)
            found: list[Segment] = []
            for other in sorted(self._parent.iterdir()):
                if other.name in (own.name, _DAMAGED) or not other.is_dir():
                    continue
                if (left := _lock(other)) is not None:
                    with left:
                        segments = self._take_over(other)
                    if segments is not None:
                        found += segments
                        # Windows removes no folder with an open file in it, so not before.
                        shutil.rmtree(other, ignore_errors=True)
        return found

    def _take_over(self, other: Path) -> list[Segment] | None:
        """The readable files of another process's folder; the others are set aside. None if the
        folder cannot be read."""
        assert self._own is not None
        try:
            files = sorted(file for file in other.iterdir() if file.name != "lock")
        except OSError as error:
            log.error("The spool's folder %s cannot be read: %s", other, error)
            return None
        segments = []
        for file in files:
            path = self._own / f"{self._number + 1:08d}.jsonl"
            try:
                size, count = self._examine(file)
                file.rename(path)
            except OSError as error:
                self._set_aside(file, error)
                continue
            self._number += 1
            self.size += size
            segments.append(Segment(path, None, count, size))
        return segments

    def _examine(self, file: Path) -> tuple[int, int]:
        """Bytes and lines of a file. Raises OSError if it is not a spool file."""
        if file.suffix != ".jsonl" or file.is_symlink() or not file.is_file():
            raise OSError("it is not a file of the spool")
        size = file.stat().st_size
        if size > self._max:
            raise OSError("it is larger than record.max_spool")
        return size, _count(file)

    def _set_aside(self, path: Path, reason: object) -> None:
        """Move a file to the folder `damaged` for the operator to inspect. Never raises."""
        self.damaged += 1
        place = self._parent / _DAMAGED
        target = place / f"{secrets.token_hex(4)}-{path.name}"
        try:
            make_folder(place)
            if sum(1 for _ in place.iterdir()) >= _MOST_DAMAGED:
                raise OSError("there are enough of them")
            path.rename(target)
        except OSError as error:
            log.error("The spool's file %s is damaged (%s); it is deleted: %s", path, reason, error)
            _delete(path)
        else:
            log.error("The spool's file %s is damaged (%s); it is now %s", path, reason, target)

    def keep(self, rows: list[Any], last: Segment | None) -> Segment:
        """Write rows to disk: appended to `last` if that is given and short enough, else in a new
        file.

        Raises OSError, also if the spool is full.
        """
        data = bytearray()  # encode row by row, to save memory
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
        """The segment's rows, each (row, bodies or None). Lines that are not calls are left out and
        counted in `segment.odd`: a crash may have cut the last one. Raises OSError if the file
        cannot be read."""
        if segment.rows is not None:
            return segment.rows
        assert segment.path is not None
        rows, segment.odd = [], 0
        for line in segment.path.read_bytes().splitlines():
            if (found := _read_line(line)) is not None:
                rows.append(found)
            else:
                segment.odd += 1
        return rows

    def remove(self, segment: Segment) -> None:
        """Never raises: a failure must not make the recorder write the rows again and again."""
        if segment.path is None:
            return
        self.size -= segment.size
        if segment.odd:
            self._set_aside(segment.path, f"{segment.odd} line(s) that are no calls")
            return
        try:
            segment.path.unlink(missing_ok=True)
        except OSError as error:
            self._set_aside(segment.path, error)

    def close(self) -> None:
        """Files that are left stay for the next process."""
        if self._own is not None:
            self._lock.close()
            if not any(self._own.glob("*.jsonl")):
                shutil.rmtree(self._own, ignore_errors=True)
            self._own = None


def _lock(folder: Path) -> Any:
    """The locked file of a folder; None if another process holds it, or has just removed it."""
    try:
        file = open(folder / "lock", "w", opener=opener)  # noqa: SIM115 - open while locked
    except OSError:
        return None
    try:
        lock_now(file)
    except OSError:
        file.close()
        return None
    return file


def _append(path: Path, data: bytearray) -> None:
    """Append all or nothing: half a line would corrupt the next one."""
    with open(path, "ab", buffering=0, opener=opener) as file:
        before = os.fstat(file.fileno()).st_size
        try:
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
        except OSError:
            file.truncate(before)
            raise


def _count(path: Path) -> int:
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(_BLOCK), b""))


def _read_line(line: bytes) -> tuple[Any, Any] | None:
    """(row, bodies or None), or None if the line is not a call."""
    try:
        value = orjson.loads(line)
    except ValueError:
        return None
    if not isinstance(value, list) or len(value) != 2 or (row := read_row(value[0])) is None:
        return None
    bodies = None if value[1] is None else read_bodies(value[1], row)
    return (row, bodies) if bodies is not None or value[1] is None else None


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        path.unlink(missing_ok=True)
