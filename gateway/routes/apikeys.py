"""/api/v1/api-keys: keys for programs; and /api/v1/tokens: short-lived tokens for web pages."""

import time
from typing import Annotated, Any, Literal

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, field_validator

from gateway.accounts.store import ApiKey
from gateway.chat.routing import Routing
from gateway.config.models import HeadersSecret, KeyLimits, Permission, RateLimits
from gateway.config.values import Rate
from gateway.errors import AgentNotFound, Forbidden, InvalidRequest
from gateway.http.body import (
    at_most,
    check,
    envelope,
    moment_ms,
    number,
    page_of,
    read_settings,
    require_known,
    require_nothing,
    require_query,
)
from gateway.http.context import SIGNER, caller_of, state_of
from gateway.http.services import services_of, usage_of
from gateway.language.sentences import say
from gateway.times import iso, now_ms

_LIST_ORDER: tuple[Permission, ...] = ("chat", "upload", "admin")
_MOST_AGENTS = 200
_LONGEST_HEADER = 7000  # bytes that servers and proxies accept
_LONGEST_KEY_S = 3660 * 86_400
_TOKEN_TTL_S, _LONGEST_TOKEN_S = 900, 3600

AgentNames = Annotated[
    list[Annotated[str, Field(max_length=300)]], at_most(_MOST_AGENTS), Field(min_length=1)
]
_MOST_PERMISSIONS = 20  # far more than exist
_LONGEST_AGO = 3660  # days


class KeySettings(BaseModel):
    """The settings of a key, at its creation and later."""

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)

    name: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]+$")]
    description: Annotated[str, Field(max_length=1000, pattern=r"^[^\x00]*$")] = ""
    expires_at: Annotated[str | None, Field(max_length=100)] = None
    expires_in: Annotated[int | None, Field(strict=True, ge=1, le=_LONGEST_KEY_S)] = None  # seconds
    permissions: Annotated[list[Permission], at_most(_MOST_PERMISSIONS), Field(min_length=1)] = [
        "chat"
    ]
    agents: AgentNames | None = None
    rate_limits: dict[str, Any] | None = None
    max_calls: Annotated[int | None, Field(strict=True, ge=1, le=1_000_000_000)] = None
    trust_client_headers: Annotated[bool, Field(strict=True)] = False
    client_headers_secret: HeadersSecret | None = None

    @field_validator("rate_limits")
    @classmethod
    def _readable(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None:
            if any(isinstance(limit, bool) for limit in value.values()):
                raise ValueError(say("a limit is a number or a text, not true or false"))
            try:
                require_known(value, list(KeyLimits.model_fields))
                check(KeyLimits, value)
            except InvalidRequest as error:
                raise ValueError(say("cannot be used: {reason}", reason=error.message)) from None
        return value


class KeyChanges(KeySettings):
    name: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]+$")] = "-"
    # accepted only with its current value
    is_active: Annotated[bool | None, Field(strict=True)] = None


def _settings(
    request: web.Request, body: KeySettings, current: ApiKey | None = None
) -> dict[str, Any]:
    """The settings in the form of the accounts store: all of a new key, else those that the body
    has. Raises InvalidRequest, Forbidden."""
    out = body.model_dump(exclude_unset=current is not None, exclude={"is_active"})
    if "client_headers_secret" in out:  # a dump masks it
        out["client_headers_secret"] = body.client_headers_secret
    seconds = out.pop("expires_in", None)
    if seconds is not None and out.get("expires_at") is not None:
        raise InvalidRequest("Give 'expires_at' or 'expires_in', not both.", param="expires_in")
    if seconds is not None:
        out["expires_at"] = iso(now_ms() + seconds * 1000)
    if "expires_at" in out:
        text = out.pop("expires_at")
        out["expires_ms"] = None if text is None else moment_ms(text, "expires_at")
        if text is not None and out["expires_ms"] <= time.time() * 1000:
            raise InvalidRequest("'expires_at' is in the past.", param="expires_at")
    if "permissions" in out:
        out["permissions"] = [name for name in _LIST_ORDER if name in body.permissions]
        if "admin" in body.permissions and caller_of(request).role != "admin":
            raise Forbidden("Only administrators may give a key the permission 'admin'.")
    if "rate_limits" in out:
        out["rate_limits"] = out["rate_limits"] or {}
        if caller_of(request).role != "admin":
            _check_limits(state_of(request).config.rate_limits, out["rate_limits"])
    _check_headers(request, out, current)
    if out.get("agents") is not None:
        out["agents"] = [name.strip() for name in out["agents"]]
        _check_agents(state_of(request).routing, out["agents"])
    return out


