"""Bodies: a request's bytes to a checked model, an answer's data into the envelope.

Every step has a bound that is checked before the work is done: bytes before they are read or
inflated, values before the JSON is parsed, members and lengths before a model validates them.
docs/limits.md lists what one request may cost.
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
from gateway.language.sentences import edited, say
from gateway.limits.shares import Part
from gateway.protocol import loosejson
from gateway.protocol.charsets import as_utf8
from gateway.times import read_iso

MAX_PAGE = 100  # entries
BODY_S = 60.0  # for a whole JSON body to arrive
MAX_SETTINGS = 64 * 1024  # bytes of a body of settings: accounts, keys, tokens
# Bounds inside such a body: members of an object, entries of a list, characters of a string,
# levels.
MAX_MEMBERS, MAX_ENTRIES, MAX_TEXT, MAX_DEPTH = 100, 1000, 4096, 8
_MOST: dict[type, int] = {str: MAX_TEXT, list: MAX_ENTRIES, dict: MAX_MEMBERS}

# Most of each separator in a JSON body: parsing costs up to 0.3 us for each. Bytes inside strings
# count too. A body smaller than LARGE cannot reach these bounds.
LARGE = 256 * 1024  # bytes
BODIES_SHARE = 0.5  # of `server.max_bodies` for one caller
_TURNS = 3
MAX_VALUES = {b",": 400_000, b":": 150_000, b"{": 100_000, b"[": 100_000}

# UTF-8 lead bytes of characters that Python stores in 4 bytes, and all continuation bytes.
_BEYOND_BMP = tuple(bytes([lead]) for lead in range(0xF0, 0xF5))
_CONTINUED = bytes(range(0x80, 0xC0))

_WINDOWS = {"gzip": 31, "x-gzip": 31, "deflate": zlib.MAX_WBITS}
_STEP = 64 * 1024  # compressed bytes per step
_MOST_OUT = 4 * _STEP  # inflated bytes per step

M = TypeVar("M", bound=BaseModel)


async def read_bytes(request: web.Request, most: int | None = None) -> bytes:
    """The body without its Content-Encoding, of at most `most` bytes (else `server.max_body`).

    Raises InvalidRequest, BodyTooLarge, UnsupportedMediaType, SenderTooSlow, TooManyAtOnce.
    """
    context = request[CONTEXT]
    if context.body is None:
        most = request.client_max_size if most is None else most
        coding = request.headers.get("Content-Encoding")
        if coding is not None:
            coding = coding.strip().lower()
            if coding not in ("identity", "") and coding not in _WINDOWS:
                raise UnsupportedMediaType("Send the body as it is, or encoded as gzip or deflate.")
        body = await _read(request, most)
        is_encoded = coding is not None and coding in _WINDOWS
        context.body = await _inflate(request, body, str(coding), most) if is_encoded else body
    return context.body


def _hold(request: web.Request, size: int) -> None:
    """Reserve memory for a body of `size` bytes. Raises TooManyAtOnce."""
    if size > LARGE and not _held(request).grow(size):
        raise _too_many()


def hold_more(request: web.Request, size: int) -> None:
    """Reserve memory for `size` bytes of a file inside the request, in addition to its body. Raises
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
    """Bytes that Python uses per character of a string with this body's widest character."""
    if any(lead in raw for lead in _BEYOND_BMP):
        return 4
    if b"\\u" not in raw:  # takes a third of the time of the search for surrogates
        return 1 if raw.isascii() else 2
    return 4 if loosejson.has_halves(raw) else 2


def _in_memory(raw: bytes) -> int:
    """Upper bound on the bytes of a parsed body: as if all of it were one string."""
    width = _width(raw)
    characters = len(raw) if raw.isascii() else len(raw.translate(None, _CONTINUED))
    return max(len(raw), width * characters)


