"""The way from the queue over the spool to the database, and its faults."""

import asyncio

import orjson
import pytest

from gateway.accounts.credentials import Caller
from gateway.accounts.directory import Directory
from gateway.config.models import Record
from gateway.database import connect
from gateway.errors import DatabaseUnavailable
from gateway.protocol.messages import Usage
from gateway.telemetry.call import COLUMNS, Call
from gateway.telemetry.recorder import Recorder
from gateway.telemetry.spool import Spool
from gateway.telemetry.store import Calls

CALLER = Caller("key-abc", frozenset(("chat",)), key_id="abc", user_id="usr")


def call(agent="dify", tokens=5, request_id="req"):
    return Call(request_id, CALLER, "chat", agent=agent, is_whole=True, usage=Usage(2, 3, tokens))


@pytest.fixture
async def calls(database_url):
    database = connect(database_url)
    await database.migrate()
    yield Calls(database)
    await database.close()


@pytest.fixture
def make(calls, tmp_path):
    def make(store=None, max_bytes=1 << 20, folder="spool", **kwargs):
        return Recorder(store or calls, Spool(tmp_path / folder, max_bytes), Record(), **kwargs)

    return make


async def all_calls(calls):
    names = ("request_id", "caller", "key_id", "user_id", "agent", "end_user", "task", "surface")
    nothing = dict.fromkeys(names, "")
    return await calls.page(
        100_000, before_id="g", from_ms=0, to_ms=1 << 53, status=0, only_errors=0, **nothing
    )


async def test_a_batch_that_comes_twice_counts_once(calls):
    rows = [call().row(200, "") for _ in range(5)]
    totals = await calls.write(rows[:3], [], 1)
    month = rows[0][3][:7]
    assert totals == {("key:abc", ""): 3, ("user:usr", ""): 3, ("user:usr", month): 3}
    assert (await calls.write(rows, [], 1))["key:abc", ""] == 5
    assert await calls.write(rows, [], 1) == {}
    assert len(await all_calls(calls)) == 5
    usage = await calls.usage("key", "abc", rows[0][3])
    assert usage["total"]["calls"] == usage["today"]["calls"] == 5
    assert usage["total"]["total_tokens"] == 25


async def test_roll_ups_equal_the_sum_of_the_rows(calls):
    rows = [call(agent, n).row(200 if n else 502, "" if n else "x")
            for n, agent in enumerate(["dify", "coze", "dify", "fastgpt"] * 50)]  # fmt: skip
    await asyncio.gather(*(calls.write(rows[i : i + 20], [], 1) for i in range(0, 200, 20)))
    by_agent = {
        row["agent"]: row for row in await calls.usage_by("2000-01-01", "2999-01-01", ["agent"])
    }
    for agent in ("dify", "coze", "fastgpt"):
        mine = [row for row in rows if row[7] == agent]
        assert by_agent[agent]["calls"] == len(mine)
        assert by_agent[agent]["total_tokens"] == sum(row[13] for row in mine)
        assert by_agent[agent]["errors"] == sum(1 for row in mine if row[18])


async def test_calls_are_written_in_order_and_the_spool_empties(make, calls, tmp_path):
    recorder = make()
    await recorder.open()
    for i in range(300):
        recorder.add(call(request_id=f"req-{i}"), 200, "")
        if i % 50 == 0:
            await recorder.flush()
    await recorder.close()
    told = [row["request_id"] for row in reversed(await all_calls(calls))]
    assert told == [f"req-{i}" for i in range(300)]
    assert not list((tmp_path / "spool").rglob("*.jsonl"))
    assert recorder.written == 300


class Away:
    """A store whose database is unavailable until `is_away` is cleared."""

    def __init__(self, calls):
        self._calls = calls
        self.is_away = True

    async def write(self, *args):
        if self.is_away:
            raise DatabaseUnavailable
        return await self._calls.write(*args)


