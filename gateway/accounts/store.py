"""Users and API keys in the database."""

import unicodedata
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from gateway.accounts.credentials import OUR_PREFIX, Role, new_id, new_key
from gateway.config.models import Permission
from gateway.database import Database, fetch
from gateway.errors import Conflict, NotFound
from gateway.language.sentences import say
from gateway.secret import Secret
from gateway.times import iso, now_ms

MAX_USERS = 200_000  # every replica keeps them in memory
MAX_KEYS = 200_000
MAX_KEYS_EACH = 1000


@dataclass(slots=True)
class User:
    """An account. Times are milliseconds since the epoch."""

    id: str
    username: str
    email: str | None
    full_name: str
    role: Role
    status: str
    max_api_calls: int | None
    created_ms: int
    updated_ms: int
    last_login_ms: int | None
    calls: int
    password_hash: str
    token_version: int

    def public(self) -> dict[str, Any]:
        """The fields that the API returns."""
        return {
            "id": self.id,
            "username": self.username,
            "email": self.email,
            "full_name": self.full_name,
            "role": self.role,
            "status": self.status,
            "created_at": iso(self.created_ms),
            "updated_at": iso(self.updated_ms),
            "last_login": iso(self.last_login_ms),
            "api_calls_count": self.calls,
            "max_api_calls": self.max_api_calls,
        }


@dataclass(slots=True)
class ApiKey:
    """A key, without its secret. `agents` None means all of them. `rate_limits` as in
    config.yaml."""

    id: str
    owner_id: str
    created_by: str
    name: str
    description: str
    permissions: list[Permission]
    agents: list[str] | None
    rate_limits: dict[str, Any]
    max_calls: int | None
    created_ms: int
    expires_ms: int | None
    revoked_ms: int | None
    trust_client_headers: bool
    client_headers_secret: Secret | None
    last_used_ms: int | None
    calls: int

    def public(self) -> dict[str, Any]:
        """The fields that the API returns."""
        return {
            "id": self.id,
            "name": self.name,
            "description": self.description,
            "key_prefix": f"{OUR_PREFIX}{self.id}",
            "created_at": iso(self.created_ms),
            "expires_at": iso(self.expires_ms),
            "last_used_at": iso(self.last_used_ms),
            "permissions": self.permissions,
            "agents": self.agents,
            "rate_limits": self.rate_limits,
            "max_calls": self.max_calls,
            "trust_client_headers": self.trust_client_headers,
            "has_client_headers_secret": self.client_headers_secret is not None,
            "calls": self.calls,
            "is_active": self.state == "active",
            "created_by": self.created_by,
        }

    @property
    def state(self) -> Literal["active", "revoked", "expired"]:
        if self.revoked_ms is not None:
            return "revoked"
        is_over = self.expires_ms is not None and self.expires_ms <= now_ms()
        return "expired" if is_over else "active"


