"""Where files lie: what a folder and a bucket have in common."""

from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from gateway.protocol.exchange import Source

BLOCK = 256 * 1024  # bytes read or written at once

Chunks = AsyncIterator[bytes]


class Store(Protocol):
    """Files by name: `uploads/2026/11/22/<id>.<ending>`, made up by us and never by a client.

    Every method raises StorageUnavailable or StorageFull; those that read raise FileNotFoundError.
    """

    async def open(self) -> None:
        """Called once, before anything else. Does not wait for a server that is away."""

    async def close(self) -> None: ...

    async def put(self, name: str, chunks: Chunks, mime: str, disposition: str) -> int:
        """Keep a file as it comes, wholly or not at all; gives its size in bytes. What `chunks`
        raises goes through, and then nothing is kept."""

    async def write(self, name: str, data: bytes) -> None:
        """Keep a small file."""

    async def read(self, name: str) -> bytes:
        """A small file."""

    def source(self, name: str) -> AbstractAsyncContextManager[Source]:
        """A file's bytes as they come."""

    async def delete(self, names: Iterable[str]) -> None:
        """What is not there counts as deleted."""

    async def days(self) -> list[str]:
        """`2026/11/22` for each day that has files, the newest first."""

    async def names(self, day: str, begins: str = "") -> list[str]:
        """The names of a day's files whose last part begins so, in order."""

    async def sweep(self, older_than_s: float) -> None:
        """Remove what uploads have left that broke off with the whole process."""

    async def link(self, name: str) -> str:
        """A URL at the store itself, or "" if it has none that others could follow."""

    def name_in(self, url: str) -> str:
        """The name of the file that one of this store's own links leads to, or ""."""

    @property
    def has_public_links(self) -> bool:
        """Whether other machines can follow `link`."""

    async def check(self) -> None:
        """Raises what keeps the store from being used."""
