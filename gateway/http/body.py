"""Bodies: a request's bytes to a checked model, an answer's data into the envelope.

Everything is bounded before the work that it would cost: the bytes before they are read or
inflated, the values before the JSON is parsed, members and lengths before a model looks at them.
docs/limits.md says what one request may cost.
"""

import asyncio
import difflib
import json
import re
import zlib
from collections.abc import Container, Iterable
from datetime import date
from typing import Any, TypeVar
from urllib.parse import unquote

import orjson
from aiohttp import web
from pydantic import AliasChoices, BaseModel, BeforeValidator, ValidationError
from pydantic.fields import FieldInfo

from gateway.errors import (
    BodyTooLarge,
    InvalidRequest,
    SenderTooSlow,
    TooManyAtOnce,
    UnsupportedMediaType,
)
from gateway.http.context import BODIES, CONTEXT, PARSING
from gateway.limits.shares import Part
from gateway.protocol import loosejson
from gateway.protocol.charsets import as_utf8
from gateway.times import read_iso

MAX_PAGE = 100  # entries
BODY_S = 60.0  # for a JSON body to come, all of it
MAX_SETTINGS = 64 * 1024  # bytes of a body that sets something: accounts, keys, tokens
# The same inside: members of an object, entries of a list, characters of a text, levels.
MAX_MEMBERS, MAX_ENTRIES, MAX_TEXT, MAX_DEPTH = 100, 1000, 4096, 8
_MOST: dict[type, int] = {str: MAX_TEXT, list: MAX_ENTRIES, dict: MAX_MEMBERS}

# What a JSON body may hold, wherever it stands: parsing costs up to 0.3 us for each. The bytes are
# counted, so those inside texts count as well; a body under LARGE cannot hold too many.
LARGE = 256 * 1024  # bytes
BODIES_SHARE = 0.5  # of `server.max_bodies` for one caller
_TURNS = 3
MAX_VALUES = {b",": 400_000, b":": 150_000, b"{": 100_000, b"[": 100_000}

# In UTF-8, first bytes of characters that Python keeps in 4 bytes, and all that are not first.
_BEYOND_BMP = tuple(bytes([lead]) for lead in range(0xF0, 0xF5))
_CONTINUED = bytes(range(0x80, 0xC0))

_WINDOWS = {"gzip": 31, "x-gzip": 31, "deflate": zlib.MAX_WBITS}
_STEP = 64 * 1024  # bytes that are inflated at once
_MOST_OUT = 4 * _STEP  # bytes that they may become at once

M = TypeVar("M", bound=BaseModel)


async def read_bytes(request: web.Request, most: int | None = None) -> bytes:
    """The body without its Content-Encoding, of at most `most` bytes (else `server.max_body`).

    Raises InvalidRequest, BodyTooLarge, UnsupportedMediaType, SenderTooSlow, TooManyAtOnce.
    """
    context = request[CONTEXT]
    if context.body is None:
        most = request.client_max_size if most is None else most
        coding = request.headers.get("Content-Encoding", "identity").strip().lower()
        if coding not in ("identity", "") and coding not in _WINDOWS:
            raise UnsupportedMediaType("Send the body as it is, or encoded as gzip or deflate.")
        body = await _read(request, most)
        context.body = await _inflate(request, body, coding, most) if coding in _WINDOWS else body
    return context.body


def _hold(request: web.Request, size: int) -> None:
    """Memory for so many bytes of a body. Raises TooManyAtOnce."""
    if size > LARGE and not _held(request).grow(size):
        raise _too_many()


def hold_more(request: web.Request, size: int) -> None:
    """Memory for so many bytes of a file inside the request, beside its body. Raises
    TooManyAtOnce."""
    if not _held(request).add(size):
        raise _too_many()


def _held(request: web.Request) -> Part:
    context = request[CONTEXT]
    if context.held is None:
        caller = context.caller
        holders = caller.holders if caller else (context.address,)
        context.held = Part(request.app[BODIES], holders)
    return context.held


def _too_many() -> TooManyAtOnce:
    return TooManyAtOnce(
        "The large bodies and files under way are too many (server.max_bodies); wait for one to"
        " end.",
        retry_after_s=1.0,
    )


