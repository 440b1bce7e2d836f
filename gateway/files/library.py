"""Uploaded files: their names, owners, descriptions and retention.

Each file has a small description file next to it. So the bucket or folder is all there is to back
up, replicas share files by sharing it, and a chat needs no database to use its files.
"""

import asyncio
import contextlib
import logging
import re
import secrets
import string
import time
import unicodedata
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import orjson

from gateway.accounts.credentials import Caller
from gateway.config.models import Storage
from gateway.errors import FileNotFound, GatewayError, Overloaded, TooManyAtOnce
from gateway.files.local import LocalFiles
from gateway.files.s3 import S3Files
from gateway.files.store import Chunks, Store
from gateway.filetypes import extension_of, is_shown, mime_of, served_as
from gateway.language.sentences import say
from gateway.protocol.exchange import Source

log = logging.getLogger("gateway")

MAX_TITLE = 200  # characters of a client's file name
MAX_LISTED = 1000
CHECK_S = 15.0
SWEEP_S = 3600.0
_LEFTOVER_S = 86_400.0
_PATIENCE_S = 10.0
_CLEAN_UP_S = 5.0
MAX_READS = 2000  # descriptions read for one page
MAX_COMING = 50  # uploads in flight
MAX_COMING_KEY = 25  # of one key, account or address
MAX_COMING_EACH = 10  # of one owner: each user of a page is an owner
_ALPHABET = string.ascii_letters + string.digits

