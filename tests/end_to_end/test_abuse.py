"""Attackers and impatient clients against accounts, keys, limits and the record."""

import asyncio
import contextlib
import itertools

import orjson
import pytest
from conftest import AGENTS, UNLIMITED, Script, stopped

from gateway.http.context import BUCKETS, SERVICES


@pytest.fixture
async def gw(with_accounts, database_url):
    return await with_accounts(database_url, auth={"registration": True})


async def make(gw, admin, name, role="premium"):
    body = {"username": name, "password": "good enough password", "role": role}
    status, answer = await gw.api("POST", "/auth/users", admin, body)
    assert status == 200, answer
    return answer["data"]["id"], await gw.login(name, "good enough password")


async def leave(gw, method, path, token="", body=b"", after_s=0.001):
    """Send a request and disconnect shortly after."""
    host, port = gw.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    head = f"{method} {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    await asyncio.sleep(after_s)
    writer.transport.abort()


# Clients that disconnect.


async def test_disconnects_at_bad_moments_keep_the_database_usable(gw):
    admin = await gw.login()
    login = orjson.dumps({"username": "nobody", "password": "wrong wrong"})
    for i in range(60):
        after_s = i * 0.0001
        await leave(gw, "POST", "/api/v1/login", body=login, after_s=after_s)
        await leave(gw, "GET", "/api/v1/calls", admin, after_s=after_s)
        await leave(gw, "GET", "/api/v1/auth/me", admin, after_s=after_s)
    assert (await gw.api("GET", "/auth/me", admin))[0] == 200
    assert (await gw.get("/readyz")).status == 200
    assert (await (await gw.get("/readyz")).json())["degraded"] == []


async def test_disconnects_from_the_usage_page_lose_no_rows(gw, monkeypatch):
    recorder = gw.app[SERVICES].recorder
    keep = recorder._spool.keep

    def slow(rows, last):
        import time

        time.sleep(0.005)
        return keep(rows, last)

    monkeypatch.setattr(recorder._spool, "keep", slow)
    admin = await gw.login()
    _, key = await gw.key(admin)
    for i in range(60):
        assert (await gw.ask(key, query="#fail"))[0] == 502
        await leave(gw, "GET", "/api/v1/auth/me/usage", admin, after_s=0.001 * (i % 12))
    usage = (await gw.api("GET", "/auth/me/usage", admin))[1]["data"]
    assert usage["total"]["calls"] == 60


async def test_disconnects_while_redis_answers_hold_no_slot(with_accounts, redis_server, tmp_path):
    gw = await with_accounts(f"sqlite:///{tmp_path}/g", redis=redis_server.url)
    _, key = await gw.key(await gw.login(), max_calls=40, rate_limits={"concurrency": 2})
    buckets = gw.app[BUCKETS]
    charge = buckets.redis.charge

    async def slow(charges):
        await asyncio.sleep(0.01)
        return await charge(charges)

    buckets.redis.charge = slow
    body = orjson.dumps({"model": "dify", "messages": [{"role": "user", "content": "#fail"}]})
    for _ in range(30):
        await leave(gw, "POST", "/v1/chat/completions", key, body, after_s=0.004)
    buckets.redis.charge = charge
    await asyncio.sleep(1.2)
    statuses = [(await gw.ask(key, query="#fail"))[0] for _ in range(10)]
    assert statuses == [502] * 10


# Attempts to bypass limits.


async def test_an_own_request_id_does_not_lift_the_concurrency_limit(gateway, scripted):
    upstream = await scripted(
        Script([b'data: {"event":"message","answer":"x"}\n\n'], end="hang"), stopped()
    )
    agents = {"dify": {**AGENTS["dify"], "base_url": upstream.url, "mode": "chat"}}
    upstream.scripts = [upstream.scripts[0]]
    gw = await gateway(agents=agents, rate_limits={**UNLIMITED, "concurrency": 2})
    body = {"model": "dify", "stream": True, "messages": [{"role": "user", "content": "x"}]}
    headers = {"x-request-id": "always-the-same"}
    answers = await asyncio.gather(
        *(gw.post("/v1/chat/completions", body, headers=headers) for _ in range(10))
    )
    assert sorted(answer.status for answer in answers) == [200] * 2 + [429] * 8
    for answer in answers:
        answer.close()


