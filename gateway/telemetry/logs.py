"""The form of the log: short coloured lines in a terminal, else one JSON object per line."""

import json
import logging
import os
import time
from collections.abc import Mapping
from typing import Any, TextIO

from gateway.errors import clean
from gateway.telemetry.accesslog import AccessLog
from gateway.times import local_second, stamp

FORMS = ("auto", "text", "json")
_COLOURS = {"debug": "2", "info": "0", "warning": "33", "error": "31", "critical": "31;1"}
_LOGGER = "gateway"  # lines omit this name


def set_up(level: str, form: str, stream: TextIO) -> AccessLog:
    """Send every log to `stream`; returns the request log. `form` is one of FORMS.

    `level` applies to the gateway's own lines. Libraries log only WARNING and above: below that
    they write queries with their values, bodies, headers and addresses.
    """
    # Not in the lines, so not worth a lookup for each.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    is_terminal = stream.isatty()
    is_text = form == "text" or (form == "auto" and is_terminal)
    has_colours = is_terminal and not os.environ.get("NO_COLOR")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TextFormatter(has_colours) if is_text else JsonFormatter())
    logging.getLogger(_LOGGER).setLevel(level)
    quiet = max(logging.WARNING, logging.getLevelNamesMapping()[level])
    logging.basicConfig(level=quiet, handlers=[handler])
    return AccessLog(stream, RequestText(has_colours) if is_text else None)


class JsonFormatter(logging.Formatter):
    """JSON lines with the same members as lines of requests."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": stamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage().strip(),  # lines for people are indented
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        # Unlike orjson, json accepts lone surrogates, which file names may contain.
        return json.dumps(line, ensure_ascii=False, separators=(",", ":"))


class TextFormatter(logging.Formatter):
    def __init__(self, has_colours: bool) -> None:
        super().__init__()
        self._has_colours = has_colours

    def format(self, record: logging.LogRecord) -> str:
        level = record.levelname.lower()
        name = "" if record.name == _LOGGER else f"{record.name}: "
        text = f"{name}{record.getMessage()}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return _line(record.created, level, text, self._has_colours)


class RequestText:
    """A request's members as a line: `POST /api/v1/chat 502 34ms dify key-web: <reason>`."""

    def __init__(self, has_colours: bool) -> None:
        self._has_colours = has_colours

    def __call__(self, line: Mapping[str, Any]) -> str:
        parts = [line["method"], line["path"], line["status"], f"{line['ms']:.0f}ms"]
        parts += [line[name] for name in ("agent", "caller", "address", "origin") if name in line]
        text = " ".join(map(str, parts))
        if "error" in line:
            text += f" {line['error']}: {line.get('reason', '')} [{line['request_id']}]"
        return _line(time.time(), line["level"], clean(text), self._has_colours)


def _line(now_s: float, level: str, text: str, has_colours: bool) -> str:
    line = f"{local_second(int(now_s))} {level.upper():7} {text}"
    return f"\x1b[{_COLOURS.get(level, '0')}m{line}\x1b[0m" if has_colours else line
