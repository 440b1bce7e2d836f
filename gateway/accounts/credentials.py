"""The caller's identity: one extractor for all headers that carry a key, and the static keys."""

import contextlib
import hmac
import ipaddress
import re
import secrets
import string
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal

from gateway.config.models import Config, KeyLimits, Permission, StaticKey
from gateway.errors import Forbidden, Unauthorized
from gateway.language.sentences import say
from gateway.secret import Secret

OUR_PREFIX = "sk-gw-"
Role = Literal["admin", "premium", "user"]
NO_LIMITS = KeyLimits()


@dataclass(slots=True)
class Quota:
    """A quota of calls: `known` counts those in the database, `pending` those admitted here that
    are not written yet."""

    scope: str  # `key:<id>` or `user:<id>`
    period: str  # "" is ever, else YYYY-MM
    limit: int
    known: int = 0
    pending: int = 0

    @property
    def used(self) -> int:
        return self.known + self.pending


# How platforms and their callers spell a user and a conversation, in lower case without
# punctuation.
_USERS = frozenset(
    ("user", "uid", "userid", "customuid", "enduser", "enduserid", "externaluserid", "openid")
)
_CONVERSATIONS = frozenset(
    ("conversation", "conversationid", "chatid", "sessionid", "threadid", "previousresponseid")
)


@dataclass(frozen=True, slots=True)
class Caller:
    """An identified caller. `id` is stable, safe to log, and the default user of its calls.

    `key_id` and `user_id` are those of the database, else "". Only a login sets `role`: it alone
    opens account routes. `agents` are the lower-case names that may be asked; None is all. A web
    page's token is bound to its own `agents` and to those of its key, `within`.

    `end_user` binds the caller to one user of the platform: a web page by its token, a chat
    client's server by its signed header. `tag` is shared by all buckets of one owner, so that a
    Redis Cluster stores them together; `holders` are charged for a call's share of memory and disk
    (`gateway.limits.shares`): the owner, and also the user if bound.
    """

    id: str
    permissions: frozenset[Permission]
    is_anonymous: bool = False
    key_id: str = ""
    user_id: str = ""
    role: Role | None = None
    agents: frozenset[str] | None = None
    within: frozenset[str] | None = None
    end_user: str = ""
    limits: KeyLimits = NO_LIMITS
    quotas: tuple[Quota, ...] = ()
    # whether headers of its client name the end user and the chat, and what signs them
    trusts_headers: bool = False
    headers_secret: Secret | None = None
    # bound to what one account may do; false for static keys and administrators
    is_held: bool = False
    key_hash: bytes = field(default=b"", repr=False)  # of a static key's value
    tag: str = field(init=False)
    holders: tuple[str, ...] = field(init=False)
    may_ask_all: bool = field(init=False)
    has_own_limits: bool = field(init=False)  # or its account's, in addition to the general ones

    def __post_init__(self) -> None:
        """Compute the derived fields once: most callers are made once and call often."""
        tag = f"user-{self.user_id}" if self.user_id else self.id.partition("/")[0]
        holders = (tag, f"{tag}/{self.end_user}") if self.end_user else (tag,)
        set_once = object.__setattr__
        set_once(self, "tag", tag)
        set_once(self, "holders", holders)
        set_once(self, "may_ask_all", self.agents is None and self.within is None)
        set_once(self, "has_own_limits", self.is_held or self.limits is not NO_LIMITS)

    def require(self, permission: Permission) -> None:
        if permission not in self.permissions:
            if self.role:
                raise Forbidden(
                    say(
                        "This account may not do this: it needs the permission {permission!r}, "
                        "which accounts with the role admin have.",
                        permission=permission,
                    )
                )
            raise Forbidden(
                say(
                    "This {credential} has no {permission!r} permission; use a {credential} that "
                    "was made with it.",
                    credential=self._credential,
                    permission=permission,
                )
            )

    @property
    def _credential(self) -> str:
        return say("token") if self.end_user else say("key")

    def may_ask(self, name: str, agents: Iterable[str]) -> bool:
        """Whether the caller may ask for `name`, which represents `agents`."""
        if self.may_ask_all:
            return True
        wanted, members = name.strip().lower(), [agent.lower() for agent in agents]
        return all(
            allowed is None or wanted in allowed or (members and allowed.issuperset(members))
            for allowed in (self.agents, self.within)
        )

    def require_agent(self, name: str, agents: Iterable[str]) -> None:
        if not self.may_ask(name, agents):
            allowed = ", ".join(sorted(self.agents or self.within or ())[:20])
            raise Forbidden(
                say(
                    "This {credential} may not ask {name!r}; it may ask: {allowed}.",
                    credential=self._credential,
                    name=name[:100],
                    allowed=allowed,
                )
            )

    def variables_of(self, variables: dict[str, Any]) -> dict[str, Any]:
        """An app's variables. Those of a web page name no user but its own, and no conversation."""
        if not self.end_user or not variables:
            return variables
        plain = {name: re.sub("[^a-z]", "", name.lower()) for name in variables}
        return {
            name: self.end_user if plain[name] in _USERS else value
            for name, value in variables.items()
            if plain[name] not in _CONVERSATIONS
        }

    def user_of(self, user: str | None) -> str:
        """The end user as the platform sees it; `user` is the body's user.

        Users of bound callers are prefixed with their key's id: users of two keys may have the same
        name, and platforms remember a user across conversations. Other callers with a key may act
        for any user.
        """
        name = self.named(user)
        return f"{self.id}/{name}" if self.end_user else name

    def named(self, user: str | None) -> str:
        """The end user's name. Raises Forbidden if a bound caller names another user."""
        if self.end_user and user and user != self.end_user:
            raise Forbidden("This token is for another user.", param="user")
        return self.end_user or user or self.id