async def test_waiting_calls_are_spooled_and_written_on_recovery(make, calls, tmp_path):
    store = Away(calls)
    recorder = make(store)
    for i in range(120):
        recorder.add(call(request_id=f"req-{i}"), 200, "")
        if i % 10 == 9:
            with pytest.raises(DatabaseUnavailable):
                await recorder.flush()
    await recorder.open()
    with pytest.raises(DatabaseUnavailable):
        await recorder.flush()
    assert recorder.waiting == 120
    assert recorder.unavailable
    store.is_away = False
    await recorder.flush()
    assert (recorder.waiting, recorder.unavailable) == (0, False)
    told = [row["request_id"] for row in reversed(await all_calls(calls))]
    assert told == [f"req-{i}" for i in range(120)]
    await recorder.close()


async def test_few_files_hold_many_batches_without_the_database(make, calls, tmp_path):
    recorder = make(Away(calls))
    await recorder.open()
    for _ in range(60):
        recorder.add(call(), 200, "")
        with pytest.raises(DatabaseUnavailable):
            await recorder.flush()
    assert len(list((tmp_path / "spool").rglob("*.jsonl"))) <= 3
    await recorder.close()


async def test_only_unused_spools_are_taken_over(make, calls, tmp_path):
    first = make(Away(calls))
    await first.open()
    first.add(call(request_id="left"), 200, "")
    await first.close()
    using = make(Away(calls))
    await using.open()  # takes over the files of `first`
    using.add(call(request_id="used"), 200, "")
    with pytest.raises(DatabaseUnavailable):
        await using.flush()
    second = make()
    await second.open()
    await second.flush()
    assert await all_calls(calls) == []
    await using.close()
    third = make()
    await third.open()
    await third.flush()
    assert [row["request_id"] for row in reversed(await all_calls(calls))] == ["left", "used"]
    for recorder in (second, third):
        await recorder.close()


async def test_a_line_that_a_crash_cut_is_left_out(make, calls, tmp_path):
    recorder = make(Away(calls))
    await recorder.open()
    for i in range(3):
        recorder.add(call(request_id=f"req-{i}"), 200, "")
    await recorder.close()
    (file,) = (tmp_path / "spool").rglob("*.jsonl")
    file.write_bytes(file.read_bytes()[:-20])
    again = make()
    await again.open()
    await again.flush()
    assert len(await all_calls(calls)) == 2
    await again.close()


async def test_a_full_spool_uses_memory_and_counts_losses(make, calls, monkeypatch):
    monkeypatch.setattr("gateway.telemetry.recorder.MAX_QUEUED", 50)
    store = Away(calls)
    recorder = make(store, max_bytes=1000)
    await recorder.open()
    for _ in range(200):
        recorder.add(call(), 200, "")
        with pytest.raises(DatabaseUnavailable):
            await recorder.flush()
    assert recorder.lost + recorder.waiting == 200
    assert 50 <= recorder.waiting < 60
    store.is_away = False
    await recorder.flush()
    assert len(await all_calls(calls)) == 200 - recorder.lost
    await recorder.close()


async def test_without_a_folder_for_the_spool_calls_are_recorded_still(make, calls, tmp_path):
    (tmp_path / "text").write_text("a file, not a folder")
    recorder = make(folder="text/spool")
    await recorder.open()
    recorder.add(call(), 200, "")
    await recorder.close()
    assert len(await all_calls(calls)) == 1


async def test_a_refused_row_does_not_hold_up_the_others(make, calls):
    recorder = make()
    await recorder.open()
    for i in range(9):
        bad = call(request_id=f"req-{i}")
        if i == 4:
            bad.usage = Usage(1 << 70, 0, 1)  # no database has such a number
        recorder.add(bad, 200, "")
    await recorder.flush()
    assert {row["request_id"] for row in await all_calls(calls)} == {
        f"req-{i}" for i in range(9)
    } - {"req-4"}
    assert recorder.rejected == 1
    await recorder.close()


async def test_text_that_postgresql_cannot_hold_is_made_fit(make, calls):
    recorder = make()
    await recorder.open()
    recorder.add(call(agent="dify"), 502, "bad\x00code")
    await recorder.close()
    assert (await all_calls(calls))[0]["error"] == "bad\ufffdcode"


