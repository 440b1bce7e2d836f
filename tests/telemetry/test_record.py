"""The record: one row per call, whatever happens to the call, the database or the process."""

import asyncio
import os
import signal
import sqlite3
import time
from datetime import UTC, datetime, timedelta

import aiohttp
import orjson
import pytest
import time_machine
import yaml
from conftest import ADMIN_PASSWORD, AGENTS, Script, stopped
from test_cli import serving

from gateway.accounts.credentials import new_key
from gateway.http.context import SERVICES
from gateway.ids import new_request_id

HELLO = b'data: {"event":"message","answer":"\xe4\xbd\xa0\xe5\xa5\xbd","conversation_id":"c","task_id":"t"}\n\n'
END = b'data: {"event":"message_end","metadata":{"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}}\n\n'


@pytest.fixture
async def gw(with_accounts, database_url):
    return await with_accounts(database_url)


async def calls(gw, token, query=""):
    status, answer = await gw.api("GET", f"/calls{query}", token)
    assert status == 200, answer
    return answer["data"]["calls"]


async def complete(gw, key, model="dify", question="hi", **body):
    body = {"model": model, "messages": [{"role": "user", "content": question}], **body}
    async with gw.post("/v1/chat/completions", body, headers={"api-key": key}) as answer:
        return answer.status, await answer.read(), answer.headers["x-request-id"]


def test_ids_of_later_requests_sort_after_earlier_ones(monkeypatch):
    ids = []
    for now_ms in (1_790_000_000_000, 1_790_000_000_001, 1_900_000_000_000):
        monkeypatch.setattr(time, "time_ns", lambda now=now_ms: now * 1_000_000)
        ids.append(new_request_id())
    assert ids == sorted(ids)
    assert {len(id_) for id_ in ids} == {len("req-") + 24}


# A row's content.


async def test_a_call_is_a_row_with_all_there_is_to_know(gw):
    admin = await gw.login()
    id_, key = await gw.key(admin)
    me = (await gw.api("GET", "/auth/me", admin))[1]["data"]["id"]
    before = time.time() * 1000
    status, _, request_id = await complete(gw, key, stream=True)
    assert status == 200
    (row,) = await calls(gw, admin)
    assert before - 1 <= row.pop("began_ms") <= time.time() * 1000
    assert row.pop("time").startswith("20")
    assert 0 <= row.pop("first_delta_ms") <= row.pop("total_ms") < 5000
    assert row.pop("prompt_tokens") + row.pop("completion_tokens") == row.pop("total_tokens") > 0
    row_id = row.pop("id")
    assert row == {
        "request_id": request_id, "caller": f"key-{id_}", "key_id": id_, "user_id": me,
        "agent": "dify", "surface": "openai", "status": 200, "streamed": True, "usage": "exact",
        "client_gone": False, "error": "", "reason": "", "end_user": "", "task": "",
        "key_name": "test", "user_name": "admin",
    }  # fmt: skip
    status, answer = await gw.api("GET", f"/calls/{row_id}", admin)
    assert (status, answer["data"]["request_id"]) == (200, request_id)
    assert answer["data"]["bodies"] is None


async def test_the_calls_of_one_end_user_are_found_by_its_name(gw):
    """Whether a caller with a key or a web page's token named it; refused calls, too."""
    admin = await gw.login()
    _, key = await gw.key(admin)
    page = {"user": "visitor-7", "agents": ["dify"]}
    token = (await gw.api("POST", "/tokens", key, page))[1]["data"]["token"]
    assert (await gw.ask(token))[0] == 200
    assert (await gw.ask(token, "coze"))[0] in (403, 404)
    assert (await gw.ask(token, conversation_id="another's"))[0] == 404
    assert (await gw.ask(token, user="visitor-8"))[0] == 403
    assert (await complete(gw, token, user="visitor-7"))[0] == 200
    assert (await complete(gw, key, model="nobody", user="visitor-7"))[0] == 404
    assert (await gw.ask(key, user="visitor-8"))[0] == 200
    assert (await gw.ask(key, user="v" * 300))[0] == 200
    rows = await calls(gw, admin, "?end_user=visitor-7")
    assert [row["status"] for row in rows] == [404, 200, 403, 404, rows[4]["status"], 200]
    assert {row["end_user"] for row in rows} == {"visitor-7"}
    assert len(await calls(gw, admin, "?end_user=visitor-8")) == 1
    assert len(await calls(gw, admin, f"?end_user={'v' * 300}")) == 1


