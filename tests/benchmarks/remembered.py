"""Looking up a history among a million remembered turns, in PostgreSQL and in Redis.

    python tests/benchmarks/remembered.py [--turns 1000000] [--stores postgresql redis]

Conversations of ten turns are saved as calls would save them; then another process's memory, which
knows nothing yet, looks histories up one after another, and its own memory is measured.
"""

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import servers

from gateway.config.models import Memory as Settings
from gateway.config.models import Redis
from gateway.database import connect
from gateway.limits.buckets import Buckets
from gateway.limits.redis import RedisBuckets
from gateway.memory.canonical import Hasher
from gateway.memory.database import DatabaseStore
from gateway.memory.recall import Memory, Store
from gateway.memory.redis import RedisStore
from gateway.memory.thread import Thread, Turn, keys_of, path_of
from gateway.protocol.messages import ChatRequest, Message

TURNS_EACH = 10
LOOK_UPS = 5000
_AT_ONCE = 400
_KEEP_S = 7 * 86_400.0
_ANSWER = "an answer that is long enough to be told from another one, of some words more. "


def scope_of(number: int) -> str:
    return f"{number:032x}"


def turn(hasher: Hasher, number: int, place: int) -> Turn:
    user = hasher.user(Message("user", question(number, place)))
    answer = hasher.fingerprint(answer_to(number, place))
    assert answer is not None
    return Turn(user, answer)


def question(number: int, place: int) -> str:
    return f"question {place} of person {number}, who wants to know something"


def answer_to(number: int, place: int) -> str:
    return f"{_ANSWER}{number} {place} {_ANSWER * 6}"


async def fill(store: Store, conversations: int) -> None:
    async def one(number: int) -> None:
        scope = scope_of(number)
        hasher, turns = Hasher(scope.encode()), []
        for place in range(TURNS_EACH):
            turns.append(turn(hasher, number, place))
            path = path_of([each.user for each in turns], hasher)
            thread = Thread(f"{number:016x}", "t", "bot", f"c{number}", tuple(turns), path)
            await store.save(scope, thread, keys_of(thread, hasher), _KEEP_S, "")

    for first in range(0, conversations, _AT_ONCE):
        await asyncio.gather(
            *(one(number) for number in range(first, min(first + _AT_ONCE, conversations)))
        )
        if isinstance(store, DatabaseStore):
            await store.flush()


async def look_up(memory: Memory, number: int) -> tuple[float, str]:
    """The milliseconds that a call waits for the verdict on a history of ten turns; and it."""
    turns = [
        Message(role, text)
        for place in range(TURNS_EACH)
        for role, text in (
            ("user", question(number, place)),
            ("assistant", answer_to(number, place)),
        )
    ]
    chat = ChatRequest("bot", (*turns, Message("user", "next")), "u", scope=scope_of(number))
    began = time.perf_counter()
    recall = await memory.recall(chat, Settings(), 60.0)
    took_ms = (time.perf_counter() - began) * 1000
    assert recall is not None
    return took_ms, recall.kind


def resident_mb() -> float:
    text = Path("/proc/self/smaps_rollup").read_text("ascii")
    return int(text.partition("Rss:")[2].split()[0]) / 1024


async def measure(
    name: str, open_store: Callable[[], Awaitable[Store]], conversations: int
) -> None:
    began = time.monotonic()
    filler = await open_store()
    await fill(filler, conversations)
    del filler
    print(f"{name}: {conversations * TURNS_EACH:,} turns in {time.monotonic() - began:.0f} s")
    choose = random.Random(1)
    memory = Memory(await open_store())
    times, found, before_mb = [], 0, 0.0
    await look_up(memory, 0)  # connects
    count = min(LOOK_UPS, conversations - 1)
    for at, number in enumerate(choose.sample(range(1, conversations), count)):
        took_ms, kind = await look_up(memory, number)
        times.append(took_ms)
        found += kind == "continue"
        if at == count // 2:
            before_mb = resident_mb()
    parts = statistics.quantiles(times, n=1000)
    print(
        f"  look-up: median {statistics.median(times):.2f} ms, p99 {parts[989]:.2f} ms,"
        f" p99.9 {parts[998]:.2f} ms; {found:,} of {count:,} found; memory in the second half"
        f" {resident_mb() - before_mb:+.1f} MB"
    )


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=1_000_000)
    parser.add_argument("--stores", nargs="+", default=["postgresql", "redis"])
    given = parser.parse_args()
    async with AsyncExitStack() as stack:
        for name in given.stores:
            if name == "redis":
                server = servers.Redis(Path(tempfile.mkdtemp()))
                server.start()
                stack.callback(server.stop)
                buckets = Buckets(RedisBuckets(Redis(url=server.url)))
                await buckets.open()
                stack.push_async_callback(buckets.close)

                async def open_store(buckets: Buckets = buckets) -> Store:
                    return RedisStore(buckets.redis.evaluate if buckets.redis else None)
            else:
                cluster = servers.PostgreSQL()
                cluster.start()
                stack.callback(cluster.remove)
                url = cluster.database()
                first = connect(url)
                await first.migrate()
                await first.close()

                async def open_store(url: str = url) -> Store:
                    database = connect(url)
                    stack.push_async_callback(database.close)
                    return DatabaseStore(database, is_shared=True)

            await measure(name, open_store, given.turns // TURNS_EACH)


if __name__ == "__main__":
    asyncio.run(main())
