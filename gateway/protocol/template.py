"""Events that differ in one string only: what stands before it, and what behind.

Nearly all events of a stream are the same bytes around another piece of the answer. Once the
decoder has understood one of them, the next need not be parsed: if the bytes around it are the
same and what is between them is a JSON string, so is its meaning.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import orjson


class EventTemplate(NamedTuple):
    """An event is `before`, a JSON string with its quotes, and `after`. `add` is given each string,
    if the decoder wants to know it; something true in return: only the decoder can deal with it."""

    before: bytes
    after: bytes
    add: Callable[[str], object] | None = None


@lru_cache
def _member(name: bytes) -> re.Pattern[bytes]:
    """A member of that name whose value is a string. Inside a string a quote has a backslash
    before it, so this is a member and no text that looks like one."""
    return re.compile(rb'(?<!\\)"%b":\s*("(?:[^"\\]|\\.)*")' % re.escape(name))


def find_template(
    event: bytes, names: tuple[bytes, ...], add: Callable[[str], object] | None, text: str | None
) -> EventTemplate | None:
    """The pattern of one whole event that said `text` (None: whatever it said) in a member that
    has one of `names`; None unless there is just one such member.

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
