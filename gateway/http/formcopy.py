"""A multipart form to pass through: stored until it is complete, then sent with another model.

Clients put the field `model` before or after the file, and only the model decides the target. So
the form is stored: the first megabyte in memory, a larger one in an anonymous temporary file.
"""

import asyncio
import secrets
import tempfile
import threading
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import IO, Any, Self

from aiohttp import web

from gateway.config.models import Storage
from gateway.errors import InvalidRequest, StorageFull, TooManyAtOnce, UnsupportedMediaType
from gateway.http.multipart import UploadForm, be_quiet, reading
from gateway.limits.shares import Part

_CHUNK = 64 * 1024
IN_MEMORY = 1 << 20  # bytes
_MAX_FIELD = 64 * 1024  # bytes of the field `model`


class FormCopy(UploadForm):
    """`async with`: `await keep()` returns the model that the form asks for; then `head`, `rest`
    and `size` describe the same form with another model."""

    def __init__(self, request: web.Request, config: Storage, held: Part) -> None:
        """`held` is its share of `server.max_forms`."""
        super().__init__(request, config)
        self._held = held
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
            await asyncio.to_thread(self._kept.close)
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
            else:
                await self._copy(part)
        await self._write(f"--{self._boundary}--\r\n".encode())
        return model

    def head(self, model: str) -> bytes:
        """The bytes to send before `rest`: the form's field `model`."""
        return (
            f'--{self._boundary}\r\nContent-Disposition: form-data; name="model"\r\n\r\n{model}\r\n'
        ).encode()

    async def rest(self) -> AsyncGenerator[bytes, None]:
        """The rest of the form, `size` bytes. Every call reads from the beginning: if an agent
        does not take the form, another one may."""
        at = 0
        while piece := await asyncio.to_thread(self._read_at, at):
            at += len(piece)
            yield piece

    def _read_at(self, at: int) -> bytes:
        with self._lock:  # a read that was cancelled may still be going on in its thread
            self._kept.seek(at)
            return self._kept.read(_CHUNK)

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
        while True:
            async with reading():
                chunk = await part.read_chunk(_CHUNK)
            if not chunk:
                break
            await self._write(chunk)
            self._require_pace()
        await self._write(b"\r\n")

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
