"""An event stream that is forwarded unchanged: the upstream speaks the caller's own protocol.

The bytes are searched, not parsed. Inside a JSON string a quote is escaped, so the patterns below
match members of the JSON and never the text of an answer.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import orjson

from gateway.errors import EmptyAnswer, GatewayError, UpstreamCut, UpstreamFailed
from gateway.language.sentences import say
from gateway.protocol import loosejson, sse
from gateway.protocol.completions import as_chunk, has_content
from gateway.protocol.loosejson import object_in, value_in
from gateway.protocol.messages import Begin, Delta, Failed, Finish, Raw, Usage
from gateway.protocol.reported_errors import event_error
from gateway.protocol.sse import (
    DONE,
    ERRORS,
    MAX_EVENT,
    NONE,
    SHOWN,
    Event,
    Life,
    Parser,
    shows_life,
)
from gateway.protocol.template import EventTemplate, find_template
from gateway.protocol.usage import read_usage

_BLOCK_END = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_LINE_END = re.compile(rb"[\r\n]")
_RUNS_ON = re.compile(rb"\}\r\n?(?:data|event):")
_USAGE = re.compile(rb'"usage":\s*\{')
_CONTENT = re.compile(
    rb'"(?:content|reasoning_content|reasoning|refusal)":\s*(?:"[^"]|\[\s*[{"])'
    rb'|"(?:tool_calls|function_call|audio|images)":\s*[\[{]\s*[{"]'
)
_FINISH = re.compile(rb'"finish_reason":\s*"[^"]')
_BOM = b"\xef\xbb\xbf"
Explain = Callable[[Any], GatewayError]


class PassThrough:
    """Whole events of the upstream, unchanged, in one piece per network chunk.

    Only whole events are forwarded, so a cut connection leaves no half event at the caller.
    `explain` makes an error from the upstream's `error` member.
    """

    ends_with_connection = False
    pause: dict[str, Any] | None = None
    changed: tuple[str, ...] = ()

    def __init__(self, explain: Explain, hides_usage: bool = False) -> None:
        """`hides_usage`: do not forward the event that has only the usage."""
        self.done = False
        self.ending = False
        self.conversation_id = ""
        self.life = NONE
        self._explain = explain
        self._hides_usage = hides_usage
        self._held: list[bytes] = []  # the unfinished event
        self._held_size = 0
        self._seam = b""  # its last bytes, which may be a part of its end
        # used once a single line end was found between two events
        self._splitter: Parser | None = None
        # ends with half a surrogate pair; the other half may follow
        self._waiting: Event | None = None
        self._half = b""
        self._is_in_comment: bool | None = None  # its last line; None if that has not begun
        self._opening = b""  # events before the first one with content
        self._says = False  # an inspected event had content
        self._begun = False
        self._finished = False
        self._usage: Usage | None = None

    def feed(self, chunk: bytes) -> list[Delta]:
        try:
            whole = self._whole_events(chunk)
            if self._held_size > MAX_EVENT and not self._holds_data():
                raise UpstreamFailed(
                    say("The upstream sent an event of over {most} bytes.", most=MAX_EVENT)
                )
            return self._inspect(whole) if whole else []
        except UpstreamFailed as error:
            self.done = True
            return [Failed(error)]

    def _holds_data(self) -> bool:
        start = b"".join([piece[:8] for piece in self._held[:8]])
        return start.startswith((b"data:", b"event:", b"id:", _BOM))

    def usage_so_far(self) -> Usage | None:
        return self._usage

    def pattern(self, chunk: bytes, delta: Delta) -> EventTemplate | None:
        if type(delta) is not Raw or delta.data is not chunk:
            return None
        return find_template(chunk, (b"content",), None, None)

    def _whole_events(self, chunk: bytes) -> bytes:
        """The events that `chunk` completes. However small the pieces of an event are, each byte is
        examined once, or once more as one of the last few before a chunk."""
        if self._splitter is not None:
            return self._split(chunk)
        if not self._held and chunk.endswith(b"\n\n"):  # nearly always
            self.life = SHOWN if chunk.startswith(b"data:") or shows_life(chunk) else NONE
            return chunk
        seam = self._seam + chunk
        ends = (_after(seam, mark) for mark in (b"\n\n", b"\r\n\r\n", b"\r\r"))
        end = max(0, max(ends) - len(self._seam))
        whole = b""
        if end:
            whole = b"".join(self._held) + chunk[:end]
            chunk, self._held, self._held_size = chunk[end:], [], 0
            self._seam, self._is_in_comment = b"", None
        elif _runs_on(seam):
            self._splitter, held, self._held = Parser(), b"".join(self._held), []
            return self._split(held + chunk)
        is_growing = self._has_more(chunk)
        if chunk:
            self._held.append(chunk)
            self._held_size += len(chunk)
            self._seam = (self._seam + chunk)[-_SEAM:]
        if whole and shows_life(whole):
            self.life = SHOWN
        else:
            self.life = Life.GROWING if is_growing else NONE
        return whole

    def _split(self, chunk: bytes) -> bytes:
        assert self._splitter is not None
        events = self._splitter.feed(chunk)
        self.life = SHOWN if events else self._splitter.life
        return b"".join([sse.event(data, name) for name, data in events])

    def _has_more(self, piece: bytes) -> bool:
        """Whether this piece of an unfinished event has bytes outside comments."""
        grows = False
        has_ends = b"\n" in piece or b"\r" in piece
        for i, line in enumerate(_LINE_END.split(piece) if has_ends else (piece,)):
            if i:
                self._is_in_comment = None
            if line and self._is_in_comment is None:
                self._is_in_comment = line.startswith(b":")
            grows = grows or (bool(line) and not self._is_in_comment)
        return grows

    def _inspect(self, data: bytes) -> list[Delta]:
        failed: Failed | None = None
        says_nothing = False
        if not self._begun or self._waiting is not None or _is_odd(data):
            data, failed = self._look_closer(data)
        if b'"usage"' in data and _USAGE.search(data):
            self._usage = _last_usage(data) or self._usage
            if self._hides_usage:
                data = _without_usage(data)
        if b'"finish_reason":"' in data or b'"finish_reason": "' in data:
            self._finished = self._finished or bool(_FINISH.search(data))
        if not self._begun:
            says_nothing = b"data:" not in data
            data = (self._opening + data).removeprefix(_BOM)
            if len(self._opening) > MAX_EVENT:
                self.done = True
                return [Failed(UpstreamFailed("The upstream sends events that say nothing."))]
            self._begun = self._finished or self._says
            self._opening = data
            if self.done and not (self._begun or failed):
                failed = Failed(EmptyAnswer(say("The upstream")))
        out: list[Delta] = []
        if self._begun:
            out = [Raw(data)] if data else []
        elif not failed:  # a role does not show that the model works, and a comment shows no life
            return [] if says_nothing else [Begin()]
        if failed:
            out.append(failed)
        elif self.done:
            out.append(Finish(usage=self._usage))
        return out

    def _look_closer(self, data: bytes) -> tuple[bytes, Failed | None]:
        """The events to forward, up to the end or an error, and the error."""
        kept: list[bytes] = []
        at, is_new = 0, True  # whether the events since may be plain from here on
        for block in _blocks(data):
            if is_new and (self._says or self._begun) and self._waiting is None:
                is_new, rest = False, data[at:]
                if _ends_plainly(rest):
                    self.done = True
                if self.done or not _is_odd(rest):
                    kept.append(rest)
                    break
            at += len(block)
            events = Parser(len(data) + 2).feed(block)
            if not events and b"data" not in block:
                kept.append(block)
            for event in events:
                failed = self._add(event, block if len(events) == 1 else b"", kept)
                if self.done:
                    return b"".join(kept), failed
        return b"".join(kept), None

    def _add(self, event: Event, block: bytes, kept: list[bytes]) -> Failed | None:
        """Append an event to `kept`, either as its original `block` or serialized again. Sets
        `done` for the last one; returns its error if it is one."""
        payload = event.data.strip()
        if payload == b"[DONE]":
            self._emit_waiting(kept)
            kept.append(block or DONE)
            self.done = True
            return None
        value = value_in(payload)
        is_reported = payload or event.name in ERRORS
        if is_reported and (error := event_error(event.name, payload, value)):
            self._emit_waiting(kept)
            self.done = True
            return Failed(self._explain(error))
        if isinstance(value, dict) and (chunk := as_chunk(value)):
            payload, value, block = chunk, object_in(chunk), b""
        self._says = self._says or has_content(value)
        if payload and (mended := self._mended(Event(event.name, payload), kept)):
            is_same = block and mended is payload
            kept.append(block if is_same else sse.event(mended, event.name))
        return None

    def _mended(self, event: Event, kept: list[bytes]) -> bytes:
        """The event's JSON, unchanged or repaired for strict parsers; b"" if it waits for the other
        half of a surrogate pair."""
        data = event.data
        try:
            if self._waiting is not None or loosejson.has_halves(data):
                joined, half, is_joined = loosejson.join_halves(data, self._half)
                if is_joined:
                    data = joined
                if is_joined or half or _CONTENT.search(data) or _FINISH.search(data):
                    self._emit_waiting(kept, is_joined)
                if half:
                    self._waiting, self._half = Event(event.name, data), half
                    return b""
            return data if _is_strict(data) else loosejson.mend(data)
        except loosejson.NotJson:
            return data.decode("utf-8", "replace").encode()

    def _emit_waiting(self, kept: list[bytes], is_joined: bool = False) -> None:
        """Emit the waiting event, without its half pair if that has been joined to the
        next event."""
        if self._waiting is None:
            return
        (name, data), self._waiting, self._half = self._waiting, None, b""
        data = loosejson.join_halves(data, b"" if is_joined else None)[0]
        kept.append(sse.event(loosejson.mend(data), name))

    def close(self) -> list[Delta]:
        if self.done:
            return []
        try:
            return self._close()
        except UpstreamFailed as error:
            self.done = True
            return [Failed(error)]

    def _close(self) -> list[Delta]:
        out: list[Delta] = []
        if self._splitter is not None:
            last = b"".join([sse.event(data, name) for name, data in self._splitter.close()])
        else:
            last = b"".join(self._held).rstrip(b"\r\n")
        if _is_whole(last):
            out = self._inspect(last + b"\n\n")  # closed without its last blank line
        if not self.done:
            self.done = True
            kept: list[bytes] = []
            self._emit_waiting(kept)
            out += [Raw(event) for event in kept]
            if self._finished:  # complete, though its [DONE] is missing
                out += [Raw(DONE), Finish(usage=self._usage)]
            else:
                error = UpstreamCut("The upstream's answer ended before it was complete.")
                out.append(Failed(error))
        return out


def _blocks(data: bytes) -> Iterator[bytes]:
    """The whole events of `data`, each with the blank line after it."""
    start = 0
    for end in _BLOCK_END.finditer(data):
        yield data[start : end.end()]
        start = end.end()


_SEAM = 9  # bytes: enough for the end of an event, or of a line and the start of the next one


def _runs_on(data: bytes) -> bool:
    """Whether an event's data seems to end and another to begin with a single line end between
    them."""
    if b"}\ndata:" in data or b"}\nevent:" in data:
        return True
    return b"\r" in data and _RUNS_ON.search(data) is not None


def _is_strict(data: bytes) -> bool:
    try:
        orjson.loads(data)
    except orjson.JSONDecodeError:
        return False
    return True


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_odd(data: bytes) -> bool:
    """Whether the events need inspection: they may contain an error, the end, an event that is not
    a chunk or has no data (SDKs fail on those), or JSON that strict parsers reject.

    It searches for fixed bytes: a regular expression over every event costs ten times as much.
    """
    if (
        b"error" in data
        or b"NaN" in data
        or b"Infinity" in data
        or (b"\\" in data and b"\\u" in data and loosejson.has_halves(data))
        or not (data.isascii() or _is_utf8(data))
    ):
        return True
    has_cr = b"\r" in data
    if data.startswith(b"data: {") and not has_cr:  # nearly always
        if data.find(b"\n") == len(data) - 2:
            return data.rfind(b'"delta":') < 0
        known = data.count(b'"delta":') + data.count(b'"choices":[],"usage":{')
        if 2 * known == data.count(b"\n"):
            return b"[DONE]" in data
    events = data.count(b"\ndata:") + data.startswith(b"data:")
    return (
        data.count(b'"delta":') < events
        or b"[DONE]" in data
        or b"data:\n" in data
        or b"data: \n" in data
        or _runs_on(data)
        or (has_cr and (b"data:\r" in data or b"data: \r" in data or b"\rdata:" in data))
    )


def _ends_plainly(data: bytes) -> bool:
    """Whether the only irregularity is `[DONE]` as an event of its own at the end: nearly always,
    and then no event needs to be parsed."""
    rest = data[: -len(DONE)]
    return data.endswith(DONE) and (not rest or rest.endswith(b"\n\n")) and not _is_odd(rest)


def _after(data: bytes, mark: bytes) -> int:
    at = data.rfind(mark)
    return at + len(mark) if at >= 0 else 0


def _last_usage(data: bytes) -> Usage | None:
    """The usage of the last event that has one at its top level. Only the last line is searched,
    and all events only if it has none, or holds JSON over several lines."""
    at = data.rfind(b'"usage"')
    line = data[data.rfind(b"\n", 0, at) + 1 : data.find(b"\n", at)]
    if line.startswith(b"data:") and (usage := read_usage(object_in(line[5:]).get("usage"))):
        return usage
    found = None
    for event in Parser(len(data) + 2).feed(data):
        if _USAGE.search(event.data):
            found = read_usage(object_in(event.data).get("usage")) or found
    return found


def _without_usage(data: bytes) -> bytes:
    """The events without those that hold the usage and no choice."""
    kept = []
    for block in _blocks(data):
        events = Parser(len(data) + 2).feed(block)
        chunk = object_in(events[0].data) if events else {}
        if not chunk.get("usage") or chunk.get("choices"):
            kept.append(block)
    return b"".join(kept)


def _is_whole(block: bytes) -> bool:
    """Whether an event without its blank line has all of its data."""
    events = Parser(len(block) + 2).feed(block + b"\n\n") if block else []
    return bool(events) and all(e.data.strip() == b"[DONE]" or object_in(e.data) for e in events)
