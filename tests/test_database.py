"""The database itself: migrations, and the two kinds behaving alike."""

import asyncio
import re
import sqlite3

import pytest

from gateway import database as module
from gateway.database import SQL, SQLite, ValueRefused, connect, fetch, migrations
from gateway.errors import DatabaseUnavailable, StartError
from gateway.telemetry.call import COLUMNS


@pytest.fixture
async def database(database_url):
    database = connect(database_url)
    yield database
    await database.close()


def dialect(database) -> str:
    return "sqlite" if isinstance(database, SQLite) else "postgresql"


async def test_replicas_that_start_together_migrate_once(database_url):
    several = [connect(database_url) for _ in range(4)]
    there_are = len(migrations(dialect(several[0])))
    steps = await asyncio.gather(*(database.migrate() for database in several))
    assert sorted(steps) == [0, 0, 0, there_are]
    for database in several:
        await database.close()


async def test_a_newer_schema_is_refused_with_a_clear_message(database):
    await database.migrate()
    async with database.transaction() as conn:
        await conn.execute("INSERT INTO schema_version VALUES (999, 0)")
    newest = migrations(dialect(database))[-1][0]
    with pytest.raises(StartError, match=rf"version 999.*versions up to {newest}:.*as new as"):
        await database.migrate()


async def test_a_gateway_does_not_start_on_a_newer_schema(with_accounts, database_url):
    database = connect(database_url)
    await database.migrate()
    async with database.transaction() as conn:
        await conn.execute("INSERT INTO schema_version VALUES (999, 0)")
    await database.close()
    with pytest.raises(StartError, match="version 999"):
        await with_accounts(database_url)


async def test_a_failed_step_leaves_nothing(database, monkeypatch):
    steps = migrations(dialect(database))
    broken = (steps[-1][0] + 1, "CREATE TABLE half (id TEXT);\nCREATE TABLE half (id TEXT);\n")
    monkeypatch.setattr(module, "migrations", lambda dialect: [*steps, broken])
    with pytest.raises(Exception, match="half"):
        await database.migrate()
    monkeypatch.undo()
    assert await database.migrate() == len(steps)


async def test_a_step_leaves_what_there_was_before(tmp_path, monkeypatch):
    """Existing rows survive; here calls, whose indexes are dropped."""
    database = connect(f"sqlite:///{tmp_path}/g.db")
    first, *_ = migrations("sqlite")
    row = (
        "1",
        "r",
        1,
        "1970-01-01",
        "c",
        "",
        "",
        "a",
        "openai",
        200,
        0,
        1,
        2,
        3,
        "exact",
        1,
        1,
        0,
        "",
    )
    monkeypatch.setattr(module, "migrations", lambda dialect: [first])
    await database.migrate()
    async with database.transaction() as conn:
        marks = ", ".join("?" * len(row))
        await conn.execute(f"INSERT INTO calls VALUES ({marks})", row)
    monkeypatch.undo()
    await database.migrate()
    async with database.transaction() as conn:
        kept = tuple(await database.queries.call_by_id(conn, id="1"))
        assert kept == (
            *row,
            None,
            None,
            None,
            "",
            "",
        )  # reason, end user, task, and the names of ids
        names = await fetch(await conn.execute("PRAGMA index_list (calls)"))
    assert [index["origin"] for index in names] == ["pk"]
    await database.close()


async def test_what_fails_is_undone_as_a_whole(database):
    await database.migrate()
    with pytest.raises(RuntimeError):
        async with database.transaction() as conn:
            await conn.execute("INSERT INTO changes VALUES (7, 'user', 'x', 0)")
            raise RuntimeError
    async with database.transaction() as conn:
        assert await fetch(database.queries.changes_after(conn, version=0, limit=10)) == []


async def test_a_refused_value_is_not_an_unavailable_database(database):
    await database.migrate()
    with pytest.raises(ValueRefused):
        async with database.transaction() as conn:
            for _ in range(2):
                await conn.execute("INSERT INTO changes VALUES (7, 'user', 'x', 0)")


async def test_a_locked_sqlite_file_counts_as_unavailable(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT_S", 0.1)
    database = connect(f"sqlite:///{tmp_path}/g.db")
    await database.migrate()
    other = sqlite3.connect(tmp_path / "g.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(DatabaseUnavailable):
        async with database.transaction():
            pass
    other.execute("ROLLBACK")
    other.close()
    async with database.transaction():
        pass
    await database.close()


async def test_a_cancelled_transaction_keeps_the_connection_usable(database):
    await database.migrate()

    async def slow():
        async with database.transaction() as conn:
            await conn.execute("INSERT INTO changes VALUES (7, 'user', 'x', 0)")
            await asyncio.sleep(10)

    for _ in range(3):
        task = asyncio.ensure_future(slow())
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.wait({task})
    async with database.transaction() as conn:
        assert await fetch(database.queries.changes_after(conn, version=0, limit=10)) == []


async def test_both_kinds_have_the_tables_that_the_code_knows(database):
    await database.migrate()
    async with database.transaction() as conn:
        await database.load(conn, "calls", COLUMNS, [])
        await database.queries.calls_keep(conn)
        rows = database.queries.calls_page(
            conn, before_id="g", from_ms=0, to_ms=1, request_id="", caller="", key_id="", user_id="",
            agent="", end_user="", task="", surface="", status=0, only_errors=0, limit=1,
        )  # fmt: skip
        assert await fetch(rows) == []
    text = migrations("sqlite")[0][1]
    columns = re.search(r"CREATE TABLE calls \((.*?)\n\);", text, re.DOTALL)[1]
    added = re.findall(
        r"ALTER TABLE calls ADD COLUMN (\w+)", "".join(t for _, t in migrations("sqlite"))
    )
    assert (*re.findall(r"^ +(\w+) ", columns, re.MULTILINE), *added) == COLUMNS


def test_every_query_has_a_unique_name_that_begins_with_its_noun():
    names = re.findall(
        r"-- name: (\w+)", "\n".join(f.read_text("utf-8") for f in SQL.glob("*.sql"))
    )
    assert len(names) == len(set(names))
    nouns = {"sql/users.sql": "user", "sql/api_keys.sql": "api_key", "sql/changes.sql": "change"}
    for file, noun in nouns.items():
        for name in re.findall(r"-- name: (\w+)", (SQL.parent / file).read_text("utf-8")):
            assert name.startswith(noun)


async def test_a_removed_or_replaced_sqlite_file_takes_no_writes(tmp_path):
    database = connect(f"sqlite:///{tmp_path}/g.db")
    await database.migrate()
    for change in (lambda f: f.unlink(), lambda f: f.write_bytes(b"")):
        change(tmp_path / "g.db")
        with pytest.raises(DatabaseUnavailable):
            async with database.transaction():
                pass
    await database.close()


async def test_a_hanging_writer_loses_its_locks(postgresql):
    database = connect(postgresql.database())
    await database.migrate()
    async with database.transaction() as conn:
        limit = await conn.fetchval("SHOW idle_in_transaction_session_timeout")
    assert limit == "10s"
    await database.close()
