"""Answers of any kind that are copied: only the usage near the end is read."""

import re
from typing import Any

from gateway.protocol.loosejson import object_in
from gateway.protocol.messages import Delta, Finish, Raw, Usage
from gateway.protocol.sse import SHOWN, Life
from gateway.protocol.usage import read_usage

_TAIL = 2048  # bytes at the end of an answer, which contain the usage
_USAGE = re.compile(rb'"usage":\s*(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})')


class Verbatim:
    """Gives each chunk as it is. HTTP alone tells where the answer ends, and an empty one is
    an answer too."""

    conversation_id = ""
    done = ending = False
    life: Life = SHOWN
    ends_with_connection = True
    pause: dict[str, Any] | None = None
    changed: tuple[str, ...] = ()

    __slots__ = ("_tail",)

    def __init__(self) -> None:
        self._tail = b""

    def feed(self, chunk: bytes) -> list[Delta]:
        self._tail = (self._tail + chunk)[-_TAIL:]
        return [Raw(chunk)]

    def close(self) -> list[Delta]:
        return [Finish("", self.usage_so_far())]

    def usage_so_far(self) -> Usage | None:
        """The last usage object near the end; an event stream and JSON both have it there."""
        found = _USAGE.findall(self._tail)
        return read_usage(object_in(found[-1])) if found else None

    def pattern(self, chunk: bytes, delta: Delta) -> None:
        return None
