"""A multipart form with one file, streamed in order and never stored as a whole."""

import asyncio
import time
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from email.message import Message
from typing import Any

from aiohttp import (
    BadContentDispositionHeader,
    BadContentDispositionParam,
    BodyPartReader,
    web,
)
from aiohttp.http_exceptions import HttpProcessingError

from gateway.config.models import Storage
from gateway.errors import BodyTooLarge, InvalidRequest, SenderTooSlow, UnsupportedMediaType
from gateway.files.library import clean_title
from gateway.filetypes import HEAD, checked
from gateway.language.sentences import say

MAX_FIELDS = 20
MAX_FIELD = 8192  # bytes
SILENCE_S = 60.0  # how long a sender may pause
START_S = 30.0  # before a sender's rate counts, also in each later window
SLOWEST = 8 * 1024  # bytes per second that it must reach after that
WINDOW_S = 120.0  # of recent time over which the rate counts
_CHUNK = 64 * 1024
_MAX_BLANK = 4  # lines before the form
_WARNINGS = (BadContentDispositionHeader, BadContentDispositionParam)
_FRAME = 1024 * 1024  # bytes that a form may have in addition to its file


class UploadForm:
    """`await begin()`, read `chunks()` to their end, then `await finish()`.

    `fields` holds the text fields read so far; it is complete only after `finish`.
    """

    def __init__(
        self, request: web.Request, config: Storage, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._request = request
        self._config = config
        self._clock = clock
        self._window = (clock(), 0)  # when it began, and the bytes received by then
        self._reader: Any = None
        self._part: Any = None
        self._head = b""
        self._parts = 0
        self.fields: dict[str, str] = {}
        self.title = ""
        self.extension = ""
        self.size = 0  # bytes of the file received so far

    async def begin(self) -> None:
        """Read up to the file's first bytes.

        Raises InvalidRequest, BodyTooLarge, UnsupportedMediaType, SenderTooSlow.
        """
        be_quiet()
        if not self._request.content_type.startswith("multipart/"):
            raise InvalidRequest(
                "Send the file as multipart/form-data, in a part named 'file'.", param="file"
            )
        if self._request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise UnsupportedMediaType("Send the form as it is, without a Content-Encoding.")
        most = self._config.max_size
        if (self._request.content_length or 0) > most + _FRAME:
            raise self._too_large()
        async with reading():
            await self._require_boundary()
            self._reader = await self._request.multipart()
            while (part := await self._next()) is not None:
                if part.name == "file":
                    break
                await self._field(part)
        if part is None:
            came = (
                say(" (it has {fields})", fields=", ".join(map(repr, self.fields)))
                if self.fields
                else ""
            )
            raise InvalidRequest(
                say("The form has no part named 'file'{fields}.", fields=came), param="file"
            )
        self._part = part
        async with reading():
            if part.filename is None:
                raise InvalidRequest("The part 'file' is no file: it has no filename.")
            self.title = clean_title(part.filename)
            while len(self._head) < HEAD and (chunk := await part.read_chunk(_CHUNK)):
                self._head += chunk
        if not self._head:
            raise InvalidRequest("The file is empty.", param="file")
        self.extension = checked(self.title, self._head[:HEAD], self._config.extensions)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The file's bytes. Raises BodyTooLarge, and InvalidRequest for a malformed form."""
        chunk, self._head = self._head, b""
        while chunk:
            self.size += len(chunk)
            if self.size > self._config.max_size:
                raise self._too_large()
            self._require_pace()
            yield chunk
            chunk = await self._read()

    async def finish(self) -> None:
        """Read the fields after the file."""
        async with reading():
            while (part := await self._next()) is not None:
                if part.name == "file" or part.filename is not None:
                    raise InvalidRequest("Send one file per upload.", param="file")
                await self._field(part)

    async def _require_boundary(self) -> None:
        """Require the boundary within the first lines: aiohttp would search the whole
        body for it."""
        content = self._request.content
        about = Message()
        about["Content-Type"] = self._request.headers.get("Content-Type", "")
        line = await content.readline()
        for _ in range(_MAX_BLANK):
            if line.strip():
                break
            line = await content.readline()
        if not line.startswith(b"--" + str(about.get_boundary("")).encode("utf-8", "replace")):
            raise ValueError("no boundary")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # aiohttp does the same
            content.unread_data(line)

    def _require_pace(self) -> None:
        """Raises SenderTooSlow. Bytes received before the present window do not count."""
        (began, before), now = self._window, self._clock()
        if now - began > START_S + (self.size - before) / SLOWEST:
            raise SenderTooSlow(
                say(
                    "The file comes at less than {least} KiB a second; send it over a better "
                    "line, or a smaller one.",
                    least=SLOWEST >> 10,
                )
            )
        if now - began > WINDOW_S:
            self._window = (now, self.size)

    async def _read(self) -> bytes:
        async with reading():
            chunk: bytes = await self._part.read_chunk(_CHUNK)
        return chunk

    async def _next(self) -> Any:
        part = await self._reader.next()
        self._parts += 1
        if self._parts > MAX_FIELDS + 2:  # two more: the file and the end
            raise InvalidRequest(say("The form has more than {most} fields.", most=MAX_FIELDS))
        if part is not None and not isinstance(part, BodyPartReader):
            raise InvalidRequest("The form holds another form; send plain parts.")
        coding = part.headers.get("Content-Transfer-Encoding", "binary") if part else "binary"
        if coding.lower() not in ("binary", "8bit", "7bit"):
            raise InvalidRequest(
                say("The form's parts must be binary, not {encoding!r}.", encoding=coding[:20])
            )
        return part

    async def _field(self, part: Any) -> None:
        value = bytearray()
        while chunk := await part.read_chunk(_CHUNK):
            value += chunk
            if len(value) > MAX_FIELD:
                raise InvalidRequest(
                    say("The form's field {name!r} is too long.", name=str(part.name)[:40])
                )
        self.fields[str(part.name)[:100]] = value.decode("utf-8", "replace")

    def _too_large(self) -> BodyTooLarge:
        most = self._config.max_size
        return BodyTooLarge(
            say("The file is larger than {most:g} MB (storage.max_size).", most=most / 1e6),
            param="file",
        )


def be_quiet() -> None:
    """Silence aiohttp's warnings about parts with unreadable names; callers get an error
    instead."""
    for category in _WARNINGS:
        warnings.simplefilter("ignore", category)


@asynccontextmanager
async def reading() -> AsyncIterator[None]:
    """Map aiohttp's exceptions for a malformed form or a stalled sender to the gateway's errors."""
    try:
        async with asyncio.timeout(SILENCE_S):
            yield
    except TimeoutError:
        raise SenderTooSlow(
            say("Nothing came for {seconds:g} s; send the file again.", seconds=SILENCE_S)
        ) from None
    except (ValueError, RuntimeError, HttpProcessingError, web.RequestPayloadError, AssertionError):
        raise InvalidRequest(
            "The form is not valid multipart/form-data, or it ends too early."
        ) from None
