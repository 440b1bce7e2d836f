"""SQLite or PostgreSQL: opens it, migrates its schema, runs transactions; knows no table.

One set of queries (`sql/*.sql`, loaded by aiosql) serves both. Only this module owns connections
and transactions; stores get a connection from `transaction()`.
"""

import asyncio
import contextlib
import re
import sqlite3
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

import aiosql

from gateway.errors import DatabaseUnavailable, StartError
from gateway.private import make_folder
from gateway.shipped import shipped

SQL = shipped("sql")
TIMEOUT_S = 5.0  # for a statement, for a connection, and for another's lock
_MIGRATION_S = 600.0
_LOCK = 0x6A77  # PostgreSQL's advisory lock for migrations
# Rows per statement: the writing thread regains Python's lock from the busy event loop only once
# per statement, which costs both of them more than the row itself.
_ROWS_AT_ONCE = 100
_WRITER_LOCK = 0x6A78  # for batches of calls, so that two replicas' upserts cannot deadlock

Row = tuple[Any, ...]
Connection = Any  # asyncpg's or aiosqlite's; only aiosql's adapters distinguish them
Rows = list[dict[str, Any]]
Errors = tuple[type[BaseException], ...]


class ValueRefused(Exception):
    """The database is available but rejects a value; a retry would fail again."""


class Taken(ValueRefused):
    """The value must be unique, and another row already has it."""


class Database(Protocol):
    """The interface for stores. Every method raises DatabaseUnavailable if there is no answer."""

    queries: Any  # aiosql's, one method per query

    def transaction(self) -> contextlib.AbstractAsyncContextManager[Connection]:
        """A connection with a transaction: its changes are committed together, or not at all."""

    async def migrate(self) -> int:
        """Migrate the schema; returns the number of steps. Raises StartError."""

    async def load(
        self, conn: Connection, table: str, columns: Sequence[str], rows: Iterable[Row]
    ) -> None:
        """Insert `rows` into `<table>_incoming`, a temporary table with the columns of `table` that
        only this transaction sees."""

    async def close(self) -> None: ...


def connect(url: str) -> Database:
    """The database at that URL, opened at its first use. Raises StartError."""
    if url.startswith("sqlite:"):
        if sqlite3.sqlite_version_info < (3, 38):
            raise StartError(f"SQLite is {sqlite3.sqlite_version} here; 3.38 or newer is needed")
        return SQLite(Path(url.removeprefix("sqlite:///")))
    return PostgreSQL(url)


async def fetch(rows: AsyncIterator[Any]) -> Rows:
    """The rows of a query as dictionaries."""
    return [dict(row) async for row in rows]


def migrations(dialect: str) -> list[tuple[int, str]]:
    """(number, SQL text) of every step, in order: the common part, then the dialect's own."""
    steps: dict[int, str] = {}
    for folder in (SQL / "schema", SQL / "schema" / dialect):
        for file in sorted(folder.glob("[0-9]*.sql")):
            number = int(file.name.partition("_")[0])
            steps[number] = steps.get(number, "") + file.read_text("utf-8") + "\n"
    return sorted(steps.items())


def pending(dialect: str, present: int) -> list[tuple[int, str]]:
    """The steps that a database of version `present` lacks. Raises StartError if it is newer."""
    steps = migrations(dialect)
    newest = steps[-1][0]
    if present > newest:
        raise StartError(
            f"the database has schema version {present}, and this gateway knows versions up to"
            f" {newest}: start a gateway that is as new as the one that wrote the database"
        )
    return [step for step in steps if step[0] > present]


_VERSIONS = (
    "CREATE TABLE IF NOT EXISTS schema_version (version BIGINT PRIMARY KEY, applied_ms BIGINT)"
)


class SQLite:
    """One shared connection in a thread of its own; transactions take turns."""

    _UNAVAILABLE: Errors = (sqlite3.OperationalError, OSError, TimeoutError)
    _REFUSED: Errors = (
        sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError, OverflowError,
    )  # fmt: skip

    def __init__(self, path: Path) -> None:
        self.queries = _load("aiosqlite")
        self._path = path
        self._conn: Connection = None
        self._inode = 0
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        async with self._turn:
            with _translated(self._UNAVAILABLE, self._REFUSED):
                conn = await self._open()
                try:
                    # If this await is cancelled the thread still begins, so the rollback covers it
                    # too.
                    await conn.execute("BEGIN IMMEDIATE")
                    yield conn
                    await conn.execute("COMMIT")
                except BaseException:
                    with contextlib.suppress(sqlite3.Error):
                        await conn.execute("ROLLBACK")
                    raise

    async def _open(self) -> Connection:
        if self._conn is not None:
            self._check_file()
        else:
            import aiosqlite

            make_folder(self._path.parent)
            self._path.touch(mode=0o600)  # it holds password hashes
            conn = await aiosqlite.connect(self._path, isolation_level=None, timeout=TIMEOUT_S)
            conn.row_factory = sqlite3.Row
            try:
                await _become_wal(conn)
                await conn.execute("PRAGMA synchronous = NORMAL")
                await conn.execute("PRAGMA foreign_keys = ON")
            except BaseException:
                await conn.close()
                raise
            self._conn, self._inode = conn, self._path.stat().st_ino
        return self._conn

    def _check_file(self) -> None:
        """Raise if the file was removed or replaced: writes to it would be lost."""
        try:
            is_there = self._path.stat().st_ino == self._inode
        except OSError:
            is_there = False
        if not is_there:
            raise OSError(f"{self._path} was removed or replaced; start again")

    async def migrate(self) -> int:
        async with self.transaction() as conn:
            await conn.execute(_VERSIONS)
            async with conn.execute("SELECT max(version) FROM schema_version") as cursor:
                row = await cursor.fetchone()
            steps = pending("sqlite", row[0] or 0)
            for number, text in steps:
                for statement in _statements(text):
                    await conn.execute(statement)
                await conn.execute(
                    "INSERT INTO schema_version VALUES (?, unixepoch() * 1000)", (number,)
                )
        return len(steps)

    async def load(
        self, conn: Connection, table: str, columns: Sequence[str], rows: Iterable[Row]
    ) -> None:
        marks = f"({', '.join('?' * len(columns))})"
        await conn.execute(
            f"CREATE TEMP TABLE IF NOT EXISTS {table}_incoming ({', '.join(columns)})"
        )
        await conn.execute(f"DELETE FROM {table}_incoming")  # noqa: S608
        left = iter(rows)
        while some := list(islice(left, _ROWS_AT_ONCE)):
            values = ", ".join([marks] * len(some))
            await conn.execute(
                f"INSERT INTO {table}_incoming VALUES {values}",  # noqa: S608
                list(chain.from_iterable(some)),
            )

    async def close(self) -> None:
        async with self._turn:
            conn, self._conn = self._conn, None
            if conn is not None:
                await conn.close()


