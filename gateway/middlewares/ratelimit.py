"""Charge a request to the caller's buckets, or refuse it."""

from collections.abc import Mapping, Sequence
from functools import partial

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from gateway.accounts.credentials import Caller, by_address
from gateway.config.models import RateLimits
from gateway.http.context import (
    BUCKETS,
    CONTEXT,
    METRICS,
    TRACER,
    Context,
    is_api,
    route_of,
    state_of,
)
from gateway.http.endpoint import Route
from gateway.limits.buckets import Buckets
from gateway.limits.rules import Class, Decision, Take, headers, login_takes, refusal, takes
from gateway.telemetry.call import Call, Surface


def ratelimit(routes: Mapping[Handler, Route]) -> Middleware:
    """`routes` lists the rate limit class of each handler."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        route = routes.get(request.match_info.handler)
        if route is None or route.limit is None:
            return await handler(request)
        app, context = request.app, request[CONTEXT]
        held = await _admit(app, context, state_of(request).config.rate_limits, route.limit)
        if route.limit != "chat":
            return await handler(request)
        caller = context.caller
        assert caller is not None
        surface: Surface = "chat" if is_api(route.path) else "openai"
        call = context.call = Call(context.request_id, caller, surface, caller.end_user)
        call.trace = app[TRACER].call(partial(_span, request), request.headers, call.request_id)
        try:
            return await handler(request)
        finally:
            if held:
                _settle(app[BUCKETS], held, call)

    return middleware


async def _admit(
    app: web.Application, context: Context, limits: RateLimits, class_: Class
) -> tuple[Take, ...]:
    """The charges to settle when the call is over, and no others, since a stream keeps them in
    memory. Raises RateLimited or a subclass."""
    asked = _asked(context, limits, class_)
    _apply(app, context, class_, asked, await app[BUCKETS].take(asked))
    return tuple([take for take in asked if take.kind != "rate"])


def _settle(buckets: Buckets, asked: Sequence[Take], call: Call) -> None:
    """Settle the charges of a call that is over."""
    buckets.release(asked)
    if not (call.agent and call.was_asked):  # refused before an agent was asked: that uses no quota
        buckets.uncount(asked)
    if call.usage is not None:
        buckets.spend(asked, call.usage.total)


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
    """Raises RateLimited or a subclass; notes the rate limit headers for the answer."""
    decisions = await request.app[BUCKETS].take(asked)
    _apply(request.app, request[CONTEXT], class_, asked, decisions)


def _apply(
    app: web.Application,
    context: Context,
    class_: Class,
    asked: list[Take],
    decisions: list[Decision],
) -> None:
    context.limits = headers(asked, decisions)
    if error := refusal(asked, decisions):
        app[METRICS].rate_limited.labels(class_, error.code).inc()
        raise error