class Accounts:
    """Every method is one transaction. Raises DatabaseUnavailable if the database is down."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sql = database.queries

    # Users.

    async def add_user(
        self,
        username: str,
        password_hash: str,
        *,
        role: Role = "user",
        status: str = "active",
        email: str | None = None,
        full_name: str = "",
        max_api_calls: int | None = None,
    ) -> User:
        """Raises Conflict if the name or the address is taken."""
        async with self._database.transaction() as conn:
            if await self._sql.users_count(conn, role="", status="") >= MAX_USERS:
                raise Conflict(say("There are {most} users, which is the limit.", most=MAX_USERS))
            id_ = await self._sql.user_insert(
                conn, id=new_id(), username=username, name_key=name_key(username), email=email,
                email_key=email and name_key(email), full_name=full_name,
                password_hash=password_hash, role=role, status=status,
                max_api_calls=max_api_calls, now_ms=now_ms(),
            )  # fmt: skip
            if id_ is None:
                raise Conflict("That user name or e-mail address is taken.", param="username")
            return _user(await self._sql.user_by_id(conn, id=id_))

    async def user(self, id_: str) -> User:
        """Raises NotFound."""
        async with self._database.transaction() as conn:
            return _user(await self._sql.user_by_id(conn, id=id_))

    async def user_by_login(self, name: str) -> User | None:
        """The user with that name or e-mail address, in any case."""
        async with self._database.transaction() as conn:
            row = await self._sql.user_by_login(conn, name_key=name_key(name))
            return _user(row) if row else None

    async def users(
        self, role: str, status: str, page: int, page_size: int
    ) -> tuple[list[User], int]:
        """One page, and the total number of users."""
        async with self._database.transaction() as conn:
            total = await self._sql.users_count(conn, role=role, status=status)
            rows = self._sql.users_page(
                conn, role=role, status=status, limit=page_size, offset=(page - 1) * page_size
            )
            return [_user(row) for row in await fetch(rows)], total

    async def update_user(
        self, id_: str, changes: dict[str, Any], password_hash: str | None = None
    ) -> User:
        """Set the members named in `changes`, and the password. Raises NotFound, Conflict."""
        async with self._database.transaction() as conn:
            await self._sql.change_lock(conn)
            user = _user(await self._sql.user_by_id(conn, id=id_))
            new = {**{name: getattr(user, name) for name in _CHANGEABLE}, **changes}
            if (new["role"], new["status"]) != ("admin", "active"):
                await self._keep_an_admin(conn, user)
            email = new["email"]
            if email:
                other = await self._sql.user_by_login(conn, name_key=name_key(email))
                if other and other["id"] != id_:
                    raise Conflict("That e-mail address is taken.", param="email")
            await self._sql.user_update(
                conn, id=id_, email_key=email and name_key(email), now_ms=now_ms(), **new
            )
            if password_hash:
                await self._sql.user_set_password(
                    conn, id=id_, password_hash=password_hash, now_ms=now_ms()
                )
            return _user(await self._sql.user_by_id(conn, id=id_))

    async def delete_user(self, id_: str) -> None:
        """Delete the user and its keys. Raises NotFound, Conflict."""
        async with self._database.transaction() as conn:
            await self._sql.change_lock(conn)
            await self._keep_an_admin(conn, _user(await self._sql.user_by_id(conn, id=id_)))
            await self._sql.user_delete(conn, id=id_)

    async def _keep_an_admin(self, conn: Any, user: User) -> None:
        is_admin = user.role == "admin" and user.status == "active"
        if is_admin and not await self._sql.users_other_admins(conn, id=user.id):
            raise Conflict("This is the last active admin; make another one first.")

    async def set_password(self, id_: str, password_hash: str) -> User:
        """Set the password, which ends every token issued for the old one. Raises NotFound."""
        async with self._database.transaction() as conn:
            await self._sql.user_set_password(
                conn, id=id_, password_hash=password_hash, now_ms=now_ms()
            )
            return _user(await self._sql.user_by_id(conn, id=id_))

    async def logged_in(self, user: User, rehashed: str | None) -> None:
        """Store the login time, and the password's new hash if there is one."""
        async with self._database.transaction() as conn:
            await self._sql.user_logged_in(conn, id=user.id, now_ms=now_ms())
            if rehashed:
                await self._sql.user_rehash(
                    conn, id=user.id, old_hash=user.password_hash, password_hash=rehashed
                )

    async def has_users(self) -> bool:
        async with self._database.transaction() as conn:
            return bool(await self._sql.users_count(conn, role="", status=""))

    # API keys.

    async def add_key(self, owner_id: str, settings: dict[str, Any]) -> tuple[ApiKey, Secret]:
        """A new key and its full text, which is not stored. `settings` as in `_SETTINGS`."""
        id_, full, kept = new_key()
        async with self._database.transaction() as conn:
            if await self._sql.api_keys_count(conn, owner_id="") >= MAX_KEYS:
                raise Conflict(
                    say("There are {most} keys, which is the limit; clean up first.", most=MAX_KEYS)
                )
            if await self._sql.api_keys_live(conn, owner_id=owner_id) >= MAX_KEYS_EACH:
                raise Conflict(
                    say("This account has {most} keys; revoke some first.", most=MAX_KEYS_EACH)
                )
            await self._sql.api_key_insert(
                conn, id=id_, owner_id=owner_id, secret_sha256=kept, now_ms=now_ms(),
                **_as_columns({**_SETTINGS, **settings}),
            )  # fmt: skip
            return _key(await self._sql.api_key_by_id(conn, id=id_)), full

    async def key(self, id_: str, owner_id: str = "") -> ApiKey:
        """One key. Raises NotFound, also if `owner_id` is given and another user owns the key."""
        async with self._database.transaction() as conn:
            return await self._owned(conn, id_, owner_id)

    async def _owned(self, conn: Any, id_: str, owner_id: str) -> ApiKey:
        key = _key(await self._sql.api_key_by_id(conn, id=id_))
        if owner_id and key.owner_id != owner_id:
            raise _no_key()
        return key

    async def keys(self, owner_id: str, page: int, page_size: int) -> tuple[list[ApiKey], int]:
        """One page, newest first, and the total number; all owners' keys if `owner_id` is ''."""
        async with self._database.transaction() as conn:
            total = await self._sql.api_keys_count(conn, owner_id=owner_id)
            rows = self._sql.api_keys_page(
                conn, owner_id=owner_id, limit=page_size, offset=(page - 1) * page_size
            )
            return [_key(row) for row in await fetch(rows)], total

    async def update_key(self, id_: str, owner_id: str, changes: dict[str, Any]) -> ApiKey:
        """Set the members named in `changes`. Raises NotFound."""
        async with self._database.transaction() as conn:
            key = await self._owned(conn, id_, owner_id)
            new = {**{name: getattr(key, name) for name in _SETTINGS}, **changes}
            await self._sql.api_key_update(conn, id=id_, **_as_columns(new))
            return await self._owned(conn, id_, owner_id)

    async def revoke_key(self, id_: str, owner_id: str = "") -> ApiKey:
        """Revoke the key for good; a revoked key stays revoked. Raises NotFound."""
        async with self._database.transaction() as conn:
            await self._owned(conn, id_, owner_id)
            await self._sql.api_key_revoke(conn, id=id_, now_ms=now_ms())
            return await self._owned(conn, id_, owner_id)

    async def delete_key(self, id_: str, owner_id: str) -> None:
        """Raises NotFound."""
        async with self._database.transaction() as conn:
            await self._owned(conn, id_, owner_id)
            await self._sql.api_key_delete(conn, id=id_)

    async def clean_up_keys(self, older_than_s: float) -> list[str]:
        """Delete keys that were revoked or expired that long ago; returns their ids."""
        before_ms = now_ms() - int(older_than_s * 1000)
        async with self._database.transaction() as conn:
            rows = await fetch(self._sql.api_keys_cleanup(conn, before_ms=before_ms))
            return [row["id"] for row in rows]