async def test_premium_users_may_narrow_their_limits_but_not_lift_them(with_accounts, tmp_path):
    limits = {**UNLIMITED, "chat": "60/min", "concurrency": 5}
    gw = await with_accounts(f"sqlite:///{tmp_path}/g", rate_limits=limits)
    admin = await gw.login()
    _, li = await make(gw, admin, "li")
    for wanted, expected in (
        ({"chat": "10/min"}, 200), ({"chat": "61/min"}, 403), ({"chat": "59/s"}, 403),
        ({"concurrency": 6}, 403), ({"concurrency": 5, "tokens": "9/min"}, 200),
    ):  # fmt: skip
        body = {"name": "k", "rate_limits": wanted}
        assert (await gw.api("POST", "/api-keys", li, body))[0] == expected, wanted
        assert (await gw.api("POST", "/api-keys", admin, body))[0] == 200
    id_, _ = await gw.key(li)
    change = {"rate_limits": {"chat": "1000/s"}}
    assert (await gw.api("PUT", f"/api-keys/{id_}", li, change))[0] == 403


async def test_nobody_has_more_keys_than_can_be_looked_after(gw, monkeypatch):
    monkeypatch.setattr("gateway.accounts.store.MAX_KEYS_EACH", 3)
    _, li = await make(gw, await gw.login(), "li")
    keys = [await gw.key(li) for _ in range(3)]
    assert (await gw.api("POST", "/api-keys", li, {"name": "k"}))[0] == 409
    await gw.api("POST", f"/api-keys/{keys[0][0]}/revoke", li)
    assert (await gw.api("POST", "/api-keys", li, {"name": "k"}))[0] == 200


# Odd values.


@pytest.mark.parametrize(
    "wrong",
    [{"expires_at": "9999-12-31T23:59:59-12:00"}, {"expires_at": "9999-12-31"},
     {"rate_limits": {"chat": "60/min" + " " * 100}}, {"rate_limits": {"chat": "６０/min"}},
     {"max_calls": 1 << 62}, {"name": "a\u0000b"}, {"description": "\u0000"}],
)  # fmt: skip
async def test_values_that_would_spoil_lists_are_400(gw, wrong):
    admin = await gw.login()
    assert (await gw.api("POST", "/api-keys", admin, {"name": "k", **wrong}))[0] == 400
    for path in ("/api-keys", "/api-keys/admin/all"):
        assert (await gw.api("GET", path, admin))[0] == 200


async def test_deeply_nested_values_are_400(gw):
    admin = await gw.login()
    nested = b'{"name": "k", "rate_limits": {"chat": ' + b"[" * 900 + b"]" * 900 + b"}}"
    headers = {"Authorization": f"Bearer {admin}"}
    assert (await gw.post("/api/v1/api-keys", nested, headers=headers)).status == 400


@pytest.mark.parametrize(
    ("headers", "body"),
    [({"Content-Type": "application/x-www-form-urlencoded; charset=foo"}, b"username=a&password=b"),
     ({"Content-Type": "application/x-www-form-urlencoded; charset=hex"}, b"username=a&password=b"),
     ({"Content-Type": "application/x-www-form-urlencoded"}, b"username=\xff&password=\xff"),
     ({"Content-Type": "application/x-www-form-urlencoded"}, b"&" * 100),
     ({"Content-Type": "application/x-www-form-urlencoded", "Content-Encoding": "gzip"}, b"username=a"),
     ({}, b'{"username": "a\\u0000", "password": "x"}'), ({}, b'{"username": "\\ud800", "password": "x"}'),
     ({}, b'{"username": {"a": 1}, "password": ["x"]}')],
)  # fmt: skip
async def test_odd_logins_are_4xx_and_no_traceback(gw, caplog, headers, body):
    answer = await gw.post("/api/v1/login", body, headers=headers)
    assert answer.status in (400, 401)
    assert "Traceback" not in caplog.text


