"""The simulators' common base: an application, a pace, stored conversations and files, SSE."""

import asyncio
import hashlib
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, cast

import orjson
from aiohttp import BodyPartReader, web
from aiohttp.http import HttpProcessingError

from gateway.demo.script import Speech
from gateway.demo.talks import Talks, Turn

MAX_CONVERSATIONS = 1000
MAX_TURNS = 50
MAX_FILES = 10_000
MAX_PARTS = 100
MAX_FIELD_BYTES = 4 << 10
_CHUNK_BYTES = 64 << 10
_HEAD_BYTES = 64


@dataclass(frozen=True)
class Upload:
    """An uploaded file, without its content; the other fields identify it."""

    id: str
    name: str
    mime: str  # as declared; empty if it was not
    size: int
    sha256: str
    fields: dict[str, str]  # the form's other fields
    head: bytes = b""  # the first bytes
    created_at: int = 0


@dataclass
class Form:
    """A parsed multipart request. A broken one is not a form, and has no content."""

    fields: dict[str, str] = field(default_factory=dict)
    files: list[tuple[str, Upload]] = field(default_factory=list)  # (name of the field, file)
    broken: bool = False


class Demo:
    """A simulator. `key` is the only one it accepts; an empty one means any key.

    `pace_s` is the pause between two pieces, `silence_s` the pause for `#slow`.
    """

    platform = ""

    def __init__(self, key: str = "", pace_s: float = 0.03, silence_s: float = 30.0) -> None:
        self.key = key
        self.pace_s = pace_s
        self.silence_s = silence_s
        self.requests: list[tuple[str, Any]] = []  # (path, body) of the latest calls
        self.stopped: list[str] = []  # ids of runs that a caller has stopped
        self.uploads: list[Upload] = []  # the latest accepted files
        self.aborted_uploads = 0  # uploads whose sender disconnected before their end
        self._files: OrderedDict[str, Upload] = OrderedDict()
        self._conversations: OrderedDict[str, list[str]] = OrderedDict()
        self.talks = Talks()

    def app(self) -> web.Application:
        app = web.Application(client_max_size=32 << 20, middlewares=[_leavers_are_no_error])
        for method, path, handler in self.routes():
            app.router.add_route(method, path, handler)
        return app

    def routes(self) -> list[tuple[str, str, Any]]:
        raise NotImplementedError

    def knows_key(self, request: web.Request) -> bool:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        return not self.key or token == self.key

    async def body(self, request: web.Request) -> dict[str, Any]:
        """The JSON body, recorded so that tests can inspect it."""
        raw = await request.read()
        try:
            value = orjson.loads(raw or b"{}")
        except orjson.JSONDecodeError:
            value = None
        self.requests.append((request.path_qs, value))
        del self.requests[:-200]
        return value if isinstance(value, dict) else {}

    async def form(self, request: web.Request, id_: Callable[[], str]) -> Form:
        """A multipart body, read piece by piece; its files are not stored yet (see `take`)."""
        if request.content_type != "multipart/form-data":
            return Form(broken=True)
        form = Form()
        try:
            async for part in await request.multipart():
                if len(form.fields) + len(form.files) == MAX_PARTS:
                    return Form(broken=True)
                if isinstance(part, BodyPartReader):
                    await _read_part(part, form, id_)
        except (ValueError, RuntimeError, HttpProcessingError):  # aiohttp's, of a malformed form
            return Form(broken=True)
        except (asyncio.CancelledError, ConnectionError, web.RequestPayloadError):
            self.aborted_uploads += 1
            raise
        return form

    def take(self, upload: Upload) -> Upload:
        """Store a file, so that a question can refer to it."""
        self.uploads.append(upload)
        del self.uploads[:-200]
        self._files[upload.id] = upload
        while len(self._files) > MAX_FILES:
            self._files.popitem(last=False)
        return upload

    def file(self, id_: Any) -> Upload | None:
        return self._files.get(id_) if isinstance(id_, str) else None

    def conversation(self, id_: str) -> list[str] | None:
        """The questions so far, or None for an unknown conversation."""
        if id_ in self._conversations:
            self._conversations.move_to_end(id_)
        return self._conversations.get(id_)

    def remember(self, id_: str, question: str) -> list[str]:
        """Add a question to a conversation, new or not; returns the earlier ones."""
        earlier = list(self._conversations.setdefault(id_, []))
        self._conversations[id_] = [*earlier, question][-MAX_TURNS:]
        self._conversations.move_to_end(id_)
        while len(self._conversations) > MAX_CONVERSATIONS:
            self._conversations.popitem(last=False)
        return earlier

    def clear_context(self, id_: str) -> None:
        """Forget the questions of a conversation, which goes on."""
        self._conversations[id_] = []

    def forget(self, id_: str) -> bool:
        """Delete a conversation. False if it is unknown."""
        self.talks.pop(id_)
        return self._conversations.pop(id_, None) is not None

    async def pieces(
        self, speech: Speech, stream: "Stream", turn: Turn | None = None
    ) -> AsyncIterator[tuple[str, str]]:
        """("think" or "say", piece) at a human pace; faults in the middle happen here. `turn` keeps
        what was said."""
        turn = turn or Turn("", "")
        try:
            async for kind, piece in self._pieces(speech, stream):
                turn.say(kind, piece)
                yield kind, piece
            turn.finish(speech)
        except Broken:
            turn.fail("the failure you asked for")
            raise
        finally:
            if turn.status == "running":  # the caller has left
                turn.status = "stopped"

    async def _pieces(self, speech: Speech, stream: "Stream") -> AsyncIterator[tuple[str, str]]:
        if speech.fault == "slow":
            await asyncio.sleep(self.silence_s)
        for piece in speech.reasoning:
            await asyncio.sleep(self.pace_s)
            yield "think", piece
        for i, piece in enumerate(speech.pieces):
            await asyncio.sleep(self.pace_s)
            if i == 5 and speech.fault == "break":
                raise Broken
            if i == 5 and speech.fault == "cut":
                stream.cut()
                raise Broken
            yield "say", piece


