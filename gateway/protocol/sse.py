"""Server-sent events: bytes in, events out, without I/O.

Only LF, CRLF and CR end a line: a raw U+2028 inside JSON does not. Bytes are not decoded here, so a
character split between two reads is complete again in `Event.data`.
"""

import enum
from collections.abc import Callable
from typing import NamedTuple

from gateway.errors import UpstreamFailed
from gateway.language.sentences import say
from gateway.protocol import loosejson

MAX_EVENT = 1 << 20  # bytes; longer events are kept only if needed
MAX_LINES = 200_000  # of data of one event: each costs memory of its own
_HEAD = 4096  # bytes
_BOM = b"\xef\xbb\xbf"
KEEP_ALIVE = b": keep-alive\n\n"
KEEP_ALIVE_LINE = b": keep-alive\n"  # becomes part of the following event
DONE = b"data: [DONE]\n\n"


# Possible starts of an event stream. `ERRORS` are names of events that always are failures.
_STARTS = (b"data:", b"event:", b"id:", b"retry:", b":")
ERRORS = frozenset(("error", "Error", "ERROR"))


class Life(enum.Enum):
    """Whether bytes of an upstream show that it still works on the answer."""

    NONE = enum.auto()  # comments and blank lines, or a heartbeat
    GROWING = enum.auto()  # part of an event; only its end shows whether it is a heartbeat
    SHOWN = enum.auto()


NONE, SHOWN = Life.NONE, Life.SHOWN  # looked up once, since every read uses them


class Event(NamedTuple):
    """One event with data. `name` is empty if the block had no `event:` line."""

    name: str
    data: bytes