def _width(raw: bytes) -> int:
    """Bytes that Python keeps for each character of a text with this body's widest one."""
    if any(lead in raw for lead in _BEYOND_BMP):
        return 4
    if b"\\u" not in raw:  # which takes a third of the time of looking for halves
        return 1 if raw.isascii() else 2
    return 4 if loosejson.has_halves(raw) else 2


def _in_memory(raw: bytes) -> int:
    """Bytes of a parsed body, at most: as if all of it were one text."""
    width = _width(raw)
    characters = len(raw) if raw.isascii() else len(raw.translate(None, _CONTINUED))
    return max(len(raw), width * characters)


def _too_large(most: int) -> BodyTooLarge:
    name = "" if most == MAX_SETTINGS else " (server.max_body)"
    return BodyTooLarge(f"The request body is larger than {most} bytes{name}.")


async def _read(request: web.Request, most: int) -> bytes:
    """aiohttp's `Request.read` would keep a second reference, for as long as a stream lasts."""
    content = request.content
    pieces, size = [], 0
    try:
        if content.is_eof():  # most have come with their head
            pieces.append(content.read_nowait())
            size = len(pieces[0])
            if size > LARGE:
                _hold(request, size)
        else:
            told = request.content_length or 0
            if told > most:
                raise _too_large(most)
            _hold(request, told)
            async with asyncio.timeout(BODY_S):
                while size <= most and (piece := await content.readany()):
                    pieces.append(piece)
                    size += len(piece)
                    _hold(request, size)
        if size > most:
            raise _too_large(most)
    except TimeoutError:
        words = f"The body did not come within {BODY_S:g} s; send it again."
        raise SenderTooSlow(words) from None
    except web.RequestPayloadError:
        raise InvalidRequest("The body is not complete, or not framed as HTTP says.") from None
    if len(pieces) == 1:
        return pieces[0]
    if size <= LARGE:
        return b"".join(pieces)
    async with request.app[PARSING]:
        await _let_others()
        return b"".join(pieces)


async def _inflate(request: web.Request, data: bytes, coding: str, most: int) -> bytes:
    """The body inside a gzip or deflate stream, a step at a time: others have their turn between
    them, and what would become larger than `most` is not inflated to its end."""
    window = _WINDOWS[coding]
    if coding == "deflate" and data[:1] and data[0] & 0x0F != 8:
        window = -zlib.MAX_WBITS  # without zlib's header, as some clients send it
    inflater, pieces, size = zlib.decompressobj(window), [], 0
    try:
        for start in range(0, len(data), _STEP):
            rest, is_full = data[start : start + _STEP], True
            while rest or is_full:
                piece = inflater.decompress(rest, _MOST_OUT)
                rest, is_full = inflater.unconsumed_tail, len(piece) == _MOST_OUT
                size += len(piece)
                if size > most:
                    raise _too_large(most)
                _hold(request, size)
                pieces.append(piece)
                await asyncio.sleep(0)
            if inflater.eof:
                break
    except zlib.error:
        raise _not_encoded() from None
    if data and (not inflater.eof or inflater.unused_data or start + _STEP < len(data)):
        raise _not_encoded()
    return b"".join(pieces)


def _not_encoded() -> InvalidRequest:
    return InvalidRequest("The body is not what its Content-Encoding says, or more follows it.")


async def read_object(request: web.Request, most: int | None = None) -> dict[str, Any]:
    """The body as a JSON object. The content type is not insisted on: curl sends a wrong one.

    Raises what `read_bytes` raises.
    """
    if request.headers.get("Content-Type", "")[:10].lower() == "multipart/":
        raise UnsupportedMediaType("Send the body as JSON (Content-Type: application/json).")
    raw = await read_bytes(request, most)
    charset = request.headers.get("Content-Type", "")
    if len(raw) <= LARGE:
        return _parse(as_utf8(raw, charset))
    async with request.app[PARSING]:
        await _let_others()
        _require_few_values(raw)
        await _let_others()
        raw = as_utf8(raw, charset)
        _hold(request, _in_memory(raw))
        await _let_others()
        value = _parse(raw)
        await _let_others()
        return value


async def _let_others() -> None:
    """Turns of the loop for others, between two steps that take long: as many as one needs to be
    accepted, read and answered. Of large bodies (PARSING) one takes its steps at a time."""
    for _ in range(_TURNS):
        await asyncio.sleep(0)