async def _read_part(part: BodyPartReader, form: Form, id_: Callable[[], str]) -> None:
    """Add one part to a form: a file if it has a file name, even an empty one, else a field."""
    size, digest, head = 0, hashlib.sha256(), b""
    keep = MAX_FIELD_BYTES if part.filename is None else _HEAD_BYTES
    while not part.at_eof():
        chunk = await part.read_chunk(_CHUNK_BYTES)
        size += len(chunk)
        digest.update(chunk)
        head += chunk[: keep - len(head)]
    name = _clean(part.name or "")
    if part.filename is None:
        form.fields[name] = head.decode("utf-8", "replace")
        return
    # `fields` is the form's own dict, because a field may come after the file.
    upload = Upload(
        id_(), _clean(part.filename), _clean(part.headers.get("Content-Type", "")), size,
        digest.hexdigest(), form.fields, head, int(time.time()),
    )  # fmt: skip
    form.files.append((name, upload))


def _clean(header: str) -> str:
    """A header's text without the surrogates that aiohttp makes from invalid UTF-8."""
    return header.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


@web.middleware
async def _leavers_are_no_error(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        return cast(web.StreamResponse, await handler(request))
    except ConnectionError:  # also of a connection that `#cut` has closed
        raise asyncio.CancelledError from None


class Broken(Exception):
    """The run fails in the middle, as requested."""


class Stream:
    """An event stream answer in progress."""

    def __init__(self, response: web.StreamResponse, request: web.Request) -> None:
        self._response = response
        self._request = request

    @classmethod
    async def open(
        cls, request: web.Request, content_type: str, headers: dict[str, str] | None = None
    ) -> "Stream":
        response = web.StreamResponse(headers={"Content-Type": content_type, **(headers or {})})
        await response.prepare(request)
        return cls(response, request)

    async def write(self, data: bytes) -> None:
        await self._response.write(data)

    async def close(self) -> web.StreamResponse:
        if self._request.transport is not None:
            await self._response.write_eof()
        return self._response

    def cut(self) -> None:
        """Break the connection as a crashing server would."""
        if self._request.transport is not None:
            self._request.transport.abort()

    @property
    def is_cut(self) -> bool:
        return self._request.transport is None or self._request.transport.is_closing()


def dumps(value: Any) -> bytes:
    return orjson.dumps(value)


def json(value: Any, status: int = 200, **headers: str) -> web.Response:
    return web.Response(
        body=orjson.dumps(value), status=status, content_type="application/json", headers=headers
    )


def new_id() -> str:
    return str(uuid.uuid4())


def digits(length: int = 19) -> str:
    """An id in the form that Coze and Zhipu use."""
    return "7" + str(uuid.uuid4().int)[: length - 1]
