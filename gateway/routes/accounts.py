"""/api/v1/login and /api/v1/auth: log in, manage one's own account, and for admins all accounts."""

import re
import time
import unicodedata
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl

from aiohttp import web
from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field

from gateway.accounts.passwords import LONGEST, check_strength
from gateway.accounts.store import User, name_key
from gateway.errors import Conflict, Forbidden, InvalidRequest, Unauthorized, WrongPassword
from gateway.http.body import (
    MAX_SETTINGS,
    check,
    choice,
    envelope,
    page_of,
    read_bytes,
    read_settings,
    read_small,
    require_nothing,
    require_once,
    require_query,
)
from gateway.http.context import CONTEXT, SIGNER, Services, caller_of, state_of
from gateway.http.services import services_of, usage_of
from gateway.language.sentences import say
from gateway.limits.rules import login_charges
from gateway.middlewares.ratelimit import charge
from gateway.secret import Secret

LONGEST_NAME = 256  # characters as sent: NFKC may turn one into 18


def _name(value: str) -> str:
    """A user name has no @ and no spaces, so it cannot pass for an address or for another name."""
    value = unicodedata.normalize("NFKC", value).strip()  # the form in which names are compared
    if not re.fullmatch(r"[^\s@/\\<>\"'\x00-\x1f\x7f]{1,64}", value) or not value.isprintable():
        raise ValueError(say("must have 1 to 64 characters, without spaces, @, quotes or slashes"))
    return value


def _email(value: str | None) -> str | None:
    if value is None or not value.strip():
        return None
    value = unicodedata.normalize("NFKC", value).strip()
    if not re.fullmatch(r"[^\s@<>\"']{1,64}@[^\s@<>\"']{1,190}", value) or not value.isprintable():
        raise ValueError(say("must be an e-mail address"))
    return value


UserName = Annotated[str, Field(max_length=LONGEST_NAME), AfterValidator(_name)]
Email = Annotated[Annotated[str, Field(max_length=LONGEST_NAME)] | None, AfterValidator(_email)]
FullName = Annotated[str, Field(max_length=128, pattern=r"^[^\x00-\x1f\x7f]*$")]


MaxCalls = Annotated[int | None, Field(strict=True, ge=0, le=1_000_000_000)]


class Body(BaseModel):
    """`read_settings` refuses unknown members; a login may contain those of OAuth."""

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)


class Login(Body):
    username: Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00]*$")]
    password: Annotated[Secret, Field(min_length=1, max_length=LONGEST)]


class Register(Body):
    username: UserName
    password: Secret
    email: Email = None
    full_name: FullName = ""


class Profile(Body):
    email: Email = None
    full_name: FullName = ""


class NewUser(Register):
    role: Literal["admin", "premium", "user"] = "user"
    status: Literal["active", "inactive", "suspended"] = "active"
    max_api_calls: MaxCalls = None


class UserChanges(Profile):
    """`null` for `max_api_calls` is no limit."""

    role: Literal["admin", "premium", "user"] = "user"
    status: Literal["active", "inactive", "suspended"] = "active"
    max_api_calls: MaxCalls = None
    password: Secret | None = None


# Members that an account has but its owner cannot set: the answer shows their values.
_FIXED = frozenset(("role", "status"))


class NewPassword(Body):
    old_password: Annotated[
        Secret,
        Field(validation_alias=AliasChoices("old_password", "current_password")),
    ]
    new_password: Secret


async def login(request: web.Request) -> web.Response:
    """Log in. A wrong name and a wrong password get the same answer after the same time."""
    services = services_of(request)
    body = check(Login, await _form_or_json(request))
    limits = state_of(request).config.rate_limits
    charges = login_charges(limits, request[CONTEXT].address, name_key(body.username))
    await charge(request, charges, "login")
    user = await services.accounts.user_by_login(body.username)
    fits = await services.passwords.check(user.password_hash if user else None, body.password)
    if user is None or not fits:
        raise WrongPassword("The user name or the password is wrong.")
    if user.status != "active":
        raise Forbidden(say("This account is {status}; ask an administrator.", status=user.status))
    rehashed = None
    if services.passwords.is_outdated(user.password_hash):
        rehashed = await services.passwords.hash(body.password)
    await services.accounts.logged_in(user, rehashed)
    request[CONTEXT].account = f"user-{user.id}"
    return _issued(request, await services.accounts.user(user.id))


async def _form_or_json(request: web.Request) -> dict[str, Any]:
    """Front ends written for OAuth's password grant send a form; `curl -d` sends JSON labelled as
    one."""
    raw = await read_bytes(request, MAX_SETTINGS)
    is_form = request.content_type == "application/x-www-form-urlencoded"
    if not is_form or raw.lstrip().startswith(b"{"):
        return await read_small(request)
    try:
        fields = parse_qsl(raw.decode("utf-8", "replace"), max_num_fields=20)
    except ValueError:
        raise InvalidRequest("The form has too many fields.") from None
    require_once([name for name, _ in fields])
    return dict(fields)