class Parser:
    """Feed bytes in pieces of any size; get the events that are complete.

    A line or event without data that grows past `limit` bytes raises `UpstreamFailed`, so a line
    without an end costs no more memory than that. Events completed before it are returned first;
    the next call raises. An event with data may grow past `limit`, however long the answer is,
    unless `skips`, called with its name and its beginning, returns True: then its data is dropped.

    Some servers put a single line end between two events. Then a line of data follows another that
    is a whole JSON object; no event of several lines begins like that.
    """

    __slots__ = (
        "_after_cr", "_at_start", "_data", "_has_grown", "_has_more", "_is_large", "_is_over",
        "_is_skipped", "_limit", "_name", "_pieces", "_size", "_skips", "_splits", "is_clean",
        "life",
    )  # fmt: skip

    def __init__(
        self, limit: int = MAX_EVENT, skips: Callable[[str, bytes], bool] | None = None
    ) -> None:
        self._limit = limit
        self._skips = skips
        self._pieces: list[bytes] = []  # the unfinished line; joined only when it ends
        self._size = 0  # bytes of the unfinished event
        self._name = ""
        self._data: list[bytes] = []  # its lines of data
        self._has_more = False  # it has lines that are neither data nor comments
        self._has_grown = False  # the last `feed` added some of it that is not a comment
        self._is_large = self._is_skipped = False
        self._splits = False  # a single line end has been found between two events
        self._after_cr = False
        self._at_start = True
        self.is_clean = True  # the last `feed` ended with a whole event; no bytes are held
        self.life = NONE  # of the last `feed`, apart from the events it returned
        self._is_over = False  # an event was too long; nothing more is parsed

    def feed(self, chunk: bytes) -> list[Event]:
        """The events completed by `chunk`."""
        if self._is_over:
            raise self._too_long()
        was_clean = not (self._pieces or self._size or self._after_cr)
        self.life = NONE
        if was_clean and self._is_one_line_of_data(chunk):
            self.is_clean, self._at_start = True, False
            return [Event("", chunk[6:-2])]
        if self._after_cr or b"\r" in chunk:
            chunk = self._with_plain_line_ends(chunk)
        self._has_grown = False
        out: list[Event] = []
        try:
            self._read(self._read_blocks(chunk, out) if was_clean else chunk, out)
        except UpstreamFailed:
            self._is_over = True
            if not out:
                raise
        if self._has_grown and self.life is NONE:
            self.life = Life.GROWING
        self.is_clean = was_clean and not (self._pieces or self._size)
        return out

    def _read_blocks(self, chunk: bytes, out: list[Event]) -> bytes:
        """Parse the whole events, which are most of the bytes; return the rest."""
        *blocks, rest = chunk.split(b"\n\n")
        for block in blocks:
            is_plain = block.startswith(b"data: ") and b"\n" not in block
            if is_plain and len(block) < self._limit:
                out.append(Event("", block[6:]))
                self._at_start = False
            else:
                for line in block.split(b"\n"):
                    self._size += len(line) + 1
                    self._end_line(line, out)
                self._end_event(out)
        return rest

    def _read(self, chunk: bytes, out: list[Event]) -> None:
        line, *rest = chunk.split(b"\n")
        for following in rest:
            self._size += len(line) + 1
            if self._pieces:
                self._pieces.append(line)
                line, self._pieces = b"".join(self._pieces), []
            self._end_line(line, out)
            line = following
        if line:
            self._pieces.append(line)
            self._size += len(line)
            self._has_grown = self._has_grown or not self._pieces[0].startswith(b":")
            if self._size > self._limit:
                self._outgrow(self._pieces)

    def _end_line(self, line: bytes, out: list[Event]) -> None:
        if self._at_start:
            self._at_start = False
            line = line.removeprefix(_BOM)
        if not line:
            self._end_event(out)
            return
        if self._size > self._limit:
            self._outgrow([line])
        if line.startswith(b":"):
            return
        self._has_grown = True
        if line.startswith(b"data:") or line == b"data":
            value = line[6:] if line.startswith(b"data: ") else line[5:]  # one copy: it may be long
            if self._data or self._splits or self._is_skipped:
                self._add_data(value, out)
            else:
                self._data.append(value)
            return
        self._has_more = True
        key, _, value = line.partition(b":")
        if key == b"event":
            if self._name and self._has_whole_data():
                self._splits = True
                self._give(out)
            self._name = value.removeprefix(b" ").decode("utf-8", "replace")

    def _add_data(self, line: bytes, out: list[Event]) -> None:
        if self._is_skipped:
            return
        if self._has_whole_data():
            self._splits = True
            self._give(out)
        self._data.append(line)
        if len(self._data) > MAX_LINES:
            raise UpstreamFailed(
                say("The upstream sent an event of more than {most} lines.", most=MAX_LINES)
            )
        if self._splits and self._has_whole_data():
            self._give(out)

    def _has_whole_data(self) -> bool:
        return len(self._data) == 1 and _is_whole(self._data[0])

    def _end_event(self, out: list[Event]) -> None:
        if self._data:
            self._give(out)
        elif self._has_more or self._is_skipped:
            self.life = SHOWN
        self._has_more = self._has_grown = self._is_large = self._is_skipped = False
        self._name, self._size = "", 0

    def _give(self, out: list[Event]) -> None:
        out.append(Event(self._name, b"\n".join(self._data)))
        self._name, self._data, self._size = "", [], 0
        self._has_more = self._has_grown = self._is_large = False

    def _outgrow(self, line: list[bytes]) -> None:
        """Handle an unfinished event over the limit; `line` holds the pieces of its last line."""
        if not self._is_large:
            start = b"".join([piece[:8] for piece in line[:8]]).removeprefix(_BOM)
            if not (self._data or start.startswith(b"data:")):
                raise self._too_long()
            self._is_large = True
            head = self._data[0] if self._data else b"".join(line)
            self._is_skipped = self._skips is not None and self._skips(self._name, head)
        if self._is_skipped:
            self._data.clear()
            del line[1:]  # its beginning still shows the kind of line
            line[0] = line[0][:_HEAD]

    def _with_plain_line_ends(self, chunk: bytes) -> bytes:
        """LF for CRLF and CR, also where a CRLF is split between two chunks."""
        if not chunk:
            return chunk
        rest = chunk.removeprefix(b"\n") if self._after_cr else chunk
        self._after_cr = chunk.endswith(b"\r")
        return rest.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _is_one_line_of_data(self, chunk: bytes) -> bool:
        """Whether `chunk` is exactly one event of the most common form: nearly all chunks are."""
        return (
            chunk.startswith(b"data: ")
            and chunk.find(b"\n") == len(chunk) - 2
            and chunk.endswith(b"\n\n")
            and b"\r" not in chunk
            and len(chunk) <= self._limit
        )

    def close(self) -> list[Event]:
        """The last event if its blank line is missing and it has data.

        Many servers close right after their last line; the reader of the data has to check whether
        the event is complete.
        """
        if self._is_over:
            raise self._too_long()
        line, self._pieces = b"".join(self._pieces), []
        out: list[Event] = []
        if line:
            self._end_line(line, out)
        self._end_event(out)
        return out

    def _too_long(self) -> UpstreamFailed:
        return UpstreamFailed(
            say("The upstream sent an event of more than {most} bytes.", most=self._limit)
        )


def _is_whole(line: bytes) -> bool:
    """Whether a line of data is an event's complete data."""
    line = line.strip()
    if not line.startswith(b"{"):
        return line == b"[DONE]"
    try:
        loosejson.loads(line)
    except loosejson.NotJson:
        return False
    return True


def shows_life(events: bytes) -> bool:
    """Whether whole events have more than comments and blank lines."""
    return events.startswith(b"data:") or any(
        line and not line.startswith(b":") for line in events.splitlines()
    )


def without_blank(body: bytes) -> bytes:
    """The start of a body without leading white space, which servers send while they work, and
    without a byte order mark."""
    return body.lstrip().removeprefix(_BOM).lstrip()


def is_stream(start: bytes) -> bool | None:
    """Whether a body that starts like this, without leading blanks, is an event stream; None while
    it is too short to tell."""
    if start.startswith(_STARTS):
        return True
    could_be = start == _BOM[: len(start)] or any(mark.startswith(start) for mark in _STARTS)
    return None if could_be else False


def event(data: bytes, name: str = "") -> bytes:
    """One event as bytes; `data` is JSON on one line."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + data + b"\n\n"


def one_line(json: bytes) -> bytes:
    """JSON without the characters that some clients take for line ends.

    cozepy, zai-sdk and others split on U+2028, U+2029 and U+0085; the rest of their set is below
    U+0020 and escaped by any JSON writer.
    """
    if b"\xe2\x80" in json:
        json = json.replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")
    if b"\xc2\x85" in json:
        json = json.replace(b"\xc2\x85", b"\\u0085")
    return json
