"""The fault matrix: every server that the gateway depends on, times every fault.

Each cell checks: the callers' answers and their time, `/readyz` and `/metrics`, that every call is
recorded, and that everything recovers by itself.
"""

import asyncio
import time
from contextlib import asynccontextmanager

import aiohttp
import pytest
from conftest import ADMIN_PASSWORD, AGENTS, sse_events
from test_streaming import until
from wire import Wire

from gateway.http.context import METRICS, SERVICES

FAULTS = ["down", "hangs", "slow", "resets", "half-open"]
KEY = "sk-static-12345678"
AUTH = {"keys": [{"name": "web", "key": KEY, "permissions": ["chat", "upload"]}]}


@pytest.fixture
async def line(stack):
    """`await line(port)`: a wire to a server on this machine."""

    async def make(port: int, state: str = "up") -> Wire:
        wire = Wire(port)
        await wire.start()
        stack.push_async_callback(wire.close)
        await wire.become(state)
        return wire

    return make


@asynccontextmanager
async def within(seconds: float):
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    assert took < seconds, f"{took:.2f} s instead of {seconds:g} s"


async def ready(gw) -> tuple[int, list[str]]:
    async with gw.get("/readyz") as answer:
        return answer.status, (await answer.json())["degraded"]


async def becomes(gw, degraded: list[str], seconds: float = 8.0) -> None:
    async with asyncio.timeout(seconds):
        while (await ready(gw))[1] != degraded:
            await asyncio.sleep(0.02)
    assert (await ready(gw))[0] == 200


def gauge(gw, name: str) -> float | None:
    return gw.app[METRICS].registry.get_sample_value(name)


# Redis


async def redis_gateway(gateway, demo, wire):
    served = await demo("dify")
    agents = {"dify": {**AGENTS["dify"], "base_url": served.url}}
    redis = {"url": f"redis://127.0.0.1:{wire.port}/0", "prefix": f"faults{wire.port}"}
    limits = {"chat": "1000/min"}
    return await gateway(agents=agents, redis=redis, auth=AUTH, rate_limits=limits)


async def chats_are_answered(gw, seconds: float, times: int = 4) -> None:
    for _ in range(times):
        async with within(seconds):
            assert (await gw.ask(KEY))[0] == 200


@pytest.mark.parametrize("fault", FAULTS)
async def test_redis_that_fails_costs_little_and_comes_back(
    gateway, demo, line, shared_redis, fault
):
    wire = await line(shared_redis.port)
    gw = await redis_gateway(gateway, demo, wire)
    await chats_are_answered(gw, 2.0)
    await becomes(gw, [])
    await wire.become(fault)
    await chats_are_answered(gw, 2.0)  # one of them waits for 50 ms, and none after it
    if fault != "half-open":  # a new connection works, so Redis may be available again
        await becomes(gw, ["redis"])
        assert gauge(gw, "gateway_redis_up") == 0
        async with within(1.5):
            await chats_are_answered(gw, 1.0)
    assert gauge(gw, "gateway_redis_failures_total") >= 1
    await wire.become("up" if fault != "half-open" else "half-open")
    await becomes(gw, [])
    await chats_are_answered(gw, 2.0)
    assert gauge(gw, "gateway_redis_up") == 1


@pytest.mark.parametrize("fault", ["down", "hangs", "resets"])
async def test_redis_that_is_not_there_at_the_start_is_found_later(
    gateway, demo, line, shared_redis, fault
):
    wire = await line(shared_redis.port, fault)
    async with within(5):
        gw = await redis_gateway(gateway, demo, wire)
    await chats_are_answered(gw, 2.0)
    await becomes(gw, ["redis"])
    await wire.become("up")
    await becomes(gw, [])


# PostgreSQL


@pytest.fixture
def quick_database(monkeypatch):
    """Shorten waits of seconds."""
    monkeypatch.setattr("gateway.database.TIMEOUT_S", 0.6)
    monkeypatch.setattr("gateway.telemetry.recorder._RETRY_S", 0.2)
    monkeypatch.setattr("gateway.accounts.directory._PATIENCE_S", 0.6)


