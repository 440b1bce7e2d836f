"""Where threads are kept: in the process, in Redis, in SQLite and in PostgreSQL. All do the same."""

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from redis.exceptions import RedisError
from test_ownership import STEPS, World, act, people

from gateway.config.models import Memory as Settings
from gateway.config.models import Redis
from gateway.database import connect
from gateway.ids import new_id
from gateway.limits.buckets import Buckets
from gateway.limits.redis import RedisBuckets
from gateway.memory.canonical import Hasher
from gateway.memory.database import DatabaseStore
from gateway.memory.local import MAX_LISTED, LocalStore
from gateway.memory.recall import Memory
from gateway.memory.redis import RedisStore
from gateway.memory.thread import Thread, Turn
from gateway.protocol.messages import ChatRequest, Message

HASHER = Hasher(b"key")
ANSWER = HASHER.fingerprint("an answer")


def thread(id_: str = "t1", turns: int = 1) -> Thread:
    return Thread(id_, id_, "bot", f"c-{id_}", (Turn("u", ANSWER),) * turns, "p")


@pytest.fixture(autouse=True)
def _patient(monkeypatch):
    """A busy machine may take longer than a call would wait."""
    for module in ("gateway.limits.buckets", "gateway.memory.database"):
        monkeypatch.setattr(f"{module}.DEADLINE_S", 5.0)


@pytest.fixture(params=["local", "redis", "sqlite", "postgresql"])
async def opened(request, tmp_path, stack):
    """A function that opens the store, as another process would."""
    if request.param == "local":
        store = LocalStore()
        return lambda: store
    if request.param == "redis":
        server = request.getfixturevalue("redis_server")

        async def buckets() -> Buckets:
            one = Buckets(RedisBuckets(Redis(url=server.url)))
            await one.open()
            stack.push_async_callback(one.close)
            return one

        shared = await buckets()
        return lambda: RedisStore(shared.evaluate)
    is_file = request.param == "sqlite"
    url = f"sqlite:///{tmp_path}/m.db"
    if not is_file:
        url = request.getfixturevalue("postgresql").database()
    database = connect(url)
    stack.push_async_callback(database.close)
    await database.migrate()
    return lambda: DatabaseStore(database, is_shared=not is_file)


async def written(store) -> None:
    if isinstance(store, DatabaseStore):
        await store.flush()


async def test_a_thread_is_found_by_each_of_its_keys(opened):
    store = opened()
    assert [each.threads for each in await store.find("aa", ["k1", "k2"])] == [[], []]
    await store.save("aa", thread(), ["k1", "k2"], 60, "call")
    for each in await store.find("aa", ["k1", "k2"]):
        assert (list(each.threads), each.is_whole) == ([thread()], True)
    assert not (await store.find("bb", ["k1", "k2"]))[0].threads


async def test_another_process_finds_it_too(opened):
    store = opened()
    await store.save("aa", thread(), ["k1", "k2"], 60, "call")
    await written(store)
    assert list((await opened().find("aa", ["k2", "k1"]))[1].threads) == [thread()]


async def test_the_newest_state_is_found(opened):
    store = opened()
    await store.save("aa", thread(), ["k1"], 60, "call")
    await store.save("aa", thread(turns=2), ["k2"], 60, "call")
    await written(store)
    for one in (store, opened()):
        assert [list(each.threads) for each in await one.find("aa", ["k1", "k2"])] == [
            [thread(turns=2)]
        ] * 2


async def test_more_threads_than_are_listed_are_not_certain(opened):
    store = opened()
    for n in range(MAX_LISTED + 1):
        assert (await store.find("aa", ["k", "x"]))[0].is_whole
        await store.save("aa", thread(f"t{n}"), ["k"], 60, "call")
    await written(store)
    for one in (store, opened()):
        found = (await one.find("aa", ["k", "x"]))[0]
        assert len(found.threads) == MAX_LISTED
        assert not found.is_whole


