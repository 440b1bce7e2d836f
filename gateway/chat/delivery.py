"""Delivers the files of a question to the platform that is asked."""

from collections.abc import Callable
from dataclasses import replace

from gateway.chat.attachments import MAX_DATA, Attachments
from gateway.chat.routing import Target
from gateway.chat.steps import resolve
from gateway.errors import BodyTooLarge, FileNotFound, InvalidRequest, KindNotTaken
from gateway.language.sentences import say
from gateway.protocol.exchange import Source
from gateway.protocol.messages import ChatRequest, Media
from gateway.upstream.client import Upstream

MAX_UPLOADED = 50  # files that one question uploads


class Delivery:
    """The files of one question, prepared for each target that is tried."""

    def __init__(
        self,
        upstream: Upstream,
        attachments: Attachments,
        chat: ChatRequest,
        hold: Callable[[int], None],
    ) -> None:
        """`hold` reserves memory, in bytes, for each file embedded in a request."""
        self._hold = hold
        self._upstream = upstream
        self._attachments = attachments
        self.chat = chat
        self._uploaded: dict[tuple[str, Media], str] = {}  # ids of files that a target already has
        self._held: dict[Media, Media] = {}  # files embedded in a request
        self._size = 0  # bytes of embedded files; repetitions count again

    async def prepare(self, target: Target) -> ChatRequest:
        """The question with its files in the form that this target's platform accepts.

        Raises KindNotTaken, and the error that keeps a file from being read or delivered.
        """
        learn = target.platform.learn_kinds
        await resolve(self._upstream, target, learn(), learn)
        chat, self._size = self.chat.at(target.name), 0
        sends_turns = chat.resent or target.platform.sends_turns(chat)
        start = 0 if sends_turns else len(chat.messages) - 1
        messages = list(chat.messages)
        for i, message in enumerate(messages[start:], start):
            media = [await self._carried(target, media) for media in message.media]
            messages[i] = replace(message, media=tuple(media))
        return replace(chat, messages=tuple(messages))

    async def _carried(self, target: Target, media: Media) -> Media:
        platform = target.platform
        if media.uploaded:
            if not (platform.keeps_files or (self.chat.verbatim and platform.passes_through)):
                raise FileNotFound(
                    say(
                        "Agent {name!r} knows no file {id!r}: ids of another agent's platform mean "
                        "nothing to it.",
                        name=target.name,
                        id=media.uploaded[:120],
                    ),
                    param="files",
                )
            return media
        require_kind(target, media)
        how = platform.delivery(media, self.chat)
        if how == "inline":
            return await self._inside(media)
        if how == "upload":
            id_ = self._uploaded.get((target.name, media))
            if id_ is None:
                if len(self._uploaded) >= MAX_UPLOADED:
                    raise InvalidRequest(
                        say("A question may bring {most} files.", most=MAX_UPLOADED), param="files"
                    )
                async with self._attachments.open(media) as source:
                    id_ = await upload_file(self._upstream, target, source, lambda: self.chat.user)
                self._uploaded[target.name, media] = id_
            return Media(media.kind, "", media.name, uploaded=id_)
        return media

    async def _inside(self, media: Media) -> Media:
        """The file as a `data:` URL; a repeated file is encoded once, but counts each time."""
        left = MAX_DATA - self._size
        held = self._held.get(media)
        if held is None:
            held = self._held[media] = await self._attachments.as_data(media, left, self._hold)
        size = (len(held.url) - held.url.index(",")) * 3 // 4
        if size > left + 3:  # for the padding
            raise BodyTooLarge("The question's files are too large together; give public URLs.")
        self._size += size
        return held


def require_kind(target: Target, media: Media) -> None:
    """Raises KindNotTaken if the target does not accept files of this kind."""
    if media.kind in target.kinds:
        return
    kinds = ", ".join(sorted(target.kinds))
    takes = say("text and these: {kinds}", kinds=kinds) if kinds else say("text only")
    raise KindNotTaken(
        say(
            "Agent {name!r} takes no files of the kind {kind!r}; it takes {takes}.",
            name=target.name,
            kind=media.kind,
            takes=takes,
        ),
        param="files",
    )


async def upload_file(
    upstream: Upstream, target: Target, source: Source, user: Callable[[], str]
) -> str:
    """Stream a file to the target's platform; return its id there."""
    step = await resolve(upstream, target, target.platform.upload(), target.platform.upload)
    reply = await upstream.send_file(step, source, user, target.way, target.agent.timeouts.total)
    return target.platform.uploaded(reply)
