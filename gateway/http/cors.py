"""CORS: answer preflights without a key, and add the same headers to every answer.

Pages of this machine, and windows of programs on it, may always call. No cookies are used, so
credentials are never allowed: a page needs its own key. A page must not borrow the anonymous access
of the machine that shows it; `auth` refuses that.
"""

from aiohttp import web

from gateway.accounts.credentials import KEY_HEADERS, presented_key
from gateway.config.origins import FROM_DISK, is_local
from gateway.errors import Forbidden, clean
from gateway.http.context import state_of
from gateway.language.sentences import say

_EXPOSED = ", ".join(
    (
        "x-request-id", "retry-after", "retry-after-ms", "x-should-retry", "x-conversation-id",
        "x-gateway-agent", "x-gateway-attempts", "x-gateway-ignored", "x-gateway-memory",
        "x-gateway-task",
        "x-ratelimit-limit-requests", "x-ratelimit-remaining-requests",
        "x-ratelimit-reset-requests",
        "x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens",
    )
)  # fmt: skip
_ALLOWED = (
    "authorization, content-type, accept, agent, api-key, x-api-key, x-request-id, x-gateway-task,"
    " x-gateway-memory"
)


def is_preflight(request: web.Request) -> bool:
    return request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers


def preflight(request: web.Request) -> web.Response:
    """The answer to a preflight; `add_origin` adds its headers. Raises Forbidden."""
    origin = request.headers.get("Origin", "")
    if not _allowed(request, origin):
        raise Forbidden(
            say(
                "Pages of {origin} may not call; add it to server.cors_origins.",
                origin=clean(origin, 100),
            )
        )
    asked = request.headers.get("Access-Control-Request-Headers", "")
    headers = {}
    # Chrome asks this for pages from other networks
    for name in ("Private-Network", "Local-Network"):
        if request.headers.get(f"Access-Control-Request-{name}") == "true":
            headers[f"Access-Control-Allow-{name}"] = "true"
    return web.Response(
        status=204,
        headers={
            "Access-Control-Allow-Methods": "GET, POST, PUT, DELETE, OPTIONS",
            "Access-Control-Allow-Headers": asked if asked.isprintable() and asked else _ALLOWED,
            "Access-Control-Max-Age": "86400",
            **headers,
        },
    )


def add_origin(request: web.Request, response: web.StreamResponse) -> None:
    origin = request.headers.get("Origin")
    if not origin:
        return
    allowed = _allowed(request, origin)
    if allowed != "*":
        vary = response.headers.get("Vary")  # an error may depend on the language, too
        response.headers["Vary"] = f"{vary}, Origin" if vary else "Origin"
    if allowed:
        response.headers["Access-Control-Allow-Origin"] = allowed
        response.headers["Access-Control-Expose-Headers"] = _EXPOSED


def _allowed(request: web.Request, origin: str) -> str:
    """The value of Access-Control-Allow-Origin: `*`, the page's origin, or "" if it may not call.

    A page from disk may be a download as well as a program's window: it may call with a key.
    """
    origins = state_of(request).origins
    if origins.any_page:
        return "*"
    may_call = origins.lists(origin) or is_local(origin)
    return origin if may_call or (origin == FROM_DISK and _brings_key(request)) else ""


def _brings_key(request: web.Request) -> bool:
    """Whether the request has a key; a preflight only announces the headers that will follow."""
    if not is_preflight(request):
        return bool(presented_key(request.headers))
    asked = request.headers.get("Access-Control-Request-Headers", "").lower().split(",")
    return not KEY_HEADERS.isdisjoint(name.strip() for name in asked)
