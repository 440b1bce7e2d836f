"""Give every request an id and write one line about it when it is over."""

import asyncio
import ipaddress
import logging
import re
import time
from datetime import UTC, datetime

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler

from gateway.errors import clean
from gateway.ids import new_id
from gateway.keys import ADDRESS, NOTED, ORIGIN, REQUEST_ID, STATE

log = logging.getLogger("gateway.access")

_SANE = re.compile(r"[A-Za-z0-9._:\-]{1,128}")
_QUIET = frozenset(("/health", "/livez", "/readyz", "/metrics"))
_HOST = re.compile(r"[A-Za-z0-9.\-_]{1,255}(?::\d{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](?::\d{1,5})?")
# Whoever knows all of a file's name may read the file.
_GUESSLESS = re.compile(r"([0-9a-f]{17})[0-9A-Za-z]{22}(?![0-9A-Za-z])")
_LONGEST = 200  # characters of a path or of a client's name for itself

Networks = list[ipaddress.IPv4Network | ipaddress.IPv6Network]


@web.middleware
async def requestlog(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A sane `x-request-id` of the caller is kept, any other replaced."""
    given = request.headers.get("x-request-id", "")
    request[REQUEST_ID] = given if _SANE.fullmatch(given) else new_request_id()
    request[NOTED] = {}
    request[ADDRESS] = _address(request)
    request[ORIGIN] = _origin(request)
    began = time.monotonic()
    status = 500
    try:
        response = await handler(request)
        status = response.status
        return response
    except (asyncio.CancelledError, ConnectionError):
        status = 499  # the caller has left; nginx gave this number its meaning
        raise
    finally:
        if log.isEnabledFor(logging.INFO) and request.path not in _QUIET:
            log.info(_line(request, status, (time.monotonic() - began) * 1000))


def _line(request: web.Request, status: int, ms: float) -> str:
    """One JSON object. No query, no body and no header that could hold a secret is in it."""
    line = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "level": "info",
        "message": "request",
        "request_id": request[REQUEST_ID],
        "method": request.method[:16],
        "path": _plain(_GUESSLESS.sub(r"\1***", request.rel_url.raw_path)),
        "status": status,
        "ms": round(ms, 1),
        "address": request[ADDRESS],
        "user_agent": _plain(request.headers.get("User-Agent", "")),
        **request[NOTED],
    }
    return orjson.dumps(line, default=str).decode()


def _plain(text: str) -> str:
    """Short and printable, and without a key that somebody put there by mistake."""
    shown = text[:_LONGEST]
    if not (shown.isascii() and shown.isprintable()):
        shown = "".join(c if " " <= c <= "~" else "?" for c in shown)
    return clean(shown) if "-" in shown or "eyJ" in shown else shown


def _origin(request: web.Request) -> str:
    """`http://host:port` as the client knows us; a trusted proxy tells it where it stands before
    us."""
    scheme, host = request.scheme, request.host
    if _is_in(_unmapped(request.remote or ""), _trusted(request)):
        told = request.headers.get("X-Forwarded-Proto", "").partition(",")[0].strip().lower()
        scheme = told if told in ("http", "https") else scheme
        host = request.headers.get("X-Forwarded-Host", "").partition(",")[0].strip() or host
    return f"{scheme}://{host}" if _HOST.fullmatch(host) else ""


def _trusted(request: web.Request) -> Networks:
    state = request.app.get(STATE)
    return state.now.config.server.trusted_proxies if state is not None else []


def _address(request: web.Request) -> str:
    """The client's address. `X-Forwarded-For` counts as far as trusted proxies have written it:
    the last address in it that is not one of theirs."""
    address = _unmapped(request.remote or "")
    trusted = _trusted(request)
    if not trusted or not _is_in(address, trusted):
        return address
    hops = ",".join(request.headers.getall("X-Forwarded-For", ())).split(",")
    for hop in reversed(hops):
        if not hop.strip():
            break
        if not _is_address(hop.strip()):
            break
        address = _unmapped(hop.strip())
        if not _is_in(address, trusted):
            break
    return address


def _unmapped(address: str) -> str:
    """An IPv4 address as such, also where a socket for both kinds writes it as an IPv6 one."""
    if address.startswith("::") and _is_address(address):
        mapped = getattr(ipaddress.ip_address(address), "ipv4_mapped", None)
        return str(mapped or address)
    return address


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_in(address: str, networks: Networks) -> bool:
    if not networks or not _is_address(address):
        return False
    return any(ipaddress.ip_address(address) in net for net in networks)


def new_request_id() -> str:
    return f"req-{new_id(24)}"


async def add_request_id(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Signal handler: every answer carries the id, streams and errors too."""
    if request_id := request.get(REQUEST_ID):
        response.headers["x-request-id"] = request_id
    response.headers["Server"] = "ai-gateway"
