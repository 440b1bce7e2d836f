"""Token buckets: the same specification for the process's and for a real Redis's."""

import asyncio
import contextlib
import itertools
import signal
import ssl
from datetime import UTC, datetime, timedelta

import pytest
import servers
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import asyncio as aioredis
from wire import listening

from gateway.accounts.credentials import Quota
from gateway.config.models import Redis
from gateway.limits.buckets import Buckets, LocalBuckets
from gateway.limits.charges import QuotaCharge, RateCharge, SlotCharge, TokenCharge
from gateway.limits.redis import RedisBuckets


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def rate(capacity: int, per_s: float, name: str = "caller:chat", cost: int = 1) -> RateCharge:
    return RateCharge("{caller}:" + name, capacity, per_s / 1000, cost)


def slots(most: int, holder: str, lease_ms: float = 60_000) -> SlotCharge:
    return SlotCharge("{caller}:slots", most, holder, lease_ms)


def tokens(capacity: int, per_s: float) -> TokenCharge:
    return TokenCharge("{caller}:tokens", capacity, per_s / 1000)


def quota(limit: int, known: int = 0) -> QuotaCharge:
    return QuotaCharge("{caller}:key:k::calls", Quota("key:k", "", limit, known), 60_000)


class Local:
    """The process's buckets with the interface of Redis's."""

    def __init__(self) -> None:
        self._buckets = LocalBuckets()

    async def charge(self, charges):
        decisions = self._buckets.charge(charges)
        if all(decision.allowed for decision in decisions):
            for charge in charges:
                if isinstance(charge, QuotaCharge):
                    charge.quota.pending += 1
        return decisions

    async def spend(self, charge, tokens):
        self._buckets.spend(charge, tokens)

    async def release(self, slots):
        for slot in slots:
            self._buckets.release(slot)


@pytest.fixture(params=["local", "redis"])
async def buckets(request):
    if request.param == "local":
        yield Local()
        return
    redis = RedisBuckets(Redis(url=request.getfixturevalue("redis_server").url))
    yield redis
    await redis.close()


async def test_an_empty_bucket_says_how_long_to_wait(buckets):
    decisions = [(await buckets.charge([rate(3, 0.5)]))[0] for _ in range(4)]
    assert [one.allowed for one in decisions] == [True, True, True, False]
    assert [one.remaining for one in decisions] == [2, 1, 0, 0]
    assert 1000 <= decisions[3].wait_ms <= 2000
    assert 5000 <= decisions[3].full_ms <= 6000


async def test_a_bucket_fills_up_again_with_time(buckets):
    for _ in range(2):
        await buckets.charge([rate(2, 2)])
    decision = (await buckets.charge([rate(2, 2)]))[0]
    assert not decision.allowed
    await asyncio.sleep(decision.wait_ms / 1000)
    assert (await buckets.charge([rate(2, 2)]))[0].allowed


async def test_from_all_or_from_none(buckets):
    scarce, plenty = rate(1, 0.001, "a"), rate(10, 0.001, "b")
    assert all(decision.allowed for decision in await buckets.charge([plenty, scarce]))
    decisions = await buckets.charge([plenty, scarce])
    assert [one.allowed for one in decisions] == [True, False]
    assert (await buckets.charge([plenty]))[0].remaining == 8  # the refused one took nothing


async def test_tokens_are_spent_afterwards_and_may_leave_a_debt(buckets):
    budget = tokens(100, 100)
    assert (await buckets.charge([budget]))[0].allowed
    await buckets.spend(budget, 150)
    decision = (await buckets.charge([budget]))[0]
    assert not decision.allowed
    assert 0 < decision.wait_ms <= 510
    await asyncio.sleep(decision.wait_ms / 1000)
    assert (await buckets.charge([budget]))[0].allowed


async def test_a_call_that_is_given_back_can_be_made_again(buckets):
    calls = rate(2, 0.0001)
    given = TokenCharge(calls.key, calls.capacity, calls.per_ms)
    await buckets.charge([calls])
    for _ in range(3):  # a bucket never holds more than its capacity
        await buckets.spend(given, -1)
    allowed = [(await buckets.charge([calls]))[0].allowed for _ in range(3)]
    assert allowed == [True, True, False]


async def test_slots_are_held_until_they_are_given_back(buckets):
    assert (await buckets.charge([slots(2, "a")]))[0].allowed
    assert (await buckets.charge([slots(2, "b")]))[0].allowed
    assert not (await buckets.charge([slots(2, "c")]))[0].allowed
    await buckets.release([slots(2, "a")])
    assert (await buckets.charge([slots(2, "c")]))[0].allowed


