"""Headers that keep browsers from doing more with an answer than showing it."""

from aiohttp import web

_ALWAYS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
# Files say themselves what may be done with them, and for how long they may be kept.
_ON_OUR_OWN = _ALWAYS | {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",  # answers are one caller's own
}
_OUR_TYPES = ("application/json", "text/event-stream")


def add_safety(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """What a route has said itself stays."""
    headers = response.headers
    kind = headers.get("Content-Type", "")
    added = _ON_OUR_OWN if kind.startswith(_OUR_TYPES) else _ALWAYS
    for name, value in added.items():
        headers.setdefault(name, value)
    if request.secure:
        headers["Strict-Transport-Security"] = "max-age=31536000"
