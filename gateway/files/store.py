"""The file store interface: what a folder and a bucket have in common."""

from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from gateway.protocol.exchange import Source

BLOCK = 256 * 1024  # bytes per read or write

Chunks = AsyncIterator[bytes]


class Store(Protocol):
    """Files by name: `uploads/2026/11/22/<id>.<ending>`, made by the gateway and never by a client.

    Every method raises StorageUnavailable or StorageFull; those that read raise FileNotFoundError.
    """

    async def open(self) -> None:
        """Called once, before anything else. Does not wait for an unavailable server."""

    async def close(self) -> None: ...

    async def put(self, name: str, chunks: Chunks, mime: str, disposition: str) -> int:
        """Store a file as it is received, completely or not at all; returns its size in bytes.
        Exceptions of `chunks` are passed on, and then nothing is stored."""

    async def write(self, name: str, data: bytes) -> None:
        """Store a small file."""

    async def read(self, name: str) -> bytes:
        """The content of a small file."""

    def source(self, name: str) -> AbstractAsyncContextManager[Source]:
        """A file's bytes as a stream."""

    async def delete(self, names: Iterable[str]) -> None:
        """Delete files; a missing file counts as deleted."""

    async def days(self) -> list[str]:
        """`2026/11/22` for each day that has files, newest first."""

    async def names(self, day: str, begins: str = "") -> list[str]:
        """The names of a day's files whose last part begins with `begins`, in order."""

    async def sweep(self, older_than_s: float) -> None:
        """Remove the remains of uploads that a crash of the process interrupted."""

    async def link(self, name: str) -> str:
        """A URL at the store itself, or "" if others could not open it."""

    def name_in(self, url: str) -> str:
        """The name of the file that a URL of this store refers to, or ""."""

    @property
    def has_public_links(self) -> bool:
        """Whether other machines can open `link`."""

    async def check(self) -> None:
        """Raises an error if the store cannot be used."""