async def test_failures_are_rows_too(gw):
    admin = await gw.login()
    _, key = await gw.key(admin)
    await complete(gw, key, question="#fail")
    await complete(gw, key, question="#break", stream=True)
    await complete(gw, key, model="nobody")
    await gw.ask(key, query="")
    rows = await calls(gw, admin)
    told = [(r["surface"], r["agent"], r["status"], r["error"], r["usage"]) for r in rows]
    assert told == [
        ("chat", "", 400, "invalid_value", "unknown"),
        ("openai", "", 404, "model_not_found", "unknown"),
        ("openai", "dify", 200, "upstream_failed", "unknown"),
        ("openai", "dify", 502, "upstream_failed", "unknown"),
    ]
    assert len(await calls(gw, admin, "?only_errors=1")) == 4


async def test_a_row_has_the_reason_the_end_user_and_names(gw):
    admin = await gw.login()
    id_, key = await gw.key(admin, name="shop")
    assert (await gw.ask(key, query="#fail", user="visitor-7"))[0] == 502
    (row,) = await calls(gw, admin)
    assert (row["end_user"], row["key_name"], row["user_name"]) == ("visitor-7", "shop", "admin")
    assert row["reason"].startswith("Agent 'dify': ")
    _, answer = await gw.api("GET", f"/calls/{row['id']}", admin)
    assert {name: answer["data"][name] for name in row} == row
    _, answer = await gw.api("GET", "/usage?group_by=key,user", admin)
    (used,) = answer["data"]["usage"]
    assert (used["key"], used["key_name"], used["user_name"]) == (id_, "shop", "admin")


async def test_names_of_what_is_gone_are_empty(gw):
    admin = await gw.login()
    id_, key = await gw.key(admin)
    await gw.ask(key)
    assert (await gw.api("DELETE", f"/api-keys/{id_}", admin))[0] == 200
    (row,) = await calls(gw, admin)
    assert (row["key_id"], row["key_name"]) == (id_, "")


async def test_the_log_has_the_reason_and_a_refused_pages_origin(gw, caplog):
    caplog.set_level("INFO")
    key = (await gw.key(await gw.login()))[1]
    headers = {"Authorization": f"Bearer {key[:-4]}zzzz", "Origin": "https://shop.example"}
    await gw.post("/v1/chat/completions", {"model": "dify"}, headers=headers)
    lines = [orjson.loads(r.message) for r in caplog.records if r.name == "gateway.access"]
    line = lines[-1]
    assert line["origin"] == "https://shop.example"
    assert line["reason"].startswith("Incorrect API key provided: sk-gw-")
    assert key[-10:-4] not in str(line)


async def test_refused_calls_are_in_the_log_and_not_in_the_record(gw, caplog):
    caplog.set_level("INFO")
    admin = await gw.login()
    _, key = await gw.key(admin, max_calls=1)
    for credential in (key, key, new_key()[1].reveal()):
        await complete(gw, credential)
    assert [row["status"] for row in await calls(gw, admin)] == [200]
    lines = [orjson.loads(r.message) for r in caplog.records if r.name == "gateway.access"]
    told = [(line["status"], line.get("error")) for line in lines if "completions" in line["path"]]
    assert told == [(200, None), (429, "call_quota_exceeded"), (401, "invalid_api_key")]
    assert all({"request_id", "method", "path", "status", "ms", "user_agent", "address"} <= line.keys()
               for line in lines)  # fmt: skip
    assert key not in caplog.text


async def test_what_is_passed_on_is_recorded_with_its_usage(gw):
    admin = await gw.login()
    _, key = await gw.key(admin)
    body = {"model": "openai", "input": "你好"}
    answer = await gw.post("/v1/embeddings", body, headers={"x-api-key": key})
    usage = (await answer.json())["usage"]
    (row,) = await calls(gw, admin)
    assert (row["surface"], row["agent"]) == ("passthrough", "openai")
    assert row["total_tokens"] == usage["total_tokens"] > 0


