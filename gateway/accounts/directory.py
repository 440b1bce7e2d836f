"""Every account and key in memory, so that no request waits for the database.

Several times a second a loop reads what has changed since the last known version (the triggers in
`sql/schema` count versions). So every replica applies a revocation within half a second, and a key
that is not here does not exist. To be sure of that, a request with an unknown key waits for the
next round: a thousand unknown keys cost one query, not a thousand. While the database is
unavailable known keys go on working, and unknown ones get 503, since they cannot be checked.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson

from gateway.accounts.credentials import Caller, Quota, Role, is_secret, split_key
from gateway.config.models import KeyLimits, Permission
from gateway.database import Database, fetch
from gateway.errors import DatabaseUnavailable, InvalidToken, StartError, Unauthorized, why
from gateway.language.sentences import say
from gateway.secret import Secret

log = logging.getLogger("gateway")

INTERVAL_S = 0.4  # between two polls
_PAUSE_S = 0.02  # between two rounds, however many unknown keys request one
_PATIENCE_S = 2.0  # how long an unknown key waits for a round
_QUICK_S = 0.5
_QUOTAS_S = 1.0
_OVERLAP_MS = 30_000  # the largest clock difference between replicas
_UNREADABLE = "reading it failed; the log says why"
_BATCH = 1000  # changes per round; reading everything is faster for more


@dataclass(slots=True)
class KnownUser:
    id: str
    username: str
    role: Role
    status: str
    token_version: int
    max_api_calls: int | None


@dataclass(slots=True)
class KnownKey:
    id: str
    owner_id: str
    secret_sha256: str
    permissions: str
    agents: str
    rate_limits: str
    max_calls: int | None
    expires_ms: int | None
    revoked_ms: int | None
    trust_client_headers: int
    client_headers_secret: str = field(repr=False)
    caller: Caller | None = None  # made at its first use
    made_in: int = -1  # the directory's generation at that time


class Directory:
    """`prepare` makes the database readable; it runs once, before the first round that succeeds."""

    def __init__(
        self, database: Database, prepare: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self._database = database
        self._prepare = prepare
        self._sql = database.queries
        self._users: dict[str, KnownUser] = {}
        self._keys: dict[str, KnownKey] = {}
        self._quotas: dict[tuple[str, str], Quota] = {}
        self._month = ""
        self._version = -1  # nothing has been read
        self._generation = 0  # counts changes that may affect a caller
        self._quotas_read = 0.0  # time of the last read; seconds since the epoch
        self._wake = asyncio.Event()
        self._next: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self.unavailable: str | None = "not asked yet"  # why the database is unavailable, or None
        self.cause: BaseException | None = None  # the driver's error that caused `unavailable`
        self.rounds = 0

    @property
    def has_read(self) -> bool:
        """Whether accounts and keys have been read, even if they are no longer up to date."""
        return self._version >= 0

    # Start and stop.

    async def open(self, patience_s: float) -> None:
        """Start, and wait up to `patience_s` for the first round. Raises StartError.

        An unavailable database does not fail the start: the loop goes on trying.
        """
        self._next = asyncio.get_running_loop().create_future()
        first = asyncio.ensure_future(self._round())
        await asyncio.wait({first}, timeout=patience_s)
        self._task = asyncio.ensure_future(self._run(first))
        if first.done() and (error := first.exception()):
            await self.close()
            raise error

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            self._task = None

    async def _run(self, first: "asyncio.Future[None]") -> None:
        with contextlib.suppress(Exception):
            await first
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(INTERVAL_S):
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self._round()
            except StartError as error:
                if self.unavailable != str(error):
                    log.error("The database cannot be used: %s", error)
                self.unavailable = str(error)
            await asyncio.sleep(_PAUSE_S)

    async def _round(self) -> None:
        """Poll once, and wake the waiting requests. Raises StartError."""
        waited, self._next = self._next, asyncio.get_running_loop().create_future()
        assert waited is not None
        self.rounds += 1
        try:
            await self._sync()
        except DatabaseUnavailable as error:
            if self.unavailable is None:
                log.warning("The database does not answer: %s", why(error))
            self.unavailable, self.cause = "it does not answer", error.__cause__
        except StartError:
            raise
        except Exception:
            if self.unavailable != _UNREADABLE:  # log it once, not at every round
                log.exception("Reading the accounts failed")
            self.unavailable = _UNREADABLE
        else:
            if self.unavailable and self.rounds > 1:
                log.info("The database answers again")
            self.unavailable = self.cause = None
        finally:
            if not waited.done():
                waited.set_result(None)

    # Reading.

    async def _sync(self) -> None:
        if self._prepare is not None:
            await self._prepare()
            self._prepare = None
        self._turn_month()
        version = await self._present_version()
        is_due = time.time() - self._quotas_read > _QUOTAS_S
        if version == self._version and not is_due:
            return
        async with self._database.transaction() as conn:
            if version != self._version:
                await self._read(conn, version)
                self._version = version
                self._generation += 1
            if is_due or not self._quotas_read:  # a quota may be new, and already used in part
                await self._read_quotas(conn)

    async def _present_version(self) -> int:
        """The database's version. A hanging connection is abandoned soon, since revocations wait
        for the answer; a second one gets more time."""
        for patience_s in (_QUICK_S, None):
            try:
                async with asyncio.timeout(patience_s), self._database.transaction() as conn:
                    return int(await self._sql.change_version(conn))
            except TimeoutError:
                pass
        raise DatabaseUnavailable from self.cause

    def _turn_month(self) -> None:
        """Start a new month's quotas at the change of the month, even if the database is
        unavailable."""
        month = datetime.now(UTC).strftime("%Y-%m")
        if month == self._month:
            return
        self._month = month
        for scope, period in [q for q in self._quotas if q[1] not in ("", month)]:
            del self._quotas[scope, period]
        self._quotas_read = 0.0
        self._generation += 1

    async def _read(self, conn: Any, version: int) -> None:
        """Read the changes, or everything if the list of changes is incomplete."""
        changes = []
        if 0 <= self._version < version:
            rows = self._sql.changes_after(conn, version=self._version, limit=_BATCH)
            changes = await fetch(rows)
        if not changes or len(changes) != version - self._version:
            users = await fetch(self._sql.users_known(conn))
            keys = await fetch(self._sql.api_keys_known(conn))
            self._users = {row["id"]: KnownUser(**row) for row in users}
            self._keys = {row["id"]: KnownKey(**row) for row in keys}
            self._quotas_read = 0.0
            return
        for kind, id_ in {(change["kind"], change["id"]) for change in changes}:
            if kind == "user":
                row = await self._sql.user_known(conn, id=id_)
                _put(self._users, id_, row and KnownUser(**dict(row)))
            else:
                row = await self._sql.api_key_known(conn, id=id_)
                _put(self._keys, id_, row and KnownKey(**dict(row)))
                if row is None:
                    self._quotas.pop((f"key:{id_}", ""), None)
        self._quotas_read = 0.0

    async def _read_quotas(self, conn: Any) -> None:
        """Read the usage of each quota. Counts only grow, so an older reading changes nothing."""
        began = time.time()
        written_ms = max(0, int(self._quotas_read * 1000) - _OVERLAP_MS)
        rows = self._sql.usage_totals_limited(conn, period=self._month, written_ms=written_ms)
        for row in await fetch(rows):
            quota = self._quota(row["scope"], row["period"])
            quota.known = max(quota.known, row["calls"])
        self._quotas_read = began

    async def refresh(self) -> None:
        """Wait for a round that begins after this call. Raises DatabaseUnavailable."""
        if self.unavailable is not None or self._next is None:
            raise DatabaseUnavailable from self.cause
        waited = self._next
        self._wake.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_S):
                await asyncio.shield(waited)
        if not waited.done() or self.unavailable is not None:
            raise DatabaseUnavailable from self.cause

    # Lookups.

    async def caller(self, key: str) -> Caller | None:
        """The caller of a database key; None if it is not one.

        Raises Unauthorized for a revoked or expired key, and DatabaseUnavailable if the key cannot
        be checked.
        """
        parts = split_key(key)
        if parts is None:
            return None
        id_, secret = parts
        if id_ not in self._keys:
            await self.refresh()
        known = self._keys.get(id_)
        if known is None or not is_secret(secret, known.secret_sha256):
            return None
        return self._valid(known)

    def key_caller(self, key_id: str) -> Caller:
        """The caller of the key with that id: a web page's token represents it."""
        known = self._keys.get(key_id)
        if known is None:
            raise InvalidToken("The API key behind this token is gone; get a new token.")
        return self._valid(known)

    def _valid(self, key: KnownKey) -> Caller:
        if key.revoked_ms is not None:
            raise Unauthorized("This API key has been revoked.")
        if key.expires_ms is not None and key.expires_ms <= time.time() * 1000:
            raise Unauthorized("This API key has expired.")
        owner = self._users.get(key.owner_id)
        if owner is None or owner.status != "active":
            raise Unauthorized("The account that this API key belongs to is not active.")
        if key.caller is None or key.made_in != self._generation:
            key.caller, key.made_in = self._caller_of(key, owner), self._generation
        return key.caller

    def _caller_of(self, key: KnownKey, owner: KnownUser) -> Caller:
        permissions = set(orjson.loads(key.permissions))
        if owner.role != "admin":
            permissions.discard("admin")
        agents = orjson.loads(key.agents or b"null")
        quotas = self._quotas_of(owner)
        if key.max_calls is not None:
            quotas = (self._quota(f"key:{key.id}", "", key.max_calls), *quotas)
        return Caller(
            f"key-{key.id}",
            frozenset(permissions),
            key_id=key.id,
            user_id=owner.id,
            agents=None if agents is None else frozenset(name.lower() for name in agents),
            limits=KeyLimits.model_validate(orjson.loads(key.rate_limits or b"{}") or {}),
            quotas=quotas,
            is_held=owner.role != "admin",
            trusts_headers=bool(key.trust_client_headers),
            headers_secret=Secret(key.client_headers_secret) if key.client_headers_secret else None,
        )

    def login_caller(self, user_id: str, token_version: int) -> Caller:
        """The caller of a login's token. Raises InvalidToken."""
        user = self._users.get(user_id)
        if user is None:
            raise InvalidToken("The account of this token is gone; log in again.")
        if user.token_version != token_version:
            raise InvalidToken("The password has changed since this login; log in again.")
        if user.status != "active":
            raise InvalidToken(
                say("This account is {status}; ask an administrator.", status=user.status)
            )
        rights: set[Permission] = {"chat", "upload"}
        if user.role == "admin":
            rights.add("admin")
        return Caller(
            f"user-{user.id}",
            frozenset(rights),
            user_id=user.id,
            role=user.role,
            quotas=self._quotas_of(user),
            is_held=user.role != "admin",
        )

    def _quotas_of(self, user: KnownUser) -> tuple[Quota, ...]:
        if user.max_api_calls is None:
            return ()
        return (self._quota(f"user:{user.id}", self._month, user.max_api_calls),)

    def _quota(self, scope: str, period: str, limit: int | None = None) -> Quota:
        """The one counter of that scope and period; without `limit` its limit stays."""
        quota = self._quotas.get((scope, period))
        if quota is None:
            quota = self._quotas[scope, period] = Quota(scope, period, limit or 0)
        quota.limit = quota.limit if limit is None else limit
        return quota

    def calls_waiting(self, counts: Mapping[tuple[str, str], int]) -> None:
        """Count calls that an earlier process made and that are not in the database yet."""
        for (scope, period), number in counts.items():
            self._quota(scope, period).pending += number

    def calls_written(
        self, counts: Mapping[tuple[str, str], int], totals: Mapping[tuple[str, str], int]
    ) -> None:
        """Move calls from pending to written, and take over the new totals."""
        for which, number in counts.items():
            if quota := self._quotas.get(which):
                quota.known = max(quota.known, totals.get(which, 0))
                quota.pending = max(0, quota.pending - number)


def _put(known: dict[str, Any], id_: str, value: Any) -> None:
    if value is None:
        known.pop(id_, None)
    else:
        known[id_] = value
