"""The headers that every answer carries, whoever writes it: aiohttp, `fastwrite` or a connection.

`CONSTANT` never changes, so `fastwrite` has it as text. `add_own` adds what differs from one answer
to the next. Some requests and a stop ask for more, which only `complete` adds; `is_plain` tells
whether a request is one of them.
"""

from collections.abc import MutableMapping

from aiohttp import web

from gateway import headers as headernames
from gateway.http.context import CONTEXT, Context
from gateway.http.cors import add_origin
from gateway.ids import new_request_id

# All but the first keep browsers from doing more with an answer than showing it. Files set their
# own policy and cache lifetime, and streams theirs.
CONSTANT: dict[str, str] = {
    headernames.SERVER: "ai-gateway",
    headernames.CONTENT_TYPE_OPTIONS: "nosniff",
    headernames.REFERRER_POLICY: "no-referrer",
    headernames.CONTENT_SECURITY_POLICY: "default-src 'none'; frame-ancestors 'none'",
    headernames.CACHE_CONTROL: "no-store",  # answers are one caller's own
}


def add_own(headers: MutableMapping[str, str], context: Context) -> None:
    """The request's id, and the rate limits if the request counted."""
    headers[headernames.REQUEST_ID] = context.request_id
    if context.limits:
        headers.update(context.limits)
        context.limits = None


def is_plain(request: web.Request) -> bool:
    """Whether `CONSTANT` and `add_own` are all that the answer carries unless the process stops."""
    return not (request.secure or "Origin" in request.headers)


def complete(
    request: web.BaseRequest, response: web.StreamResponse, is_stopping: bool = False
) -> None:
    """Add the common headers to an answer that aiohttp writes, before its head is sent. A header
    that the route has set itself stays."""
    headers, context = response.headers, request.get(CONTEXT)
    for name, value in CONSTANT.items():
        if name is headernames.SERVER or name not in headers:  # aiohttp has set its own `Server`
            headers[name] = value
    if context is None:  # bad HTTP, which no middleware has seen
        headers[headernames.REQUEST_ID] = new_request_id()
    else:
        add_own(headers, context)
        if context.state is not None and isinstance(request, web.Request):
            add_origin(request, response)
    if request.secure:
        headers["Strict-Transport-Security"] = "max-age=31536000"
    if is_stopping:
        # The client's next request goes elsewhere. aiohttp has already written its own value.
        response.force_close()
        headers["Connection"] = "close"
