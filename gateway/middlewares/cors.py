"""Let web pages call: preflights without a key, and the same headers on every answer.

No cookies are used, so no credentials are ever allowed and `*` is safe: a page needs a key of its
own. What a page must not do is borrow the anonymous access of the machine it is shown on; `auth`
refuses that.
"""

from aiohttp import web
from aiohttp.typedefs import Handler

from gateway.keys import STATE

_EXPOSED = ", ".join(
    (
        "x-request-id", "retry-after", "retry-after-ms", "x-should-retry", "x-conversation-id",
        "x-gateway-agent", "x-gateway-attempts", "x-ratelimit-limit-requests",
        "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests",
        "x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens",
    )
)  # fmt: skip
_ALLOWED = "authorization, content-type, accept, agent, api-key, x-api-key, x-request-id"


@web.middleware
async def cors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer preflights; `add_headers` does the rest."""
    if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
        asked = request.headers.get("Access-Control-Request-Headers", "")
        return web.Response(
            status=204,
            headers={
                "Access-Control-Allow-Methods": "GET, POST, PUT, DELETE, OPTIONS",
                "Access-Control-Allow-Headers": asked
                if asked.isprintable() and asked
                else _ALLOWED,
                "Access-Control-Max-Age": "86400",
            },
        )
    return await handler(request)


async def add_headers(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Signal handler: runs for streams and errors too, before the headers go out."""
    origin = request.headers.get("Origin")
    if not origin or not isinstance(request, web.Request):
        return
    allowed = request.app[STATE].now.config.server.cors_origins
    if not allowed or "*" in allowed:
        response.headers["Access-Control-Allow-Origin"] = "*"
    elif origin in allowed:
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Vary"] = "Origin"
    else:
        return
    response.headers["Access-Control-Expose-Headers"] = _EXPOSED
