"""Answers that are forwarded unchanged: the upstream speaks the caller's own protocol.

The bytes are searched, not parsed. Inside a JSON string a quote is escaped, so the patterns below
match members of the JSON and never the text of an answer.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import orjson

from gateway.errors import EmptyAnswer, GatewayError, UpstreamCut, UpstreamFailed
from gateway.protocol import loosejson, sse
from gateway.protocol.content import says_something
from gateway.protocol.exchange import UpstreamReply
from gateway.protocol.messages import Begin, Delta, Failed, Finish, Raw, Usage
from gateway.protocol.sse import (
    DONE,
    ERRORS,
    MAX_EVENT,
    NONE,
    SHOWN,
    Event,
    Life,
    Parser,
    is_stream,
    shows_life,
    without_blank,
)
from gateway.protocol.template import EventTemplate, find_template
from gateway.protocol.usage import read_usage

MAX_BODY = 32 << 20  # bytes of a whole answer

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


class Streamed(Protocol):
    """The interface of a stream decoder that `WholeBody` needs."""

    def feed(self, chunk: bytes) -> list[Delta]: ...

    def close(self) -> list[Delta]: ...


class PassThrough:
    """Whole events of the upstream, unchanged, in one piece per network chunk.

    Only whole events are forwarded, so a cut connection leaves no half event at the caller.
    `explain` makes an error from the upstream's `error` member.
    """

    ends_with_connection = False

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
                raise UpstreamFailed(f"The upstream sent an event of over {MAX_EVENT} bytes.")
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
                failed = Failed(EmptyAnswer("The upstream"))
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
        value = _value(payload)
        has_content = payload or event.name in ERRORS
        if has_content and (error := event_error(event.name, payload, value)):
            self._emit_waiting(kept)
            self.done = True
            return Failed(self._explain(error))
        if isinstance(value, dict) and (chunk := _as_chunk(value)):
            payload, value, block = chunk, _object(chunk), b""
        self._says = self._says or _says_something(value)
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
                message = "The upstream's answer ended before it was complete."
                out.append(Failed(UpstreamCut(message)))
        return out


class WholeBody:
    """A whole JSON answer, unchanged, once it is complete; or the deltas of a stream, from an
    upstream that streams without being asked to."""

    ends_with_connection = False

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
            return [Failed(UpstreamFailed(f"The upstream's answer is over {MAX_BODY} bytes."))]
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
            value, is_strict = _value(data), False
        if is_strict and _is_plainly_good(value):
            return [Raw(data), Finish(usage=read_usage(value.get("usage")))]
        if failure := told_error(value):
            return [Failed(self._explain(failure))]
        body = value if isinstance(value, dict) else {}
        if "choices" in body:
            if not _says_something(body):
                return [Failed(EmptyAnswer("The upstream"))]
            strict = data if is_strict else loosejson.mend(data)
            return [Raw(strict), Finish(usage=read_usage(body.get("usage")))]
        if body or (value and isinstance(value, str)):
            return [Failed(self._explain(value))]
        return [Failed(UpstreamFailed("The upstream sent something that is not a completion."))]


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


def _is_plainly_good(body: Any) -> bool:
    """Whether a completion has the most common form: `told_error` and `_says_something` would find
    the same in ten times the time."""
    if type(body) is not dict or body.get("error") or body.get("errors"):
        return False
    choices = body.get("choices")
    first = choices[0] if type(choices) is list and choices else None
    if type(first) is not dict or first.get("error"):
        return False
    return first.get("finish_reason") in _ENDINGS


_ENDINGS = ("stop", "length", "tool_calls", "content_filter", "function_call")


def _says_something(body: Any) -> bool:
    """Whether a completion or a chunk has any content or a finish reason."""
    choices = body.get("choices") if isinstance(body, dict) else None
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict) and (choice.get("finish_reason") or says_something(choice)):
            return True
    return False


# The rest of this module: failures, and answers in another form.

_GOOD = (None, "", 0, 200, "0", "200")  # codes


def told_error(body: Any) -> Any:
    """The failure that an answer or an event reports: OpenAI's `error`, or another form that
    compatible servers use (FastChat, vLLM, MiniMax, FastAPI, Google); None if it reports none."""
    if isinstance(body, list):
        return told_error(body[0]) if body and isinstance(body[0], dict) else None
    if not isinstance(body, dict):
        return None
    if error := body.get("error") or body.get("errors"):
        return error
    if choices := body.get("choices"):
        first = choices[0] if isinstance(choices, list) else None
        return choice_error(first) if isinstance(first, dict) else None
    base = body.get("base_resp")
    is_refused = isinstance(base, dict) and base.get("status_code")
    codes = (body.get("error_code"), body.get("code"))
    is_refused = is_refused or any(code not in _GOOD for code in codes)
    is_refused = is_refused or body.get("object") == "error" or body.get("success") is False
    # A good answer's text is in `choices`; a message next to a good code is no failure.
    has_message = codes == (None, None) and _is_failure_message(
        body.get("message") or body.get("msg")
    )
    if not (is_refused or body.get("detail") or has_message):
        return None
    text = body.get("text")
    return {**body, "message": text} if text and "message" not in body else body


def _is_failure_message(value: Any) -> bool:
    """Whether it is a failure's message and not a message of an answer."""
    return bool(value) and not (isinstance(value, dict) and ("content" in value or "role" in value))


