"""JSON as it is really sent: parsed by orjson, and repaired only if orjson rejects it.

A lone surrogate, which JavaScript and length limits produce, becomes U+FFFD. NaN and Infinity,
which Python writes, become null, and so do numbers beyond a double (1e400). A byte order mark is
skipped, and invalid UTF-8 becomes U+FFFD. Text that needs more repair than the bounds below allow
is not JSON: it would block other requests.
"""

import re
from itertools import islice
from math import isinf
from typing import Any

import orjson

MAX_MENDS = 20_000  # strings, constants or surrogates to check one by one: some 20 ms
MAX_ESCAPES = 500_000  # escapes to search for surrogates: as long
MAX_SEARCHED = 2 << 20  # bytes to search for constants

REPLACED = "\ufffd"
REPLACEMENT = b"\\ufffd"
_BOM = b"\xef\xbb\xbf"
_INFINITE = "number is infinity"  # orjson's message for 1e400
_HALVES = (b"\\ud", b"\\uD")  # the start of an escaped surrogate
_PAIR = re.compile(
    rb"\\u[dD](?:[89abAB][0-9a-fA-F]{2}(?P<low>\\u[dD][c-fC-F][0-9a-fA-F]{2})?"
    rb"|[c-fC-F][0-9a-fA-F]{2})"
)
# NaN, Infinity, and numbers that may be beyond a double. A match cannot begin inside a run of
# digits, so each run is examined only once.
_CONSTANT = re.compile(
    rb"-?(?:(?:NaN|Infinity)\b"
    rb"|(?<![\d.])(?=\d[\d.]*+[eE]\+?\d\d|\d{309})\d[\d.]*+(?:[eE][+-]?\d++)?+)"
)
_STRING_OR_CONSTANT = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|' + _CONSTANT.pattern, re.DOTALL)
# Members with a piece of an answer's text, which may end with the first half of a surrogate pair.
_TEXT = frozenset(
    b"answer arguments content msg reasoning reasoning_content refusal text thinking".split()
)


class NotJson(ValueError):
    """The input cannot be read as JSON. The message says why, without repeating the input."""


def loads(data: bytes) -> Any:
    """The value. Raises NotJson."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return loads_mended(data)


def value_in(data: bytes) -> Any:
    """The value; None if it is not JSON."""
    try:
        return loads(data)
    except NotJson:
        return None


def object_in(data: bytes) -> dict[str, Any]:
    """The object; an empty one if it is anything else."""
    value = value_in(data)
    return value if isinstance(value, dict) else {}


def loads_mended(data: bytes) -> Any:
    """The value of JSON that orjson has rejected. Raises NotJson."""
    return _mended(data)[1]


def mend(data: bytes) -> bytes:
    """The same value as strict JSON in UTF-8. Raises NotJson if it cannot be repaired."""
    return _mended(data)[0]


def _mended(data: bytes) -> tuple[bytes, Any]:
    """(strict JSON, its value)."""
    data = _as_utf8(data.removeprefix(_BOM))
    if has_halves(data):
        data = join_halves(data)[0]
    try:
        return data, orjson.loads(data)
    except orjson.JSONDecodeError as error:
        why = str(error)
    if _INFINITE not in why and b"NaN" not in data and b"Infinity" not in data:
        raise NotJson(why)
    if len(data) > MAX_SEARCHED:
        raise NotJson("it has NaN or Infinity in it")
    constants = sum(1 for _ in islice(_CONSTANT.finditer(data), MAX_MENDS + 1))
    _check_work(constants + data.count(b'"') // 2)
    data = _STRING_OR_CONSTANT.sub(_without_constant, data)
    try:
        return data, orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise NotJson(str(error)) from None


def _as_utf8(data: bytes) -> bytes:
    return data if data.isascii() else data.decode("utf-8", "replace").encode()


def _without_constant(found: re.Match[bytes]) -> bytes:
    text = found[0]
    is_kept = text.startswith(b'"') or (text[-1:].isdigit() and not _is_beyond(text))
    return text if is_kept else b"null"


def _is_beyond(number: bytes) -> bool:
    try:
        return isinf(float(number))
    except ValueError:
        return False


def _check_work(pieces: int, escapes: int = 0) -> None:
    if pieces > MAX_MENDS or escapes > MAX_ESCAPES:
        raise NotJson("it has too many places that are no strict JSON")


# Surrogate pairs.


def has_halves(data: bytes) -> bool:
    """Whether there are escaped surrogates, which are mostly complete pairs."""
    return _HALVES[0] in data or _HALVES[1] in data


def join_halves(data: bytes, first: bytes | None = None) -> tuple[bytes, bytes, bool]:
    """Join or replace the surrogates that a split left without their other half. Returns (JSON
    without lone ones, the half at the end of its text, whether `first` was joined).

    Without `first` no half is held back and each lone one becomes U+FFFD. With it, a half at the
    end of a piece of text is removed; pass it as `first` with the next event. A given half (b"" for
    none) is put before text that begins with the other half. Raises NotJson.

          '{"content":"ok \\ud83d"}', b""  →  '{"content":"ok "}', b"\\ud83d", False
          '{"content":"\\ude00!"}', b"\\ud83d"  →  '{"content":"\\ud83d\\ude00!"}', b"", True
    """
    _check_work(0, data.count(b"\\"))  # check it first: searching among many backslashes is slow
    _check_work(sum(data.count(half) for half in _HALVES))
    last, is_joined = b"", False

    def mended(found: re.Match[bytes]) -> bytes:
        nonlocal last, is_joined
        half, at = found[0], found.start()
        if _is_escaped(data, at):  # an escaped backslash and the text `ud83d`
            return half[:6] + (REPLACEMENT if found["low"] else b"")
        if found["low"]:
            return half
        is_low = half[3:4] not in b"89abAB"
        if is_low and first and not is_joined and data[at - 1 : at] == b'"':
            is_joined = True
            return first + half
        if not is_low and first is not None and _ends_text(data, found):
            last = half
            return b""
        return REPLACEMENT

    return _PAIR.sub(mended, data), last, is_joined


def _is_escaped(data: bytes, at: int) -> bool:
    if data[at - 1 : at] != b"\\":
        return False
    before = data[max(0, at - 1000) : at]
    return bool((len(before) - len(before.rstrip(b"\\"))) % 2)


def _ends_text(data: bytes, found: re.Match[bytes]) -> bool:
    """Whether a piece of the answer's text ends there."""
    if data[found.end() : found.end() + 1] != b'"':
        return False
    end = data.rfind(b'":', 0, found.start())
    return data[data.rfind(b'"', 0, max(end, 0)) + 1 : end] in _TEXT