_OURS = re.compile(rf"{OUR_PREFIX}|eyJ[\w\-]*\.[\w\-]*\.")  # the prefixes of keys and tokens


KEY_HEADERS = frozenset(("authorization", "x-api-key", "api-key"))


def presented_key(
    headers: Mapping[str, str], is_known: Callable[[str], object] = lambda key: None
) -> str:
    """The caller's key from `Authorization`, `x-api-key` or `api-key`, else "".

    SDKs put a placeholder into one of them if the key is set for another. Of several keys the first
    one wins that has the gateway's form or that `is_known` accepts, else the first. No other code
    reads these headers, so no check can miss one of them.
    """
    header = headers.get("Authorization", "")
    is_plain = header.startswith("Bearer s") and header.find(" ", 7) < 0  # nearly always
    bearer = header[7:] if is_plain else _authorized(header)
    if bearer and "x-api-key" not in headers and "api-key" not in headers:
        return bearer
    others = (headers.get(name, "") for name in ("x-api-key", "api-key"))
    keys = [key for key in (bearer, *map(_without_bearer, others)) if key]
    likely = (key for key in keys if _OURS.match(key) or is_known(key))
    return next(likely, keys[0] if keys else "")


# also where a client adds a second one
_BEARER = re.compile(r"(?:bearer(?:\s*:)?(?:\s+|$))+", re.IGNORECASE)


def _authorized(value: str) -> str:
    """The key after the scheme Bearer, else ""; other credentials, such as Basic's, are no key."""
    value = value.strip()
    bearer = _BEARER.match(value)
    return value[bearer.end() :] if bearer else ""


def bare_key(headers: Mapping[str, str]) -> str:
    """A key in `Authorization` without the scheme Bearer, else "": a single token, or a value of
    the gateway's form after another scheme. It grants nothing; the error names the mistake."""
    value = headers.get("Authorization", "").strip()
    if not value or _BEARER.match(value):
        return ""
    scheme, *rest = value.split(None, 1)
    if not rest:
        return scheme
    return rest[0] if _OURS.match(rest[0]) else ""


def _without_bearer(value: str) -> str:
    """A key of the other headers, without a "Bearer" that was pasted with it."""
    value = value.strip()
    bearer = _BEARER.match(value)
    return (value[bearer.end() :] if bearer else "") or value


# Database keys: `sk-gw-<public id>-<secret>`. The id finds the key and may be logged.

