import re

import pytest
from conftest import AGENTS, Script

from gateway.http.context import STATE


async def test_the_list_is_public_and_has_the_designs_members(all_five):
    gw, _ = all_five
    body = await (await gw.get("/api/v1/agents")).json()
    assert (body["code"], body["success"], body["msg"]) == (0, True, "Success")
    assert body["data"]["total"] == 5
    for agent in body["data"]["agents"]:
        assert agent["type"] == agent["name"]
        assert agent["module"].startswith("gateway.platforms.")
        assert set(agent["capabilities"]) == {
            "streaming", "file_upload", "file_kinds", "speech", "transcription",
        }  # fmt: skip
        assert agent["capabilities"]["file_upload"] is True
        assert "image" in agent["capabilities"]["file_kinds"]


async def test_one_agent_and_an_unknown_one(all_five):
    gw, _ = all_five
    body = await (await gw.get("/api/v1/agents/DIFY")).json()
    assert body["data"]["name"] == "dify"
    missing = await gw.get("/api/v1/agents/nope")
    assert missing.status == 404
    assert (await missing.json())["code"] == 404


async def test_health_really_asks_the_platform(all_five):
    gw, demos = all_five
    for name in AGENTS:
        data = (await (await gw.get(f"/api/v1/agents/{name}/health")).json())["data"]
        assert (data["name"], data["status"]) == (name, "healthy")
        assert re.match(r"\d{4}-\d\d-\d\dT", data["timestamp"])
        assert data["detail"]


async def test_the_log_says_once_why_an_agent_is_unhealthy(gateway, scripted, caplog):
    refusal = Script([b'{"code":"unauthorized","message":"no such key"}'], "401 X")
    upstream = await scripted(refusal)
    gw = await gateway(agents={"bot": {**AGENTS["dify"], "base_url": upstream.url}})
    health = gw.app[STATE].now.health
    for moment_s in (0.0, 60.0, 120.0):
        health._clock = lambda now=moment_s: now
        await gw.get("/api/v1/agents/bot/health")
    assert len(upstream.requests) == 3
    (line,) = [r.getMessage() for r in caplog.records if "unhealthy" in r.getMessage()]
    assert line.startswith("unhealthy: Agent 'bot': ")
    assert "no such key" in line


async def test_health_is_200_for_a_wrong_key_and_a_dead_server(gateway, demo):
    for kind, agent in AGENTS.items():
        served = await demo(kind, key="another-key")
        bot = {**AGENTS[kind], "base_url": served.url}
        gw = await gateway(agents={"bot": bot, "dead": {**agent, "base_url": "http://127.0.0.1:9"}})
        for name in ("bot", "dead"):
            answer = await gw.get(f"/api/v1/agents/{name}/health")
            data = (await answer.json())["data"]
            assert (answer.status, data["status"]) == (200, "unhealthy")
            assert len(data["detail"]) > 20


async def test_health_is_asked_once_for_many(gateway, scripted):
    json = {"Content-Type": "application/json"}
    upstream = await scripted(Script([b'{"name":"x","mode":"chat"}'], headers=json))
    gw = await gateway(agents={"bot": {**AGENTS["dify"], "base_url": upstream.url}})
    for _ in range(5):
        await gw.get("/api/v1/agents/bot/health")
    assert len(upstream.requests) == 1


async def test_the_probes_answer_without_a_key(all_five):
    gw, _ = all_five
    body = await (await gw.get("/health")).json()
    assert body["status"] == "healthy"
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", body["timestamp"])
    assert (await gw.get("/livez")).status == 200
    assert (await gw.get("/readyz")).status == 200


async def test_the_health_of_a_route_is_404_that_names_its_agents(gateway):
    agents = {name: {"platform": "dify"} for name in ("one", "two", "other")}
    gw = await gateway(agents=agents, routes={"support": ["one", "two"]})
    answer = await gw.get("/api/v1/agents/Support/health")
    assert answer.status == 404
    assert (await answer.json())["msg"] == (
        "'support' is a route; this address is about a single agent. Known: one, two."
    )


# Hidden agents.


KEYS = [
    {"name": "all", "key": "sk-key-for-all-agents"},
    {"name": "one", "key": "sk-key-for-one-agent", "agents": ["public"]},
]


@pytest.fixture
async def hiding(gateway, demo):
    """A gateway that requires keys, with an agent that not every key may ask."""
    dify, openai = await demo("dify"), await demo("openai", key="sk-upstream-key")
    agents = {
        "public": {**AGENTS["dify"], "base_url": dify.url},
        "hidden": {**AGENTS["openai"], "base_url": openai.url, "models": ["hidden-model"]},
    }
    routes = {"hidden-route": ["hidden"]}
    gw = await gateway(agents=agents, routes=routes, auth={"anonymous": False, "keys": KEYS})
    body = {"user": "u", "agents": ["public"]}
    token = (await gw.api("POST", "/tokens", KEYS[0]["key"], body))[1]["data"]["token"]
    return gw, {"nobody": "", "token": token, "one": KEYS[1]["key"], "all": KEYS[0]["key"]}