async def test_a_quota_counts_what_the_database_knows(buckets):
    calls = quota(5, known=3)
    allowed = [(await buckets.charge([calls]))[0].allowed for _ in range(4)]
    assert allowed == [True, True, False, False]


async def test_a_dead_holders_slot_comes_free_in_redis(redis_server):
    redis = RedisBuckets(Redis(url=redis_server.url))
    assert (await redis.charge([slots(1, "a", 1000)]))[0].allowed
    assert not (await redis.charge([slots(1, "b", 1000)]))[0].allowed
    await asyncio.sleep(1.01)
    assert (await redis.charge([slots(1, "b", 1000)]))[0].allowed
    await redis.hold([slots(1, "b", 100)])
    await redis.close()


async def test_every_key_in_redis_runs_out_by_itself(redis_server):
    redis = RedisBuckets(Redis(url=redis_server.url, prefix="pre"))
    await redis.charge([rate(3, 1), tokens(5, 1), slots(2, "a"), quota(3)])
    await redis.spend(tokens(5, 1), 3)
    client = redis._client
    names = await client.keys("*")
    assert {name.split(b":")[0] for name in names} == {b"pre"}
    assert {name.split(b":")[1] for name in names} == {b"{caller}"}
    assert len(names) == 4
    assert all([await client.pttl(name) > 0 for name in names])
    await redis.close()


async def test_a_redis_that_forgot_the_script_gets_it_again(redis_server):
    redis = RedisBuckets(Redis(url=redis_server.url))
    await redis.charge([rate(3, 0.001)])
    await redis._client.script_flush()
    assert (await redis.charge([rate(3, 0.001)]))[0].remaining == 1
    await redis.close()


# However workers interleave, a bucket never gives more than capacity + rate x time.


@given(
    capacity=st.integers(1, 20),
    per_s=st.floats(0.01, 100),
    steps=st.lists(st.tuples(st.floats(0, 3), st.integers(1, 5)), max_size=60),
)
def test_a_local_bucket_never_gives_more_than_it_has(capacity, per_s, steps):
    clock = Clock()
    buckets = LocalBuckets(clock)
    given_at: list[float] = []
    for wait_s, calls in steps:
        clock.now += wait_s
        for _ in range(calls):
            if buckets.charge([rate(capacity, per_s)])[0].allowed:
                given_at.append(clock.now)
    for i, first in enumerate(given_at):  # in every window, not only from the beginning
        for j in range(i, len(given_at)):
            assert j - i + 1 <= capacity + per_s * (given_at[j] - first) + 0.001


unique = itertools.count()


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    capacity=st.integers(1, 30), per_s=st.floats(1, 200), workers=st.integers(1, 6), data=st.data()
)
async def test_workers_that_share_a_redis_get_no_more_than_one_bucket(
    redis_server, capacity, per_s, workers, data
):
    name = f"caller:{next(unique)}"
    pauses = data.draw(st.lists(st.floats(0, 0.02), min_size=10, max_size=10))
    clients = [RedisBuckets(Redis(url=redis_server.url)) for _ in range(workers)]
    loop = asyncio.get_running_loop()

    async def work(client):
        count = 0
        for pause in pauses:
            for _ in range(3):
                count += (await client.charge([rate(capacity, per_s, name)]))[0].allowed
            await asyncio.sleep(pause)
        return count

    began = loop.time()
    granted = sum(await asyncio.gather(*(work(client) for client in clients)))
    took = loop.time() - began
    for client in clients:
        await client.close()
    assert granted <= capacity + per_s * (took + 0.002)
    assert granted >= min(capacity, workers * 30)


def test_the_least_recently_used_bucket_is_dropped():
    buckets = LocalBuckets(Clock(), most=3)
    for name in "abcd":
        buckets.charge([rate(1, 0.001, name)])
    assert buckets.charge([rate(1, 0.001, "a")])[0].allowed
    assert not buckets.charge([rate(1, 0.001, "d")])[0].allowed
    assert len(buckets._levels) <= 3


# A Redis that hangs, becomes unavailable and recovers.


@pytest.fixture
async def shared(redis_server):
    buckets = Buckets(RedisBuckets(Redis(url=redis_server.url)))
    await buckets.open()
    yield buckets
    redis_server.go_on()
    await buckets.close()


async def timed(buckets, *charges):
    loop = asyncio.get_running_loop()
    began = loop.time()
    decisions = await buckets.charge(list(charges))
    return decisions, loop.time() - began


async def until_shared(buckets, seconds):
    async with asyncio.timeout(seconds):
        while not buckets.is_shared:
            await asyncio.sleep(0.05)