_ALPHABET = string.ascii_letters + string.digits
ID_LENGTH, SECRET_LENGTH = 12, 48


def new_id() -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(ID_LENGTH))


def new_key() -> tuple[str, Secret, str]:
    """A new key: its public id, the whole key, and the stored hash of its secret."""
    id_ = new_id()
    secret = "".join(secrets.choice(_ALPHABET) for _ in range(SECRET_LENGTH))
    return id_, Secret(f"{OUR_PREFIX}{id_}-{secret}"), secret_hash(secret)


def secret_hash(secret: str) -> str:
    return sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def split_key(key: str) -> tuple[str, str] | None:
    """(public id, secret) of a key that has the form of a database key."""
    id_, _, secret = key.removeprefix(OUR_PREFIX).partition("-")
    fits = len(id_) == ID_LENGTH and len(secret) == SECRET_LENGTH and id_.isalnum()
    return (id_, secret) if fits and key.startswith(OUR_PREFIX) and id_.isascii() else None


def is_secret(secret: str, kept_hash: str) -> bool:
    return hmac.compare_digest(secret_hash(secret), kept_hash)


class KeyRing:
    """The static keys, and the rule for callers without a key."""

    def __init__(self, config: Config) -> None:
        self._keys = {key.key.digest(): _static_caller(key) for key in config.auth.keys}
        self._anonymous = config.anonymous

    def static(self, key: str) -> Caller | None:
        """The caller of a key in config.yaml, or None."""
        digest = sha256(key.encode("utf-8", "surrogateescape")).digest()
        return self._keys.get(digest)  # timing can only leak the hash, not the key

    def named(self, caller_id: str) -> Caller | None:
        """The static key with that caller id: a web page's token represents it."""
        return next((caller for caller in self._keys.values() if caller.id == caller_id), None)

    def without_key(self, key: str, address: str, bare: str = "") -> Caller:
        """The caller when `key` matches none; `locality` decides later whether it may call. Raises
        Unauthorized.

        SDKs insist on some key, so where no key could be valid any key counts as none.
        """
        if bare and not key and (self._keys or _OURS.match(bare) or not self._anonymous):
            raise Unauthorized(
                "The key in Authorization lacks the word Bearer: send it as 'Authorization: Bearer"
                " <key>'."
            )
        if key and (self._keys or key.startswith(OUR_PREFIX) or not self._anonymous):
            raise Unauthorized(
                say(
                    "Incorrect API key provided: {key}. Check that it is copied whole, or ask "
                    "the operator of the gateway for another one.",
                    key=masked(key),
                )
            )
        if not self._anonymous:
            raise Unauthorized(
                "No API key was given. Send it as 'Authorization: Bearer <key>', or in x-api-key or"
                " api-key."
            )
        return Caller(by_address(address), frozenset(("chat", "upload")), is_anonymous=True)


def _static_caller(key: StaticKey) -> Caller:
    agents = None if key.agents is None else frozenset(name.lower() for name in key.agents)
    permissions = frozenset(key.permissions)
    limits = NO_LIMITS if key.rate_limits == NO_LIMITS else key.rate_limits
    return Caller(
        f"key-{key.name}",
        permissions,
        agents=agents,
        limits=limits,
        trusts_headers=key.trust_client_headers,
        headers_secret=key.client_headers_secret,
        key_hash=key.key.digest(),
    )


def by_address(address: str) -> str:
    """The id of an anonymous caller. IPv6 callers are identified by their /64, since one host can
    use any address in it."""
    if ":" in address:
        with contextlib.suppress(ValueError):
            address = str(ipaddress.IPv6Network((address.partition("%")[0], 64), strict=False))
    return f"anonymous-{sha256(address.encode()).hexdigest()[:12]}"


def masked(key: str) -> str:
    """Enough of a key to recognise it; nothing of a short one."""
    if parts := split_key(key):
        return f"{OUR_PREFIX}{parts[0]}-****"
    shown = "".join(c if c.isascii() and c.isprintable() else "?" for c in key)
    return f"{shown[:3]}****{shown[-4:]}" if len(shown) >= 16 else "****"
