"""Give every request an id, count requests in flight, and write one log line about each."""

import asyncio
import logging
import re
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from gateway.errors import clean, looks_like_key
from gateway.http.context import CONTEXT, STATE, Context, State, route_of
from gateway.http.forwarded import client_address
from gateway.http.inflight import InFlight
from gateway.ids import new_request_id
from gateway.telemetry.accesslog import AccessLog, level_of
from gateway.telemetry.metrics import Metrics
from gateway.times import stamp

OnOver = Callable[[Context, web.StreamResponse | None, int], None]

# Ids that look like a key or a token were sent by mistake, and would be logged.
_SANE = re.compile(
    r"(?!(?:sk|fastgpt|pat|sat|czs|czu|cztei|dataset)[-_]|eyJ)[A-Za-z0-9._:\-]{1,128}"
)
_QUIET = frozenset(("/health", "/livez", "/readyz", "/metrics"))
_FILE = re.compile(r"([0-9a-f]{17})[0-9A-Za-z]{22}(?![0-9A-Za-z])")
_REFUSED = (401, 403)
_LEVELS = {logging.INFO: "info", logging.WARNING: "warning", logging.ERROR: "error"}
_LONGEST = 200  # characters of a path or of a User-Agent


def requestlog(
    metrics: Metrics, access_log: AccessLog, in_flight: InFlight, on_over: OnOver | None = None
) -> Middleware:
    """`on_over` receives each request's context, its answer (if any), and its status."""

    def over(
        request: web.Request, context: Context, response: web.StreamResponse | None, status: int
    ) -> None:
        metrics.request_ended(route_of(request), status)
        is_good = status < 400 and not context.error_code  # nearly always
        level = logging.INFO if is_good else level_of(status, bool(context.error_code))
        if access_log.takes(level) and request.path not in _QUIET:
            access_log.add(level, access_log.render(_line(request, context, status, level)))
        if on_over is not None:
            on_over(context, response, status)

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        context = request[CONTEXT] = _context(request)
        flight = in_flight.begin(request)
        status, response = 500, None
        try:
            response = await handler(request)
            status = response.status
            return response
        except (asyncio.CancelledError, ConnectionError):
            # The caller has disconnected (nginx uses 499 for that), or an answer in flight was cut
            # off by a stop.
            status = 499 if context.stopped is None else 503
            raise
        finally:
            in_flight.end(flight)
            context.free_body()
            over(request, context, response, status)

    return middleware


def _context(request: web.Request) -> Context:
    holder = request.app.get(STATE)
    state = None if holder is None else holder.now
    trusted = [] if state is None else state.config.server.trusted_proxies
    return Context(_request_id(request, state), client_address(request, trusted), state)


def _line(request: web.Request, context: Context, status: int, level: int) -> dict[str, Any]:
    """The members of a log line. It contains no query, no body and no header that could hold a
    secret."""
    line: dict[str, Any] = {
        "time": stamp(time.time()),
        "level": _LEVELS[level],
        "message": "request",
        "request_id": context.request_id,
        "method": request.method[:16],
        "path": _plain(_path(request.rel_url.raw_path)),
        "status": status,
        "ms": round((time.monotonic() - context.began) * 1000, 1),
        "address": context.address,
        "user_agent": _plain(request.headers.get("User-Agent", "")),
    }
    if context.caller is not None or context.account:
        line["caller"] = context.account or (context.caller and context.caller.id)
    if status in _REFUSED and (origin := request.headers.get("Origin")):
        line["origin"] = _plain(origin)
    if context.agent:
        line["agent"] = context.agent
    if context.call is not None and context.call.task:
        line["task"] = context.call.task
    if context.attempts is not None:
        line["attempts"] = context.attempts
    if context.failures:
        line["failures"] = context.failures
    if context.file_bytes is not None:
        line["file_bytes"] = context.file_bytes
    if context.error_code:
        line |= {"error": context.error_code, "reason": context.reason}
    return line


def _path(path: str) -> str:
    """A file's full name gives access to the file, so it is masked."""
    return _FILE.sub(r"\1***", path) if "/files/" in path else path


def _plain(text: str) -> str:
    """Short, printable, and with keys redacted that were sent by mistake."""
    return _shown(text[:_LONGEST])


@lru_cache(maxsize=256)
def _shown(shown: str) -> str:
    if not (shown.isascii() and shown.isprintable()):
        shown = "".join(c if " " <= c <= "~" else "?" for c in shown)
    return clean(shown)


def _request_id(request: web.Request, state: State | None) -> str:
    """The caller's `x-request-id` if it is valid and no key; else a new one."""
    received = request.headers.get("x-request-id")
    if not received or not _SANE.fullmatch(received) or looks_like_key(received):
        return new_request_id()
    is_key = state is not None and state.keyring.static(received) is not None
    return new_request_id() if is_key else received
