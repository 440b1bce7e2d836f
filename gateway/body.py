"""Bodies: a request's bytes to a checked model, an answer's data into the envelope."""

import asyncio
import difflib
import re
from datetime import date
from typing import Any, TypeVar
from urllib.parse import unquote

import orjson
from aiohttp import web
from pydantic import BaseModel, ValidationError

from gateway import loosejson
from gateway.errors import InvalidRequest, SenderTooSlow, UnsupportedMediaType
from gateway.keys import CONTEXT
from gateway.times import read_iso

MAX_PAGE = 100  # entries
BODY_S = 60.0  # for a JSON body to come, all of it

M = TypeVar("M", bound=BaseModel)


async def read_bytes(request: web.Request) -> bytes:
    """The body as it came. Raises InvalidRequest, SenderTooSlow, or aiohttp's 413."""
    context = request[CONTEXT]
    if context.body is None:
        context.body = await _read(request)
    return context.body


async def _read(request: web.Request) -> bytes:
    """aiohttp's `Request.read` would keep a second reference, for as long as a stream lasts."""
    content, most = request.content, request.client_max_size
    pieces, size = [], 0
    try:
        if content.is_eof():  # most have come with their head
            pieces.append(content.read_nowait())
            size = len(pieces[0])
        else:
            content.set_read_chunk_size(most)
            async with asyncio.timeout(BODY_S):
                while size <= most and (piece := await content.readany()):
                    pieces.append(piece)
                    size += len(piece)
        if size > most:
            raise web.HTTPRequestEntityTooLarge(most, size)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
    except TimeoutError:
        words = f"The body did not come within {BODY_S:g} s; send it again."
        raise SenderTooSlow(words) from None
    except web.RequestPayloadError:
        raise InvalidRequest("The body is not what its Content-Encoding says.") from None


async def read_object(request: web.Request) -> dict[str, Any]:
    """The body as a JSON object. The content type is not insisted on: curl sends a wrong one.

    Raises InvalidRequest, UnsupportedMediaType, or aiohttp's 413.
    """
    if request.headers.get("Content-Type", "")[:10].lower() == "multipart/":
        raise UnsupportedMediaType("Send the body as JSON (Content-Type: application/json).")
    raw = _as_utf8(await read_bytes(request), request.headers.get("Content-Type", ""))
    if not raw.strip():
        raise InvalidRequest("The request has no body; send a JSON object.")
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        value = _read_loosely(raw)
    if not isinstance(value, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return value


def _read_loosely(raw: bytes) -> Any:
    try:
        raw.decode()
        return loosejson.loads(raw)
    except UnicodeDecodeError:
        raise InvalidRequest("The body is not UTF-8 text; send it as UTF-8.") from None
    except loosejson.NotJson as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.") from None


# What shells and programs of Windows send, as they name it.
_CODECS = {
    "gbk": "gb18030", "gb2312": "gb18030", "gb18030": "gb18030", "cp936": "gb18030",
    "x-gbk": "gb18030", "big5": "big5hkscs", "utf-16": "utf-16", "utf16": "utf-16",
    "utf-16le": "utf-16-le", "utf-16be": "utf-16-be", "utf-16-le": "utf-16-le",
    "utf-16-be": "utf-16-be", "unicode": "utf-16", "utf-32": "utf-32",
    "iso-8859-1": "cp1252", "latin1": "cp1252", "windows-1252": "cp1252", "cp1252": "cp1252",
}  # fmt: skip
_CHARSET = re.compile(r"charset\s*=\s*[\"']?([\w.\-]{1,20})", re.IGNORECASE)


def _as_utf8(raw: bytes, kind: str) -> bytes:
    """A body in UTF-8, whatever it is in, as its first bytes or its `Content-Type` tell it."""
    if raw.startswith(b"\xef\xbb\xbf"):  # editors and shells on Windows put it there
        return raw[3:]
    codec = _codec(raw[:4], kind)
    if codec is None or (codec == "cp1252" and _is_utf8(raw)):  # some write that before UTF-8
        return raw
    halves = "replace" if codec.startswith("utf") else "strict"  # of characters outside the BMP
    try:
        return raw.decode(codec, halves).removeprefix("\ufeff").encode()
    except UnicodeError:
        return raw  # it may be UTF-8 all the same, whatever it says


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _codec(begin: bytes, kind: str) -> str | None:
    if begin.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    if b"\0" in begin[:2]:  # JSON begins with a character of ASCII
        return "utf-16-be" if begin[:1] == b"\0" else "utf-16-le"
    if "charset" not in kind.lower():
        return None
    told = _CHARSET.search(kind)
    return _CODECS.get(told[1].lower()) if told else None


def check(model: type[M], value: dict[str, Any]) -> M:
    """The checked model. Raises InvalidRequest that names the first bad member and counts all."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False, include_context=False)
        first = problems[0]
        path = ".".join(str(step) for step in first["loc"])
        more = f" ({len(problems)} problems in all)" if len(problems) > 1 else ""
        words = first["msg"].removeprefix("Value error, ")
        raise InvalidRequest(f"{path!r}: {words}{more}", param=path or None) from None


def check_changes(model: type[M], value: dict[str, Any]) -> M:
    """Like `check`. Members that are not known are ignored, so that what was read can be sent back
    changed, but not those that are nearly known: a misspelt restriction would restrict nothing."""
    for name in value.keys() - model.model_fields.keys():
        if near := difflib.get_close_matches(name, list(model.model_fields), 1, 0.8):
            raise InvalidRequest(f"{name!r} is not known; did you mean {near[0]!r}?", param=name)
    return check(model, value)


def envelope(data: Any, **beside: Any) -> web.Response:
    """`{code, success, msg, data}`; `beside` stands at top level too."""
    body = {"code": 0, "success": True, "msg": "Success", "data": data, **beside}
    return web.json_response(body, dumps=lambda value: orjson.dumps(value).decode())


# Headers and queries.


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