def choice_error(choice: dict[str, Any]) -> Any:
    """The failure that a choice reports, or None."""
    if error := choice.get("error"):
        return error
    if choice.get("finish_reason") == "error":
        return "it ended with 'error'"
    return None


def event_error(name: str, payload: bytes, value: Any) -> Any:
    """The failure that an event reports; `payload` is its data, `value` its JSON (None if it is not
    JSON). An event named `error` always is a failure."""
    error = told_error(value)
    if name in ERRORS:
        return error or value or _as_message(payload)
    is_json = value is not None or payload.startswith(b"{") or payload == b"null"
    is_text = not is_json or (value is None and b'"error"' in payload)
    return _as_message(payload) if is_text else error


def lines_as_events(reply: UpstreamReply) -> bytes:
    """The events for a reply in JSON lines; b"" if it is anything else."""
    first, _, rest = reply.body.lstrip().partition(b"\n")
    if not (rest.strip() and _object(first)):
        return b""
    lines = [line for line in reply.body.splitlines() if line.strip()]
    return b"".join(map(sse.event, lines)) if all(map(_object, lines)) else b""


def as_events(reply: UpstreamReply) -> bytes:
    """A whole completion as an event stream; b"" if it is not a completion."""
    body = reply.object()
    chunk = b"" if told_error(body) else _as_chunk(body)
    return sse.event(chunk) + DONE if chunk else b""


def _as_chunk(body: dict[str, Any]) -> bytes:
    """A whole completion as one chunk of a stream; b"" if it is not a completion, or is nested too
    deep to be serialized."""
    choices = body.get("choices")
    if not isinstance(choices, list):
        return b""
    chunks = [_as_delta(choice) for choice in choices if isinstance(choice, dict)]
    if not any(isinstance(c, dict) and isinstance(c.get("message"), dict) for c in choices):
        return b""
    try:
        return orjson.dumps({**body, "object": "chat.completion.chunk", "choices": chunks})
    except orjson.JSONEncodeError:
        return b""


def _as_delta(choice: dict[str, Any]) -> dict[str, Any]:
    message = choice.get("message")
    if not isinstance(message, dict) or choice.get("delta"):
        return choice
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        numbered = [{"index": i, **c} for i, c in enumerate(calls) if isinstance(c, dict)]
        message = {**message, "tool_calls": numbered}
    return {**{k: v for k, v in choice.items() if k != "message"}, "delta": message}


def _after(data: bytes, mark: bytes) -> int:
    at = data.rfind(mark)
    return at + len(mark) if at >= 0 else 0


def _value(data: bytes) -> Any:
    """The JSON value; None if it is not JSON."""
    try:
        return loosejson.loads(data)
    except loosejson.NotJson:
        return None


def _object(data: bytes) -> dict[str, Any]:
    value = _value(data)
    return value if isinstance(value, dict) else {}


def _as_message(payload: bytes) -> dict[str, str]:
    return {"message": payload[:2000].decode("utf-8", "replace")}


def _last_usage(data: bytes) -> Usage | None:
    """The usage of the last event that has one at its top level. Only the last line is searched,
    and all events only if it has none, or holds JSON over several lines."""
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
    """The events without those that hold the usage and no choice."""
    kept = []
    for block in _blocks(data):
        events = Parser(len(data) + 2).feed(block)
        chunk = _object(events[0].data) if events else {}
        if not chunk.get("usage") or chunk.get("choices"):
            kept.append(block)
    return b"".join(kept)


def _is_whole(block: bytes) -> bool:
    """Whether an event without its blank line has all of its data."""
    events = Parser(len(block) + 2).feed(block + b"\n\n") if block else []
    return bool(events) and all(e.data.strip() == b"[DONE]" or _object(e.data) for e in events)


_USAGE_OBJECT = re.compile(rb'"usage":\s*(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})')


def usage_at_end(tail: bytes) -> Usage | None:
    """The last usage object in the final bytes of an answer that was copied unparsed."""
    found = _USAGE_OBJECT.findall(tail)
    return read_usage(_object(found[-1])) if found else None
