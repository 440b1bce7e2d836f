"""Take what a request costs from the caller's buckets, or refuse it."""

from collections.abc import Mapping
from functools import partial

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from gateway.access import Route
from gateway.call import Call, Surface
from gateway.config import RateLimits
from gateway.credentials import Caller, by_address
from gateway.keys import (
    BUCKETS,
    CONTEXT,
    METRICS,
    TRACER,
    Context,
    caller_of,
    is_api,
    route_of,
    state_of,
)
from gateway.limits import Class, Take, headers, login_takes, refusal, takes


def ratelimit(routes: Mapping[Handler, Route]) -> Middleware:
    """`routes` says for each handler of which class it is."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        route = routes.get(request.match_info.handler)
        if route is None or route.limit is None:
            return await handler(request)
        context = request[CONTEXT]
        asked = _asked(context, state_of(request).config.rate_limits, route.limit)
        await take(request, asked, route.limit)
        if route.limit != "chat":
            return await handler(request)
        asked = [take for take in asked if take.kind != "rate"]  # of the rest there is more to do
        surface: Surface = "chat" if is_api(route.path) else "openai"
        app = request.app
        call = context.call = Call(context.request_id, caller_of(request), surface)
        call.trace = app[TRACER].call(partial(_span, request), request.headers, call.request_id)
        try:
            return await handler(request)
        finally:
            buckets = app[BUCKETS]
            buckets.release(asked)
            if not (call.agent and call.was_asked):  # refused before: that uses up no quota
                buckets.uncount(asked)
            if call.usage is not None:
                buckets.spend(asked, call.usage.total)

    return middleware


def _span(request: web.Request) -> str:
    return f"{request.method} {route_of(request)}"


def _asked(context: Context, limits: RateLimits, class_: Class) -> list[Take]:
    if class_ == "login":
        return login_takes(limits, by_address(context.address), None)
    caller = context.caller
    if caller is None:
        caller = Caller(by_address(context.address), frozenset(), is_anonymous=True)
    return takes(limits, caller, class_)


async def take(request: web.Request, asked: list[Take], class_: Class) -> None:
    """Raises RateLimited or one of its kind; notes what the answer's headers shall tell."""
    given = await request.app[BUCKETS].take(asked)
    request[CONTEXT].limits = headers(asked, given)
    if error := refusal(asked, given):
        request.app[METRICS].rate_limited.labels(class_, error.code).inc()
        raise error


def add_limits(context: Context, response: web.StreamResponse) -> None:
    if context.limits:
        response.headers.update(context.limits)
        context.limits = None