def on(url: str, wire: Wire) -> str:
    """The database's URL through the wire."""
    head, _, rest = url.rpartition(":")
    return f"{head}:{wire.port}/{rest.partition('/')[2]}"


async def recorded(gw, postgresql, url: str, calls: int) -> None:
    """As many rows as calls, in the database itself."""

    def count() -> str:
        return postgresql.sql("SELECT count(*) FROM calls", url)

    async with asyncio.timeout(20):
        while int(await asyncio.to_thread(count)) < calls:
            await asyncio.sleep(0.05)
    assert int(await asyncio.to_thread(count)) == calls
    await until(lambda: gauge(gw, "gateway_record_queue_depth") == 0)
    assert gauge(gw, "gateway_record_lost_total") == 0


@pytest.mark.parametrize("fault", FAULTS)
async def test_postgresql_that_fails_stops_no_chat_and_loses_no_call(
    with_accounts, postgresql, line, quick_database, fault
):
    url = postgresql.database()
    wire = await line(postgresql.port)
    gw = await with_accounts(on(url, wire))
    _, key = await gw.key(await gw.login())
    assert (await gw.ask(key))[0] == 200
    await wire.become(fault)
    for _ in range(5):
        async with within(1.5):
            assert (await gw.ask(key))[0] == 200
    if fault in ("down", "hangs", "resets"):
        await becomes(gw, ["database"])
        assert gauge(gw, "gateway_database_up") == 0
        unknown = key[:-48] + "A" * 48
        async with within(3):
            assert (await gw.ask("sk-gw-" + "a" * 12 + "-" + "b" * 48))[0] == 503
        assert (await gw.ask(unknown))[0] == 401  # the id is known, but the secret is not its own
        async with within(6):
            status, body = await gw.api(
                "POST", "/login", body={"username": "admin", "password": "x"}
            )
        assert (status, body["detail"]["error"]) == (503, "database_unavailable")
        async with within(1.5):
            assert (await gw.ask(key))[0] == 200
        calls = 7
    else:
        calls = 6
    await wire.become("up" if fault != "half-open" else "half-open")
    await becomes(gw, [])
    await recorded(gw, postgresql, url, calls)
    assert await gw.login()


@pytest.mark.parametrize("fault", ["down", "hangs", "resets"])
async def test_postgresql_missing_at_the_start_is_found_later(
    with_accounts, postgresql, line, quick_database, monkeypatch, fault
):
    monkeypatch.setattr("gateway.app._PATIENCE_S", 0.5)
    url = postgresql.database()
    wire = await line(postgresql.port, fault)
    async with within(5):
        gw = await with_accounts(on(url, wire), auth=AUTH)
    async with within(1.5):
        assert (await gw.ask(KEY))[0] == 200
    assert await ready(gw) == (200, ["database"])
    async with within(6):
        status, _ = await gw.api("POST", "/login", body={"username": "admin", "password": "x"})
    assert status == 503
    await wire.become("up")
    await becomes(gw, [])
    assert await gw.login(password=ADMIN_PASSWORD)
    await recorded(gw, postgresql, url, 1)


async def test_without_any_key_that_is_known_the_gateway_is_not_ready(
    with_accounts, postgresql, line, quick_database, monkeypatch
):
    monkeypatch.setattr("gateway.app._PATIENCE_S", 0.3)
    wire = await line(postgresql.port, "down")
    gw = await with_accounts(on(postgresql.database(), wire))
    status, degraded = await ready(gw)
    assert (status, degraded) == (503, ["database"])
    async with gw.get("/livez") as alive:
        assert alive.status == 200
    await wire.become("up")
    await becomes(gw, [])


# S3


