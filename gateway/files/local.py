"""Files in a folder of this machine."""

import asyncio
import contextlib
import errno
import os
import re
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import IO, TypeVar

from gateway.errors import StorageFull, StorageUnavailable
from gateway.files.store import BLOCK, Chunks
from gateway.language.sentences import say
from gateway.private import make_folder, opener, shut_out_others
from gateway.protocol.exchange import Source

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DAY = re.compile(r"\d{4}/\d\d/\d\d")
_PARTS = ".parts"

T = TypeVar("T")


class LocalFiles:
    """The folder corresponds to `uploads` in the names. Disks stall, so threads write and read."""

    has_public_links = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._threads = ThreadPoolExecutor(4, "files")

    def path(self, name: str) -> Path:
        return self._folder / name.removeprefix("uploads/")

    async def open(self) -> None:
        def prepare() -> None:
            make_folder(self._folder / _PARTS)
            shut_out_others(self._folder)

        with contextlib.suppress(StorageUnavailable, StorageFull):  # `check` reports it again
            await self._run(prepare)

    async def close(self) -> None:
        self._threads.shutdown()

    async def put(self, name: str, chunks: Chunks, mime: str, disposition: str) -> int:
        draft = self._folder / _PARTS / token_hex(16)
        opened: list[IO[bytes]] = []  # filled even if the wait for it is cancelled
        try:
            await self._run(partial(_begin, draft, opened))
            file = opened[0]
            size, waiting, block = 0, 0, list[bytes]()
            async for chunk in chunks:
                block.append(chunk)
                waiting += len(chunk)
                if waiting >= BLOCK:
                    await self._run(partial(file.writelines, block))
                    block, waiting = [], 0
                size += len(chunk)
            await self._run(partial(_finish, file, block, self.path(name)))
        except BaseException:
            with contextlib.suppress(StorageUnavailable, StorageFull):
                await asyncio.shield(self._run(partial(_discard, draft, opened)))
            raise
        return size

    async def write(self, name: str, data: bytes) -> None:
        async def one() -> AsyncIterator[bytes]:
            yield data

        await self.put(name, one(), "", "")

    async def read(self, name: str) -> bytes:
        return await self._run(self.path(name).read_bytes, (FileNotFoundError,))

    @asynccontextmanager
    async def source(self, name: str) -> AsyncIterator[Source]:
        path = self.path(name)
        file = await self._run(lambda: path.open("rb"), (FileNotFoundError,))
        try:
            yield Source(path.name, "", os.fstat(file.fileno()).st_size, self._blocks(file))
        finally:
            file.close()

    async def _blocks(self, file: IO[bytes]) -> AsyncIterator[bytes]:
        while block := await self._run(lambda: file.read(BLOCK)):
            yield block

    async def delete(self, names: Iterable[str]) -> None:
        def unlink() -> None:
            for name in names:
                self.path(name).unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # the folder still has files
                    self.path(name).parent.rmdir()

        await self._run(unlink)

    async def days(self) -> list[str]:
        def walk() -> list[str]:
            found = self._folder.glob("[0-9]*/[0-9]*/[0-9]*")
            days = (day.relative_to(self._folder).as_posix() for day in found)
            return sorted((day for day in days if _DAY.fullmatch(day)), reverse=True)

        return await self._run(walk)

    async def names(self, day: str, begins: str = "") -> list[str]:
        def walk() -> list[str]:
            found = os.listdir(self._folder / day)
            return sorted(f"uploads/{day}/{name}" for name in found if name.startswith(begins))

        try:
            return await self._run(walk, (FileNotFoundError,))
        except FileNotFoundError:
            return []

    async def sweep(self, older_than_s: float) -> None:
        def remove() -> None:
            for file in (self._folder / _PARTS).glob("*"):
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - file.stat().st_mtime > older_than_s:
                        file.unlink()

        await self._run(remove)

    async def link(self, name: str) -> str:
        return ""

    def name_in(self, url: str) -> str:
        return ""

    async def check(self) -> None:
        def try_it() -> None:
            draft = self._folder / _PARTS / token_hex(16)
            opened: list[IO[bytes]] = []
            _begin(draft, opened)
            _discard(draft, opened)
            if shutil.disk_usage(self._folder).free < BLOCK:
                raise StorageFull

        await self._run(try_it)

    async def _run(self, work: Callable[[], T], expected: tuple[type[OSError], ...] = ()) -> T:
        """Run `work` in a thread. A cancelled caller still waits for it, since the file is in use.

        An unexpected OSError is a fault of the folder.
        """
        running = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            await asyncio.wait([running])
            raise
        except expected:
            raise
        except OSError as error:
            if error.errno in _FULL:
                raise StorageFull from error
            message = say("The folder for files cannot be used: {reason}.", reason=error.strerror)
            raise StorageUnavailable(message) from error


def _begin(draft: Path, opened: list[IO[bytes]]) -> None:
    make_folder(draft.parent)
    opened.append(open(draft, "xb", opener=opener))  # noqa: SIM115 - closed by `_finish`


def _finish(file: IO[bytes], block: list[bytes], path: Path) -> None:
    """Write to disk before confirming: a confirmed file must survive a power cut."""
    file.writelines(block)
    file.flush()
    os.fsync(file.fileno())
    file.close()
    for _ in range(5):
        # A deletion of the day's last file may just remove its folder.
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            make_folder(path.parent)
            os.replace(file.name, path)
            return
    os.replace(file.name, path)


def _discard(draft: Path, opened: list[IO[bytes]]) -> None:
    for file in opened:  # first: Windows deletes no open file
        with contextlib.suppress(OSError):  # closing flushes the buffer, and the disk may be full
            file.close()
    draft.unlink(missing_ok=True)
