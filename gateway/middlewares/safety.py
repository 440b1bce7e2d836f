"""Headers that keep browsers from doing more with an answer than showing it."""

from aiohttp import web

from gateway import headernames

_OUR_TYPES = ("application/json", "text/event-stream")


def add_safety(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """What a route has said itself stays."""
    headers = response.headers
    kind = headers.get(headernames.CONTENT_TYPE, "")
    is_ours = kind.startswith(_OUR_TYPES)
    added = headernames.SAFETY_OF_OUR_OWN if is_ours else headernames.SAFETY
    for name, value in added.items():
        headers.setdefault(name, value)
    if request.secure:
        headers["Strict-Transport-Security"] = "max-age=31536000"