async def test_a_caller_who_leaves_is_a_row(with_accounts, scripted, database_url):
    upstream = await scripted(Script([HELLO], end="hang"), stopped())
    agents = {"dify": {**AGENTS["dify"], "base_url": upstream.url, "mode": "chat"}}
    gw = await with_accounts(database_url, agents=agents)
    admin = await gw.login()
    _, key = await gw.key(admin)
    body = {"model": "dify", "stream": True, "messages": [{"role": "user", "content": "x"}]}
    answer = await gw.post("/v1/chat/completions", body, headers={"api-key": key})
    await answer.content.readany()
    answer.close()
    async with asyncio.timeout(20):
        while not (rows := await calls(gw, admin)):
            await asyncio.sleep(0.05)
    assert [(r["status"], r["client_gone"], r["usage"]) for r in rows] == [(499, True, "unknown")]
    assert rows[0]["first_delta_ms"] is not None


async def test_usage_of_an_answer_that_breaks_off_is_partial(with_accounts, scripted, tmp_path):
    usage_so_far = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}],"usage":{"prompt_tokens":2,"completion_tokens":1,"total_tokens":3}}\n\n'
    upstream = await scripted(Script([usage_so_far], end="reset"))
    agents = {"openai": {**AGENTS["openai"], "base_url": upstream.url}}
    gw = await with_accounts(f"sqlite:///{tmp_path}/g", agents=agents)
    admin = await gw.login()
    await complete(gw, (await gw.key(admin))[1], "openai", stream=True)
    (row,) = await calls(gw, admin)
    assert (row["usage"], row["total_tokens"], row["error"]) == ("partial", 3, "upstream_cut")


async def test_anonymous_callers_leave_no_address(gateway, demo, tmp_path, quick_passwords):
    served = await demo("dify")
    gw = await gateway(
        agents={"dify": {**AGENTS["dify"], "base_url": served.url}},
        database=f"sqlite:///{tmp_path}/g.db", record={"spool": str(tmp_path / "spool")},
        auth={"admin_password": ADMIN_PASSWORD},
    )  # fmt: skip
    assert (await gw.chat("dify")).status == 200
    (row,) = await calls(gw, await gw.login())
    assert (row["caller"], row["key_id"], row["user_id"]) == ("anonymous", "", "")


# Pages and filters.


async def test_pages_follow_each_other_without_gap_or_repeat(gw):
    admin = await gw.login()
    id_, key = await gw.key(admin)
    for _ in range(7):
        await complete(gw, key)
    whole = [row["id"] for row in await calls(gw, admin)]
    assert whole == sorted(whole, reverse=True)
    found, before = [], ""
    while True:
        answer = (await gw.api("GET", f"/calls?limit=3&before={before}", admin))[1]["data"]
        found += [row["id"] for row in answer["calls"]]
        before = answer["next"]
        if before is None:
            break
        await complete(gw, key)  # later calls change nothing
    assert found == whole
    for query, count in (
        (f"key_id={id_}&limit=200", 9), ("key_id=other", 0), ("agent=dify&status=200", 9),
        ("status=404", 0), ("surface=chat", 0), ("caller=' OR 1=1 --", 0), ("from=2001-01-01T00:00:00Z", 9),
        ("to=2001-01-01", 0), ("request_id=%00", 9), ("end_user=visitor-7", 0),
    ):  # fmt: skip
        assert len(await calls(gw, admin, f"?{query}")) == count, query
    for query in ("limit=0", "limit=9999", "status=x", "from=never", "surface=x", "to=99999-01-01"):
        assert (await gw.api("GET", f"/calls?{query}", admin))[0] == 400, query


