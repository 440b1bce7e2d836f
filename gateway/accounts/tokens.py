"""Signed tokens: what a login gives, and what a web page gets in place of a key.

Both are HS256 JWTs. `use` tells them apart, so that one cannot pass for the other. Checking is
aiohttp-jwt's work (`middlewares/auth`).
"""

import contextlib
import hmac
import os
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gateway.accounts.credentials import Caller
from gateway.config.models import SHORTEST_SECRET, Config
from gateway.errors import StartError
from gateway.private import make_folder
from gateway.protocol.seals import Seal
from gateway.secret import Secret

ALGORITHM = "HS256"
LOGIN, BROWSER = "login", "browser"
_SHAPE = re.compile(r"eyJ[A-Za-z0-9_\-]{1,4096}\.[A-Za-z0-9_\-]{0,8192}\.[A-Za-z0-9_\-]{0,512}")


def is_token(credential: str) -> bool:
    """Whether it has a token's shape; no key of ours begins like one."""
    return _SHAPE.fullmatch(credential) is not None


class Signer:
    """Makes tokens. `ttl_s` is how long a login lasts."""

    def __init__(self, secret: Secret, ttl_s: float) -> None:
        self.secret = secret
        self.ttl_s = int(ttl_s)

    def login(self, user_id: str, role: str, version: int, since: int, until: int) -> str:
        """`version` counts the user's passwords: a token for an older one is refused. `since` is
        when the password was given and `until` when the token ends at the latest, as seconds since
        the epoch."""
        claims = {"role": role, "ver": version, "since": since}
        ttl_s = min(self.ttl_s, until - int(time.time()))
        return self._sign(LOGIN, user_id, ttl_s, claims)

    def browser(
        self,
        key: Caller,
        user: str,
        agents: Sequence[str] | None,
        permissions: list[str],
        ttl_s: int,
    ) -> str:
        """A token in the place of `key`, for one end user."""
        claims = {
            "user": user,
            "agents": agents,
            "permissions": permissions,
            "key": self._mark(key),
        }
        return self._sign(BROWSER, key.id, ttl_s, claims)

    def is_of(self, claims: Mapping[str, Any], key: Caller) -> bool:
        """Whether a page's token was made with the key as it is now. A key of config.yaml may get
        another value under its name; one of the database never does."""
        return hmac.compare_digest(str(claims.get("key")).encode(), self._mark(key).encode())

    def seal(self, caller: Caller) -> Seal | None:
        """For the ids that a page's token is given; callers with keys speak for any user."""
        if not caller.end_user:
            return None
        return Seal(self._derived("seals"), f"{caller.id}/{caller.end_user}")

    def _mark(self, key: Caller) -> str:
        """The value of a static key, which none can be guessed from who reads a token."""
        if not key.key_hash:
            return ""
        return hmac.digest(self._derived("keys"), key.key_hash, "sha256")[:12].hex()

    def _derived(self, use: str) -> bytes:
        """A key of its own for each use, so that no signature passes for another."""
        return hmac.digest(self.secret.reveal().encode(), use.encode(), "sha256")

    def _sign(self, use: str, subject: str, ttl_s: int, claims: dict[str, Any]) -> str:
        now = int(time.time())
        claims = {
            **claims,
            "use": use,
            "sub": subject,
            "iat": now,
            "exp": now + ttl_s,
            "jti": secrets.token_hex(8),
        }
        import jwt  # with cryptography behind it, which is 14 MB that many never need

        return jwt.encode(claims, self.secret.reveal(), algorithm=ALGORITHM)


def signing_secret(config: Config) -> Secret:
    """The configured one; else one that is made once and kept beside the SQLite file.

    Without a database it lasts as long as the process.
    """
    if config.auth.jwt_secret:
        return config.auth.jwt_secret
    fresh = secrets.token_hex(32)
    if not config.sqlite_file:
        return Secret(fresh)
    path = Path(config.sqlite_file).parent / "jwt_secret"
    try:
        if not path.exists():
            _create(path, fresh)
        found = path.read_text().strip()
    except OSError as error:
        raise StartError(
            f"{path}: {error.strerror}. The database is to be in that folder (DATABASE_URL); name a"
            " file where this process may write, or none to do without accounts and the record"
        ) from None
    if len(found) < SHORTEST_SECRET:
        raise StartError(f"{path} holds no secret: delete it (which ends all logins)")
    return Secret(found)


def _create(path: Path, words: str) -> None:
    """Of two gateways that start at once the second finds the first one's file, and whole."""
    make_folder(path.parent)
    draft = path.with_name(f".jwt_secret-{secrets.token_hex(4)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(words)
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)
