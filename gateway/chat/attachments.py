"""Files attached to a question: which ones this gateway stores, and where their bytes are."""

import base64
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from gateway.errors import BodyTooLarge, FileNotFound
from gateway.files.fetcher import Guard
from gateway.files.library import Files, name_of
from gateway.filetypes import MediaKind, extension_for, extension_of, kind_of, mime_of
from gateway.language.sentences import say
from gateway.protocol.data_url import read_data
from gateway.protocol.exchange import Source
from gateway.protocol.messages import Media, Message

MAX_DATA = 20 * 1024 * 1024  # bytes of files embedded in one request
MAX_REMEMBERED = 10_000
_BLOCK = 64 * 1024
_COPIES = 3  # of an embedded file: base64 as text, and in the JSON that is sent
_HELD_STEP = 1 << 20  # bytes, at least one block, for a file of unknown size


class Attachments:
    """One interface to the gateway's own files, `data:` URLs, and files that must be fetched."""

    def __init__(self, files: Files, guard: Guard) -> None:
        self._files = files
        self._guard = guard
        self._kinds: OrderedDict[str, MediaKind] = OrderedDict()  # of files stored at platforms

    def remember(self, id_: str, kind: MediaKind) -> None:
        """Remember a file's kind: a question must repeat it, and the platform's id lacks it."""
        self._kinds[id_] = kind
        while len(self._kinds) > MAX_REMEMBERED:
            self._kinds.popitem(last=False)

    def remembered(self, id_: str) -> MediaKind | None:
        return self._kinds.get(id_)

    async def resolve(
        self, messages: tuple[Message, ...], owner: str, origin: Callable[[], str]
    ) -> tuple[Message, ...]:
        """`messages` with the gateway's files looked up by their ids and links.

        `origin` returns the origin at which the client reached the gateway. Raises FileNotFound if
        a file of this gateway does not exist, or an id belongs to another owner.
        """
        out = []
        for message in messages:
            media = [await self._resolve(media, owner, origin) for media in message.media]
            out.append(replace(message, media=tuple(media)))
        return tuple(out)

    async def _resolve(self, media: Media, owner: str, origin: Callable[[], str]) -> Media:
        if name_of(media.uploaded):
            file = await self._files.get(media.uploaded, owner)
        elif media.uploaded:
            return replace(media, kind=self.remembered(media.uploaded) or media.kind)
        elif media.is_data:
            return media
        else:
            try:
                file = await self._files.find(self._files.name_in(media.url))
            except FileNotFound:
                if self._files.is_ours(media.url, origin()):
                    raise
                return replace(media, owner=owner)  # the link may be another gateway's
        link = await self._files.public_link(file)
        return Media(kind_of(file.mime), link, media.name or file.title, stored=file.name)

    @asynccontextmanager
    async def open(self, media: Media) -> AsyncIterator[Source]:
        """A file as a stream of bytes. Raises the error that makes it unreadable."""
        if media.stored:
            file = await self._files.find(media.stored)
            async with self._files.source(file) as source:
                yield replace(source, name=media.name or source.name)
        elif media.is_data:
            mime, data = read_data(media.url)
            yield Source(media.name or _name_for(media, mime), mime, len(data), _blocks(data))
        else:
            async with self._guard.open(media.url, media.owner) as source:
                name = media.name or source.name
                if not extension_of(name):
                    name = _name_for(media, source.mime)
                yield replace(source, name=name, mime=source.mime or mime_of(extension_of(name)))

    async def as_data(self, media: Media, most: int, hold: Callable[[int], None]) -> Media:
        """The same file as a `data:` URL. `hold` reserves memory, in bytes: before the read if the
        size is known, else as bytes arrive. Raises BodyTooLarge over `most` bytes, and the
        exceptions of `hold`."""
        data, held = bytearray(), 0
        async with self.open(media) as source:
            if source.size is not None and source.size <= most:
                held = source.size
                hold(held * _COPIES)
            async for block in source.chunks:
                data += block
                if len(data) > held:
                    hold(_HELD_STEP * _COPIES)
                    held += _HELD_STEP
                if len(data) > most:
                    raise BodyTooLarge(
                        say(
                            "With the file {name!r} there are more than {most:g} MiB, which is "
                            "the most that can go inside one request to this agent; give public "
                            "URLs instead.",
                            name=source.name,
                            most=MAX_DATA / (1 << 20),
                        )
                    )
            mime = source.mime or "application/octet-stream"
            encoded = base64.b64encode(data)
            data.clear()
            return Media(media.kind, f"data:{mime};base64,{encoded.decode()}", source.name)


def _name_for(media: Media, mime: str) -> str:
    extension = extension_for(mime)
    return f"{media.kind}.{extension}" if extension else media.kind


async def _blocks(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), _BLOCK):
        yield data[start : start + _BLOCK]