async def test_odd_paths_and_queries_are_4xx(gw):
    admin = await gw.login()
    for path in ("/api-keys/%00", "/api-keys/a%00/usage", "/auth/users/%00", "/calls/%00",
                 "/api-keys/%F0%9F%98%80", "/auth/users/%ff"):  # fmt: skip
        assert (await gw.api("GET", path, admin))[0] in (400, 404), path
    for query in ("to=0001-01-05", "from=0001-01-01&to=0001-01-01", "to=9999-12-31"):
        assert (await gw.api("GET", f"/usage?{query}", admin))[0] in (200, 400), query


async def test_a_too_long_header_or_url_is_reported_not_repeated(gw):
    secret = "eyJ" + "s" * 9000
    answer = await gw.get("/v1/models", headers={"Authorization": f"Bearer {secret}"})
    assert answer.status == 431
    assert "sss" not in await answer.text()
    answer = await gw.get("/v1/models?key=" + secret)
    assert answer.status == 414
    assert "sss" not in await answer.text()


# Names, races, passwords.


async def test_a_name_that_looks_like_an_address_cannot_be_taken(gw):
    body = {"username": "vic", "password": "good enough password", "email": "vic@corp.com"}
    assert (await gw.api("POST", "/auth/register", body=body))[0] == 200
    for name in ("vic＠corp.com", "vic﹫corp.com", "vic@corp.com", "ＶＩＣ"):
        body = {"username": name, "password": "another password"}
        assert (await gw.api("POST", "/auth/register", body=body))[0] in (400, 409), name
    await gw.login("vic@corp.com", "good enough password")
    await gw.login("ＶＩＣ", "good enough password")


async def test_two_admins_cannot_remove_each_other(gw):
    admin = await gw.login()
    me = (await gw.api("GET", "/auth/me", admin))[1]["data"]["id"]
    for i in range(5):
        other, token = await make(gw, admin, f"admin{i}", role="admin")
        answers = await asyncio.gather(
            gw.api("PUT", f"/auth/users/{other}", admin, {"role": "user"}),
            gw.api("PUT", f"/auth/users/{me}", token, {"role": "user"}),
        )
        accounts = gw.app[SERVICES].accounts
        assert (await accounts.users("admin", "active", 1, 10))[1] == 1, answers
        await accounts.update_user(me, {"role": "admin"})  # two again, then one: as at the start
        await accounts.update_user(other, {"role": "user"})
        async with asyncio.timeout(20):
            while (await gw.api("GET", "/auth/users", admin))[0] != 200:
                await asyncio.sleep(0.05)


async def test_a_contested_address_goes_to_one_account(gw):
    admin = await gw.login()
    tokens = [(await make(gw, admin, f"user{i}"))[1] for i in range(4)]
    for round_ in range(5):
        change = {"email": f"same{round_}@example.com"}
        answers = await asyncio.gather(*(gw.api("PUT", "/auth/me", t, change) for t in tokens))
        assert sorted(status for status, _ in answers) == [200, 409, 409, 409]


async def test_a_change_that_is_refused_changes_no_password(gw):
    admin = await gw.login()
    li, _ = await make(gw, admin, "li")
    body = {"username": "wang", "password": "good enough password", "email": "w@example.com"}
    await gw.api("POST", "/auth/users", admin, body)
    change = {"password": "changed password", "email": "w@example.com"}
    assert (await gw.api("PUT", f"/auth/users/{li}", admin, change))[0] == 409
    await gw.login("li", "good enough password")


# Tokens of web pages.


@pytest.fixture
async def pages(with_accounts, demo, tmp_path):
    """A gateway in front of FastGPT and OpenAI, and a key for it."""
    fastgpt, openai = await demo("fastgpt"), await demo("openai", key="sk-upstream-key")
    agents = {
        "fastgpt": {**AGENTS["fastgpt"], "base_url": fastgpt.url},
        "openai": {**AGENTS["openai"], "base_url": openai.url},
    }
    gw = await with_accounts(
        f"sqlite:///{tmp_path}/g", agents=agents, routes={"both": ["openai", "fastgpt"]}
    )
    admin = await gw.login()
    return gw, (await gw.key(admin))[1], admin


