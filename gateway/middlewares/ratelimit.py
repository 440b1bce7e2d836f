"""Charge a request to the caller's buckets, or refuse it."""

from collections.abc import Mapping, Sequence
from functools import partial

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from gateway.accounts.credentials import Caller, by_address
from gateway.config.models import RateLimits
from gateway.errors import RateLimited
from gateway.http.context import (
    BUCKETS,
    CONTEXT,
    METRICS,
    TRACER,
    Context,
    is_api,
    route_of,
)
from gateway.http.endpoint import Route
from gateway.limits.buckets import Buckets
from gateway.limits.charges import Charge, RateCharge
from gateway.limits.rules import Class, Decision, headers, login_charges, refusal, request_charges
from gateway.telemetry.call import Call, Surface


def ratelimit(routes: Mapping[Handler, Route]) -> Middleware:
    """`routes` lists the rate limit class of each handler."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        route = routes.get(request.match_info.handler)
        if route is None or route.limit is None:
            return await handler(request)
        app, context = request.app, request[CONTEXT]
        assert context.state is not None
        limits = context.state.config.rate_limits
        try:
            held = await _admit(app, context, limits, route.limit)
        except RateLimited as error:
            if not route.has_tasks:
                raise
            held = await _admit_task(app, context, limits, error)
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
) -> tuple[Charge, ...]:
    """The charges to settle when the call is over, and no others, since a stream keeps them in
    memory. Raises RateLimited or a subclass."""
    charged = _charges(context, limits, class_)
    _apply(app, context, class_, charged, await app[BUCKETS].charge(charged))
    return tuple([one for one in charged if not isinstance(one, RateCharge)])


async def _admit_task(
    app: web.Application, context: Context, limits: RateLimits, error: RateLimited
) -> tuple[Charge, ...]:
    """Admit a call beyond the limit of chats to be read: it may be a background call, and is
    charged as one. The handler raises `error` if it is not. Raises it if there is no room either.
    """
    shown = context.limits
    try:
        held = await _admit(app, context, limits, "tasks")
    except RateLimited:
        context.limits = shown
        raise error from None
    context.over, context.limits = error, shown
    return held


async def charge_as_task(request: web.Request) -> None:
    """Charge a chat that turned out to be a background call to `tasks`, in place of `chat`. Raises
    RateLimited; the call then remains charged to `chat`, which limits how many are read."""
    context = request[CONTEXT]
    if context.over is not None:  # it was admitted as one
        context.over = None
        return
    assert context.state is not None
    assert context.caller is not None
    limits, caller = context.state.config.rate_limits, context.caller
    await charge(request, _rates(request_charges(limits, caller, "tasks")), "tasks")
    request.app[BUCKETS].give_back(_rates(request_charges(limits, caller, "chat")))


def _rates(charged: Sequence[Charge]) -> list[Charge]:
    return [one for one in charged if isinstance(one, RateCharge)]


def _settle(buckets: Buckets, held: Sequence[Charge], call: Call) -> None:
    """Settle the charges of a call that is over."""
    buckets.release(held)
    if not (call.agent and call.was_asked):  # refused before an agent was asked: that uses no quota
        buckets.uncount(held)
    if call.usage is not None:
        buckets.spend(held, call.usage.total)


def _span(request: web.Request) -> str:
    return f"{request.method} {route_of(request)}"


def _charges(context: Context, limits: RateLimits, class_: Class) -> list[Charge]:
    if class_ == "login":
        return login_charges(limits, by_address(context.address), None)
    caller = context.caller
    if caller is None:
        caller = Caller(by_address(context.address), frozenset(), is_anonymous=True)
    return request_charges(limits, caller, class_)


async def charge(request: web.Request, charged: list[Charge], class_: Class) -> None:
    """Raises RateLimited or a subclass; notes the rate limit headers for the answer."""
    decisions = await request.app[BUCKETS].charge(charged)
    _apply(request.app, request[CONTEXT], class_, charged, decisions)


def _apply(
    app: web.Application,
    context: Context,
    class_: Class,
    charged: list[Charge],
    decisions: list[Decision],
) -> None:
    context.limits = headers(charged, decisions)
    if error := refusal(charged, decisions):
        app[METRICS].rate_limited.labels(class_, error.code).inc()
        raise error
