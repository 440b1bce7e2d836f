"""Signed tokens: for logins, and for web pages in place of a key.

Both are HS256 JWTs. The claim `use` distinguishes them, so that one cannot pass for the other.
aiohttp-jwt verifies them (`middlewares/auth`).
"""

import contextlib
import hmac
import os
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from gateway.accounts.credentials import Caller
from gateway.config.models import SHORTEST_SECRET, Config
from gateway.errors import StartError
from gateway.private import make_folder, opener
from gateway.protocol.seals import Seal
from gateway.secret import Secret

ALGORITHM = "HS256"
LOGIN, BROWSER = "login", "browser"
_SHAPE = re.compile(r"eyJ[A-Za-z0-9_\-]{1,4096}\.[A-Za-z0-9_\-]{0,8192}\.[A-Za-z0-9_\-]{0,512}")


def is_token(credential: str) -> bool:
    """Whether it has a token's form; no key of the gateway begins like one."""
    return _SHAPE.fullmatch(credential) is not None


class Signer:
    """Makes tokens. `ttl_s` is how long a login's token is valid."""

    def __init__(self, secret: Secret, ttl_s: float) -> None:
        self.secret = secret
        self.ttl_s = int(ttl_s)
        self._memory = self._derived("memory")

    def login(self, user_id: str, role: str, version: int, since: int, until: int) -> str:
        """`version` counts the user's passwords: a token of an older version is refused. `since` is
        the time of the password login and `until` the latest expiry, in seconds since the epoch."""
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
        """A token that represents `key`, for one end user."""
        claims = {
            "user": user,
            "agents": agents,
            "permissions": permissions,
            "key": self._mark(key),
        }
        return self._sign(BROWSER, key.id, ttl_s, claims)

    def is_of(self, claims: Mapping[str, Any], key: Caller) -> bool:
        """Whether a page's token was made with the key's current value. A key of config.yaml may
        get another value under the same name; a database key never does."""
        return hmac.compare_digest(str(claims.get("key")).encode(), self._mark(key).encode())

    def seal(self, caller: Caller) -> Seal | None:
        """The seal for ids that a page receives; callers with keys act for any user and
        need none."""
        if not caller.end_user:
            return None
        return Seal(self._derived("seals"), f"{caller.id}/{caller.end_user}")

    def run_seal(self, caller: Caller, user: str) -> Seal:
        """The seal for ids of runs that wait for the caller's end user: any holder of such an id
        could continue the run."""
        return Seal(self._derived("seals"), f"{caller.id}/{user}")

    def scope(self, caller: Caller, *parts: str) -> str:
        """A name, of hexadecimal digits, for what is remembered of the caller's conversations.
        `parts` separate its users, agents and chats."""
        text = "\0".join([caller.id, *parts]).encode("utf-8", "surrogatepass")
        return blake2b(text, digest_size=16, key=self._memory).hexdigest()

    def _mark(self, key: Caller) -> str:
        """A fingerprint of a static key's value; a reader of the token cannot guess the value from
        it."""
        if not key.key_hash:
            return ""
        return hmac.digest(self._derived("keys"), key.key_hash, "sha256")[:12].hex()

    def _derived(self, use: str) -> bytes:
        """A separate key for each use, so that no signature passes for another."""
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
        import jwt  # with cryptography, which takes 14 MB that many processes never need

        return jwt.encode(claims, self.secret.reveal(), algorithm=ALGORITHM)


def signing_secret(config: Config) -> Secret:
    """The configured secret, else one that is created once and stored next to the SQLite file.

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


def _create(path: Path, content: str) -> None:
    """Create the file atomically: of two gateways that start together, the second finds the first
    one's complete file."""
    make_folder(path.parent)
    draft = path.with_name(f".jwt_secret-{secrets.token_hex(4)}")
    try:
        with open(draft, "x", encoding="utf-8", newline="\n", opener=opener) as file:
            file.write(content)
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)
