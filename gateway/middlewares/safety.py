"""Headers that keep browsers from doing more with an answer than showing it."""

from aiohttp import web

_ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",  # answers are one caller's own
}


async def add_safety(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Signal handler. What a route has said itself stays."""
    headers = response.headers
    for name, value in _ALWAYS.items():
        if name not in headers:
            headers[name] = value
    if request.secure:
        headers["Strict-Transport-Security"] = "max-age=31536000"