# The owner's mark, the time of day in ms, and a random part: it cannot be guessed, and sorts by
# time.
_CORE = r"(?P<core>[0-9a-f]{10}[0-9a-f]{7}[0-9A-Za-z]{22})"
NAME = re.compile(rf"uploads/(?P<day>\d{{4}}/\d\d/\d\d)/{_CORE}\.(?P<ending>[a-z0-9]{{1,10}})")
_ID = re.compile(rf"file-(?P<day>\d{{8}})-{_CORE}-(?P<ending>[a-z0-9]{{1,10}})")
_ABOUT = ".about.json"
_PATH = "/files/"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """`name` is the store's, `title` the client's own. `size` is in bytes."""

    name: str
    title: str
    size: int
    created_by: str
    created_ms: int
    purpose: str
    owner: str  # the hash of the owner; the mark in the name is only its beginning

    @property
    def id(self) -> str:
        """The id in OpenAI's form; it contains everything needed to find the file again."""
        found = NAME.fullmatch(self.name)
        assert found is not None
        return f"file-{found['day'].replace('/', '')}-{found['core']}-{found['ending']}"

    @property
    def extension(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def mime(self) -> str:
        return mime_of(self.extension)


class Files:
    """Manages the files in a store. `clock` returns seconds since the epoch."""

    def __init__(
        self, store: Store, config: Storage, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._config = config
        self._clock = clock
        self._tasks: list[asyncio.Task[None]] = []
        self._cleaning: set[asyncio.Task[None]] = set()
        self._in_flight: Counter[str] = Counter()  # uploads in flight, by owner
        self._checked = asyncio.Event()
        self.unavailable = ""  # why the store cannot be used, as a sentence

    async def open(self) -> None:
        await self._store.open()
        loop = asyncio.get_running_loop()
        self._tasks.append(loop.create_task(self._every(CHECK_S, self._check)))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):  # a bucket that hangs must not delay the start
                await self._checked.wait()
        self._tasks.append(loop.create_task(self._every(SWEEP_S, self.sweep)))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._cleaning:
            await asyncio.wait(self._cleaning, timeout=_PATIENCE_S)
        await self._store.close()

    async def _every(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except GatewayError as error:
                log.warning("Files: %s", error.message)
            except Exception:
                log.exception("Unexpected error in the care for files")
            await asyncio.sleep(seconds)

    async def _check(self) -> None:
        unavailable = self.unavailable
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await self._store.check()
            self.unavailable = ""
        except TimeoutError:
            self.unavailable = "The file store does not answer."
        except GatewayError as error:
            self.unavailable = error.message
        finally:
            self._checked.set()
        if self.unavailable != unavailable:
            log.warning("Files: %s", self.unavailable or "the store is back")

    # One file.

    @contextlib.contextmanager
    def slot(self, owner: str) -> Iterator[None]:
        """Hold an upload slot. Each owner has some, and all the users of a key together not all: a
        slow upload holds a slot for long. Raises TooManyAtOnce, Overloaded."""
        key = owner.partition("/")[0]
        of_key = sum(n for other, n in self._in_flight.items() if other.partition("/")[0] == key)
        for many, most in ((self._in_flight[owner], MAX_COMING_EACH), (of_key, MAX_COMING_KEY)):
            if many >= most:
                raise TooManyAtOnce(
                    say("{count} uploads of yours are under way; wait for one to end.", count=many),
                    retry_after_s=5.0,
                )
        if self._in_flight.total() >= MAX_COMING:
            raise Overloaded("Too many uploads are under way; try again soon.", retry_after_s=5.0)
        self._in_flight[owner] += 1
        try:
            yield
        finally:
            self._in_flight[owner] -= 1
            if not self._in_flight[owner]:
                del self._in_flight[owner]

    async def add(
        self,
        owner: str,
        title: str,
        extension: str,
        chunks: Chunks,
        finish: Callable[[], Awaitable[tuple[str, str]]],
    ) -> StoredFile:
        """Store a file as it is received, completely or not at all.

        `finish` is awaited after the last chunk and returns (created_by, purpose): a form may name
        them after the file. Its exceptions and those of `chunks` are passed on, and nothing is
        stored.
        """
        now = datetime.fromtimestamp(self._clock(), UTC)
        name = f"uploads/{now:%Y/%m/%d}/{_new_core(owner, now)}.{extension}"
        mime, details = mime_of(extension), ("", "")

        async def whole() -> AsyncIterator[bytes]:
            nonlocal details
            async for chunk in chunks:
                yield chunk
            details = await finish()

        how = disposition(title, mime)
        try:
            size = await self._store.put(name, whole(), served_as(mime), how)
            created_ms = int(now.timestamp() * 1000)
            file = StoredFile(name, title, size, details[0], created_ms, details[1], _hash(owner))
            await self._store.write(_about(name), orjson.dumps(asdict(file)))
        except BaseException:  # the file may have been stored just before this
            await self._clean_up(name)
            raise
        return file

    async def _clean_up(self, name: str) -> None:
        """Delete the file in the background, also if the request is cancelled again or the store is
        slow."""

        async def delete() -> None:
            with contextlib.suppress(GatewayError):
                await self._store.delete([name, _about(name)])

        task = asyncio.get_running_loop().create_task(delete())
        self._cleaning.add(task)
        task.add_done_callback(self._cleaning.discard)
        await asyncio.wait([task], timeout=_CLEAN_UP_S)

    async def find(self, name: str) -> StoredFile:
        """The description of a file, without checking its owner. Raises FileNotFound."""
        if not name:
            raise FileNotFound("There is no such file, or no longer.")
        try:
            file = StoredFile(**orjson.loads(await self._store.read(_about(name))))
        except (FileNotFoundError, ValueError, TypeError):
            file = None
        # names with another extension have the same description
        if file is None or file.name != name:
            raise FileNotFound("There is no such file, or no longer.")
        return file

    async def get(self, id_: str, owner: str) -> StoredFile:
        """The owner's file with that id. Raises FileNotFound, also for another owner's file."""
        name = name_of(id_)
        missing = FileNotFound(say("There is no file {id!r}.", id=id_[:120]), param="file_id")
        if not name or not name.rpartition("/")[2].startswith(_mark(owner)):
            raise missing
        file = await self.find(name)
        if file.owner != _hash(owner):
            raise missing
        return file

    async def delete(self, file: StoredFile) -> None:
        await self._store.delete([file.name, _about(file.name)])

    @asynccontextmanager
    async def source(self, file: StoredFile) -> AsyncIterator[Source]:
        """The file's bytes as a stream. Raises FileNotFound."""
        try:
            async with self._store.source(file.name) as source:
                yield replace(source, name=file.title, mime=file.mime)
        except FileNotFoundError:
            raise FileNotFound("There is no such file, or no longer.") from None

    def described(self, file: StoredFile) -> dict[str, Any]:
        """OpenAI's file object."""
        created, keep = file.created_ms // 1000, self._config.keep
        return {
            "id": file.id,
            "object": "file",
            "bytes": file.size,
            "created_at": created,
            "filename": file.title,
            "purpose": file.purpose,
            "status": "processed",
            "status_details": None,
            "expires_at": None if keep is None else created + int(keep),
        }

    # Links.

    async def link(self, file: StoredFile, origin: str) -> str:
        """The file's URL for the client; `origin` is the gateway's address as the client used it:
        `http://host:port`."""
        base = self._config.public_base_url or origin
        return await self._store.link(file.name) or f"{base}{_PATH}{quote(file.name)}"

    async def public_link(self, file: StoredFile) -> str:
        """A URL that a platform elsewhere can open, or ""."""
        if self._config.public_base_url or self._store.has_public_links:
            return await self.link(file, "")
        return ""

    def name_in(self, url: str) -> str:
        """The name of the stored file that a URL of the gateway refers to, whichever address the
        client used, or ""."""
        if name := self._store.name_in(url):
            return name
        try:
            path = unquote(urlsplit(url).path)
        except ValueError:
            return ""
        name = path[len(_PATH) :] if path.startswith(_PATH) else ""
        return name if NAME.fullmatch(name) else ""

    def is_ours(self, url: str, origin: str) -> bool:
        """Whether a URL can only mean a stored file, even one that does not exist."""
        if self._store.name_in(url):
            return True
        bases = (self._config.public_base_url, origin)
        return any(base and url.startswith(f"{base}{_PATH}") for base in bases)

    def local_path(self, file: StoredFile) -> Path | None:
        """The file's path on this machine, or None if it is in a bucket."""
        return self._store.path(file.name) if isinstance(self._store, LocalFiles) else None

    # Many files.

    async def page(
        self, owner: str, limit: int, after: str, *, newest_first: bool, purpose: str = ""
    ) -> tuple[list[StoredFile], bool]:
        """An owner's files after the one with the id `after`, and whether there are more."""
        found: list[StoredFile] = []
        start, hashed, reads = name_of(after), _hash(owner), 0
        days = await self._store.days()
        for day in days if newest_first else reversed(days):
            if start and (day > start[8:18] if newest_first else day < start[8:18]):
                continue
            names = await self._store.names(day, _mark(owner))
            names = [name for name in names if NAME.fullmatch(name)]
            for name in reversed(names) if newest_first else names:
                if start and (name >= start if newest_first else name <= start):
                    continue
                if (reads := reads + 1) > MAX_READS:
                    raise Overloaded(
                        "Too many files to look through for that; ask without 'purpose'."
                    )
                with contextlib.suppress(FileNotFound):  # deleted just now
                    file = await self.find(name)
                    if file.owner == hashed and purpose in ("", file.purpose):
                        found.append(file)
                if len(found) > limit:
                    return found[:limit], True
        return found, False

    async def sweep(self) -> None:
        """Delete the days past their retention, and the remains of interrupted uploads."""
        await self._store.sweep(_LEFTOVER_S)
        if self._config.keep is None:
            return
        last = datetime.fromtimestamp(self._clock() - self._config.keep, UTC)
        for day in await self._store.days():
            if day < f"{last:%Y/%m/%d}":
                await self._store.delete(await self._store.names(day))


def open_files(config: Storage) -> Files:
    """The files of the configured store."""
    if config.folder:
        return Files(LocalFiles(Path(config.folder)), config)
    bucket, prefix = config.bucket
    base = config.public_base_url or ""
    return Files(S3Files(config.s3, bucket, prefix, base, config.link_ttl), config)


def owner_of(caller: Caller) -> str:
    """The owner of a caller's files: an account's keys share theirs; each user of a web page has
    its own, separate for each key."""
    return f"{caller.id}/{caller.end_user}" if caller.end_user else caller.tag


def name_of(id_: str) -> str:
    """The store's name of the file with that id, or "" if the id is not valid."""
    found = _ID.fullmatch(id_)
    if found is None:
        return ""
    day = found["day"]
    return f"uploads/{day[:4]}/{day[4:6]}/{day[6:]}/{found['core']}.{found['ending']}"


def _about(name: str) -> str:
    return name.rpartition(".")[0] + _ABOUT


def _hash(owner: str) -> str:
    return sha256(owner.encode("utf-8", "replace")).hexdigest()


def _mark(owner: str) -> str:
    """The prefix of an owner's file names, to find them; another owner's may be the same."""
    return _hash(owner)[:10]


def _new_core(owner: str, now: datetime) -> str:
    of_day = ((now.hour * 60 + now.minute) * 60 + now.second) * 1000 + now.microsecond // 1000
    chance = "".join(secrets.choice(_ALPHABET) for _ in range(22))
    return f"{_mark(owner)}{of_day:07x}{chance}"


def clean_title(name: str) -> str:
    """A client's file name, made safe to show and to send back: no folders, no control
    characters."""
    text = re.sub("[\ud800-\udfff]", "\ufffd", name)
    text = unicodedata.normalize("NFC", text.replace("%22", '"'))
    text = re.split(r"[/\\]", text)[-1]
    text = "".join(c for c in text if c.isprintable()).strip().strip(".") or "file"
    if len(text) > MAX_TITLE:
        ending = extension_of(text)
        text = text[: MAX_TITLE - len(ending) - 1] + f".{ending}" if ending else text[:MAX_TITLE]
    return text


def disposition(title: str, mime: str) -> str:
    """A `Content-Disposition` that keeps names of any script; browsers never display active
    content."""
    how = "inline" if is_shown(mime) else "attachment"
    plain = re.sub(r'[^ -~]|["\\%]', "_", title)
    return f"{how}; filename=\"{plain}\"; filename*=UTF-8''{quote(title, safe='')}"