async def test_a_file_of_the_spool_that_vanished_holds_up_nothing(make, calls, tmp_path):
    store = Away(calls)
    recorder = make(store)
    await recorder.open()
    for i in range(3):
        recorder.add(call(request_id=f"req-{i}"), 200, "")
        with pytest.raises(DatabaseUnavailable):
            await recorder.flush()
    next((tmp_path / "spool").rglob("00000001.jsonl")).unlink()
    store.is_away = False
    recorder.add(call(request_id="after"), 200, "")
    await recorder.flush()
    told = [row["request_id"] for row in reversed(await all_calls(calls))]
    assert told == ["req-1", "req-2", "after"]
    assert recorder.lost == 1
    await recorder.close()


def left_behind(tmp_path, name="00000001.jsonl"):
    """A file in the folder of a process that has ended."""
    folder = tmp_path / "spool" / "1-dead"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


async def written_beside(make, calls):
    """(calls in the database, files set aside) after a start and one more call."""
    recorder = make()
    await recorder.open()
    recorder.add(call(request_id="new"), 200, "")
    await recorder.flush()
    assert recorder.waiting == 0
    await recorder.close()
    return sorted(row["request_id"] for row in await all_calls(calls)), recorder.damaged


GOOD = orjson.dumps([call(request_id="old").row(200, ""), None])


def changed(column, value):
    row = list(call().row(200, ""))
    row[COLUMNS.index(column)] = value
    return orjson.dumps([row, None])


@pytest.mark.parametrize(
    "odd",
    [
        b'{"a": 1}', b"[1]", b"[[1, 2], null]", b"\xff\x00\xfe", b"[]", b"5", b"null", GOOD[:-20],
        changed("day", {"a": 1}), changed("day", "today"), changed("id", None), changed("id", ""),
        changed("status", "200"), changed("total_ms", 1 << 63), changed("error", "x" * 5000),
        changed("agent", [1]), changed("streamed", None), orjson.dumps([[*call().row(200, ""), 1], None]),
        orjson.dumps([call().row(200, ""), ["a", 1, "", "", 0, 0]]), b"[" * 100_000,
    ],
    ids=range(20),
)  # fmt: skip
async def test_a_damaged_line_ends_nothing_and_is_set_aside(make, calls, tmp_path, odd):
    left_behind(tmp_path).write_bytes(odd + b"\n" + GOOD + b"\n")
    assert await written_beside(make, calls) == (["new", "old"], 1)
    (aside,) = (tmp_path / "spool" / "damaged").iterdir()
    assert aside.read_bytes().startswith(odd)


async def test_an_empty_file_of_the_spool_is_nothing_odd(make, calls, tmp_path):
    left_behind(tmp_path).write_bytes(b"")
    assert await written_beside(make, calls) == (["new"], 0)


async def test_what_is_no_file_of_the_spool_is_set_aside(make, calls, tmp_path):
    left_behind(tmp_path, "00000001.jsonl").mkdir()
    left_behind(tmp_path, "notes.txt").write_text("mine")
    left_behind(tmp_path, "00000002.jsonl").symlink_to("/dev/zero")
    left_behind(tmp_path, "00000003.jsonl").write_bytes(GOOD + b"\n")
    with left_behind(tmp_path, "00000004.jsonl").open("wb") as file:
        file.truncate(1 << 40)  # a sparse file, larger than the spool may be
    assert await written_beside(make, calls) == (["new", "old"], 4)
    assert len(list((tmp_path / "spool" / "damaged").iterdir())) == 4


async def test_files_set_aside_are_bounded(make, calls, tmp_path):
    for i in range(130):
        left_behind(tmp_path, f"{i:08}.jsonl").write_bytes(b"odd\n")
    assert await written_beside(make, calls) == (["new"], 130)
    assert len(list((tmp_path / "spool" / "damaged").iterdir())) == 100


