"""Templates for events that differ only in one string: the bytes before and after it.

Nearly all events of a stream are the same bytes around another piece of the answer. Once the
decoder has parsed one of them, the next need no parsing: if the surrounding bytes are the same and
the bytes between them are a JSON string, the meaning is the same.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import orjson


class EventTemplate(NamedTuple):
    """An event is `before`, a JSON string with its quotes, and `after`. `add`, if set, receives
    each string; if it returns a true value, only the decoder can handle the event."""

    before: bytes
    after: bytes
    add: Callable[[str], object] | None = None


@lru_cache
def _member(name: bytes) -> re.Pattern[bytes]:
    """Matches a member of that name whose value is a string. Inside a string a quote has a
    backslash before it, so text cannot match."""
    return re.compile(rb'(?<!\\)"%b":\s*("(?:[^"\\]|\\.)*")' % re.escape(name))


def find_template(
    event: bytes, names: tuple[bytes, ...], add: Callable[[str], object] | None, text: str | None
) -> EventTemplate | None:
    """The template of one whole event that has `text` (None: any text) in a member named in
    `names`; None unless there is exactly one such member.

          b'data: {"answer": "hi"}\\n\\n'  →  b'data: {"answer": ', b'}\\n\\n'
    """
    if event.count(b"\n\n") != 1 or not event.endswith(b"\n\n"):
        return None
    for name in names:
        found = list(_member(name).finditer(event))
        if not found:
            continue
        if len(found) > 1 or (text is not None and _loads(found[0][1]) != text):
            return None
        return EventTemplate(event[: found[0].start(1)], event[found[0].end(1) :], add)
    return None


def _loads(literal: bytes) -> object:
    try:
        return orjson.loads(literal)
    except orjson.JSONDecodeError:
        return None