def _check_headers(request: web.Request, given: dict[str, Any], current: ApiKey | None) -> None:
    """Check the secret that the key will have. Raises InvalidRequest."""
    secret, trusts = (
        given[name] if name in given else getattr(current, name)
        for name in ("client_headers_secret", "trust_client_headers")
    )
    if secret is None:
        return
    name = "client_headers_secret"
    if not trusts:
        raise InvalidRequest(
            "'client_headers_secret' needs 'trust_client_headers': true; null removes it.",
            param=name,
        )
    if secret == request.app[SIGNER].secret:
        raise InvalidRequest(
            "'client_headers_secret' must not be the secret that signs logins.", param=name
        )


def _check_limits(general: RateLimits, wanted: dict[str, Any]) -> None:
    """A caller with limits may set narrower ones, but may not lift them."""
    for name, value in KeyLimits.model_validate(wanted):
        most = getattr(general, name)
        if value is None or most is None:
            continue
        sizes = zip(value, most, strict=True) if isinstance(value, Rate) else [(value, most)]
        if any(own > allowed for own, allowed in sizes):
            raise Forbidden(
                say(
                    "Only administrators may give a key more than the general limit of {name!r}.",
                    name=name,
                ),
                param="rate_limits",
            )


def _check_agents(routing: Routing, names: list[str]) -> None:
    for name in names:
        try:
            routing.resolve(name, "agent")
        except AgentNotFound as error:
            raise InvalidRequest(error.message, param="agents") from None


def _owner(request: web.Request) -> str:
    """The owner whose keys the caller may see: itself, or "" (all owners) for an administrator."""
    caller = caller_of(request)
    return "" if caller.role == "admin" else caller.user_id


async def create_key(request: web.Request) -> web.Response:
    """Create a key. Only this answer contains `full_key`."""
    caller = caller_of(request)
    if caller.role not in ("admin", "premium"):
        raise Forbidden("Only administrators and premium users may make keys.")
    services = services_of(request)
    body = await read_settings(request, KeySettings)
    settings = _settings(request, body)
    key, full = await services.accounts.add_key(caller.user_id, settings)
    await services.directory.refresh()
    return envelope({**key.public(), "full_key": full.reveal()})


async def my_keys(request: web.Request) -> web.Response:
    return await _keys(request, caller_of(request).user_id)


async def all_keys(request: web.Request) -> web.Response:
    return await _keys(request, "")


async def _keys(request: web.Request, owner_id: str) -> web.Response:
    require_query(request, "page", "page_size")
    page, page_size = page_of(request)
    keys, total = await services_of(request).accounts.keys(owner_id, page, page_size)
    data = {"total": total, "page": page, "page_size": page_size}
    return envelope({**data, "api_keys": [key.public() for key in keys]})


async def get_key(request: web.Request) -> web.Response:
    key = await services_of(request).accounts.key(request.match_info["id"], _owner(request))
    return envelope(key.public())


async def update_key(request: web.Request) -> web.Response:
    """Omitted members keep their values."""
    services, id_, owner = services_of(request), request.match_info["id"], _owner(request)
    current = await services.accounts.key(id_, owner)
    shown = current.public()
    body = await read_settings(request, KeyChanges, shown)
    if body.is_active is not None and body.is_active != shown["is_active"]:
        raise InvalidRequest(
            "'is_active' cannot be set: POST …/revoke ends a key for good, and a later 'expires_at'"
            " revives one that ran out.",
            param="is_active",
        )
    settings = _settings(request, body, current)
    key = await services.accounts.update_key(id_, owner, settings)
    await services.directory.refresh()
    return envelope(key.public())


