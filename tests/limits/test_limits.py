"""Limits over HTTP, in one process and in several that share a Redis."""

import asyncio
import contextlib
import re

import aiohttp
import pytest
import yaml
from conftest import AGENTS, UNLIMITED, Script, streamed
from redis import asyncio as aioredis
from test_cli import serving

from gateway.http.context import BUCKETS

KEY = "static-test-key"


@pytest.fixture
def limited(gateway, demo):
    """`await limited(chat="60/min", …)`: a gateway with one static key and these limits."""

    async def start(redis: str = "", key: dict | None = None, **limits):
        served, openai = await demo("dify"), await demo("openai", key="sk-upstream-key")
        agents = {
            "dify": {**AGENTS["dify"], "base_url": served.url},
            "openai": {**AGENTS["openai"], "base_url": openai.url},
        }
        auth = {"anonymous": False, "keys": [{"name": "web", "key": KEY, **(key or {})}]}
        return await gateway(
            agents=agents, auth=auth, redis=redis, rate_limits={**UNLIMITED, **limits}
        )

    return start


async def test_of_90_quick_calls_60_pass(limited):
    gw = await limited(chat="60/min")
    answers = await asyncio.gather(*(gw.ask(KEY) for _ in range(90)))
    passed = [status for status, _ in answers].count(200)
    assert 60 <= passed <= 62  # one more for each second that it took
    assert {status for status, _ in answers} == {200, 429}


async def test_both_envelopes_say_how_long_to_wait(limited):
    gw = await limited(chat="1/min")
    headers = {"Authorization": f"Bearer {KEY}"}
    first = await gw.post("/api/v1/chat", {"query": "x"}, headers={**headers, "Agent": "dify"})
    assert first.status == 200
    assert first.headers["x-ratelimit-limit-requests"] == "1"
    assert first.headers["x-ratelimit-remaining-requests"] == "0"
    assert first.headers["x-ratelimit-reset-requests"] in ("1m0s", "60s", "59s")
    again = await gw.post("/api/v1/chat", {"query": "x"}, headers={**headers, "Agent": "dify"})
    body = {"model": "dify", "messages": [{"role": "user", "content": "x"}]}
    other = await gw.post("/v1/chat/completions", body, headers=headers)
    for answer in (again, other):
        assert answer.status == 429
        assert 55 <= int(answer.headers["Retry-After"]) <= 60
        assert answer.headers["x-ratelimit-remaining-requests"] == "0"
        assert answer.headers["x-request-id"]
    assert (await again.json())["detail"]["error"] == "rate_limit_exceeded"
    assert (await other.json())["error"]["code"] == "rate_limit_exceeded"
    assert "1 calls, refilled at 1/min" in (await again.json())["msg"]


async def test_streams_and_failures_carry_the_headers_too(limited):
    gw = await limited(chat="9/min")
    headers = {"Authorization": f"Bearer {KEY}"}
    for i, question in enumerate(("hi", "#fail")):
        body = {
            "model": "dify",
            "stream": True,
            "messages": [{"role": "user", "content": question}],
        }
        answer = await gw.post("/v1/chat/completions", body, headers=headers)
        assert answer.headers["x-ratelimit-remaining-requests"] == str(8 - i)
        await answer.read()


async def test_a_key_has_limits_of_its_own(limited):
    gw = await limited(chat="2/hour", key={"rate_limits": {"chat": "4/hour"}})
    assert [(await gw.ask(KEY))[0] for _ in range(5)] == [200] * 4 + [429]


async def test_callers_do_not_share_a_bucket(with_accounts, tmp_path):
    gw = await with_accounts(f"sqlite:///{tmp_path}/g", rate_limits={**UNLIMITED, "chat": "1/hour"})
    admin = await gw.login()
    keys = [(await gw.key(admin))[1] for _ in range(2)]
    assert [(await gw.ask(key))[0] for key in (*keys, *keys, admin, admin)] == [
        200, 200, 429, 429, 200, 429,
    ]  # fmt: skip