async def test_only_admins_and_their_keys_read_the_record(gw):
    admin = await gw.login()
    body = {"username": "li", "password": "good enough password", "role": "premium"}
    await gw.api("POST", "/auth/users", admin, body)
    li = await gw.login("li", "good enough password")
    _, chatting = await gw.key(admin)
    _, watching = await gw.key(admin, permissions=["admin"])
    for path in ("/usage", "/calls", "/calls/x"):
        assert (await gw.api("GET", path, li))[0] == 403
        assert (await gw.api("GET", path, chatting))[0] == 403
        assert (await gw.api("GET", path))[0] == 401
        assert (await gw.api("GET", path, watching))[0] in (200, 404)


# Usage.


async def test_usage_of_a_key_and_of_a_user(gw):
    admin = await gw.login()
    first, key = await gw.key(admin)
    second, other = await gw.key(admin)
    for credential, agent in ((key, "dify"), (key, "openai"), (key, "dify"), (other, "dify")):
        assert (await gw.ask(credential, agent))[0] == 200
    await gw.ask(key, query="#fail")
    status, answer = await gw.api("GET", f"/api-keys/{first}/usage", admin)
    assert status == 200
    usage = answer["data"]
    assert usage["total"] == usage["today"] == usage["month"]
    assert (usage["total"]["calls"], usage["total"]["errors"]) == (4, 1)
    by_agent = {entry["agent"]: entry["calls"] for entry in usage["by_agent"]}
    assert by_agent == {"dify": 3, "openai": 1}
    tokens = sum(row["total_tokens"] for row in await calls(gw, admin, f"?key_id={first}"))
    assert usage["total"]["total_tokens"] == tokens > 0
    mine = (await gw.api("GET", "/auth/me/usage", admin))[1]["data"]
    assert mine["total"]["calls"] == 5
    assert (await gw.api("GET", f"/api-keys/{second}", admin))[1]["data"]["calls"] == 1
    assert (await gw.api("GET", f"/api-keys/{second}", admin))[1]["data"]["last_used_at"]


async def test_usage_in_groups(gw):
    admin = await gw.login()
    ids = []
    for agent in ("dify", "openai", "openai"):
        id_, key = await gw.key(admin)
        ids.append(id_)
        assert (await gw.ask(key, agent))[0] == 200
    today = time.strftime("%Y-%m-%d", time.gmtime())

    async def usage(query):
        status, answer = await gw.api("GET", f"/usage{query}", admin)
        assert status == 200, answer
        return answer["data"]["usage"]

    assert [(row["day"], row["calls"]) for row in await usage("")] == [(today, 3)]
    by_agent = await usage("?group_by=agent")
    assert [(row["agent"], row["calls"]) for row in by_agent] == [("dify", 1), ("openai", 2)]
    by_both = await usage(f"?group_by=day,key&from={today}&to={today}")
    assert {(row["key"], row["calls"]) for row in by_both} == {(id_, 1) for id_ in ids}
    assert await usage("?to=2001-01-01") == []
    for query in (
        "?group_by=secret",
        "?group_by=day,day",
        "?from=x",
        "?from=2030-01-01&to=2020-01-01",
    ):
        assert (await gw.api("GET", f"/usage{query}", admin))[0] == 400


# Raw requests and answers.


@pytest.mark.parametrize("mode", ["off", "errors", "all"])
async def test_bodies_are_kept_if_the_agent_says_so(with_accounts, demo, mode, database_url):
    served, openai = await demo("dify"), await demo("openai", key="sk-upstream-key")
    agents = {
        "dify": {**AGENTS["dify"], "base_url": served.url, "capture": mode},
        "openai": {**AGENTS["openai"], "base_url": openai.url, "capture": mode},
    }
    record = {"max_body": 200}
    gw = await with_accounts(database_url, agents=agents)
    record["spool"] = gw.app[SERVICES].recorder._settings.spool
    gw = await with_accounts(database_url, agents=agents, record=record)
    admin = await gw.login()
    _, key = await gw.key(admin)
    _, streamed, _ = await complete(gw, key, question="流", stream=True)
    _, whole, _ = await complete(gw, key, question="整")
    _, failed, _ = await complete(gw, key, question="#fail")
    await complete(gw, key, question="#break", stream=True)
    await gw.post("/v1/embeddings", {"model": "openai", "input": "嵌"}, headers={"api-key": key})
    kept = []
    for row in reversed(await calls(gw, admin)):
        kept.append((await gw.api("GET", f"/calls/{row['id']}", admin))[1]["data"]["bodies"])
    expected = {"off": [0, 0, 0, 0, 0], "errors": [0, 0, 1, 1, 0], "all": [1, 1, 1, 1, 1]}[mode]
    assert [bodies is not None for bodies in kept] == [bool(flag) for flag in expected]
    if mode == "all":
        assert "流" in kept[0]["request"]
        assert kept[0]["answer"] == streamed[:200].decode("utf-8", "replace")
        assert kept[0]["answer_size"] == len(streamed)
        assert kept[1]["answer"] == whole[:200].decode("utf-8", "replace")
        assert "嵌" in kept[4]["request"]
        assert "embedding" in kept[4]["answer"]
    if mode != "off":
        assert kept[2]["answer"] == failed[:200].decode("utf-8", "replace")
        assert '"error"' in kept[3]["answer"] or kept[3]["answer_size"] > 200
        assert key not in str(kept)


