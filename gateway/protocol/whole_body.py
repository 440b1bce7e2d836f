"""A whole JSON answer that is forwarded unchanged."""

from collections.abc import Callable
from typing import Any, Protocol

import orjson

from gateway.errors import EmptyAnswer, GatewayError, UpstreamFailed
from gateway.language.sentences import say
from gateway.protocol import loosejson
from gateway.protocol.completions import has_content, lines_as_events
from gateway.protocol.exchange import UpstreamReply
from gateway.protocol.messages import Delta, Failed, Finish, Raw, Usage
from gateway.protocol.reported_errors import reported_error
from gateway.protocol.sse import SHOWN, is_stream, without_blank
from gateway.protocol.template import EventTemplate
from gateway.protocol.usage import read_usage

Explain = Callable[[Any], GatewayError]
MAX_BODY = 32 << 20  # bytes of a whole answer


class Streamed(Protocol):
    """The interface of a stream decoder that `WholeBody` needs."""

    def feed(self, chunk: bytes) -> list[Delta]: ...

    def close(self) -> list[Delta]: ...


class WholeBody:
    """A whole JSON answer, unchanged, once it is complete; or the deltas of a stream, from an
    upstream that streams without being asked to."""

    ends_with_connection = False
    pause: dict[str, Any] | None = None
    changed: tuple[str, ...] = ()

    def __init__(self, explain: Explain, streamed: Callable[[], Streamed]) -> None:
        """`streamed` makes a decoder for such a stream."""
        self.done = False
        self.ending = False
        self.conversation_id = ""
        self.life = SHOWN
        self._explain = explain
        self._streamed = streamed
        self._body: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[Delta]:
        self._size += len(chunk)
        if self._size > MAX_BODY:
            self.done = True
            message = say("The upstream's answer is over {most} bytes.", most=MAX_BODY)
            return [Failed(UpstreamFailed(message))]
        self._body.append(chunk)
        return []

    def usage_so_far(self) -> Usage | None:
        return None

    def pattern(self, chunk: bytes, delta: Delta) -> EventTemplate | None:
        return None

    def close(self) -> list[Delta]:
        if self.done:
            return []
        self.done = True
        data = b"".join(self._body).lstrip()
        try:
            value, is_strict = orjson.loads(data), True
        except orjson.JSONDecodeError:
            data = without_blank(data)
            stream = data if is_stream(data) else lines_as_events(UpstreamReply(200, {}, data))
            if stream:
                decoder = self._streamed()
                return decoder.feed(stream) + decoder.close()
            value, is_strict = loosejson.value_in(data), False
        if is_strict and _is_plainly_good(value):
            return [Raw(data), Finish(usage=read_usage(value.get("usage")))]
        if failure := reported_error(value):
            return [Failed(self._explain(failure))]
        body = value if isinstance(value, dict) else {}
        if "choices" in body:
            if not has_content(body):
                return [Failed(EmptyAnswer(say("The upstream")))]
            strict = data if is_strict else loosejson.mend(data)
            return [Raw(strict), Finish(usage=read_usage(body.get("usage")))]
        if body or (value and isinstance(value, str)):
            return [Failed(self._explain(value))]
        return [Failed(UpstreamFailed("The upstream sent something that is not a completion."))]


def _is_plainly_good(body: Any) -> bool:
    """Whether a completion has the most common form: `reported_error` and `has_content` would find
    the same in ten times the time."""
    if type(body) is not dict or body.get("error") or body.get("errors"):
        return False
    choices = body.get("choices")
    first = choices[0] if type(choices) is list and choices else None
    if type(first) is not dict or first.get("error"):
        return False
    return first.get("finish_reason") in _ENDINGS


_ENDINGS = ("stop", "length", "tool_calls", "content_filter", "function_call")