async def premium(gw, admin):
    """The login of an account that may make keys."""
    body = {"username": "eve", "password": "good enough password", "role": "premium"}
    assert (await gw.api("POST", "/auth/users", admin, body))[0] == 200
    return await gw.login("eve", "good enough password")


async def test_further_keys_give_an_account_no_more(with_accounts, database_url):
    gw = await with_accounts(database_url, rate_limits={**UNLIMITED, "chat": "3/hour"})
    admin = await gw.login()
    eve = await premium(gw, admin)
    keys = [(await gw.key(eve))[1] for _ in range(4)]
    narrow = (await gw.key(eve, rate_limits={"chat": "1/hour"}))[1]
    page = (await gw.api("POST", "/tokens", keys[0], {"user": "u"}))[1]["data"]["token"]
    told = [(await gw.ask(key))[0] for key in (narrow, narrow, keys[0], page, *keys, eve)]
    assert told == [200, 429, 200, 200, 429, 429, 429, 429, 429]
    assert (await gw.ask((await gw.key(admin))[1]))[0] == 200


async def test_an_account_may_be_given_more_than_one_caller(with_accounts, database_url):
    limits = {**UNLIMITED, "chat": "2/hour", "account": {"chat": "3/hour"}}
    gw = await with_accounts(database_url, rate_limits=limits)
    admin = await gw.login()
    eve = await premium(gw, admin)
    one, other = [(await gw.key(eve))[1] for _ in range(2)]
    assert [(await gw.ask(key))[0] for key in (one, one, one, other, other)] == [
        200, 200, 429, 200, 429,
    ]  # fmt: skip


async def test_a_key_widened_by_an_administrator_has_its_own_limit(with_accounts, database_url):
    gw = await with_accounts(database_url, rate_limits={**UNLIMITED, "chat": "1/hour"})
    admin = await gw.login()
    eve = await premium(gw, admin)
    (id_, wide), (_, plain) = [await gw.key(eve) for _ in range(2)]
    await gw.api("PUT", f"/api-keys/{id_}", admin, {"rate_limits": {"chat": "5/hour"}})
    assert [(await gw.ask(key))[0] for key in (plain, plain, wide, wide)] == [200, 429, 200, 200]


async def test_public_routes_are_limited_by_address_and_callers_apart(limited):
    gw = await limited(agents="2/hour")
    paths = ("/api/v1/agents", "/api/v1/agents/dify/health", "/api/v1/agents")
    assert [(await gw.get(path)).status for path in paths] == [200, 200, 429]
    headers = {"x-api-key": KEY}
    assert (await gw.get("/api/v1/agents", headers=headers)).status == 200
    answer = await gw.get("/api/v1/agents", headers={"x-api-key": "wrong-but-public"})
    assert answer.status == 429


@pytest.mark.parametrize(
    "forwarded", ["203.0.113.7", "evil, 203.0.113.7", "203.0.113.7, 127.0.0.1"]
)
async def test_a_trusted_proxy_reports_the_clients_address(gateway, demo, forwarded, caplog):
    caplog.set_level("INFO")
    served = await demo("dify")
    agents = {"dify": {**AGENTS["dify"], "base_url": served.url}}
    settings = {"agents": agents, "rate_limits": {**UNLIMITED, "agents": "1/hour"}}
    gw = await gateway(**settings, server={"trusted_proxies": ["127.0.0.0/8"]})
    for address, status in ((forwarded, 200), (forwarded, 429), ("203.0.113.8", 200)):
        answer = await gw.get("/api/v1/agents", headers={"X-Forwarded-For": address})
        assert answer.status == status
    assert '"address":"203.0.113.7"' in caplog.text
    plain = await gateway(**settings)
    for i, status in enumerate((200, 429)):
        answer = await plain.get("/api/v1/agents", headers={"X-Forwarded-For": f"203.0.113.{i}"})
        assert answer.status == status  # a client may not choose its own address