async def test_what_is_old_is_deleted(with_accounts, database_url, tmp_path):
    keep = {"keep": "1d", "keep_bodies": "1h", "spool": str(tmp_path / "spool")}
    gw = await with_accounts(database_url, record=keep)
    admin = await gw.login()
    _, key = await gw.key(admin)
    await gw.ask(key)
    assert len(await calls(gw, admin)) == 1
    with time_machine.travel(datetime.now(UTC) + timedelta(days=2)):
        await gw.app[SERVICES].recorder.sweep()
    assert await calls(gw, admin) == []
    usage = (await gw.api("GET", "/usage", admin))[1]["data"]["usage"]
    assert usage[0]["calls"] == 1  # roll-ups stay


# The database becomes unavailable and recovers.


async def test_nothing_is_lost_while_postgresql_is_unavailable(with_accounts, postgresql):
    gw = await with_accounts(postgresql.database())
    admin = await gw.login()
    _, key = await gw.key(admin)
    asked, loop = 0, asyncio.get_running_loop()

    async def ask_for(seconds):
        nonlocal asked
        slowest, until = 0.0, loop.time() + seconds
        while loop.time() < until:
            began = loop.time()
            assert (await gw.ask(key))[0] == 200
            slowest = max(slowest, loop.time() - began)
            asked += 1
        return slowest

    usual = await ask_for(0.7)
    postgresql.stop()
    try:
        during = await ask_for(3)
        assert during < max(2, usual * 10)  # waiting for the database would be 5 s
        status, answer = await gw.ask(new_key()[1].reveal())
        assert (status, answer["detail"]["error"]) == (503, "database_unavailable")
        assert (await gw.ask("sk-not-ours"))[0] == 401
        assert (await gw.api("GET", "/auth/me", admin))[0] == 503
        ready = await (await gw.get("/readyz")).json()
        assert ready["degraded"] == ["database"]
        assert ready["detail"]["record"]["waiting"] > 0
    finally:
        postgresql.start()
    await ask_for(0.5)
    async with asyncio.timeout(20):
        while (await (await gw.get("/readyz")).json())["detail"]["record"]["waiting"]:
            await asyncio.sleep(0.1)
    found, before = 0, ""
    while before is not None:
        page = (await gw.api("GET", f"/calls?limit=200&before={before}", admin))[1]["data"]
        found, before = found + len(page["calls"]), page["next"]
    assert found == asked
    assert (await gw.api("GET", "/usage", admin))[1]["data"]["usage"][0]["calls"] == asked
    assert (await gw.ask(new_key()[1].reveal()))[0] == 401


async def test_a_postgresql_that_hangs_holds_up_no_chat(with_accounts, postgresql):
    gw = await with_accounts(postgresql.database())
    admin = await gw.login()
    _, key = await gw.key(admin)
    workers = [
        int(pid)
        for pid in postgresql.sql(
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'ai-gateway'", "postgres"
        ).split()
    ]
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    postgresql.pause()
    try:
        loop = asyncio.get_running_loop()
        for _ in range(30):
            began = loop.time()
            assert (await gw.ask(key))[0] == 200
            assert loop.time() - began < 5
        began = loop.time()
        assert (await gw.ask(new_key()[1].reveal()))[0] == 503
        assert loop.time() - began < 10
    finally:
        postgresql.go_on()
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
    async with asyncio.timeout(20):
        while (await gw.ask(new_key()[1].reveal()))[0] != 401:
            await asyncio.sleep(0.1)
    assert len(await calls(gw, admin)) == 30


