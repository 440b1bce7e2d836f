"""Newline-delimited JSON: bytes in, one event for each line out, without I/O."""

from collections.abc import Callable

from gateway.errors import UpstreamFailed
from gateway.language.sentences import say
from gateway.protocol.sse import MAX_EVENT, NONE, SHOWN, Event, Life

_BOM = b"\xef\xbb\xbf"


class Parser:
    """Like `sse.Parser`, for lines: each that is not blank is an event without a name.

    A line may grow past `limit` bytes only if it begins like JSON: an answer that came whole is
    one line. Any other raises UpstreamFailed.
    """

    __slots__ = ("_at_start", "_limit", "_pieces", "_size", "is_clean", "life")

    def __init__(
        self, limit: int = MAX_EVENT, skips: Callable[[str, bytes], bool] | None = None
    ) -> None:
        self._limit = limit
        self._pieces: list[bytes] = []  # the unfinished line
        self._size = 0
        self._at_start = True
        self.is_clean = True  # nothing is held of the next line
        self.life = NONE

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that `chunk` completes."""
        if self._at_start and chunk:
            self._at_start, chunk = False, chunk.removeprefix(_BOM)
        first, *rest = chunk.split(b"\n")
        self._add(first)
        out = []
        for line in rest:
            out += self._end()
            self._add(line)
        self.is_clean = not self._pieces
        self.life = SHOWN if out else Life.GROWING if first.strip() else NONE
        return out

    def _add(self, piece: bytes) -> None:
        if not piece:
            return
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > self._limit:
            start = b"".join([piece[:8] for piece in self._pieces[:8]]).lstrip()
            if not start.startswith((b"{", b"[")):
                raise UpstreamFailed(
                    say("The upstream sent a line of more than {most} bytes.", most=self._limit)
                )

    def _end(self) -> list[Event]:
        line, self._pieces, self._size = b"".join(self._pieces).strip(), [], 0
        return [Event("", line)] if line else []

    def close(self) -> list[Event]:
        """The last line, if no line end follows it."""
        return self._end()
