"""Give every request an id and write one line about it when it is over."""

import asyncio
import logging
import re
import secrets
import time

from aiohttp import web
from aiohttp.typedefs import Handler

from gateway.keys import NOTED, REQUEST_ID

log = logging.getLogger("gateway.access")

_SANE = re.compile(r"[A-Za-z0-9._:\-]{1,128}")
_QUIET = frozenset(("/health", "/livez", "/readyz", "/metrics"))


@web.middleware
async def requestlog(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A sane `x-request-id` of the caller is kept, any other replaced."""
    given = request.headers.get("x-request-id", "")
    request[REQUEST_ID] = given if _SANE.fullmatch(given) else new_request_id()
    request[NOTED] = {}
    began = time.monotonic()
    status = 500
    try:
        response = await handler(request)
        status = response.status
        return response
    except asyncio.CancelledError:
        status = 499  # the caller has left; nginx gave this number its meaning
        raise
    finally:
        if log.isEnabledFor(logging.INFO) and request.path not in _QUIET:
            noted = "".join(f" {key}={value}" for key, value in request[NOTED].items())
            log.info(
                "%s %s %d %.0fms id=%s%s",
                request.method,
                _one_line(request.rel_url.raw_path),
                status,
                (time.monotonic() - began) * 1000,
                request[REQUEST_ID],
                noted,
            )


def _one_line(path: str) -> str:
    return "".join(c if " " < c <= "~" else "?" for c in path[:200])


def new_request_id() -> str:
    return f"req-{secrets.token_hex(12)}"


async def add_request_id(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Signal handler: every answer carries the id, streams and errors too."""
    if request_id := request.get(REQUEST_ID):
        response.headers["x-request-id"] = request_id
    response.headers["Server"] = "ai-gateway"
