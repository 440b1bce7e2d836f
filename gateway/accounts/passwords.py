"""Passwords: argon2 in a small thread pool, with a bounded queue."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gateway.errors import InvalidRequest, Overloaded
from gateway.language.sentences import say
from gateway.secret import Secret

if TYPE_CHECKING:
    from argon2 import PasswordHasher

SHORTEST, LONGEST = 8, 256
_THREADS = 2  # each hash takes tens of MiB and of milliseconds
_MAX_WAITING = 64


class Passwords:
    """Hash and check passwords. An unknown user costs the same time as a wrong password."""

    def __init__(self, hasher: "PasswordHasher | None" = None) -> None:
        self._injected = hasher
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="argon2")
        self._waiting = 0
        self._dummy_hash: str | None = None  # the hash to check an unknown user's password against

    async def hash(self, password: Secret) -> str:
        return str(await self._run(self._hash, password.reveal()))

    async def check(self, stored: str | None, password: Secret) -> bool:
        """Whether the password is right; `stored` is None for an unknown user."""
        if self._dummy_hash is None:
            self._dummy_hash = await self.hash(Secret("dummy password"))
        fits = await self._run(self._verify, stored or self._dummy_hash, password.reveal())
        return bool(fits) and stored is not None

    def is_outdated(self, stored: str) -> bool:
        """Whether the hash was made with other parameters than today's."""
        return self._hasher.check_needs_rehash(stored)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    @cached_property
    def _hasher(self) -> "PasswordHasher":
        from argon2 import PasswordHasher  # loaded with the first password: keys need none

        return self._injected or PasswordHasher()

    def _hash(self, password: str) -> str:
        return self._hasher.hash(password)

    def _verify(self, stored: str, password: str) -> bool:
        from argon2.exceptions import InvalidHashError, VerificationError

        try:
            return self._hasher.verify(stored, password)
        except (VerificationError, InvalidHashError):
            return False

    async def _run(self, function: Any, *args: str) -> Any:
        if self._waiting >= _MAX_WAITING:
            raise Overloaded("Too many logins at once; try again shortly.", retry_after_s=1.0)
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, function, *args)
        finally:
            self._waiting -= 1


def check_strength(password: Secret, username: str, param: str = "password") -> None:
    """Raises InvalidRequest for a password that is not acceptable. `param` is the body's member."""
    text = password.reveal()
    if not SHORTEST <= len(text) <= LONGEST:
        raise InvalidRequest(
            say(
                "The password must have {least} to {most} characters.", least=SHORTEST, most=LONGEST
            ),
            param=param,
        )
    if text.casefold() == username.casefold():
        raise InvalidRequest("The password must differ from the user name.", param=param)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest("The password is not valid text.", param=param) from None