async def test_a_forgotten_thread_leaves_a_doubt(opened):
    store = opened()
    await store.save("aa", thread("t1"), ["k"], 0.05, "call")
    await store.save("aa", thread("t2"), ["k"], 60, "call")
    await written(store)
    await asyncio.sleep(0.1)
    for one in (store, opened()):
        found = (await one.find("aa", ["k", "x"]))[0]
        assert [each.id for each in found.threads] == ["t2"]
        assert not found.is_whole


async def test_one_call_continues_a_thread(opened):
    store = opened()
    await store.save("aa", thread(), ["k"], 60, "call")
    await store.find("aa", ["k", "x"])
    assert await store.claim("aa", thread(), "first", 60)
    assert not await store.claim("aa", thread(), "second", 60)
    await store.release("aa", "t1", "second")
    assert not await store.claim("aa", thread(), "second", 60)
    await store.release("aa", "t1", "first")
    assert await store.claim("aa", thread(), "second", 60)


async def test_a_thread_that_has_gone_on_cannot_be_continued(opened):
    store = opened()
    await store.save("aa", thread(), ["k"], 60, "call")
    await store.save("aa", thread(turns=2), ["k2"], 60, "call")
    assert not await store.claim("aa", thread(), "late", 60)
    assert await store.claim("aa", thread(turns=2), "next", 60)


async def test_a_claim_ends_with_its_lease(opened):
    store = opened()
    await store.save("aa", thread(), ["k"], 60, "call")
    assert await store.claim("aa", thread(), "lost", 0.05)
    await asyncio.sleep(0.1)
    assert await store.claim("aa", thread(), "next", 60)


@given(STEPS)
@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
async def test_nobody_joins_another_whichever_process_answers(opened, steps):
    """Each turn by another process, which knows what the ones before have written."""
    scope, persons, world = new_id(16), people(), World(opened())
    for step in steps:
        world.use(opened())
        await act(world, persons, step, scope)
        await written(world.store)


async def test_redis_that_goes_away_costs_seeds_only(redis_server, stack):
    buckets = Buckets(RedisBuckets(Redis(url=redis_server.url)))
    await buckets.open()
    stack.push_async_callback(buckets.close)
    store = RedisStore(buckets.evaluate)
    await store.save("aa", thread(), ["k"], 60, "call")
    store.missed("aa")  # a turn of somebody else could not be written
    assert not (await store.find("aa", ["k", "x"]))[0].is_whole
    await store.save("aa", thread("t2"), ["k2"], 60, "call")
    assert list((await store.find("aa", ["k2", "x"]))[0].threads) == [thread("t2")]
    redis_server.stop()
    with pytest.raises((OSError, ConnectionError, RedisError)):
        await store.find("aa", ["k2", "x"])


class Slow(LocalStore):
    """A store whose claims take effect, and are confirmed late."""

    def __init__(self):
        super().__init__()
        self.confirmed = asyncio.Event()

    async def claim(self, scope, thread, holder, lease_s):
        is_claimed = await super().claim(scope, thread, holder, lease_s)
        await self.confirmed.wait()
        return is_claimed


async def test_a_call_that_ends_while_it_claims_leaves_no_claim():
    store = Slow()
    memory = Memory(store)
    first = ChatRequest("bot", (Message("user", "hi"),), "u", scope="aa")
    recall = await memory.recall(first, Settings(), 60.0)
    await memory.remember(recall, Settings(), "bot", "c1", ["hello"], cut=False, drops_cut=False)
    turns = (*first.messages, Message("assistant", "hello"), Message("user", "and then?"))
    left = asyncio.ensure_future(
        memory.recall(ChatRequest("bot", turns, "u", scope="aa"), Settings(), 60.0)
    )
    await asyncio.sleep(0)
    left.cancel()
    await asyncio.wait({left})
    await asyncio.sleep(0)
    store.confirmed.set()
    recall = await memory.recall(ChatRequest("bot", turns, "u", scope="aa"), Settings(), 60.0)
    assert recall.kind == "continue"
