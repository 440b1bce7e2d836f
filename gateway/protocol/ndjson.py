"""Newline-delimited JSON: bytes in, one event for each line out, without I/O."""

from collections.abc import Callable
from typing import ClassVar

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

    keeps_space: ClassVar[bool] = False  # blank lines, and white space around the others

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
        first, *rest = chunk.split(b"\n")
        self._add(first)
        out = []
        for line in rest:
            out += self._end()
            self._add(line)
        self.is_clean = not self._pieces
        is_shown = out and (out[0].data or any(event.data for event in out))
        self.life = SHOWN if is_shown else Life.GROWING if first.strip() else NONE
        return out

    def _add(self, piece: bytes) -> None:
        if not piece:
            return
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > self._limit:
            start = b"".join([piece[:8] for piece in self._pieces[:8]]).removeprefix(_BOM).lstrip()
            if not start.startswith((b"{", b"[")):
                raise UpstreamFailed(
                    say("The upstream sent a line of more than {most} bytes.", most=self._limit)
                )

    def _end(self) -> list[Event]:
        line, self._pieces, self._size = b"".join(self._pieces), [], 0
        if self._at_start:
            self._at_start, line = False, line.removeprefix(_BOM)
        bare = line.strip()
        if self.keeps_space and bare != line:
            bare = line.removesuffix(b"\r") if bare else b""
        return [Event("", bare)] if bare or self.keeps_space else []

    def close(self) -> list[Event]:
        """The last line, if no line end follows it."""
        return self._end() if self._pieces else []


class TextParser(Parser):
    """Also for an answer that is plain text: blank lines are events, and indentation stays."""

    __slots__ = ()

    keeps_space = True