async def test_a_redis_that_hangs_costs_one_call_some_milliseconds(shared, redis_server):
    assert (await shared.charge([rate(10, 0.001)]))[0].remaining == 9
    redis_server.pause()
    decisions, took = await timed(shared, rate(10, 0.001))
    assert decisions[0].remaining == 8  # the process knows Redis's last answer
    assert took < 5
    assert not shared.is_shared
    took_each = [(await timed(shared, rate(1000, 0.001, "other")))[1] for _ in range(20)]
    assert sorted(took_each)[10] < 0.04  # Redis is not asked, or it would be 50 ms
    redis_server.go_on()
    await until_shared(shared, 5)
    assert (await shared.charge([rate(1000, 0.001, "fresh")]))[0].remaining == 999


async def test_a_redis_that_dies_and_comes_back(shared, redis_server):
    await shared.charge([rate(10, 0.001), slots(5, "a")])
    redis_server.stop(signal.SIGKILL)
    decisions, took = await timed(shared, rate(10, 0.001), slots(5, "b"))
    assert all(decision.allowed for decision in decisions)
    assert took < 5
    shared.release([slots(5, "a"), slots(5, "b")])
    shared.spend([tokens(5, 1)], 3)
    redis_server.start()
    await until_shared(shared, 5)


async def test_a_redis_that_is_not_there_at_the_start_is_found_later(tmp_path):
    server = servers.Redis(tmp_path)
    buckets = Buckets(RedisBuckets(Redis(url=server.url)))
    await buckets.open()
    assert not buckets.is_shared
    assert (await buckets.charge([rate(1, 1)]))[0].allowed
    server.start()
    await until_shared(buckets, 5)
    await buckets.close()
    server.stop()


async def test_concurrent_calls_go_on_when_redis_hangs(shared, redis_server):
    redis_server.pause()
    loop = asyncio.get_running_loop()
    began = loop.time()
    decisions = await asyncio.gather(*(shared.charge([rate(60, 1)]) for _ in range(200)))
    assert loop.time() - began < 2  # one after the other it would be 10 s
    assert sum(one[0].allowed for one in decisions) == 60


# Every kind of Redis.


async def test_a_password_and_a_unix_socket(tmp_path):
    server = servers.Redis(tmp_path, "--requirepass", "p@ss/word",
                           "--unixsocket", str(tmp_path / "r.sock"))  # fmt: skip
    server.start()
    urls = [f"redis://:p%40ss%2Fword@127.0.0.1:{server.port}/0",
            f"unix://:p%40ss%2Fword@{tmp_path}/r.sock?db=0"]  # fmt: skip
    for url in urls:
        redis = RedisBuckets(Redis(url=url))
        assert (await redis.charge([rate(1, 1, url)]))[0].allowed
        await redis.close()
    wrong = Buckets(RedisBuckets(Redis(url=f"redis://:wrong@127.0.0.1:{server.port}/0")))
    await wrong.open()
    assert not wrong.is_shared
    await wrong.close()
    server.stop()


async def test_tls(redis_server, tmp_path, stack):
    """A real TLS connection, terminated in front of a Redis that was built without TLS."""
    certificate, key = self_signed(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)

    async def relay(reader, writer):
        other_reader, other_writer = await asyncio.open_connection("127.0.0.1", redis_server.port)

        async def copy(source, sink):
            with contextlib.suppress(ConnectionError):
                while data := await source.read(65536):
                    sink.write(data)
            sink.close()

        await asyncio.gather(copy(other_reader, writer), copy(reader, other_writer))

    port = await stack.enter_async_context(listening(relay, ssl=context))
    good = RedisBuckets(Redis(url=f"rediss://localhost:{port}/0?ssl_ca_certs={certificate}"))
    assert (await good.charge([rate(3, 1)]))[0].allowed
    await good.close()
    distrusted = RedisBuckets(Redis(url=f"rediss://localhost:{port}/0"))
    with pytest.raises(Exception, match="certificate verify failed"):
        await distrusted.charge([rate(3, 1)])
    await distrusted.close()