async def revoke_key(request: web.Request) -> web.Response:
    """Revoke the key for good; it stays in the lists."""
    await require_nothing(request)
    services = services_of(request)
    key = await services.accounts.revoke_key(request.match_info["id"], _owner(request))
    await services.directory.refresh()
    return envelope(key.public())


async def delete_key(request: web.Request) -> web.Response:
    await require_nothing(request)
    services, id_ = services_of(request), request.match_info["id"]
    await services.accounts.delete_key(id_, _owner(request))
    await services.directory.refresh()
    return envelope({"id": id_, "deleted": True})


async def key_usage(request: web.Request) -> web.Response:
    key = await services_of(request).accounts.key(request.match_info["id"], _owner(request))
    return await usage_of(request, "key", key.id)


class CleanUp(BaseModel):
    """Without `older_than_days` the time of revocation or expiry does not matter."""

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)

    older_than_days: Annotated[int, Field(strict=True, ge=1, le=_LONGEST_AGO)] = 0


async def clean_up(request: web.Request) -> web.Response:
    """Delete keys that were revoked or have expired; with `older_than_days`, in the body or the
    query, only those that ended at least so many days ago."""
    name = "older_than_days"
    body = await read_settings(request, CleanUp, query=(name,), is_optional=True)
    days = body.older_than_days
    if name in request.query:
        if days:
            raise InvalidRequest(
                say("Give {name!r} in the body or in the query, not both.", name=name), param=name
            )
        days = number(request, name, 0, _LONGEST_AGO)
        if not days:
            raise InvalidRequest(
                say("{name!r} has no value; give days or leave it out.", name=name), param=name
            )
    services = services_of(request)
    ids = await services.accounts.clean_up_keys(days * 86_400.0)
    await services.directory.refresh()
    return envelope({"deleted": len(ids), "ids": ids})


class TokenBody(BaseModel):
    """Omitted `agents` means those of the key; `expires_in` is seconds."""

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)

    user: Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+$")]
    agents: AgentNames | None = None
    permissions: Annotated[
        list[Literal["chat", "upload"]], at_most(_MOST_PERMISSIONS), Field(min_length=1)
    ] = ["chat"]
    expires_in: Annotated[int, Field(strict=True, ge=10, le=_LONGEST_TOKEN_S)] = _TOKEN_TTL_S


async def create_token(request: web.Request) -> web.Response:
    """A token for a web page: valid for minutes, for some agents, as one end user."""
    caller = caller_of(request)
    if caller.role is not None or caller.is_anonymous or caller.end_user:
        raise Forbidden(
            "Tokens for web pages are made with an API key: send it as 'Authorization: Bearer"
            " <key>'. An account makes keys at POST /api/v1/api-keys."
        )
    body = await read_settings(request, TokenBody)
    routing = state_of(request).routing
    for name in body.agents or ():
        try:
            routing.allowed(caller, name, "agent")
        except AgentNotFound as error:
            raise InvalidRequest(error.message, param="agents") from None
    for permission in body.permissions:
        caller.require(permission)
    agents = None if body.agents is None else [name.strip().lower() for name in body.agents]
    token = request.app[SIGNER].browser(
        caller, body.user, agents, list(body.permissions), body.expires_in
    )
    if len(token) > _LONGEST_HEADER:
        raise InvalidRequest("That are too many agents for a token; name fewer.", param="agents")
    return envelope(
        {
            "token": token,
            "token_type": "bearer",
            "expires_in": body.expires_in,
            "expires_at": iso(int((time.time() + body.expires_in) * 1000)),
            "user": body.user,
            "agents": body.agents,
            "permissions": body.permissions,
        }
    )