async def test_a_file_that_became_a_folder_holds_up_nothing(make, calls, tmp_path):
    store = Away(calls)
    recorder = make(store)
    await recorder.open()
    recorder.add(call(), 200, "")
    with pytest.raises(DatabaseUnavailable):
        await recorder.flush()
    (file,) = (tmp_path / "spool").rglob("*.jsonl")
    file.unlink()
    file.mkdir()
    store.is_away = False
    recorder.add(call(request_id="after"), 200, "")
    await recorder.flush()
    told = sorted(row["request_id"] for row in await all_calls(calls))
    assert told == ["after", "req"]  # which was in memory as well
    assert (recorder.lost, recorder.damaged) == (0, 1)
    await recorder.close()


async def test_rows_of_the_version_before_are_taken(make, calls, tmp_path):
    row = call(request_id="older").row(502, "upstream_failed")[:-1]
    left_behind(tmp_path).write_bytes(orjson.dumps([row, None]) + b"\n")
    assert await written_beside(make, calls) == (["new", "older"], 0)


async def test_reasons_and_end_users_have_a_bound(make, calls):
    recorder = make()
    await recorder.open()
    told = call()
    told.end_user = "u" * 1000
    recorder.add(told, 502, "upstream_failed", "why " * 1000)
    await recorder.flush()
    (row,) = await all_calls(calls)
    assert (len(row["reason"]), len(row["end_user"])) == (500, 256)
    await recorder.close()


async def test_rows_are_written_after_a_full_disk_has_room(make, calls, tmp_path, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device")

    recorder = make(Away(calls))
    await recorder.open()
    monkeypatch.setattr("gateway.telemetry.spool._append", full)
    for _ in range(3):
        recorder.add(call(), 200, "")
        with pytest.raises(DatabaseUnavailable):
            await recorder.flush()
    assert recorder._spool.size == 0
    monkeypatch.undo()
    await recorder.close()
    again = make()
    await again.open()
    await again.flush()
    assert len(await all_calls(calls)) == 3
    await again.close()


async def test_processes_that_start_together_share_the_folder(tmp_path):
    for round_ in range(30):
        spools = [Spool(tmp_path / f"s{round_}", 1000) for _ in range(3)]
        await asyncio.gather(*(asyncio.to_thread(spool.open) for spool in spools))
        for spool in spools:
            spool.close()


async def test_calls_that_an_earlier_process_left_count_in_the_quotas(make, calls):
    first = make(Away(calls))
    await first.open()
    for _ in range(4):
        first.add(call(), 200, "")
    await first.close()
    directory = Directory(calls._database)
    quota = directory._quota("key:abc", "", 5)
    second = make(directory=directory)
    await second.open()
    assert quota.used == 4
    await second.flush()
    assert (quota.known, quota.pending) == (4, 0)
    await second.close()


async def test_a_quota_counts_a_batch_once_though_it_comes_twice(make, calls):
    class Forgetful(Away):
        """The commit succeeds, but its confirmation is lost."""

        async def write(self, *args):
            totals = await self._calls.write(*args)
            if self.is_away:
                self.is_away = False
                raise DatabaseUnavailable
            return totals

    directory = Directory(calls._database)
    quota = directory._quota("key:abc", "", 20)
    recorder = make(Forgetful(calls), directory=directory)
    await recorder.open()
    for _ in range(10):
        quota.pending += 1
        recorder.add(call(), 200, "")
    with pytest.raises(DatabaseUnavailable):
        await recorder.flush()
    await recorder.flush()
    async with calls._database.transaction() as conn:
        await directory._read_quotas(conn)
    assert quota.pending == 0
    assert len(await all_calls(calls)) == 10
    assert (await calls.usage("key", "abc", "2999-01-01"))["total"]["calls"] == 10
    await recorder.close()


async def test_a_new_month_begins_without_the_database(calls, monkeypatch):
    directory = Directory(calls._database)
    directory._month = "2001-01"
    old = directory._quota("user:usr", "2001-01", 5)
    old.known = 5

    async def away():
        raise DatabaseUnavailable

    monkeypatch.setattr(directory, "_present_version", away)
    with pytest.raises(DatabaseUnavailable):
        await directory._sync()
    assert directory._month != "2001-01"
    assert ("user:usr", "2001-01") not in directory._quotas