def _too_large(most: int) -> BodyTooLarge:
    if most == MAX_SETTINGS:
        return BodyTooLarge(say("The request body is larger than {most} bytes.", most=most))
    return BodyTooLarge(
        say("The request body is larger than {most} bytes (server.max_body).", most=most)
    )


async def _read(request: web.Request, most: int) -> bytes:
    """Read the body. aiohttp's `Request.read` would keep a second reference for the whole
    stream."""
    content = request.content
    pieces, size = [], 0
    try:
        if content.is_eof():  # most bodies arrive with their head
            pieces.append(content.read_nowait())
            size = len(pieces[0])
            if size > LARGE:
                _hold(request, size)
        else:
            announced = request.content_length or 0
            if announced > most:
                raise _too_large(most)
            _hold(request, announced)
            async with asyncio.timeout(BODY_S):
                while size <= most and (piece := await content.readany()):
                    pieces.append(piece)
                    size += len(piece)
                    _hold(request, size)
        if size > most:
            raise _too_large(most)
    except TimeoutError:
        message = say("The body did not come within {seconds:g} s; send it again.", seconds=BODY_S)
        raise SenderTooSlow(message) from None
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
    """Inflate a gzip or deflate body step by step. The event loop runs other tasks between steps,
    and inflating stops once the result exceeds `most`."""
    window = _WINDOWS[coding]
    if coding == "deflate" and data[:1] and data[0] & 0x0F != 8:
        window = -zlib.MAX_WBITS  # raw deflate without zlib's header, as some clients send
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
    """The body as a JSON object, whatever its Content-Type: curl sends a wrong one.

    Raises what `read_bytes` raises.
    """
    kind = request.headers.get("Content-Type", "")
    if kind[:10].lower() == "multipart/":
        raise UnsupportedMediaType("Send the body as JSON (Content-Type: application/json).")
    raw = await read_bytes(request, most)
    if len(raw) <= LARGE:
        return _parse(as_utf8(raw, kind))
    async with request.app[PARSING]:
        await _let_others()
        _require_few_values(raw)
        await _let_others()
        raw = as_utf8(raw, kind)
        _hold(request, _in_memory(raw))
        await _let_others()
        value = _parse(raw)
        await _let_others()
        return value


async def _let_others() -> None:
    """Yield to the event loop between two long steps, for as many rounds as another request needs
    to be accepted, read and answered. PARSING lets one large body at a time take its steps."""
    for _ in range(_TURNS):
        await asyncio.sleep(0)