@pytest.fixture
def quick_storage(monkeypatch):
    monkeypatch.setattr("gateway.files.library.CHECK_S", 0.1)
    monkeypatch.setattr("gateway.files.library._PATIENCE_S", 0.5)
    monkeypatch.setattr("gateway.files.s3._CONNECT_S", 0.5)
    monkeypatch.setattr("gateway.files.s3._READ_S", 0.6)
    monkeypatch.setattr("gateway.files.s3._CALL_S", 1.0)
    monkeypatch.setattr("gateway.files.s3._ABORT_S", 0.5)


async def storage_gateway(gateway, demo, wire, s3, bucket):
    served = await demo("dify")
    agents = {"dify": {**AGENTS["dify"], "base_url": served.url}}
    storage = s3.storage(bucket)
    storage["s3"]["endpoint"] = f"http://127.0.0.1:{wire.port}"
    return await gateway(agents=agents, storage=storage, auth=AUTH)


async def upload(gw, chunks) -> tuple[int, str]:
    form = aiohttp.FormData()
    form.add_field("file", chunks, filename="x.txt", content_type="text/plain")
    headers = {"Authorization": f"Bearer {KEY}"}
    async with gw.client.post(f"{gw.url}/api/v1/upload", data=form, headers=headers) as answer:
        body = await answer.json()
        return answer.status, (body.get("detail") or {}).get("error", "")


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_failed_bucket_is_503_for_uploads_only(
    gateway, demo, line, shared_s3, quick_storage, fault
):
    wire = await line(shared_s3.port)
    bucket = shared_s3.bucket(f"faults-{wire.port}")
    gw = await storage_gateway(gateway, demo, wire, shared_s3, bucket)
    assert await upload(gw, b"hello") == (200, "")
    await wire.become(fault)
    async with within(1.5):
        assert (await gw.ask(KEY))[0] == 200
    if fault in ("down", "hangs", "resets"):
        async with within(5):
            assert await upload(gw, b"hello") == (503, "storage_unavailable")
        await becomes(gw, ["storage"])
        assert gauge(gw, "gateway_storage_up") == 0
    elif fault == "slow":
        assert await upload(gw, b"hello") == (200, "")
    await wire.become("up" if fault != "half-open" else "half-open")
    await becomes(gw, [])
    async with asyncio.timeout(20):
        while (await upload(gw, b"hello"))[0] != 200:  # earlier connections may still be tried
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("fault", ["down", "hangs", "resets"])
async def test_a_bucket_lost_in_an_upload_is_503_and_keeps_nothing(
    gateway, demo, line, shared_s3, quick_storage, fault
):
    wire = await line(shared_s3.port)
    bucket = shared_s3.bucket(f"faults-{wire.port}")
    gw = await storage_gateway(gateway, demo, wire, shared_s3, bucket)

    async def chunks():
        yield b"a" * (6 << 20)
        await asyncio.sleep(0.1)  # for the first part to be on its way
        await wire.become(fault)
        yield b"b" * (6 << 20)

    async with within(8):
        assert await upload(gw, chunks()) == (503, "storage_unavailable")
    await wire.become("up")
    await becomes(gw, [])
    async with asyncio.timeout(20):
        while (await upload(gw, b"hello"))[0] != 200:
            await asyncio.sleep(0.05)
    headers = {"Authorization": f"Bearer {KEY}"}
    async with gw.get("/v1/files", headers=headers) as answer:
        assert [file["bytes"] for file in (await answer.json())["data"]] == [5]


@pytest.mark.parametrize("fault", ["down", "hangs", "resets"])
async def test_a_bucket_that_is_not_there_at_the_start_is_found_later(
    gateway, demo, line, shared_s3, quick_storage, fault
):
    wire = await line(shared_s3.port, fault)
    bucket = shared_s3.bucket(f"faults-{wire.port}")
    async with within(6):
        gw = await storage_gateway(gateway, demo, wire, shared_s3, bucket)
    await becomes(gw, ["storage"])
    assert (await gw.ask(KEY))[0] == 200
    await wire.become("up")
    await becomes(gw, [])
    assert await upload(gw, b"hello") == (200, "")