async def page(gw, key, user, **more):
    status, answer = await gw.api("POST", "/tokens", key, {"user": user, **more})
    assert status == 200, answer
    return answer["data"]["token"]


def said(answer):
    return answer["choices"][0]["message"]["content"]


async def test_a_page_reads_no_other_users_conversation(pages):
    gw, key, _ = pages
    await gw.ask(key, "fastgpt", user="bob", chat_id="bobs", query="my secret is 4711")
    alice, bob = await page(gw, key, "alice"), await page(gw, key, "bob")
    first = (await gw.ask(bob, "fastgpt", query="my secret is 4712"))[1]
    for chat_id in ("bobs", first["id"]):
        status, answer = await gw.ask(alice, "fastgpt", chat_id=chat_id, query="what did I say?")
        assert (status, answer["detail"]["error"]) == (404, "conversation_not_found")
    again = (await gw.ask(bob, "fastgpt", chat_id=first["id"], query="what did I say before?"))[1]
    assert "4712" in said(again)
    assert again["id"] == first["id"]
    for body in ({"user": "alice", "uid": "bob"}, {"uid": "bob"}, {"user": "bob"}):
        assert (await gw.ask(alice, "fastgpt", **body))[0] == 403


async def test_a_page_opens_chats_only(pages):
    gw, key, _ = pages
    token = await page(gw, key, "alice")
    for path in ("embeddings", "fine_tuning/jobs", "images/generations"):
        headers = {"Authorization": f"Bearer {token}"}
        body = {"model": "openai", "input": "x"}
        assert (await gw.post(f"/v1/{path}", body, headers=headers)).status == 403


async def test_a_pages_agents_may_be_its_keys_models_and_routes(pages):
    gw, _, admin = pages
    _, key = await gw.key(admin, agents=[" OpenAI ", "fastgpt"])
    token = await page(gw, key, "alice", agents=["openai/gpt-4", "both"])
    for name, expected in (("openai/gpt-4", 200), ("both", 200), ("openai", 403), ("fastgpt", 403)):
        headers = {"Authorization": f"Bearer {token}"}
        body = {"model": name, "messages": [{"role": "user", "content": "x"}]}
        assert (await gw.post("/v1/chat/completions", body, headers=headers)).status == expected, (
            name
        )
    for name, model, expected in (
        ("openai/gpt-4", None, 200), ("openai/gpt-4", "gpt-5", 200), ("openai", "gpt-5", 403),
        ("openai/gpt-5", "gpt-4", 403),
    ):  # fmt: skip
        status, answer = await gw.ask(token, name, model=model)
        assert status == expected, (name, model)
        assert status == 403 or answer["model"] == "openai/gpt-4"


async def test_a_token_that_no_header_could_carry_is_not_made(with_accounts, demo, tmp_path):
    served = await demo("dify")
    names = [f"agent-{'x' * 100}-{i}" for i in range(100)]
    agents = {name: {**AGENTS["dify"], "base_url": served.url} for name in names}
    gw = await with_accounts(f"sqlite:///{tmp_path}/g", agents=agents)
    _, key = await gw.key(await gw.login())
    assert (await gw.api("POST", "/tokens", key, {"user": "x", "agents": names}))[0] == 400


async def test_concurrent_usage_pages_and_chats_lose_nothing(gw):
    admin = await gw.login()
    _, key = await gw.key(admin)
    done = itertools.count()

    async def chat():
        for _ in range(20):
            assert (await gw.ask(key, query="#fail"))[0] == 502
            next(done)

    async def watch():
        for _ in range(20):
            with contextlib.suppress(ConnectionError):
                await leave(gw, "GET", "/api/v1/auth/me/usage", admin, after_s=0.002)

    await asyncio.gather(*(chat() for _ in range(4)), *(watch() for _ in range(4)))
    usage = (await gw.api("GET", "/auth/me/usage", admin))[1]["data"]
    assert usage["total"]["calls"] == next(done) == 80
