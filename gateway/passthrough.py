"""Answers that go to the caller as they came: the upstream speaks the caller's own protocol.

The bytes are searched, not parsed. Inside a JSON string a quote is escaped, so the patterns below
match members of the JSON and never the text of an answer.
"""

import re
from collections.abc import Callable
from typing import Any

import orjson

from gateway.errors import GatewayError, UpstreamCut, UpstreamFailed
from gateway.messages import Begin, Delta, Failed, Finish, Raw, Usage
from gateway.pattern import Pattern, find_pattern
from gateway.sse import DONE, Life, Parser, shows_life
from gateway.usage import read_usage

MAX_EVENT = 1 << 20  # bytes
MAX_BODY = 32 << 20  # bytes of a whole answer

_BLOCK = re.compile(rb".*?(?:\r\n\r\n|\n\n|\r\r)", re.DOTALL)
_LINE_END = re.compile(rb"[\r\n]")
_USAGE = re.compile(rb'"usage":\s*\{')
_CONTENT = re.compile(
    rb'"(?:content|reasoning_content|reasoning|refusal)":\s*(?:"[^"]|\[)'
    rb'|"(?:tool_calls|function_call|audio)":\s*[\[{]'
)
_FINISH = re.compile(rb'"finish_reason":\s*"[^"]')

Explain = Callable[[Any], GatewayError]


class PassThrough:
    """Whole events of the upstream, unchanged, in one piece per network chunk.

    Only whole events go on, so a cut connection leaves no half event at the caller.
    `explain` makes an error of the upstream's `error` member.
    """

    def __init__(self, explain: Explain, hides_usage: bool = False) -> None:
        """`hides_usage`: the event that has nothing but the usage is not for the caller."""
        self.done = False
        self.ending = False
        self.conversation_id = ""
        self.life = Life.NONE
        self._explain = explain
        self._hides_usage = hides_usage
        self._held: list[bytes] = []  # the unfinished event
        self._held_size = 0
        self._seam = b""  # its last bytes, which may be a part of its end
        self._is_in_comment: bool | None = None  # its last line; None if that has not begun
        self._opening = b""  # events before the first that says something
        self._begun = False
        self._finished = False
        self._usage: Usage | None = None

    def feed(self, chunk: bytes) -> list[Delta]:
        whole = self._whole_events(chunk)
        if self._held_size > MAX_EVENT:
            self.done = True
            return [
                Failed(UpstreamFailed(f"The upstream sent an event of over {MAX_EVENT} bytes."))
            ]
        return self._inspect(whole) if whole else []

    def counted(self) -> Usage | None:
        return self._usage

    def pattern(self, chunk: bytes, delta: Delta) -> Pattern | None:
        if type(delta) is not Raw or delta.data is not chunk:
            return None
        return find_pattern(chunk, (b"content",), None, None)

    def _whole_events(self, chunk: bytes) -> bytes:
        """The events that `chunk` completes. Each byte is looked at once, or as one of three that
        stand before a chunk, however small the pieces of an event are."""
        if not self._held and chunk.endswith(b"\n\n"):  # nearly always
            self.life = Life.SHOWN if shows_life(chunk) else Life.NONE
            return chunk
        seam = self._seam + chunk
        ends = (_after(seam, mark) for mark in (b"\n\n", b"\r\n\r\n", b"\r\r"))
        end = max(0, max(ends) - len(self._seam))
        whole = b""
        if end:
            whole = b"".join(self._held) + chunk[:end]
            chunk, self._held, self._held_size = chunk[end:], [], 0
            self._seam, self._is_in_comment = b"", None
        is_growing = self._grows(chunk)
        if chunk:
            self._held.append(chunk)
            self._held_size += len(chunk)
            self._seam = (self._seam + chunk)[-3:]
        if whole and shows_life(whole):
            self.life = Life.SHOWN
        else:
            self.life = Life.GROWING if is_growing else Life.NONE
        return whole

    def _grows(self, piece: bytes) -> bool:
        """Whether this piece of an unfinished event has something outside of comments."""
        grows = False
        for i, line in enumerate(_LINE_END.split(piece)):
            if i:
                self._is_in_comment = None
            if line and self._is_in_comment is None:
                self._is_in_comment = line.startswith(b":")
            grows = grows or (bool(line) and not self._is_in_comment)
        return grows

    def _inspect(self, data: bytes) -> list[Delta]:
        failed: Failed | None = None
        says_nothing = False
        if _is_odd(data):
            data, failed = self._look_closer(data)
        if b'"usage"' in data and _USAGE.search(data):
            self._usage = _last_usage(data) or self._usage
            if self._hides_usage:
                data = _without_usage(data)
        if b'"finish_reason":"' in data or b'"finish_reason": "' in data:
            self._finished = self._finished or bool(_FINISH.search(data))
        if not self._begun:
            says_nothing = b"data:" not in data
            data = self._opening + data
            if len(data) > MAX_EVENT:
                self.done = True
                return [Failed(UpstreamFailed("The upstream sends events that say nothing."))]
            self._begun = (
                self._finished or bool(_CONTENT.search(data)) or (self.done and not failed)
            )
            self._opening = data
        out: list[Delta] = []
        if self._begun:
            out = [Raw(data)] if data else []
        elif not failed:  # a role is no sign that the model works, a comment none of life
            return [] if says_nothing else [Begin()]
        if failed:
            out.append(failed)
        elif self.done:
            out.append(Finish(usage=self._usage))
        return out

    def _look_closer(self, data: bytes) -> tuple[bytes, Failed | None]:
        """The events worth passing on, up to the end or an error, and the error."""
        if _ends_plainly(data):
            self.done = True
            return data, None
        kept = []
        for match in _BLOCK.finditer(data):
            block = match[0]
            events = Parser(len(data) + 2).feed(block)
            payload = b"".join(event.data for event in events).strip()
            if payload == b"[DONE]":
                kept.append(block)
                self.done = True
                break
            error = _error_of(payload) if b'"error"' in payload else None
            if error or any(event.name == "error" for event in events):
                self.done = True
                return b"".join(kept), Failed(self._explain(error or _object(payload)))
            if payload or b"data" not in block:
                kept.append(block)
        return b"".join(kept), None

    def close(self) -> list[Delta]:
        if self.done:
            return []
        out: list[Delta] = []
        if _is_whole(rest := b"".join(self._held).rstrip(b"\r\n")):
            out = self._inspect(rest + b"\n\n")  # closed without its last blank line
        if not self.done:
            self.done = True
            if self._finished:  # complete, though its [DONE] is missing
                out += [Raw(DONE), Finish(usage=self._usage)]
            else:
                out.append(
                    Failed(UpstreamCut("The upstream's answer ended before it was complete."))
                )
        return out


