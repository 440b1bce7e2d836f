"""A caller's connection written to directly, beside aiohttp.

aiohttp shows its transport as `request.transport`. That it adds nothing of its own there is not
promised: it is used with versions that the tests have seen, on connections of our own server, and
everything is written with aiohttp's own means where `connection_of` gives None.

A whole answer is one write here: its head is text that hardly changes. aiohttp makes a dictionary
of some dozen headers, lets hooks complete it and writes it out, which is a tenth of what all else
of such a request costs.
"""

import time
from collections.abc import Callable

import aiohttp
from aiohttp import HttpVersion11, web

from gateway import headernames
from gateway.keys import Context
from gateway.times import http_date

SEEN = ("3.13.", "3.14.")  # versions of aiohttp
MAX_BODY = 64 << 10  # bytes; more may have to wait for the caller


class Caller:
    """What `connections` adds to aiohttp's connections: whether the caller has to be waited for,
    since it does not read, or has left and reads no more."""

    is_full = False
    on_full: Callable[[bool], None] | None = None

    @property
    def goes_on(self) -> bool:
        """Whether it takes an answer without delay, and may ask again here."""
        return False

    def become(self, is_full: bool) -> None:
        self.is_full = is_full
        if self.on_full is not None:
            self.on_full(is_full)


def connection_of(request: web.Request) -> Caller | None:
    """The caller's, if it may be written to beside aiohttp."""
    caller = request.protocol
    if isinstance(caller, Caller) and aiohttp.__version__.startswith(SEEN):
        return caller
    return None


class Sent(web.StreamResponse):
    """For aiohttp and its middlewares: an answer of which nothing is left to be sent."""

    keep_alive = True


SENT = Sent()
_KIND = "application/json"
_FIXED = "HTTP/1.1 200 OK\r\n" + "".join(
    f"{name}: {value}\r\n"
    for name, value in {
        headernames.CONTENT_TYPE: _KIND,
        headernames.SERVER: headernames.SERVER_NAME,
        **headernames.SAFETY_OF_OUR_OWN,
    }.items()
)


def answer_json(
    request: web.Request, context: Context, headers: dict[str, str], body: bytes
) -> web.StreamResponse:
    """Answer with JSON and 200. `headers` are those of this answer, printable ASCII; what all
    answers carry is added here or by `on_response_prepare`."""
    transport = request.transport
    caller = connection_of(request)
    if (
        caller is None
        or transport is None
        or not caller.goes_on
        or transport.is_closing()
        or len(body) > MAX_BODY
        or request.version != HttpVersion11
        or not request.keep_alive
        or request.secure
        or "Origin" in request.headers
        or "Upgrade" in request.headers  # for aiohttp to refuse
    ):
        headers[headernames.CONTENT_TYPE] = _KIND
        return web.Response(body=body, headers=headers)
    headers[headernames.REQUEST_ID] = context.request_id
    if context.limits:
        headers |= context.limits
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    date = http_date(time.time())
    head = f"{_FIXED}{lines}Date: {date}\r\nContent-Length: {len(body)}\r\n\r\n"
    transport.write(head.encode("ascii") + body)
    return SENT