async def test_a_postgresql_missing_at_the_start_is_found_later(with_accounts, postgresql):
    url = postgresql.database()
    postgresql.stop()
    try:
        gw = await with_accounts(url, auth={"keys": [{"name": "web", "key": "static-test-key"}]})
        assert (await gw.ask("static-test-key"))[0] == 200
        assert (await gw.ask(new_key()[1].reveal()))[0] == 503
        body = {"username": "admin", "password": ADMIN_PASSWORD}
        assert (await gw.api("POST", "/login", body=body))[0] == 503
    finally:
        postgresql.start()
    async with asyncio.timeout(20):
        while (await gw.api("POST", "/login", body=body))[0] != 200:
            await asyncio.sleep(0.1)
    assert [row["caller"] for row in await calls(gw, await gw.login())] == ["key-web"]


# The process ends.


@pytest.fixture
def alone(tmp_path):
    """A config.yaml for a separate process, on a SQLite file."""
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump({
        "agents": {"dify": {"platform": "dify"}},
        "database": f"sqlite:///{tmp_path}/g.db",
        "record": {"spool": str(tmp_path / "spool")},
        "rate_limits": {"chat": None},
        "auth": {"admin_password": ADMIN_PASSWORD},
    }))  # fmt: skip
    return config, tmp_path / "g.db"


def recorded(file) -> int:
    with sqlite3.connect(file) as db:
        db.execute("BEGIN")  # both queries see the same state
        count = db.execute("SELECT count(*) FROM calls").fetchone()[0]
        rolled = db.execute("SELECT coalesce(sum(calls), 0) FROM usage_days").fetchone()[0]
    db.close()
    assert count == rolled
    return count


def spooled(folder) -> int:
    """Calls in the files of a spool."""
    return sum(file.read_bytes().count(b"\n") for file in folder.rglob("*.jsonl"))


async def until(condition, within_s: float) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.02)


async def ask_many(port: int, number: int) -> None:
    headers = {"Agent": "dify"}
    async with aiohttp.ClientSession(headers=headers) as client:

        async def ask():
            url = f"http://127.0.0.1:{port}/api/v1/chat"
            async with client.post(url, json={"query": "#fail"}) as answer:
                await answer.read()

        await asyncio.gather(*(ask() for _ in range(number)))


async def test_sigterm_loses_no_row(alone):
    config, file = alone
    async with serving("--config", str(config)) as (process, port, _):
        await ask_many(port, 40)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 20) == 0
    assert recorded(file) == 40


async def test_sigkill_loses_the_last_second_at_most(alone):
    config, file = alone
    async with serving("--config", str(config)) as (process, port, _):
        await ask_many(port, 30)
        await until(lambda: recorded(file) == 30, within_s=10)
        await ask_many(port, 3)
        process.kill()
        await process.wait()
    # the next process adopts the rest
    async with serving("--config", str(config)) as (process, _, _):
        process.send_signal(signal.SIGTERM)
        await process.wait()
    assert 30 <= recorded(file) <= 33


async def test_sigkill_with_a_locked_database_loses_one_second(alone):
    config, file = alone
    async with serving("--config", str(config)) as (process, port, _):
        lock = sqlite3.connect(file, isolation_level=None)
        lock.execute("BEGIN EXCLUSIVE")
        await ask_many(port, 25)
        await until(lambda: spooled(file.parent / "spool") == 25, within_s=10)
        process.kill()
        await process.wait()
        lock.execute("ROLLBACK")
        lock.close()
    assert recorded(file) == 0
    async with serving("--config", str(config)) as (process, _, log):
        process.send_signal(signal.SIGTERM)
        await process.wait()
    assert recorded(file) == 25
    assert any("25 calls left by an earlier process" in line for line in log)
