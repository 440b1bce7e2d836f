"""One HTTP exchange with an upstream, as data: the request to send and the whole reply."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.protocol import loosejson
from gateway.protocol.charsets import as_utf8


@dataclass(slots=True)
class UpstreamRequest:
    """One HTTP call to make. `stream` asks for an event stream. Treat it as immutable; it is not
    frozen because one is made for every call."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    stream: bool = False
    rest: AsyncGenerator[bytes, None] | None = (
        None  # the rest of the body, `rest_size` bytes, sent as they are received
    )
    rest_size: int = 0
    max_reply: int = 0  # bytes of a whole answer; 0: the limit for all
    takes_pages: bool = False  # a 200 with HTML is an answer, too
    judges_json: bool = False  # a 200 with JSON is an answer only if `as_stream` takes it for one


@dataclass(frozen=True, slots=True)
class UploadRequest:
    """One file to send as a multipart form, in the part `file`. `user_field` is the form's field
    for the end user, if it has one."""

    url: str
    headers: Mapping[str, str]
    user_field: str = ""


@dataclass(frozen=True, slots=True)
class UpstreamReply:
    """A whole answer: to a preliminary request, or in place of the requested stream."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The parsed body, or None if it is not JSON."""
        try:
            return loosejson.loads(self._utf8)
        except loosejson.NotJson:
            return None

    @property
    def text(self) -> str:
        """The body as text; invalid bytes are replaced."""
        return self._utf8.decode("utf-8", "replace")

    @property
    def _utf8(self) -> bytes:
        kind = self.headers.get("Content-Type", "")
        return as_utf8(self.body, kind) if "charset" in kind.lower() else self.body

    def object(self) -> dict[str, Any]:
        """The parsed body if it is a JSON object, else an empty one."""
        value = self.json()
        return value if isinstance(value, dict) else {}


@dataclass(frozen=True, slots=True)
class Source:
    """A file's bytes as a stream. `size` None: known only at the end. `mime` may be ""."""

    name: str
    mime: str
    size: int | None
    chunks: AsyncIterator[bytes]