def _issued(request: web.Request, user: User, since: int | None = None) -> web.Response:
    """A token and its user, both in `data` and at the top level, for clients of either form.
    `since` is the time of the password login, if not now."""
    signer, now = request.app[SIGNER], int(time.time())
    since = now if since is None else since
    until = since + int(state_of(request).config.auth.session_ttl)
    data = {
        "access_token": signer.login(user.id, user.role, user.token_version, since, until),
        "token_type": "bearer",
        "expires_in": min(signer.ttl_s, until - now),
        "user": user.public(),
    }
    return envelope(data, **data)


async def refresh(request: web.Request) -> web.Response:
    """A new token for one that is still valid, until `auth.session_ttl` after the password login.
    The old token stays valid until it expires."""
    services = services_of(request)
    claims = request["claims"]
    since = claims.get("since", claims["iat"])
    if time.time() >= since + int(state_of(request).config.auth.session_ttl):
        raise Unauthorized("This login is too old to be refreshed; log in again.")
    return _issued(request, await services.accounts.user(caller_of(request).user_id), since)


async def register(request: web.Request) -> web.Response:
    """A new account with the role `user`, where `auth.registration` is on."""
    services = services_of(request)
    if not state_of(request).config.auth.registration:
        raise Forbidden("Registration is closed (auth.registration); ask an administrator.")
    user = await add_user(services, await read_settings(request, Register, _FIXED))
    return _issued(request, user)


async def add_user(services: Services, body: Register, **more: Any) -> User:
    """The new account; this replica knows it when the function returns."""
    check_strength(body.password, body.username)
    user = await services.accounts.add_user(
        body.username,
        await services.passwords.hash(body.password),
        email=body.email,
        full_name=body.full_name,
        **more,
    )
    await services.directory.refresh()
    return user


async def me(request: web.Request) -> web.Response:
    user = await services_of(request).accounts.user(caller_of(request).user_id)
    return envelope(user.public())


async def update_me(request: web.Request) -> web.Response:
    """Change one's name and address; only an administrator changes role and status."""
    services, id_ = services_of(request), caller_of(request).user_id
    current = (await services.accounts.user(id_)).public()
    body = await read_settings(request, Profile, current)
    user = await services.accounts.update_user(id_, body.model_dump(exclude_unset=True))
    return envelope(user.public())


async def change_password(request: web.Request) -> web.Response:
    """Change the password: this ends all logins, and returns a new token for this one."""
    services = services_of(request)
    body = await read_settings(request, NewPassword)
    user = await services.accounts.user(caller_of(request).user_id)
    if not await services.passwords.check(user.password_hash, body.old_password):
        raise InvalidRequest("The old password is wrong.", param="old_password")
    check_strength(body.new_password, user.username, "new_password")
    hashed = await services.passwords.hash(body.new_password)
    user = await services.accounts.set_password(user.id, hashed)
    await services.directory.refresh()
    return _issued(request, user)


async def my_usage(request: web.Request) -> web.Response:
    return await usage_of(request, "user", caller_of(request).user_id)


# For administrators.


async def list_users(request: web.Request) -> web.Response:
    """`?page=&page_size=&role=&status=`."""
    require_query(request, "page", "page_size", "role", "status")
    page, page_size = page_of(request)
    role = choice(request, "role", ("admin", "premium", "user"))
    status = choice(request, "status", ("active", "inactive", "suspended"))
    users, total = await services_of(request).accounts.users(role, status, page, page_size)
    data = {"total": total, "page": page, "page_size": page_size}
    return envelope({**data, "users": [user.public() for user in users]})


async def create_user(request: web.Request) -> web.Response:
    body = await read_settings(request, NewUser)
    more = body.model_dump(include={"role", "status", "max_api_calls"})
    user = await add_user(services_of(request), body, **more)
    return envelope(user.public())


async def get_user(request: web.Request) -> web.Response:
    user = await services_of(request).accounts.user(request.match_info["id"])
    return envelope(user.public())


async def update_user(request: web.Request) -> web.Response:
    """Omitted members keep their values. Changes take effect with the next request."""
    services, id_ = services_of(request), request.match_info["id"]
    present = await services.accounts.user(id_)
    body = await read_settings(request, UserChanges, present.public())
    changes = body.model_dump(exclude_unset=True, exclude={"password"})
    hashed = None
    if body.password is not None:
        check_strength(body.password, present.username)
        hashed = await services.passwords.hash(body.password)
    user = await services.accounts.update_user(id_, changes, hashed)
    await services.directory.refresh()
    return envelope(user.public())


async def delete_user(request: web.Request) -> web.Response:
    """Delete the account and its keys; its usage stays in the record."""
    await require_nothing(request)
    services, id_ = services_of(request), request.match_info["id"]
    if id_ == caller_of(request).user_id:
        raise Conflict("You cannot delete the account you are logged in with.")
    await services.accounts.delete_user(id_)
    await services.directory.refresh()
    return envelope({"id": id_, "deleted": True})


async def user_usage(request: web.Request) -> web.Response:
    user = await services_of(request).accounts.user(request.match_info["id"])
    return await usage_of(request, "user", user.id)
