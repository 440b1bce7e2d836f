"""A multipart form to pass on: stored until it is complete, then sent with another model, or in
another form.

Clients put the field `model` before or after the file, and only the model decides the target. So
the form is stored: the first megabyte in memory, a larger one in an anonymous temporary file.
"""

import asyncio
import secrets
import tempfile
import threading
from collections.abc import AsyncGenerator, Mapping
from types import TracebackType
from typing import IO, Any, Self

from aiohttp import web

from gateway.config.models import Storage
from gateway.errors import InvalidRequest, StorageFull, TooManyAtOnce, UnsupportedMediaType
from gateway.files.library import clean_title
from gateway.filetypes import extension_of
from gateway.http.multipart import UploadForm, be_quiet, reading
from gateway.limits.shares import Part
from gateway.protocol.audio import extension_for
from gateway.protocol.exchange import UpstreamRequest

_CHUNK = 64 * 1024
IN_MEMORY = 1 << 20  # bytes
_MAX_FIELD = 64 * 1024  # bytes of the field `model`


class FormCopy(UploadForm):
    """`async with`: `await keep()` returns the model that the form asks for; then `head`, `rest`
    and `size` describe the same form with another model, and `as_form` its file alone.

    `fields` are the other text fields, as far as they have up to 64 KiB.
    """

    def __init__(
        self,
        request: web.Request,
        config: Storage,
        held: Part,
        only: frozenset[str] | None = None,
    ) -> None:
        """`held` is its share of `server.max_forms`. Parts are dropped if their names are not among
        `only`; None keeps all."""
        super().__init__(request, config)
        self._held = held
        self._only = only
        self._dropped = 0  # bytes of parts that are not kept
        self.files = 0  # parts named `file` that are files
        self.file_size = 0  # bytes of the last of them
        self._file_at = 0  # where the file begins in what is stored
        self._kept: IO[bytes] = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115
        self._lock = threading.Lock()
        self._boundary = f"gateway-{secrets.token_hex(16)}"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            # A caller who leaves now cancels the wait, but not the closing.
            await asyncio.shield(asyncio.to_thread(self._kept.close))
        finally:
            self._held.give_back()

    @property
    def content_type(self) -> str:
        return f"multipart/form-data; boundary={self._boundary}"

    async def keep(self) -> str:
        """Read the whole form, at most `storage.max_size` bytes.

        Raises InvalidRequest, BodyTooLarge, UnsupportedMediaType, SenderTooSlow, StorageFull,
        TooManyAtOnce.
        """
        if self._request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise UnsupportedMediaType("Send the form as it is, without a Content-Encoding.")
        if (self._request.content_length or 0) > self._config.max_size:
            raise self._too_large()
        self._hold(self._request.content_length or 0)
        be_quiet()
        async with reading():
            await self._require_boundary()
            self._reader = await self._request.multipart()
        model = ""
        while (part := await self._part_after()) is not None:
            if part.name == "model" and part.filename is None:
                model = await self._model(part)
            elif self._only is None or part.name in self._only:
                await self._copy(part)
            else:
                await self._skip(part)
        await self._write(f"--{self._boundary}--\r\n".encode())
        return model

    def head(self, model: str) -> bytes:
        """The bytes to send before `rest`: the form's field `model`."""
        return (
            f'--{self._boundary}\r\nContent-Disposition: form-data; name="model"\r\n\r\n{model}\r\n'
        ).encode()

    def rest(self) -> AsyncGenerator[bytes, None]:
        """The rest of the form, `size` bytes. Every call reads from the beginning: if an agent
        does not take the form, another one may."""
        return self._stored(0, self.size)

    def as_form(
        self, url: str, headers: Mapping[str, str], fields: Mapping[str, str], mime: str
    ) -> UpstreamRequest:
        """See `protocol.audio.AsForm`."""
        line = f"--{self._boundary}\r\nContent-Disposition: form-data; name="
        head = "".join(f'{line}"{name}"\r\n\r\n{value}\r\n' for name, value in fields.items())
        name = f"audio.{self.extension}" if self.extension else "audio"
        head += f'{line}"file"; filename="{name}"\r\nContent-Type: {mime}\r\n\r\n'
        tail = f"\r\n--{self._boundary}--\r\n".encode()
        others = {name: headers[name] for name in headers if name.lower() != "content-type"}
        return UpstreamRequest(
            "POST",
            url,
            {**others, "Content-Type": self.content_type},
            head.encode("utf-8", "replace"),
            rest=self._stored(self._file_at, self._file_at + self.file_size, tail),
            rest_size=self.file_size + len(tail),
        )

    async def _stored(self, start: int, end: int, tail: bytes = b"") -> AsyncGenerator[bytes, None]:
        while start < end and (piece := await asyncio.to_thread(self._read_at, start, end)):
            start += len(piece)
            yield piece
        if tail:
            yield tail

    def _read_at(self, start: int, end: int) -> bytes:
        with self._lock:  # a read that was cancelled may still be going on in its thread
            self._kept.seek(start)
            return self._kept.read(min(_CHUNK, end - start))

    async def _part_after(self) -> Any:
        async with reading():
            return await self._next()

    async def _model(self, part: Any) -> str:
        value = b""
        async with reading():
            while chunk := await part.read_chunk(_CHUNK):
                value += chunk
                if len(value) > _MAX_FIELD:
                    raise InvalidRequest("The form's field 'model' is too long.", param="model")
        return value.decode("utf-8", "replace").strip()

    async def _copy(self, part: Any) -> None:
        headers = [f"--{self._boundary}"]
        for name in ("Content-Disposition", "Content-Type"):
            if name in part.headers:
                headers.append(f"{name}: {part.headers[name]}")
        await self._write("\r\n".join((*headers, "", "")).encode("utf-8", "surrogateescape"))
        start, value = self.size, b""
        while True:
            async with reading():
                chunk = await part.read_chunk(_CHUNK)
            if not chunk:
                break
            await self._write(chunk)
            self._require_pace()
            if part.filename is None and len(value) <= _MAX_FIELD:
                value += chunk
        self._note(part, start, value)
        await self._write(b"\r\n")

    def _note(self, part: Any, start: int, value: bytes) -> None:
        if part.filename is None and len(value) <= _MAX_FIELD:
            self.fields[str(part.name)[:100]] = value.decode("utf-8", "replace")
        elif part.name == "file":
            self.files += 1
            self._file_at, self.file_size = start, self.size - start
            kind = extension_for(part.headers.get("Content-Type", ""))
            self.extension = extension_of(clean_title(part.filename or "")) or kind

    async def _skip(self, part: Any) -> None:
        while True:
            async with reading():
                chunk = await part.read_chunk(_CHUNK)
            if not chunk:
                return
            self._dropped += len(chunk)
            if self._dropped > self._config.max_size:
                raise self._too_large()

    def _hold(self, size: int) -> None:
        """Reserve disk space. Raises TooManyAtOnce."""
        if size > IN_MEMORY and not self._held.grow(size):
            raise TooManyAtOnce(
                "The forms under way are too large together (server.max_forms); wait for one to"
                " end.",
                retry_after_s=5.0,
            )

    async def _write(self, data: bytes) -> None:
        self.size += len(data)
        if self.size > self._config.max_size:
            raise self._too_large()
        self._hold(self.size)
        try:
            if self.size <= IN_MEMORY:
                self._kept.write(data)
            else:
                await asyncio.to_thread(self._kept.write, data)
        except OSError:
            raise StorageFull from None
