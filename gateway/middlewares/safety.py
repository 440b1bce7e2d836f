"""Headers that keep browsers from doing more with an answer than showing it."""

from aiohttp import web

from gateway import headers as headernames


def add_safety(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """What a route has said itself stays."""
    headers = response.headers
    for name, value in headernames.SAFETY.items():
        headers.setdefault(name, value)
    if request.secure:
        headers["Strict-Transport-Security"] = "max-age=31536000"
