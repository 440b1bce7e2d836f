"""The register of conversations, on SQLite and on PostgreSQL."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from gateway.conversations import register as module
from gateway.conversations.register import Owner, Register, Turn
from gateway.database import connect
from gateway.errors import ConversationNotFound, DatabaseUnavailable
from gateway.times import now_ms

ALICE, BOB = Owner("key-app", "alice"), Owner("key-app", "bob")
PLACE = ("dify", "c1")
FIRST = (1 << 53, "", "")


@pytest.fixture
async def opened(database_url, stack):
    """A function that opens the register, as another process would."""
    database = connect(database_url)
    stack.push_async_callback(database.close)
    await database.migrate()

    def open_one(**options) -> Register:
        register = Register(database, **options)
        stack.push_async_callback(register.close)
        return register

    return open_one


def said(question: str) -> dict[str, str]:
    return {"question": question, "answer": "yes", "status": "completed"}


def turn(place: str, question: str) -> Turn:
    return Turn(place, f"m{place}", said(question))


async def is_refused(register: Register, owner: Owner, place=PLACE, *, adopts=True) -> bool:
    try:
        await register.require(owner, place, adopts=adopts)
    except ConversationNotFound:
        return True
    return False


async def test_another_owner_does_not_find_it(opened):
    register = opened()
    register.note(ALICE, PLACE)
    for stranger in (BOB, Owner("key-other", "alice"), Owner("key-app", "")):
        assert await is_refused(register, stranger)
    assert not await is_refused(register, ALICE)


async def test_another_process_knows_the_owner(opened):
    register = opened()
    register.note(ALICE, PLACE)
    await register.flush()
    other = opened()
    assert await is_refused(other, BOB)
    assert not await is_refused(other, ALICE)


async def test_equal_ids_at_two_agents_are_two_conversations(opened):
    register = opened()
    register.note(ALICE, PLACE)
    assert not await is_refused(register, BOB, ("coze", "c1"))


async def test_who_names_an_unknown_id_first_owns_it(opened):
    one, two = opened(), opened()
    refused = await asyncio.gather(
        *(is_refused(register, owner) for register, owner in ((one, ALICE), (two, BOB)) * 3)
    )
    assert sorted({refused[0], refused[1]}) == [False, True]
    owner, stranger = (ALICE, BOB) if not refused[0] else (BOB, ALICE)
    third = opened()
    assert not await is_refused(third, owner)
    assert await is_refused(third, stranger)


async def test_an_id_of_our_own_is_never_made_up(opened):
    assert await is_refused(opened(), ALICE, adopts=False)


async def test_an_id_of_the_same_account_is_not_for_another_agent(opened):
    register = opened()
    register.note(ALICE, PLACE)
    await register.flush()
    for owner in (BOB, ALICE):
        with pytest.raises(ConversationNotFound):
            await opened().require(owner, ("two", "c1"), adopts=True, siblings=lambda: ["dify"])
    await opened().require(BOB, ("two", "c1"), adopts=True, siblings=lambda: ["other"])
    memory_only = Register(None)
    memory_only.note(ALICE, PLACE)
    with pytest.raises(ConversationNotFound):
        await memory_only.require(BOB, ("two", "c1"), adopts=True, siblings=lambda: ["dify"])


async def test_a_deleted_id_is_for_no_one_else(opened):
    """Another process may still know its owner."""
    one, two = opened(), opened()
    one.note(ALICE, PLACE)
    [row] = await one.named(ALICE, "c1")
    await two.require(ALICE, PLACE, adopts=True)
    await one.delete(row)
    assert await is_refused(one, BOB)
    assert await is_refused(opened(), BOB)
    assert await one.named(ALICE, "c1") == []
    assert await one.page(Owner("", ""), "", 10, FIRST) != [row]


async def test_a_row_of_another_owner_is_not_overwritten(opened):
    """Two replicas, each of which has seen the conversation first."""
    one, two = opened(), opened()
    one.note(ALICE, PLACE, title="hers")
    two.note(BOB, PLACE, title="his")
    await one.flush()
    await two.flush()
    assert [row.title for row in await opened().page(ALICE, "", 10, FIRST)] == ["hers"]
    assert await opened().page(BOB, "", 10, FIRST) == []


async def test_the_title_is_that_of_the_first_question(opened):
    register = opened()
    register.note(ALICE, PLACE, title="first", model="route", platform_user="u")
    await register.flush()
    register.note(ALICE, PLACE, title="second", model="dify", platform_user="u")
    [row] = await register.page(ALICE, "", 10, FIRST)
    assert (row.title, row.title_by, row.model, row.platform_user) == (
        "first",
        "question",
        "route",
        "u",
    )
    assert row.updated_ms >= row.created_ms


async def test_pages_follow_each_other_without_gaps(opened):
    register = opened()
    for number in range(25):
        register.note(ALICE, (f"agent{number % 3}", f"c{number:02}"))
    register.note(BOB, ("agent0", "his"))
    seen, before = [], FIRST
    while rows := await register.page(ALICE, "", 4, before):
        seen += [row.id for row in rows]
        before = (rows[-1].updated_ms, rows[-1].agent, rows[-1].id)
    assert sorted(seen) == [f"c{number:02}" for number in range(25)]
    some = await register.page(ALICE, "agent1", 100, FIRST)
    assert {row.agent for row in some} == {"agent1"}


async def test_a_kept_turn_is_there_for_the_next_question(opened):
    register = opened()
    for number in range(3):
        register.note(ALICE, PLACE, turn=turn(f"00{number}", f"q{number}"))
    await register.settle()
    other = opened()
    assert [each["question"] for each in await other.history(PLACE, 10)] == ["q0", "q1", "q2"]
    assert [each["question"] for each in await other.history(PLACE, 2)] == ["q1", "q2"]
    [found], _ = await other.turns(PLACE, 1, before="002")
    assert (found.place, found.id, found.body["question"]) == ("001", "m001", "q1")


async def test_deleting_takes_turns_and_feedback_along(opened):
    register = opened()
    register.note(ALICE, PLACE, turn=turn("001", "q"))
    [row] = await register.named(ALICE, "c1")
    await register.rate(row, "001", {"rating": "like", "text": "", "reasons": []})
    assert (await register.ratings(row))["001"]["rating"] == "like"
    await register.delete(row)
    assert await register.named(ALICE, "c1") == []
    assert await register.turns(PLACE, 10) == ([], "")
    assert await register.ratings(row) == {}


async def test_feedback_is_replaced_and_taken_back(opened):
    register = opened()
    register.note(ALICE, PLACE)
    [row] = await register.named(ALICE, "c1")
    for rating in ("like", "dislike"):
        await register.rate(row, "m", {"rating": rating, "text": "", "reasons": []})
    assert (await register.ratings(row))["m"]["rating"] == "dislike"
    await register.rate(row, "m", {"rating": None, "text": "", "reasons": []})
    assert await register.ratings(row) == {}


async def test_what_is_older_than_keep_is_deleted(opened):
    register = opened(keep_s=lambda: -1.0)
    register.note(ALICE, PLACE, turn=turn("001", "q"))
    await register.flush()
    await register.sweep()
    assert await register.named(ALICE, "c1") == []
    assert await register.turns(PLACE, 10) == ([], "")


class Broken:
    """A database that can be switched off, or made slow."""

    def __init__(self, database):
        self.queries, self.load = database.queries, database.load
        self._database = database
        self.is_down, self.fault, self.hold = False, None, asyncio.Event()
        self.hold.set()

    @asynccontextmanager
    async def transaction(self):
        await self.hold.wait()
        if self.is_down:
            raise DatabaseUnavailable
        if self.fault:
            raise self.fault
        async with self._database.transaction() as conn:
            yield conn


@pytest.fixture
async def broken(database_url, stack):
    database = connect(database_url)
    stack.push_async_callback(database.close)
    await database.migrate()
    return Broken(database)


async def test_without_an_answer_ownership_is_not_guessed(broken):
    register = Register(broken)
    broken.is_down = True
    with pytest.raises(DatabaseUnavailable):
        await register.require(ALICE, PLACE, adopts=True)


async def test_a_slow_database_holds_a_call_up_for_a_moment_only(broken):
    register = Register(broken)
    broken.hold.clear()
    began = asyncio.get_running_loop().time()
    with pytest.raises(DatabaseUnavailable):
        await register.require(ALICE, PLACE, adopts=True)
    register.note(ALICE, PLACE, turn=turn("001", "q"))
    await register.settle()
    assert asyncio.get_running_loop().time() - began < 2
    broken.hold.set()
    await register.flush()
    assert await register.history(PLACE, 10) == [said("q")]
    await register.close()


async def test_what_the_database_missed_is_written_later(broken):
    register = Register(broken)
    broken.is_down = True
    register.note(ALICE, PLACE, title="kept", turn=turn("001", "q1"))
    with pytest.raises(DatabaseUnavailable):
        await register.flush()
    register.note(ALICE, PLACE, turn=turn("002", "q2"))
    broken.is_down = False
    await register.flush()
    assert [each["question"] for each in await register.history(PLACE, 10)] == ["q1", "q2"]
    [row] = await register.named(ALICE, "c1")
    assert row.title == "kept"
    await register.close()


async def test_what_waits_for_the_database_has_a_bound(broken, monkeypatch):
    monkeypatch.setattr(module, "MAX_PENDING", 10)
    monkeypatch.setattr(module, "MAX_PENDING_BYTES", 5000)
    register = Register(broken)
    broken.is_down = True
    for number in range(30):
        register.note(ALICE, ("dify", f"c{number}"))
    assert register.lost == 20
    register.note(ALICE, ("dify", "long"), turn=turn("001", "q" * 6000))
    assert register.lost == 31
    register.note(ALICE, ("dify", "next"), turn=turn("001", "q"))
    broken.is_down = False
    assert [row.id for row in await register.page(ALICE, "", 100, FIRST)] == ["next"]
    await register.close()


async def test_without_a_database_the_process_knows_the_owners():
    register = Register(None)
    await register.require(ALICE, PLACE, adopts=True)
    register.note(ALICE, PLACE)
    assert await is_refused(register, BOB)


async def test_owners_in_memory_have_a_bound(monkeypatch):
    monkeypatch.setattr(module, "MAX_KNOWN", 5)
    register = Register(None)
    for number in range(50):
        register.note(ALICE, ("dify", f"c{number}"))
    assert await is_refused(register, BOB, ("dify", "c49"))
    assert not await is_refused(register, BOB, ("dify", "c1"))


async def test_long_turns_are_read_in_parts(opened, monkeypatch):
    monkeypatch.setattr(module, "MAX_READ", 5000)
    register = opened()
    for number in range(40):
        register.note(ALICE, PLACE, turn=turn(f"{number:03}", f"{number:03}" + "q" * 1000))
    seen, before, pages = [], "", 0
    while before or not pages:
        found, before = await register.turns(PLACE, 100, before)
        assert len(found) <= 10
        seen += [each.place for each in found]
        pages += 1
    assert seen == [f"{number:03}" for number in reversed(range(40))]
    assert len(await register.history(PLACE, 100)) == 10


async def test_a_call_that_was_deleted_meanwhile_is_not_kept(opened):
    register = opened()
    register.note(ALICE, PLACE)
    [one] = await register.named(ALICE, "c1")
    began_ms = now_ms()
    await register.delete(one)
    register.note(ALICE, PLACE, turn=turn("001", "q"), began_ms=began_ms)
    assert await register.named(ALICE, "c1") == []
    register.drop_earlier(ALICE)
    register.note(ALICE, ("dify", "new"), began_ms=began_ms)
    register.note(BOB, ("dify", "other"), began_ms=began_ms)
    register.note(ALICE, ("dify", "later"), began_ms=now_ms() + 1)
    assert [row.id for row in await register.page(ALICE, "", 9, FIRST)] == ["later"]
    assert [row.id for row in await register.page(BOB, "", 9, FIRST)] == ["other"]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_what_one_caller_sends_loses_nothing_of_others(opened):
    """PostgreSQL refuses a NUL."""
    register = opened()
    register.note(ALICE, PLACE)
    register.note(Owner("key-other", "a\0b"), ("dify", "c2"))
    register.note(BOB, ("dify", "c3"))
    await register.flush()
    assert register.lost == 1
    assert [row.id for row in await register.named(ALICE, "c1")] == ["c1"]
    assert [row.id for row in await register.named(BOB, "c3")] == ["c3"]


async def test_an_unforeseen_failure_does_not_reach_the_call(broken):
    """Such as a table that somebody has removed."""
    register = Register(broken)
    broken.fault = RuntimeError("no such table")
    register.note(ALICE, PLACE, turn=turn("001", "q"))
    await register.settle()
    broken.fault = None
    assert await register.history(PLACE, 10) == [said("q")]
    await register.close()


async def test_many_calls_share_one_attempt_to_write(broken):
    """Else each would wait for a hanging database as often as there are calls before it."""
    register, attempts = Register(broken), []
    broken.hold.clear()
    began = broken.transaction

    def counted():
        attempts.append(1)
        return began()

    broken.transaction = counted
    register.note(ALICE, PLACE, turn=turn("001", "q"))
    flushing = [asyncio.ensure_future(register.flush()) for _ in range(20)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    register.note(ALICE, ("dify", "c2"))
    broken.is_down = True
    broken.hold.set()
    results = await asyncio.gather(*flushing, return_exceptions=True)
    assert {type(result) for result in results} == {DatabaseUnavailable}
    assert len(attempts) == 1
    broken.is_down = False
    assert [row.id for row in await register.named(ALICE, "c2")] == ["c2"]
    assert await register.history(PLACE, 10) == [said("q")]
    await register.close()