# Upstreams


@pytest.fixture(params=AGENTS)
async def bot(request, demo, gateway, line, tmp_path):
    """(a gateway whose agent `bot` is a demo platform at the end of a wire, the wire)."""
    kind = request.param
    served = await demo(kind, key=AGENTS[kind]["api_key"], pace_s=0.01)
    wire = await line(int(served.url.rpartition(":")[2]))
    timeouts = {"connect": "1s", "first_delta": "1s", "idle": "800ms"}
    settings = {"retries": 0, "timeouts": timeouts, "breaker": {"failures": 1000}}
    agents = {"bot": {**AGENTS[kind], **settings, "base_url": f"http://127.0.0.1:{wire.port}"}}
    record = {"spool": str(tmp_path / "spool")}
    database = f"sqlite:///{tmp_path / 'gateway.db'}"
    gw = await gateway(agents=agents, auth=AUTH, database=database, record=record)
    return gw, wire


async def statuses(gw) -> list[int]:
    """The statuses of the calls in the record, the first one first."""
    await gw.app[SERVICES].recorder.flush()
    async with (
        gw.app[SERVICES].calls._database.transaction() as conn,
        conn.execute("SELECT status FROM calls ORDER BY id") as cursor,
    ):
        return [row[0] for row in await cursor.fetchall()]


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [("down", 502, "upstream_unreachable"), ("hangs", 504, "upstream_timeout"),
     ("resets", 502, "upstream_cut"), ("slow", 200, "")],
)  # fmt: skip
async def test_a_failed_upstream_is_reported_in_time_and_recovers(bot, fault, status, code):
    gw, wire = bot
    assert (await gw.ask(KEY, "bot"))[0] == 200
    wire.slow_s = 0.05
    await wire.become(fault)
    async with within(6):
        answer, body = await gw.ask(KEY, "bot")
    assert answer == status
    if code:
        assert body["detail"]["error"] == code
        assert body["msg"].startswith("Agent 'bot'")
    await wire.become("up")
    assert (await gw.ask(KEY, "bot"))[0] == 200
    assert await statuses(gw) == [200, status, 200]


@pytest.mark.parametrize("fault", ["down", "hangs", "resets"])
async def test_a_missing_upstream_does_not_prevent_the_start(bot, fault):
    gw, wire = bot
    await wire.become(fault)
    assert await ready(gw) == (200, [])  # platforms are not the gateway's health
    async with within(6):
        assert (await gw.ask(KEY, "bot"))[0] in (502, 504)
    await wire.become("up")
    assert (await gw.ask(KEY, "bot"))[0] == 200


async def test_dead_idle_connections_cost_one_call_at_most(bot):
    gw, wire = bot
    assert (await gw.ask(KEY, "bot"))[0] == 200
    await wire.become("half-open")
    async with within(6):
        status, _ = await gw.ask(KEY, "bot")
    assert status in (200, 504)
    assert (await gw.ask(KEY, "bot"))[0] == 200


@pytest.mark.parametrize("fault", ["down", "hangs", "half-open"])
async def test_a_stream_whose_line_dies_ends_with_an_error_and_no_stop(bot, fault):
    gw, wire = bot
    headers = {"Agent": "bot", "Authorization": f"Bearer {KEY}"}
    body = {"query": "请详细介绍一下", "stream": True}
    async with within(6), gw.post("/api/v1/chat", body, headers=headers) as answer:
        raw = await answer.content.readuntil(b"\n\n")
        raw += await answer.content.readuntil(b"\n\n")
        await wire.become(fault)
        raw += await answer.content.read()
    (_, last) = sse_events(raw)[-1]
    assert last["error"]["message"].startswith("Agent 'bot'")
    assert b'"finish_reason":"stop"' not in raw
    assert b"[DONE]" not in raw
    await wire.become("up")
    assert (await gw.ask(KEY, "bot"))[0] == 200
    assert await statuses(gw) == [200, 200]
