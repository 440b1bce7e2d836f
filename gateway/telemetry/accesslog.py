"""The request log: lines come by the thousand, so they are written in batches."""

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

import orjson

from gateway.times import stamp

_GATHER_S = 0.02

_CALLER_LEFT = 499

log = logging.getLogger("gateway.access")


def level_of(status: int, has_failed: bool) -> int:
    """The level of a request's line, the same in every form of the log.

    ERROR is a failure of the gateway or of an upstream: 5xx, or `has_failed` after a 200 was sent.
    WARNING is a refused call (4xx). INFO is the rest, including callers that disconnected.
    """
    if status >= 500 or (has_failed and status < 400):
        return logging.ERROR
    return logging.WARNING if status >= 400 and status != _CALLER_LEFT else logging.INFO


class AccessLog:
    """One line per request. Without a stream the lines go to the logger `gateway.access`, for
    programs that embed the application; that costs several times as much. `render` makes a line
    from a request's members; the default is a JSON object."""

    def __init__(
        self, stream: TextIO | None = None, render: Callable[[dict[str, Any]], str] | None = None
    ) -> None:
        self.render = render or _json
        self.for_people = render is not None
        self._stream = stream
        self._lines: list[str] = []
        self.add: Callable[[int, str], None] = log.log if stream is None else self._gather
        # Whether lines of a level are written: `LOG_LEVEL` also applies to requests.
        self.takes: Callable[[int], bool] = log.isEnabledFor

    def _gather(self, level: int, line: str) -> None:
        if not self._lines:
            asyncio.get_running_loop().call_later(_GATHER_S, self.flush)
        self._lines.append(line)

    def show(self, text: str) -> None:
        """Write a line with a secret for the operator: only to standard error and never to a
        logger, whose handlers may store or send it. It has the form of the log's other lines."""
        if self._stream is not None and not self.for_people:
            line = {"time": stamp(time.time()), "level": "warning", "logger": "gateway"}
            text = self.render({**line, "message": text})
        print(text, file=sys.stderr, flush=True)

    def flush(self) -> None:
        """Write the collected lines. A killed process loses the lines of its last milliseconds."""
        lines, self._lines = self._lines, []
        if lines and self._stream is not None:
            with contextlib.suppress(OSError):  # the reader of the output is gone
                self._stream.write("\n".join(lines) + "\n")
                self._stream.flush()


def _json(line: dict[str, Any]) -> str:
    return orjson.dumps(line, default=str).decode()
