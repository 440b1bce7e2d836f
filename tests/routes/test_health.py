"""`/readyz` reports agents that are simulators, and agents that keep failing."""

import servers
from conftest import AGENTS


async def test_readyz_reports_simulators_that_others_can_reach(gateway):
    agents = {"secret-bot": {"platform": "dify"}}
    gw = await gateway(agents=agents, server={"trusted_proxies": ["10.0.0.1"]})
    async with gw.get("/readyz") as answer:
        told = await answer.json()
    assert (answer.status, told["degraded"]) == (200, ["demo"])
    assert told["detail"]["demo"] == "1 agent(s) answered by simulators, see the log"
    assert "secret-bot" not in str(told)  # the route is public


async def test_simulators_on_this_machine_alone_are_nothing_odd(gateway):
    gw = await gateway(agents={"bot": {"platform": "dify"}})
    async with gw.get("/readyz") as answer:
        assert (await answer.json())["degraded"] == []


async def test_readyz_counts_the_agents_that_keep_failing(gateway):
    nowhere = f"http://127.0.0.1:{servers.free_port()}"
    agent = {**AGENTS["dify"], "base_url": nowhere, "retries": 0, "breaker": {"failures": 1}}
    gw = await gateway(agents={"secret-bot": agent, "bot": {"platform": "dify"}})
    await gw.chat("secret-bot")
    async with gw.get("/readyz") as answer:
        told = await answer.json()
    assert (answer.status, told["degraded"]) == (200, ["agents"])
    assert told["detail"]["agents"].startswith("1 of 2 failed repeatedly")
    assert "secret-bot" not in str(told)  # the route is public