def self_signed(folder):
    """(certificate, key) for localhost, as PEM files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ))  # fmt: skip
    return folder / "cert.pem", folder / "key.pem"


async def test_a_cluster(tmp_path):
    server = servers.Redis(tmp_path, "--cluster-enabled", "yes")
    server.start()
    redis = RedisBuckets(Redis(url=server.url))
    await _all_slots(redis._client)
    await redis.close()
    redis = RedisBuckets(Redis(url=server.url, mode="cluster"))
    async with asyncio.timeout(20):
        while True:
            try:
                decisions = await redis.charge([rate(3, 1), tokens(5, 1), slots(2, "a"), quota(3)])
                break
            except Exception:
                await asyncio.sleep(0.1)
    assert all(decision.allowed for decision in decisions)
    await redis.spend(tokens(5, 1), 2)
    await redis.hold([slots(2, "a")])
    await redis.release([slots(2, "a")])
    await redis.ping()
    await redis.close()
    server.stop()


async def _all_slots(client):
    for start in range(0, 16384, 2048):
        await client.execute_command("CLUSTER", "ADDSLOTS", *range(start, start + 2048))


async def test_sentinels(tmp_path):
    (tmp_path / "s").mkdir()
    master = servers.Redis(tmp_path, "--requirepass", "secret")
    master.start()
    sentinel = servers.Sentinel(tmp_path / "s", master, "secret")
    sentinel.start()
    url = f"redis://:secret@127.0.0.1:1,127.0.0.1:{sentinel.port}/0"
    redis = RedisBuckets(Redis(url=url, mode="sentinel", master="mymaster"))
    assert (await redis.charge([rate(3, 1)]))[0].allowed
    await redis.close()
    sentinel.stop()
    master.stop()


# Slots in a Redis that becomes unavailable and recovers.


async def count(server):
    client = aioredis.from_url(server.url)
    number = await client.zcard("gw:{caller}:slots")
    await client.aclose()
    return number


async def until(condition, seconds=20):
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.05)


async def test_slots_released_during_an_outage_of_redis_are_free_later(shared, redis_server):
    for holder in "abc":
        assert (await shared.charge([slots(3, holder)]))[0].allowed
    redis_server.pause()
    await shared.charge([rate(10, 1)])
    assert not shared.is_shared
    shared.release([slots(3, holder) for holder in "abc"])
    redis_server.go_on()
    await until_shared(shared, 5)

    async def is_free():
        return await count(redis_server) == 0

    await until(is_free)


async def test_takes_that_came_too_late_hold_nothing(shared, redis_server):
    redis_server.pause()
    tasks = [asyncio.ensure_future(shared.charge([slots(3, h)])) for h in "abc"]
    await asyncio.wait(tasks)
    shared.release([slots(3, holder) for holder in "abc"])
    redis_server.go_on()
    await until_shared(shared, 5)

    async def is_free():
        return await count(redis_server) == 0

    await until(is_free)


async def test_slots_are_held_again_in_a_redis_that_lost_them(shared, redis_server):
    for holder in "ab":
        assert (await shared.charge([slots(2, holder)]))[0].allowed
    redis_server.stop(signal.SIGKILL)
    await shared.charge([rate(10, 1)])
    redis_server.start()
    await until_shared(shared, 5)
    assert not (await shared.charge([slots(2, "c")]))[0].allowed
    shared.release([slots(2, "a")])
    await asyncio.sleep(0.2)
    assert (await shared.charge([slots(2, "c")]))[0].allowed


async def test_slots_given_back_at_the_very_end_are_free(redis_server):
    buckets = Buckets(RedisBuckets(Redis(url=redis_server.url)))
    await buckets.open()
    for holder in "abc":
        await buckets.charge([slots(3, holder)])
    buckets.release([slots(3, holder) for holder in "abc"])
    await buckets.close()
    assert await count(redis_server) == 0


async def test_a_burst_of_releases_does_not_look_like_an_outage(shared):
    for i in range(300):
        assert (await shared.charge([slots(300, f"h{i}")]))[0].allowed
    shared.release([slots(300, f"h{i}") for i in range(300)])
    await asyncio.gather(*(shared.charge([rate(1000, 1)]) for _ in range(50)))
    assert shared.is_shared


async def test_a_redis_that_takes_no_writes_stays_unavailable(shared, redis_server):
    client = aioredis.from_url(redis_server.url)
    await client.config_set("maxmemory", "1")
    await shared.charge([rate(10, 1)])
    assert not shared.is_shared
    failures = shared.failures
    await asyncio.sleep(2.5)
    assert not shared.is_shared
    assert shared.failures == failures
    await client.config_set("maxmemory", "0")
    await client.aclose()
    await until_shared(shared, 5)


async def test_a_call_returned_to_a_quota_leaves_no_key(redis_server):
    redis = RedisBuckets(Redis(url=redis_server.url))
    client = aioredis.from_url(redis_server.url)
    await redis.uncount(quota(5))
    assert await client.keys("*") == []
    await redis.charge([quota(5)])
    await redis.charge([quota(5)])
    await redis.uncount(quota(5))
    (name,) = await client.keys("*")
    assert await client.get(name) == b"1"
    assert await client.pttl(name) > 0
    await client.aclose()
    await redis.close()