def _require_few_values(raw: bytes) -> None:
    for mark, many in MAX_VALUES.items():
        if raw.count(mark) > many:
            raise InvalidRequest(
                say(
                    "The body holds more than {count} of {character!r}: send fewer values, or a "
                    "file in place of a long text.",
                    count=many,
                    character=mark.decode(),
                )
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
        raise InvalidRequest(
            say("The body is not valid JSON: {reason}.", reason=error.args[0])
        ) from None


def check(model: type[M], value: dict[str, Any]) -> M:
    """The checked model. Raises InvalidRequest that names the first bad member and counts all of
    them."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        first = problems[0]
        path = ".".join(str(step) for step in first["loc"])
        more = say(" ({count} problems in all.)", count=len(problems)) if len(problems) > 1 else ""
        raise InvalidRequest(
            say(
                "{member!r} {complaint}.{more}",
                member=path,
                complaint=_complaint(first),
                more=more,
            ),
            param=path or None,
        ) from None


# pydantic's messages name Python types; callers know JSON. Braces are filled from `ctx`.
_COMPLAINTS = {
    "missing": say("is missing"),
    "extra_forbidden": say("is not known here"),
    "string_type": say("must be a text"),
    "string_too_short": say("is too short (at least {min_length})"),
    "string_too_long": say("is too long (at most {max_length})"),
    "string_pattern_mismatch": say("has a form that is not allowed, or characters that are not"),
    "literal_error": say("must be {expected}"),
    "list_type": say("must be a list"),
    "too_short": say("has too few entries (at least {min_length})"),
    "too_long": say("has too many entries (at most {max_length})"),
    "dict_type": say("must be an object"),
    "model_type": say("must be an object"),
    "greater_than": say("must be more than {gt}"),
    "greater_than_equal": say("must be at least {ge}"),
    "less_than": say("must be less than {lt}"),
    "less_than_equal": say("must be at most {le}"),
}
_KINDS_OF_VALUES = {
    "bool": say("must be true or false"),
    "int": say("must be a whole number"),
    "float": say("must be a number"),
}


def _complaint(problem: Any) -> str:
    """Describe one pydantic error as a phrase that follows the member's name."""
    kind: str = problem["type"]
    if kind == "value_error":
        return edited(problem["ctx"]["error"].args[0], lambda text: text.rstrip(".。"))
    if kind in _COMPLAINTS:
        return say(_COMPLAINTS[kind], **problem.get("ctx", {}))
    wanted = _KINDS_OF_VALUES.get(kind.partition("_")[0])
    return wanted or say("has a value that is not allowed")


async def read_settings(
    request: web.Request,
    model: type[M],
    read_only: Container[str] = frozenset(),
    query: tuple[str, ...] = (),
    *,
    is_optional: bool = False,
) -> M:
    """The checked body of a route that changes settings, within small bounds.

    Unknown and repeated members are refused by name: a misspelt restriction would restrict nothing.
    So are query parameters other than those in `query`. Members in `read_only` appear in the
    resource's answers and are ignored, so a client can send back what it read, with changes. With
    `is_optional` no body equals an empty object. Raises InvalidRequest and what `read_bytes`
    raises.
    """
    require_query(request, *query)
    if is_optional and not (await read_bytes(request, MAX_SETTINGS)).strip():
        return check(model, {})
    value = await read_small(request)
    known = [name for field in model.model_fields.items() for name in _names(*field)]
    require_known([name for name in value if name not in read_only], known)
    return check(model, value)


class Nothing(BaseModel):
    """The body of a route that takes none."""


async def require_nothing(request: web.Request) -> None:
    """Refuse a body or query on a route that takes none. Raises InvalidRequest: ignoring a
    `dry_run` or a date would do more than the caller asked for."""
    await read_settings(request, Nothing, is_optional=True)


async def read_small(request: web.Request) -> dict[str, Any]:
    """A body of at most MAX_SETTINGS whose names are unique. Raises InvalidRequest and what
    `read_bytes` raises."""
    value = await read_object(request, MAX_SETTINGS)
    require_bounds(value)
    raw = as_utf8(await read_bytes(request), request.headers.get("Content-Type", ""))
    try:  # orjson keeps the last of two equal names; a human reader may see the first
        json.loads(raw.decode("utf-8", "replace"), object_pairs_hook=_distinct)
    except (json.JSONDecodeError, RecursionError):
        raise InvalidRequest("The body is not valid JSON, or is nested too deeply.") from None
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> None:
    require_once([name for name, _ in pairs])


def require_once(names: list[str]) -> None:
    """Raises InvalidRequest for a repeated name."""
    seen = set[str]()
    for name in names:
        if name in seen:
            raise InvalidRequest(
                say("{name!r} is given twice; give it once.", name=name[:100]), param=name[:100]
            )
        seen.add(name)


def _names(name: str, field: FieldInfo) -> Iterable[str]:
    """The names under which a body may contain the field."""
    alias = field.validation_alias
    return map(str, alias.choices) if isinstance(alias, AliasChoices) else (name,)


def require_bounds(value: Any, path: str = "", depth: int = 0) -> None:
    """Raises InvalidRequest if a string, list or object is too long, or the nesting too deep."""
    size, most = 0, 0
    if isinstance(value, str | list | dict):
        size, most = len(value), _MOST[type(value)]
    if size > most or depth > MAX_DEPTH:
        complaint = (
            say("is nested too deeply")
            if depth > MAX_DEPTH
            else say("is too long (at most {most})", most=most)
        )
        if not path:
            raise InvalidRequest(say("The body {complaint}.", complaint=complaint))
        raise InvalidRequest(
            say("{member!r} {complaint}.{more}", member=path, complaint=complaint, more=""),
            param=path,
        )
    if isinstance(value, dict):
        for name, inner in value.items():
            require_bounds(inner, f"{path}.{name[:100]}".lstrip("."), depth + 1)
    elif isinstance(value, list):
        for inner in value:
            require_bounds(inner, path, depth + 1)


def require_known(names: Iterable[str], known: list[str]) -> None:
    """Raises InvalidRequest for the first unknown name and suggests the nearest known one."""
    for name in names:
        if name in known:
            continue
        near = difflib.get_close_matches(name[:64].lower(), known, 1, 0.7)
        hint = (
            say("did you mean {name!r}?", name=near[0])
            if near
            else say("known: {known}.", known=", ".join(known) or say("none"))
        )
        raise InvalidRequest(
            say("{name!r} is not known here; {hint}", name=name[:100], hint=hint), param=name[:100]
        )


def at_most(most: int) -> BeforeValidator:
    """A validator that counts entries before they are validated, so a million bad ones cost
    nothing."""

    def check_length(value: Any) -> Any:
        if isinstance(value, list | dict) and len(value) > most:
            raise ValueError(say("must have at most {most} entries", most=most))
        return value

    return BeforeValidator(check_length)


def envelope(data: Any, **extra: Any) -> web.Response:
    """`{code, success, msg, data}`; `extra` is added at the top level."""
    body = {"code": 0, "success": True, "msg": "Success", "data": data, **extra}
    return web.json_response(body, dumps=lambda value: orjson.dumps(value).decode())


# Headers and queries.


def require_query(request: web.Request, *known: str) -> None:
    """Refuse unknown and repeated query parameters: an ignored filter would show more than the
    caller asked for."""
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
    """A query parameter that is a whole number from 1 to `most`."""
    text = request.query.get(name, "")
    if not text:
        return default
    if not re.fullmatch(r"[0-9]{1,7}", text) or not 1 <= int(text) <= most:
        raise InvalidRequest(
            say("{name!r} must be a number from 1 to {most}.", name=name, most=most), param=name
        )
    return int(text)


def choice(request: web.Request, name: str, known: tuple[str, ...]) -> str:
    """A query parameter that is one of `known`, or ""."""
    text = request.query.get(name, "")
    if text and text not in known:
        raise InvalidRequest(
            say("{name!r} must be one of {allowed}.", name=name, allowed=", ".join(known)),
            param=name,
        )
    return text


def day(request: web.Request, name: str, default: date) -> date:
    """A query parameter that is a day (YYYY-MM-DD)."""
    text = request.query.get(name, "")
    try:
        return date.fromisoformat(text) if text else default
    except ValueError:
        raise InvalidRequest(
            say("{name!r} must be a day such as 2026-11-23.", name=name), param=name
        ) from None


def moment_ms(text: str, name: str) -> int:
    """Milliseconds since the epoch from ISO 8601. Raises InvalidRequest that names the member."""
    try:
        return read_iso(text)
    except ValueError:
        raise InvalidRequest(
            say("{name!r} must be a time such as 2026-12-31T23:59:59Z.", name=name), param=name
        ) from None


def text_member(body: dict[str, Any], name: str) -> str:
    """A member that is a string; numbers become one, and "" stands for none. Raises
    InvalidRequest."""
    value = body.get(name)
    if value is None:
        return ""
    if isinstance(value, str):
        return value.strip()
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidRequest(say("'{name}' must be a string.", name=name), param=name)
    return str(value)