def _require_few_values(raw: bytes) -> None:
    for mark, many in MAX_VALUES.items():
        if raw.count(mark) > many:
            raise InvalidRequest(
                f"The body holds more than {many} of {mark.decode()!r}: send fewer values, or a"
                " file in place of a long text."
            )


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        if not raw.strip():
            raise InvalidRequest("The request has no body; send a JSON object.") from None
        value = _read_loosely(raw)
    if not isinstance(value, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return value


def _read_loosely(raw: bytes) -> Any:
    try:
        raw.decode()
        return loosejson.loads_mended(raw)
    except UnicodeDecodeError:
        raise InvalidRequest("The body is not UTF-8 text; send it as UTF-8.") from None
    except loosejson.NotJson as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.") from None


def check(model: type[M], value: dict[str, Any]) -> M:
    """The checked model. Raises InvalidRequest that names the first bad member and counts all."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        first = problems[0]
        path = ".".join(str(step) for step in first["loc"])
        more = f" ({len(problems)} problems in all.)" if len(problems) > 1 else ""
        raise InvalidRequest(f"{path!r} {_words(first)}.{more}", param=path or None) from None


# pydantic speaks of Python's types and of itself; a caller knows JSON. Braces are of `ctx`.
_WORDS = {
    "missing": "is missing",
    "extra_forbidden": "is not known here",
    "string_type": "must be a text",
    "string_too_short": "is too short (at least {min_length})",
    "string_too_long": "is too long (at most {max_length})",
    "string_pattern_mismatch": "has a form that is not allowed, or characters that are not",
    "literal_error": "must be {expected}",
    "list_type": "must be a list",
    "too_short": "has too few entries (at least {min_length})",
    "too_long": "has too many entries (at most {max_length})",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
}
_KINDS_OF_VALUES = {"bool": "true or false", "int": "a whole number", "float": "a number"}


def _words(problem: Any) -> str:
    """What is wrong with a member, to stand behind its name: one of pydantic's errors."""
    kind: str = problem["type"]
    if kind == "value_error":
        return str(problem["ctx"]["error"]).rstrip(".")
    if kind in _WORDS:
        return _WORDS[kind].format_map(problem.get("ctx", {}))
    wanted = _KINDS_OF_VALUES.get(kind.partition("_")[0])
    return f"must be {wanted}" if wanted else "has a value that is not allowed"


async def read_settings(
    request: web.Request,
    model: type[M],
    told: Container[str] = frozenset(),
    query: tuple[str, ...] = (),
    *,
    is_optional: bool = False,
) -> M:
    """The checked body of a route that sets something, with bounds that are small.

    Members that are not known, or stand there twice, are refused by name: a misspelt restriction
    would restrict nothing. So are members of the query other than those in `query`. Those in
    `told`, which the answers of the resource have, are ignored, so that what was read can be sent
    back changed. `is_optional`: no body is the same as an empty object. Raises InvalidRequest and
    what `read_bytes` raises.
    """
    require_query(request, *query)
    if is_optional and not (await read_bytes(request, MAX_SETTINGS)).strip():
        return check(model, {})
    value = await read_small(request)
    known = [name for field in model.model_fields.items() for name in _names(*field)]
    require_known([name for name in value if name not in told], known)
    return check(model, value)


class Nothing(BaseModel):
    """The body of a route that takes none."""


async def require_nothing(request: web.Request) -> None:
    """For a route whose address says all. Raises InvalidRequest: a `dry_run` or a date that is
    ignored would do more than was asked for."""
    await read_settings(request, Nothing, is_optional=True)


async def read_small(request: web.Request) -> dict[str, Any]:
    """A body of at most MAX_SETTINGS, in which every name stands once. Raises InvalidRequest and
    what `read_bytes` raises."""
    value = await read_object(request, MAX_SETTINGS)
    require_bounds(value)
    raw = as_utf8(await read_bytes(request), request.headers.get("Content-Type", ""))
    try:  # orjson takes the last of two, as most do, and a person may read the first
        json.loads(raw.decode("utf-8", "replace"), object_pairs_hook=_distinct)
    except (json.JSONDecodeError, RecursionError):
        raise InvalidRequest("The body is not valid JSON, or is nested too deeply.") from None
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> None:
    require_once([name for name, _ in pairs])


def require_once(names: list[str]) -> None:
    """Raises InvalidRequest for a name that is there twice."""
    seen = set[str]()
    for name in names:
        if name in seen:
            raise InvalidRequest(f"{name[:100]!r} is given twice; give it once.", param=name[:100])
        seen.add(name)


def _names(name: str, field: FieldInfo) -> Iterable[str]:
    """Under which a body may have the field."""
    alias = field.validation_alias
    return map(str, alias.choices) if isinstance(alias, AliasChoices) else (name,)


def require_bounds(value: Any, path: str = "", depth: int = 0) -> None:
    """Raises InvalidRequest where a text, a list or an object is longer than any needs to be."""
    size, most = 0, 0
    if isinstance(value, str | list | dict):
        size, most = len(value), _MOST[type(value)]
    if size > most or depth > MAX_DEPTH:
        where = f"{path!r}" if path else "The body"
        words = "is nested too deeply" if depth > MAX_DEPTH else f"is too long (at most {most})"
        raise InvalidRequest(f"{where} {words}.", param=path or None)
    if isinstance(value, dict):
        for name, inner in value.items():
            require_bounds(inner, f"{path}.{name[:100]}".lstrip("."), depth + 1)
    elif isinstance(value, list):
        for inner in value:
            require_bounds(inner, path, depth + 1)


def require_known(names: Iterable[str], known: list[str]) -> None:
    """Raises InvalidRequest for the first of `names` that is not known, with the nearest one."""
    for name in names:
        if name in known:
            continue
        near = difflib.get_close_matches(name[:64].lower(), known, 1, 0.7)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known) or 'none'}."
        raise InvalidRequest(f"{name[:100]!r} is not known here; {hint}", param=name[:100])


