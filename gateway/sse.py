"""Server-sent events: bytes in, events out, without I/O.

Lines end in LF, CRLF or CR and in nothing else: a raw U+2028 inside JSON is not a line end. Nothing
is decoded as text here, so a character split between two reads is whole again in `Event.data`.
"""

from typing import NamedTuple

from gateway.errors import UpstreamFailed

KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"


class Event(NamedTuple):
    """One event that carried data. `name` is empty if the block had no `event:` line."""

    name: str
    data: bytes


class Parser:
    """Feed bytes in pieces of any size; get the events that are complete.

    An event longer than `limit` bytes raises `UpstreamFailed`, so a line without an end costs that
    much memory and no more. What was complete before it is given first: then the next call raises.
    """

    __slots__ = (
        "_after_cr", "_at_start", "_is_over", "_limit", "_pieces", "_size", "is_clean",
    )  # fmt: skip

    def __init__(self, limit: int = 1 << 20) -> None:
        self._limit = limit
        self._pieces: list[bytes] = []  # the unfinished event; joined only when a line ends
        self._size = 0
        self._after_cr = False
        self._at_start = True
        self.is_clean = True  # the last `feed` was whole events, and nothing is held of the next
        self._is_over = False  # an event was too long; nothing is read any more

    def feed(self, chunk: bytes) -> list[Event]:
        """The events completed by `chunk`."""
        if self._is_over:
            raise self._too_long()
        was_clean = not (self._pieces or self._after_cr)
        if was_clean and self._is_one_line_of_data(chunk):
            self.is_clean = True
            return [Event("", chunk[6:-2])]
        self.is_clean = False
        if self._after_cr or b"\r" in chunk:
            chunk = self._with_plain_line_ends(chunk)
        self._size += len(chunk)
        if b"\n" not in chunk:
            if self._size > self._limit:
                raise self._too_long()
            self._pieces.append(chunk)
            return []
        if self._pieces:
            self._pieces.append(chunk)
            chunk = b"".join(self._pieces)
        blocks = chunk.split(b"\n\n")
        tail = blocks.pop()
        self._pieces = [tail] if tail else []
        self.is_clean = was_clean and not tail
        self._size = len(tail)
        if blocks and self._at_start:
            self._at_start = False
            blocks[0] = blocks[0].removeprefix(b"\xef\xbb\xbf")
        out: list[Event] = []
        for block in (*blocks, tail):
            if len(block) > self._limit:
                self._is_over = True
                break
            if block is not tail and (event := self._event(block)):
                out.append(event)
        if self._is_over and not out:
            raise self._too_long()
        return out

    def _with_plain_line_ends(self, chunk: bytes) -> bytes:
        """LF for CRLF and CR, also where a CRLF is cut between two chunks."""
        if not chunk:
            return chunk
        rest = chunk.removeprefix(b"\n") if self._after_cr else chunk
        self._after_cr = chunk.endswith(b"\r")
        return rest.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _is_one_line_of_data(self, chunk: bytes) -> bool:
        """Whether `chunk` is just one event of the commonest form: nearly all chunks are."""
        return (
            chunk.startswith(b"data: ")
            and chunk.find(b"\n") == len(chunk) - 2
            and chunk.endswith(b"\n\n")
            and b"\r" not in chunk
            and len(chunk) <= self._limit
        )

    def close(self) -> list[Event]:
        """The event that was left without its blank line, if it has data.

        A server that closes right after its last line is common; whether that event is whole is for
        the reader of its data to see.
        """
        if self._is_over:
            raise self._too_long()
        block, self._pieces, self._size = b"".join(self._pieces), [], 0
        event = self._event(block)
        return [event] if event else []

    def _event(self, block: bytes) -> Event | None:
        if block.startswith(b"data: ") and b"\n" not in block:  # nearly all events are this
            return Event("", block[6:])
        name, data = "", []
        for line in block.split(b"\n"):
            key, _, value = line.partition(b":")
            if key == b"data":
                data.append(value.removeprefix(b" "))
            elif key == b"event":
                name = value.removeprefix(b" ").decode("utf-8", "replace")
        return Event(name, b"\n".join(data)) if data else None

    def _too_long(self) -> UpstreamFailed:
        return UpstreamFailed(f"The upstream sent an event of more than {self._limit} bytes.")


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