class WholeBody:
    """A whole JSON answer, unchanged, once it has come entirely."""

    def __init__(self, explain: Explain) -> None:
        self.done = False
        self.ending = False
        self.conversation_id = ""
        self.life = Life.SHOWN
        self._explain = explain
        self._body: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[Delta]:
        self._size += len(chunk)
        if self._size > MAX_BODY:
            self.done = True
            return [Failed(UpstreamFailed(f"The upstream's answer is over {MAX_BODY} bytes."))]
        self._body.append(chunk)
        return []

    def counted(self) -> Usage | None:
        return None

    def pattern(self, chunk: bytes, delta: Delta) -> Pattern | None:
        return None

    def close(self) -> list[Delta]:
        if self.done:
            return []
        self.done = True
        data = b"".join(self._body)
        body = _object(data)
        if isinstance(body.get("choices"), list) and body["choices"]:
            return [Raw(data), Finish(usage=read_usage(body.get("usage")))]
        if body:
            return [Failed(self._explain(body.get("error") or body))]
        return [Failed(UpstreamFailed("The upstream sent something that is not a completion."))]


def _is_odd(data: bytes) -> bool:
    """Whether there may be an error, the end, or an event without data (SDKs fail on those).

    Plain searches for fixed bytes: a regular expression over every event costs ten times as much.
    """
    return (
        b"error" in data
        or b"[DONE]" in data
        or b"data:\n" in data
        or b"data: \n" in data
        or b"data:\r" in data
        or b"data: \r" in data
    )


def _ends_plainly(data: bytes) -> bool:
    """Whether `[DONE]`, as an event of its own at the end, is all that is odd about it: nearly
    always, and then no event needs to be read."""
    rest = data[: -len(DONE)]
    return data.endswith(DONE) and (not rest or rest.endswith(b"\n\n")) and not _is_odd(rest)


def _after(data: bytes, mark: bytes) -> int:
    at = data.rfind(mark)
    return at + len(mark) if at >= 0 else 0


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _error_of(payload: bytes) -> Any:
    """The event's error; what cannot be read and speaks of one is taken for one."""
    try:
        value = orjson.loads(payload)
    except orjson.JSONDecodeError:
        return {"message": "it sent an error that is not JSON"}
    return value.get("error") if isinstance(value, dict) else None


def _last_usage(data: bytes) -> Usage | None:
    """Of the last event that has one at its top. It is looked for in one line, and only if there
    is none, or JSON over several lines, in all the events."""
    at = data.rfind(b'"usage"')
    line = data[data.rfind(b"\n", 0, at) + 1 : data.find(b"\n", at)]
    if line.startswith(b"data:") and (usage := read_usage(_object(line[5:]).get("usage"))):
        return usage
    found = None
    for event in Parser(len(data) + 2).feed(data):
        if _USAGE.search(event.data):
            found = read_usage(_object(event.data).get("usage")) or found
    return found


def _without_usage(data: bytes) -> bytes:
    """The events but for those that hold the usage and no choice."""
    kept = []
    for match in _BLOCK.finditer(data):
        events = Parser(len(data) + 2).feed(match[0])
        told = _object(events[0].data) if events else {}
        if not told.get("usage") or told.get("choices"):
            kept.append(match[0])
    return b"".join(kept)


def _is_whole(block: bytes) -> bool:
    """Whether an event without its blank line has all of its data."""
    events = Parser(len(block) + 2).feed(block + b"\n\n") if block else []
    return bool(events) and all(e.data.strip() == b"[DONE]" or _object(e.data) for e in events)


_USAGE_OBJECT = re.compile(rb'"usage":\s*(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})')


def usage_at_end(tail: bytes) -> Usage | None:
    """The last usage object in the end of an answer that was only copied."""
    found = _USAGE_OBJECT.findall(tail)
    return read_usage(_object(found[-1])) if found else None
