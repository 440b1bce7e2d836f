"""Identify the caller and check that the route is open to it."""

import asyncio
import logging
import sys
import warnings
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from gateway.accounts.clientheaders import signed_user
from gateway.accounts.credentials import Caller, bare_key, presented_key
from gateway.accounts.tokens import ALGORITHM, BROWSER, LOGIN, is_token
from gateway.errors import Forbidden, GatewayError, InvalidToken, TokenExpired, Unauthorized
from gateway.http.context import CONTEXT, SERVICES, SIGNER, State, state_of
from gateway.http.cors import is_preflight, preflight
from gateway.http.endpoint import Access, Route
from gateway.http.locality import Hint, NotFromHere, refusal
from gateway.http.services import services_of
from gateway.language.sentences import say
from gateway.secret import Secret

_LOG_IN = say("Log in at POST /api/v1/login and send the access_token as Bearer.")

Verify = Callable[[web.Request], Awaitable[dict[str, Any]]]


def auth(routes: Mapping[Handler, Route], secret: Secret) -> Middleware:
    """`routes` lists what each handler requires; `secret` signs the tokens.

    A handler that is not listed is for admins only, so forgetting a route cannot open it.
    """
    verify, hint = _verifier(secret), Hint()

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if is_preflight(request):
            return preflight(request)
        match = request.match_info
        if match.http_exception is not None:
            return await handler(request)  # 404 and 405 have nothing to protect
        wanted = match.handler
        route = routes.get(wanted) or Route("", "", wanted, "login-admin")
        if route.access is not None:
            try:
                await _admit(request, route.access, verify)
            except NotFromHere as error:
                hint(error)
                raise
        elif route.limit is not None:  # a known caller has limits of its own
            await _recognise(request, verify)
        return await handler(request)

    return middleware


async def _admit(request: web.Request, access: Access, verify: Verify) -> None:
    """Note the caller, or raise if the route is not open to it."""
    context = request[CONTEXT]
    if access == "login" or access == "login-admin":
        caller = await _logged_in(request, verify)
        if access == "login-admin" and caller.role != "admin":
            raise Forbidden("Only administrators may do this.")
        context.caller = caller
        return
    state = context.state
    assert state is not None
    caller = context.caller = await _identified(request, state, verify)
    if caller.is_anonymous and access == "admin":
        raise Unauthorized(_LOG_IN)
    caller.require(access)


async def _identified(request: web.Request, state: State, verify: Verify) -> Caller:
    """The caller, bound to the user of its signed header if its key wants one. Raises Unauthorized,
    Forbidden."""
    credential = presented_key(request.headers, state.keyring.static)
    caller = state.keyring.static(credential) or await _identify(request, state, credential, verify)
    if caller.headers_secret is None:
        return caller
    if "jwt" not in sys.modules:  # loading it takes some time
        await asyncio.to_thread(import_module, "jwt")
    return replace(caller, end_user=signed_user(request.headers, caller.headers_secret))


async def _identify(request: web.Request, state: State, credential: str, verify: Verify) -> Caller:
    """The caller identified by a token or a database key; anonymous where that is allowed.

    Raises Unauthorized, or Forbidden for a page that would borrow anonymous access.
    """
    if is_token(credential):
        return _of_token(request, state, await verify(request))
    if credential:
        services = request.app.get(SERVICES)
        if services is not None and (caller := await services.directory.caller(credential)):
            return caller
    bare = bare_key(request.headers)
    caller = state.keyring.without_key(credential, request[CONTEXT].address, bare)
    _require_local(request, state)
    return caller


async def _recognise(request: web.Request, verify: Verify) -> None:
    """On a public route a bad key is no error; the caller just stays unidentified."""
    with suppress(GatewayError):
        request[CONTEXT].caller = await _identified(request, state_of(request), verify)


async def _logged_in(request: web.Request, verify: Verify) -> Caller:
    """The account of a login's token, in its current state."""
    directory = services_of(request).directory
    credential = presented_key(request.headers)
    if not credential:
        raise Unauthorized(_LOG_IN)
    if not is_token(credential):
        raise Forbidden(
            "API keys do not open accounts: log in at POST /api/v1/login and send the access_token."
        )
    claims = await verify(request)
    if claims.get("use") != LOGIN:
        raise Forbidden("This token is for chats; log in at POST /api/v1/login.")
    await directory.refresh()  # apply changes that another replica made before this request
    return directory.login_caller(str(claims["sub"]), claims["ver"])


def _of_token(request: web.Request, state: State, claims: dict[str, Any]) -> Caller:
    services = request.app.get(SERVICES)
    if claims.get("use") == LOGIN and services is not None:
        return services.directory.login_caller(str(claims["sub"]), claims["ver"])
    if claims.get("use") != BROWSER:
        raise InvalidToken("This token is not for here.")
    subject = str(claims["sub"])
    key = state.keyring.named(subject)
    if key is None and services is not None:
        key = services.directory.key_caller(subject.removeprefix("key-"))
    if key is None or not request.app[SIGNER].is_of(claims, key):
        raise InvalidToken("The API key behind this token is gone; get a new token.")
    return replace(
        key,
        permissions=key.permissions & frozenset(claims["permissions"]),
        agents=None if claims["agents"] is None else frozenset(claims["agents"]),
        within=key.agents,
        end_user=claims["user"],
        trusts_headers=False,  # a page writes its own
        headers_secret=None,
    )


def _require_local(request: web.Request, state: State) -> None:
    """Check that an anonymous caller is local. Raises Unauthorized, Forbidden."""
    settings = state.config.auth
    error = refusal(
        request.headers,
        request.version,
        request[CONTEXT].address,
        state.origins,
        settings.anonymous_hosts,
        anywhere=settings.anonymous_anywhere,
        target=request.raw_path,
    )
    if error is not None:
        raise error


def _verifier(secret: Secret) -> Verify:
    """Use aiohttp-jwt's middleware as a function that returns the claims of a request's token."""
    check: Middleware | None = None

    async def verify(request: web.Request) -> dict[str, Any]:
        """Raises Unauthorized."""
        nonlocal check
        if check is None:
            check = await asyncio.to_thread(_open_jwt, secret)
        try:
            await check(request, _nothing)
            claims = request["claims"]
        except (web.HTTPException, KeyError, ValueError, RecursionError) as error:
            if "expired" in str(getattr(error, "reason", "")):
                raise TokenExpired("This token has expired; get a new one.") from None
            raise InvalidToken("This token is not valid.") from None
        if not isinstance(claims, dict) or "sub" not in claims:
            raise InvalidToken("This token is not valid.")
        return claims

    return verify


def _open_jwt(secret: Secret) -> Middleware:
    """Load aiohttp-jwt with the first token: with cryptography it takes 14 MB and some time."""
    from aiohttp_jwt import JWTMiddleware

    # It logs a traceback for every bad token; the access log line is enough.
    logging.getLogger("aiohttp_jwt").setLevel(logging.CRITICAL)
    # It stores the claims on the request under a string key.
    warnings.filterwarnings("ignore", category=web.NotAppKeyWarning, module="aiohttp_jwt")
    checker: Middleware = JWTMiddleware(
        secret.reveal(),
        request_property="claims",
        token_getter=_token,
        algorithms=[ALGORITHM],
    )
    return checker


async def _token(request: web.Request) -> str:
    return presented_key(request.headers)


async def _nothing(request: web.Request) -> web.StreamResponse:
    return web.Response()