@pytest.mark.parametrize("caller", ["nobody", "token", "one"])
async def test_agents_that_a_caller_may_not_ask_are_not_named(hiding, caller):
    gw, keys = hiding
    key = keys[caller]
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    turn = [{"role": "user", "content": "x"}]
    answers = [
        await gw.post("/v1/chat/completions", {"model": "x", "messages": turn}, headers=headers),
        await gw.post("/v1/chat/completions", {"model": "hiden", "messages": turn}, headers=headers),
        await gw.post("/v1/embeddings", {"model": "x", "input": "x"}, headers=headers),
        await gw.post("/api/v1/chat", {"query": "x"}, headers=headers),
        await gw.post("/api/v1/chat", {"query": "x"}, headers={**headers, "Agent": "x"}),
        await gw.post("/api/v1/upload", headers={**headers, "Agent": "x"}),
        await gw.post("/api/v1/tokens", {"user": "u", "agents": ["x"]}, headers=headers),
        *[await gw.get(path, headers=headers) for path in
          ("/v1/models", "/v1/models/x", "/api/v1/agents", "/api/v1/agents/x",
           "/api/v1/agents/x/health", "/api/v1/upload/agents")],
    ]  # fmt: skip
    for answer in answers:
        text = (await answer.text()).replace("'hiden'", "")
        assert "hidden" not in text, answer.url
    listed = (await answers[9].json())["data"]
    assert [agent["name"] for agent in listed["agents"]] == (["public"] if key else [])
    assert ("note" in listed) == (not key)


async def test_an_error_names_the_agents_that_the_caller_may_ask(hiding):
    gw, keys = hiding
    status, answer = await gw.ask(keys["token"], "publik")
    assert status == 404
    assert answer["msg"] == "There is no agent 'publik'. Did you mean 'public'? Known: public."
    assert answer["detail"]["info"] == {"known": ["public"]}
    message = (await (await gw.get("/api/v1/agents/publik/health")).json())["msg"]
    assert message == "There is no agent 'publik'."


@pytest.mark.parametrize(("caller", "shown"), [("nobody", 0), ("token", 0), ("one", 0), ("all", 1)])
async def test_details_and_the_bots_name_are_for_who_may_ask(hiding, caller, shown):
    gw, keys = hiding
    headers = {"Authorization": f"Bearer {keys[caller]}"} if keys[caller] else {}
    one = await gw.get("/api/v1/agents/hidden", headers=headers)
    none = await gw.get("/api/v1/agents/hiddeu", headers=headers)
    assert one.status == (200 if shown else 404)
    if not shown:
        assert (await one.text()).replace("hidden", "hiddeu") == await none.text()
    health = await gw.get("/api/v1/agents/hidden/health", headers=headers)
    data = (await health.json())["data"]
    assert (health.status, data["status"]) == (200, "healthy")
    assert data["detail"].startswith("Only for callers") == (not shown)


async def test_who_may_ask_a_route_alone_reads_its_name(gateway, scripted):
    bad = {"status": 400, "headers": {"Content-Type": "application/json"}}
    broken = [
        b'data: {"id":"x","choices":[{"delta":{"content":"hi"}}]}\n\n',
        b'data: {"error":{"message":"no"}}\n\n',
    ]
    upstream = await scripted(
        *[Script([b'{"error":{"message":"no"}}'], **bad)] * 5, Script(broken), Script(broken)
    )
    agents = {"secret-llm": {**AGENTS["openai"], "base_url": upstream.url}}
    key = {"name": "app", "key": "sk-app-key-000001", "agents": ["r"]}
    gw = await gateway(
        agents=agents, routes={"r": ["secret-llm"]}, auth={"anonymous": False, "keys": [key]}
    )
    headers = {"Authorization": f"Bearer {key['key']}"}
    turn = [{"role": "user", "content": "x"}]
    for n, (path, body, more) in enumerate((
        ("/v1/chat/completions", {"model": "r", "messages": turn}, {}),
        ("/v1/chat/completions", {"model": "R", "messages": turn, "stream": True}, {}),
        ("/v1/embeddings", {"model": "r", "input": "x"}, {}),
        ("/api/v1/chat", {"query": "x"}, {"Agent": "r"}),
        ("/api/v1/chat", {"query": "x", "stream": True}, {"Agent": "r"}),
        ("/v1/chat/completions", {"model": "r", "messages": turn, "stream": True}, {}),
        ("/api/v1/chat", {"query": "x", "stream": True}, {"Agent": "r"}),
    )):  # fmt: skip
        answer = await gw.post(path, body, headers={**headers, **more})
        text = await answer.text()
        assert answer.status == (400 if n < 5 else 200), text
        assert "Agent 'r': " in text
        assert answer.headers["x-gateway-agent"] == "r"
        assert "secret-llm" not in text + str(answer.headers).replace("x-conversation-id", "")
