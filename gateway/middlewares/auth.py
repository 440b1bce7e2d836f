"""Find out who calls and whether the route is for them."""

from collections.abc import Mapping

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from gateway.config import Permission
from gateway.credentials import is_foreign, presented_key
from gateway.errors import Forbidden
from gateway.keys import CALLER, NOTED, STATE


def auth(needed: Mapping[Handler, Permission | None]) -> Middleware:
    """`needed` says for each handler which permission it takes; None makes it public.

    A handler that is not listed is refused, so a route cannot be opened by being forgotten.
    """

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.match_info.http_exception is not None:
            return await handler(request)  # 404 and 405 have nothing to protect
        permission = needed.get(request.match_info.handler, "admin")
        if permission is None:
            return await handler(request)
        state = request.app[STATE].now
        caller = state.keyring.identify(presented_key(request.headers), request.remote or "")
        request[NOTED]["caller"] = caller.id
        origin = request.headers.get("Origin", "")
        if caller.is_anonymous and is_foreign(origin, state.config.server.cors_origins):
            raise Forbidden(
                "Anonymous access is for programs on this machine, not for web pages from"
                " elsewhere: give the page a key, or add its origin to server.cors_origins."
            )
        caller.require(permission)
        request[CALLER] = caller
        return await handler(request)

    return middleware