async def test_ipv6_counts_by_network():
    from gateway.accounts.credentials import by_address

    assert by_address("2001:db8::1") == by_address("2001:db8::ffff:1")
    assert by_address("2001:db8::1") != by_address("2001:db8:0:1::1")
    assert by_address("fe80::1%eth0") == by_address("fe80::2%eth0")


# Tokens and concurrent calls.


async def test_tokens_are_counted_from_the_answers_usage(limited):
    gw = await limited(tokens="50/hour")
    headers = {"Authorization": f"Bearer {KEY}", "Agent": "dify"}
    answer = await gw.post("/api/v1/chat", {"query": "hi"}, headers=headers)
    used = (await answer.json())["usage"]["total_tokens"]
    assert used > 50
    assert answer.headers["x-ratelimit-limit-tokens"] == "50"
    again = await gw.post("/api/v1/chat", {"query": "hi"}, headers=headers)
    assert again.status == 429
    assert "tokens" in (await again.json())["msg"]
    assert int(again.headers["Retry-After"]) > 60
    assert again.headers["x-ratelimit-remaining-tokens"] == "0"


@pytest.mark.parametrize("asks", [True, False])
async def test_streams_count_and_show_usage_only_on_request(limited, asks):
    gw = await limited(tokens="50/hour")
    headers = {"Authorization": f"Bearer {KEY}"}
    body = {"model": "openai", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    if asks:
        body["stream_options"] = {"include_usage": True}
    answer = await gw.post("/v1/chat/completions", body, headers=headers)
    got = streamed(await answer.read())
    assert got["done"]
    assert got["finish"] == ["stop"]
    assert bool(got["usage"]) is asks
    assert (await gw.post("/v1/chat/completions", body, headers=headers)).status == 429


async def test_concurrent_calls_are_limited(gateway, scripted):
    upstream = await scripted(Script([b'data: {"event":"message","answer":"x"}\n\n'], end="hang"))
    agents = {"dify": {**AGENTS["dify"], "base_url": upstream.url, "mode": "chat"}}
    auth = {"keys": [{"name": "web", "key": KEY, "rate_limits": {"concurrency": 2}}]}
    gw = await gateway(agents=agents, auth=auth)
    headers = {"Authorization": f"Bearer {KEY}"}
    body = {"model": "dify", "stream": True, "messages": [{"role": "user", "content": "x"}]}
    open_ = [await gw.post("/v1/chat/completions", body, headers=headers) for _ in range(2)]
    third = await gw.post("/v1/chat/completions", body, headers=headers)
    assert third.status == 429
    assert (await third.json())["error"]["code"] == "concurrency_limit_exceeded"
    assert third.headers["Retry-After"] == "1"
    open_[0].close()
    async with asyncio.timeout(20):
        while (
            answer := await gw.post("/v1/chat/completions", body, headers=headers)
        ).status == 429:
            await asyncio.sleep(0.02)
    assert answer.status == 200
    for stream in (open_[1], answer):
        stream.close()


# Quotas.


async def test_the_calls_of_a_key_run_out_for_good(with_accounts, database_url):
    gw = await with_accounts(database_url)
    admin = await gw.login()
    id_, key = await gw.key(admin, max_calls=2)
    assert [(await gw.ask(key))[0] for _ in range(3)] == [200, 200, 429]
    headers = {"Authorization": f"Bearer {key}"}
    body = {"model": "dify", "messages": [{"role": "user", "content": "x"}]}
    answer = await gw.post("/v1/chat/completions", body, headers=headers)
    assert answer.status == 429
    assert answer.headers["x-should-retry"] == "false"
    assert "Retry-After" not in answer.headers
    error = (await answer.json())["error"]
    assert (error["type"], error["code"]) == ("insufficient_quota", "call_quota_exceeded")
    again = await with_accounts(database_url)  # another process knows as well
    async with asyncio.timeout(20):
        while (await again.ask(key))[0] != 429:
            await asyncio.sleep(0.1)
    await gw.api("PUT", f"/api-keys/{id_}", admin, {"max_calls": 100})
    assert (await gw.ask(key))[0] == 200


async def test_a_users_calls_of_a_month_count_over_all_their_keys(with_accounts, database_url):
    gw = await with_accounts(database_url)
    admin = await gw.login()
    body = {
        "username": "li",
        "password": "good enough password",
        "role": "premium",
        "max_api_calls": 3,
    }
    user = (await gw.api("POST", "/auth/users", admin, body))[1]["data"]
    li = await gw.login("li", "good enough password")
    keys = [(await gw.key(li))[1] for _ in range(2)]
    statuses = [(await gw.ask(credential))[0] for credential in (*keys, li, *keys)]
    assert statuses == [200, 200, 200, 429, 429]
    status, answer = await gw.ask(keys[0])
    assert "this account for 20" in answer["msg"]
    await gw.api("GET", "/auth/me/usage", li)
    me = (await gw.api("GET", "/auth/me", li))[1]["data"]
    assert (me["api_calls_count"], me["max_api_calls"]) == (3, 3)
    await gw.api("PUT", f"/auth/users/{user['id']}", admin, {"max_api_calls": None})
    assert (await gw.ask(keys[0]))[0] == 200


async def test_replicas_that_share_a_redis_share_a_quota(with_accounts, redis_server, postgresql):
    url = postgresql.database()
    replicas = [await with_accounts(url, redis=redis_server.url) for _ in range(3)]
    _, key = await replicas[0].key(await replicas[0].login(), max_calls=10)
    answers = await asyncio.gather(*(replicas[i % 3].ask(key) for i in range(30)))
    assert [status for status, _ in answers].count(200) == 10


# Logging in.


async def test_logins_are_limited_by_address_and_by_name(with_accounts, tmp_path):
    settings = {"rate_limits": {**UNLIMITED, "login": "3/hour"}}
    proxies = {"server": {"trusted_proxies": ["127.0.0.1/32"]}}
    gw = await with_accounts(f"sqlite:///{tmp_path}/g", **settings, **proxies)

    async def attempt(name: str, address: str) -> int:
        body = {"username": name, "password": "wrong wrong"}
        answer = await gw.post("/api/v1/login", body, headers={"X-Forwarded-For": address})
        if answer.status == 429:
            assert int(answer.headers["Retry-After"]) > 1000
        return answer.status

    assert [await attempt(f"name{i}", "203.0.113.1") for i in range(4)] == [401, 401, 401, 429]
    spread = [await attempt("Admin" if i % 2 else "admin", f"203.0.113.{i + 2}") for i in range(4)]
    assert spread == [401, 401, 401, 429]


# Several processes and a real Redis.


@contextlib.asynccontextmanager
async def processes(number: int, folder, redis: str, agent: dict):
    config = folder / "c.yaml"
    config.write_text(yaml.safe_dump({
        "agents": {"dify": agent}, "redis": redis, "database": "none",
        "auth": {"keys": [{"name": "web", "key": KEY}]},
    }))  # fmt: skip
    async with contextlib.AsyncExitStack() as stack:
        started = [
            await stack.enter_async_context(serving("--config", str(config))) for _ in range(number)
        ]
        yield [f"http://127.0.0.1:{port}" for _, port, _ in started]


async def test_of_120_calls_over_three_processes_60_pass(tmp_path, redis_server, demo):
    """Try again if each process limits by itself, since this machine left Redis no 50 ms."""
    served = await demo("dify")
    agent = {**AGENTS["dify"], "base_url": served.url}
    async with (
        processes(3, tmp_path, redis_server.url, agent) as urls,
        aiohttp.ClientSession(headers={"x-api-key": KEY, "Agent": "dify"}) as client,
    ):

        async def ask(i: int) -> int:
            async with client.post(f"{urls[i % 3]}/api/v1/chat", json={"query": "x"}) as answer:
                await answer.read()
                return answer.status

        async def told(what: str) -> list[float]:
            pages = [await (await client.get(f"{url}/metrics")).text() for url in urls]
            found = [re.search(rf"^gateway_{what} (\S+)$", page, re.MULTILINE) for page in pages]
            return [float(one[1]) for one in found if one]

        for _ in range(5):
            failures = await told("redis_failures_total")
            assert len(failures) == 3
            began = asyncio.get_running_loop().time()
            statuses = await asyncio.gather(*(ask(i) for i in range(120)))
            took = asyncio.get_running_loop().time() - began
            if await told("redis_failures_total") == failures:
                break
            while await told("redis_up") != [1, 1, 1]:
                await asyncio.sleep(0.1)
            async with aioredis.from_url(redis_server.url) as redis:
                await redis.flushall()
        else:
            raise AssertionError("Redis was too slow each time")
    assert 60 <= statuses.count(200) <= 60 + took + 1
    assert set(statuses) == {200, 429}


async def test_a_redis_that_hangs_and_comes_back_while_people_chat(limited, redis_server):
    gw = await limited(redis=redis_server.url, chat="1000/hour")
    loop = asyncio.get_running_loop()

    async def timed() -> float:
        began = loop.time()
        assert (await gw.ask(KEY))[0] == 200
        return loop.time() - began

    await timed()
    usual = min([await timed() for _ in range(5)])
    ready = await (await gw.get("/readyz")).json()
    assert (ready["detail"]["redis"], ready["degraded"]) == ("ok", [])
    redis_server.pause()
    # a busy machine; without the limit it would hang for seconds
    assert await timed() < usual + 0.5
    # Redis is not asked any more: each question would cost 50 ms.
    assert min([await timed() for _ in range(5)]) < usual + 0.04
    ready = await gw.get("/readyz")
    assert ready.status == 200
    assert (await ready.json())["degraded"] == ["redis"]
    redis_server.go_on()
    async with asyncio.timeout(20):
        while not gw.app[BUCKETS].is_shared:
            await asyncio.sleep(0.05)
    assert (await (await gw.get("/readyz")).json())["degraded"] == []


async def test_what_no_agent_was_asked_for_uses_up_no_quota(with_accounts, database_url):
    gw = await with_accounts(database_url)
    admin = await gw.login()
    id_, key = await gw.key(admin, max_calls=2, agents=["dify"])
    for _ in range(3):
        assert (await gw.ask(key, "openai"))[0] == 403
        assert (await gw.ask(key, query=""))[0] == 400
        assert (await gw.ask(key, "nobody"))[0] == 404
    assert [(await gw.ask(key))[0] for _ in range(3)] == [200, 200, 429]
    usage = (await gw.api("GET", f"/api-keys/{id_}/usage", admin))[1]["data"]
    assert usage["total"]["calls"] == 2
    assert len((await gw.api("GET", f"/calls?key_id={id_}", admin))[1]["data"]["calls"]) == 11


async def test_a_quota_that_is_set_later_counts_what_was_used_before(with_accounts, database_url):
    gw = await with_accounts(database_url)
    admin = await gw.login()
    id_, key = await gw.key(admin)
    for _ in range(3):
        assert (await gw.ask(key))[0] == 200
    await gw.api("GET", f"/api-keys/{id_}/usage", admin)
    await gw.api("PUT", f"/api-keys/{id_}", admin, {"max_calls": 3})
    assert (await gw.ask(key))[0] == 429


async def test_times_in_a_query_may_have_offsets_that_were_not_encoded(with_accounts, tmp_path):
    gw = await with_accounts(f"sqlite:///{tmp_path}/g")
    admin = await gw.login()
    for offset in ("+08:00", "%2B08:00", "+10:00", "Z", "", "-05:00", "+0530"):
        query = f"?from=2026-11-23T00:00:00{offset}"
        assert (await gw.api("GET", f"/calls{query}", admin))[0] == 200, offset