_CHANGEABLE = ("email", "full_name", "role", "status", "max_api_calls")
_SETTINGS: dict[str, Any] = {
    "name": "",
    "description": "",
    "permissions": ["chat"],
    "agents": None,
    "rate_limits": {},
    "max_calls": None,
    "expires_ms": None,
    "trust_client_headers": False,
    "client_headers_secret": None,
}


def _as_columns(settings: dict[str, Any]) -> dict[str, Any]:
    lists = ("permissions", "agents", "rate_limits")
    text = {name: orjson.dumps(settings[name]).decode() for name in lists}
    secret = settings["client_headers_secret"]
    return {
        **settings,
        **text,
        "trust_client_headers": int(settings["trust_client_headers"]),
        "client_headers_secret": "" if secret is None else secret.reveal(),
    }


def _user(row: Any) -> User:
    if row is None:
        raise NotFound("There is no such user.")
    values = dict(row)
    return User(**{name: values[name] for name in User.__slots__})


def _key(row: Any) -> ApiKey:
    if row is None:
        raise _no_key()
    values = dict(row)
    values["created_by"] = values["username"]
    for name in ("permissions", "agents", "rate_limits"):
        values[name] = orjson.loads(values[name] or b"null")
    values["rate_limits"] = values["rate_limits"] or {}
    values["trust_client_headers"] = bool(values["trust_client_headers"])
    secret = values["client_headers_secret"]
    values["client_headers_secret"] = Secret(secret) if secret else None
    return ApiKey(**{name: values[name] for name in ApiKey.__slots__})


def _no_key() -> NotFound:
    return NotFound("There is no such API key.")


def name_key(name: str) -> str:
    """The form in which names are compared: case and compatibility forms of characters do not
    count."""
    return unicodedata.normalize("NFKC", name).casefold()
