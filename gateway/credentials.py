"""Who is calling: one extractor for every way a key can come, and the keys of config.yaml."""

import hmac
from collections.abc import Container, Mapping
from dataclasses import dataclass
from hashlib import sha256
from urllib.parse import urlsplit

from gateway.config import Config, Permission, StaticKey
from gateway.errors import Forbidden, Unauthorized

OUR_PREFIX = "sk-gw-"


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody who may call. `id` is stable, safe to log and the user of calls that name none."""

    id: str
    permissions: frozenset[Permission]
    is_anonymous: bool = False

    def require(self, permission: Permission) -> None:
        if permission not in self.permissions:
            raise Forbidden(f"This key has no {permission!r} permission.")


def presented_key(headers: Mapping[str, str]) -> str:
    """The caller's key from `Authorization: Bearer`, `x-api-key` or `api-key`, else "".

    The only place that reads these headers, so no check can forget one of them.
    """
    scheme, _, rest = headers.get("Authorization", "").strip().partition(" ")
    if scheme.lower() == "bearer" and rest.strip():
        return rest.strip()
    return headers.get("x-api-key", "").strip() or headers.get("api-key", "").strip()


class KeyRing:
    """The static keys and the rule for callers without one."""

    def __init__(self, config: Config) -> None:
        self._keys: dict[bytes, StaticKey] = {key.key.digest(): key for key in config.auth.keys}
        self._anonymous = config.anonymous

    def identify(self, key: str, address: str) -> Caller:
        """The caller behind `key`, or anonymous at `address`. Raises Unauthorized.

        SDKs insist on some key, so where no key could be right any key is taken for none.
        """
        if key:
            digest = sha256(key.encode("utf-8", "surrogateescape")).digest()
            found = self._keys.get(digest)
            if found is not None and hmac.compare_digest(found.key.digest(), digest):
                return Caller(f"key-{found.name}", frozenset(found.permissions))
            if self._keys or key.startswith(OUR_PREFIX) or not self._anonymous:
                raise Unauthorized(f"Incorrect API key provided: {_masked(key)}.")
        if not self._anonymous:
            raise Unauthorized(
                "No API key was given. Send it as 'Authorization: Bearer <key>' (the word Bearer"
                " is needed), or in x-api-key or api-key."
            )
        name = sha256(address.encode()).hexdigest()[:12]
        return Caller(f"anonymous-{name}", frozenset(("chat", "upload")), is_anonymous=True)


def _masked(key: str) -> str:
    """Enough of a key to tell which one it was; nothing of a short one."""
    shown = "".join(c if c.isascii() and c.isprintable() else "?" for c in key)
    return f"{shown[:3]}****{shown[-4:]}" if len(shown) >= 16 else "****"


def is_foreign(origin: str, allowed: Container[str]) -> bool:
    """Whether a web page of another machine, and not a listed one, sent the request.

    Such a page runs in the browser of someone who may call anonymously, and must not borrow that.
    """
    if not origin or origin in allowed:
        return False
    try:
        host = urlsplit(origin).hostname or ""
    except ValueError:
        return True
    return not (host in ("localhost", "127.0.0.1", "::1") or host.endswith(".localhost"))