async def _become_wal(conn: Connection) -> None:
    """Switch to WAL, so that readers never wait. SQLite does not wait for the lock that
    this needs."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            try:
                await conn.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error):
                    raise
            await asyncio.sleep(0.02)


def _statements(text: str) -> list[str]:
    """The statements of a script; a trigger contains semicolons of its own."""
    out, statement = [], ""
    for line in text.splitlines():
        if not statement and (not line.strip() or line.startswith("--")):
            continue
        statement += line + "\n"
        if line.rstrip().endswith(";") and sqlite3.complete_statement(statement):
            out.append(statement)
            statement = ""
    return out


class PostgreSQL:
    """A pool of connections, opened on demand."""

    def __init__(self, url: str) -> None:
        self.queries = _load("asyncpg")
        # SQLAlchemy's URLs also name the driver.
        self._url = re.sub(r"^postgres(ql)?\+\w+://", "postgresql://", url)
        self._pool: Any = None
        self._opening = asyncio.Lock()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        import asyncpg

        unavailable = (
            asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.QueryCanceledError,
            asyncpg.OperatorInterventionError, asyncpg.InsufficientResourcesError,
            asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError,
            asyncpg.InternalClientError, asyncpg.ReadOnlySQLTransactionError,
            OSError, TimeoutError,
        )  # fmt: skip
        refused = (
            asyncpg.DataError,
            asyncpg.IntegrityConstraintViolationError,
            OverflowError,
        )
        with _translated(unavailable, refused):
            pool = await self._open()
            conn = await pool.acquire(timeout=TIMEOUT_S)
            try:
                # A gateway that hangs or loses its network must not hold its locks indefinitely.
                await conn.execute("BEGIN; SET LOCAL idle_in_transaction_session_timeout = 10000")
                try:
                    yield conn
                except Exception:
                    if not conn.is_closed():
                        await conn.execute("ROLLBACK")
                    raise
                await conn.execute("COMMIT")
            except (*unavailable, asyncio.CancelledError):
                conn.terminate()  # its next call might hang as well
                raise
            finally:
                await pool.release(conn, timeout=TIMEOUT_S)

    async def _open(self) -> Any:
        async with self._opening:
            if self._pool is None:
                import asyncpg

                self._pool = await asyncpg.create_pool(
                    self._url,
                    min_size=0,
                    max_size=10,
                    timeout=TIMEOUT_S,
                    command_timeout=TIMEOUT_S,
                    server_settings={"application_name": "ai-gateway"},
                )
        return self._pool

    async def migrate(self) -> int:
        async with self.transaction() as conn:
            # Two replicas that start together take turns, and the second has nothing to do.
            await conn.execute(f"SELECT pg_advisory_xact_lock({_LOCK})", timeout=_MIGRATION_S)
            await conn.execute(_VERSIONS)
            present = await conn.fetchval("SELECT max(version) FROM schema_version")
            steps = pending("postgresql", present or 0)
            for number, text in steps:
                await conn.execute(text, timeout=_MIGRATION_S)
                await conn.execute(
                    "INSERT INTO schema_version VALUES ($1, extract(epoch FROM now()) * 1000)",
                    number,
                )
        return len(steps)

    async def load(
        self, conn: Connection, table: str, columns: Sequence[str], rows: Iterable[Row]
    ) -> None:
        await conn.execute(f"SELECT pg_advisory_xact_lock({_WRITER_LOCK})")
        await conn.execute(f"CREATE TEMP TABLE {table}_incoming (LIKE {table}) ON COMMIT DROP")
        await conn.copy_records_to_table(f"{table}_incoming", records=rows, columns=columns)

    async def close(self) -> None:
        if self._pool is not None:
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    await self._pool.close()
            except TimeoutError:
                self._pool.terminate()
            self._pool = None


def _load(driver: str) -> Any:
    # The subfolder `schema` holds no queries, so the files are listed one by one.
    files = sorted(SQL.glob("*.sql"))
    text = "\n".join(file.read_text("utf-8") for file in files)
    return aiosql.from_str(text, driver)


@contextlib.contextmanager
def _translated(unavailable: Errors, refused: Errors) -> Iterator[None]:
    """Translate a driver's errors: the database is unavailable, or it rejects a value."""
    try:
        yield
    except refused as error:
        if "unique" in str(error).lower():
            raise Taken(str(error)) from error
        raise ValueRefused(f"{type(error).__name__}: {error}") from error
    except unavailable as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR:
            raise  # the statement is wrong
        raise DatabaseUnavailable from error


def is_locked(error: BaseException | None) -> bool:
    """Whether another process currently locks the SQLite file."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