def at_most(most: int) -> BeforeValidator:
    """Counted before the entries are looked at, so that a million bad ones cost nothing."""

    def check_length(value: Any) -> Any:
        if isinstance(value, list | dict) and len(value) > most:
            raise ValueError(f"must have at most {most} entries")
        return value

    return BeforeValidator(check_length)


def envelope(data: Any, **beside: Any) -> web.Response:
    """`{code, success, msg, data}`; `beside` stands at top level too."""
    body = {"code": 0, "success": True, "msg": "Success", "data": data, **beside}
    return web.json_response(body, dumps=lambda value: orjson.dumps(value).decode())


# Headers and queries.


def require_query(request: web.Request, *known: str) -> None:
    """A filter that is not known, or given twice, would show more than was asked for."""
    names = [name for name, _ in request.query.items()]
    require_known(names, list(known))
    require_once(names)


def agent_name(request: web.Request) -> str:
    """The header `Agent`; clients send names outside ASCII raw or percent-encoded."""
    raw = request.headers.get("Agent", "").strip()
    return unquote(raw.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))


def page_of(request: web.Request) -> tuple[int, int]:
    """(page from 1, entries per page) of `?page=…&page_size=…`."""
    return number(request, "page", 1, 1_000_000), number(request, "page_size", 20, MAX_PAGE)


def number(request: web.Request, name: str, default: int, most: int) -> int:
    """A whole number from 1 in the query."""
    text = request.query.get(name, "")
    if not text:
        return default
    if not re.fullmatch(r"[0-9]{1,7}", text) or not 1 <= int(text) <= most:
        raise InvalidRequest(f"{name!r} must be a number from 1 to {most}.", param=name)
    return int(text)


def choice(request: web.Request, name: str, known: tuple[str, ...]) -> str:
    """One of some words in the query, or ""."""
    text = request.query.get(name, "")
    if text and text not in known:
        raise InvalidRequest(f"{name!r} must be one of {', '.join(known)}.", param=name)
    return text


def day(request: web.Request, name: str, default: date) -> date:
    """A day (YYYY-MM-DD) in the query."""
    text = request.query.get(name, "")
    try:
        return date.fromisoformat(text) if text else default
    except ValueError:
        raise InvalidRequest(f"{name!r} must be a day such as 2026-11-23.", param=name) from None


def moment_ms(text: str, name: str) -> int:
    """Milliseconds since the epoch from ISO 8601. Raises InvalidRequest that names the member."""
    try:
        return read_iso(text)
    except ValueError:
        raise InvalidRequest(
            f"{name!r} must be a time such as 2026-12-31T23:59:59Z.", param=name
        ) from None
