"""Headers that keep browsers from doing more with an answer than showing it."""

from aiohttp import web

from gateway import headernames

_ALWAYS = {
    headernames.CONTENT_TYPE_OPTIONS: "nosniff",
    headernames.REFERRER_POLICY: "no-referrer",
}
# Files say themselves what may be done with them, and for how long they may be kept.
_ON_OUR_OWN = _ALWAYS | {
    headernames.CONTENT_SECURITY_POLICY: "default-src 'none'; frame-ancestors 'none'",
    headernames.CACHE_CONTROL: "no-store",  # answers are one caller's own
}
_OUR_TYPES = ("application/json", "text/event-stream")


def add_safety(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """What a route has said itself stays."""
    headers = response.headers
    kind = headers.get(headernames.CONTENT_TYPE, "")
    added = _ON_OUR_OWN if kind.startswith(_OUR_TYPES) else _ALWAYS
    for name, value in added.items():
        headers.setdefault(name, value)
    if request.secure:
        headers["Strict-Transport-Security"] = "max-age=31536000"
