import re

from conftest import AGENTS


async def test_the_list_is_public_and_has_the_designs_members(all_five):
    gw, _ = all_five
    body = await (await gw.get("/api/v1/agents")).json()
    assert (body["code"], body["success"], body["msg"]) == (0, True, "Success")
    assert body["data"]["total"] == 5
    for agent in body["data"]["agents"]:
        assert agent["type"] == agent["name"]
        assert agent["module"].startswith("gateway.platforms.")
        assert set(agent["capabilities"]) == {"streaming", "file_upload", "file_kinds"}
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


async def test_health_tells_a_wrong_key_and_a_dead_server_and_is_still_200(gateway, demo):
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
    from conftest import Script

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
