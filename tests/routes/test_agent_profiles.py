"""GET /api/v1/agents/{name}: the bot's profile, over HTTP."""

import asyncio
import json

import pytest
from conftest import AGENTS, Script

from gateway.chat.profiles import FRESH_S, RETRY_S
from gateway.http.context import STATE
from gateway.reload import make_state

JSON = {"Content-Type": "application/json"}
KEY = "app-a-long-secret-key-0001"


async def profile(gw, name: str = "bot", key: str = "", **headers: str) -> tuple[int, dict]:
    if key:
        headers["Authorization"] = f"Bearer {key}"
    async with gw.get(f"/api/v1/agents/{name}", headers=headers) as answer:
        return answer.status, await answer.json()


def whole(value: object, status: str = "200 OK") -> Script:
    return Script([json.dumps(value).encode()], status, headers=JSON, chunked=False)


BOT = {"code": 0, "msg": "", "data": {"name": "天气", "onboarding_info": {"prologue": "你好"}}}
DOWN = whole({"code": 500, "msg": "on fire"}, "500 X")


@pytest.fixture
async def watched(gateway, scripted):
    """A gateway in front of one Coze bot whose answers are scripted, and a clock to set."""

    async def start(*scripts: Script):
        upstream = await scripted(*scripts)
        gw = await gateway(agents={"bot": {**AGENTS["coze"], "base_url": upstream.url}})
        clock = [0.0]
        gw.app[STATE].now.profiles.now = lambda: clock[0]
        return gw, upstream, clock

    return start


async def test_every_platform_has_a_profile(all_five):
    gw, _ = all_five
    for name in AGENTS:
        status, answer = await profile(gw, name)
        data = answer["data"]
        assert (status, data["name"], data["platform"], data["type"]) == (200, name, name, name)
        assert set(data) == {
            "name", "type", "module", "capabilities", "platform", "title", "description", "icon",
            "opening", "suggestions", "inputs", "files", "features", "refreshed",
        }  # fmt: skip
        assert data["inputs"]["type"] == "object"
        assert all(type(value) is bool for value in data["features"].values())


async def test_a_dify_app_is_described_end_to_end(all_five):
    gw, _ = all_five
    _, answer = await profile(gw, "DIFY")
    data = answer["data"]
    assert (data["title"], data["icon"]["emoji"]) == ("演示应用 Demo", "🤖")
    assert (data["opening"], data["suggestions"]) == ("你好，我是演示应用。", ["你会什么？"])
    assert data["files"]["max_files"] == 3


async def test_a_platform_without_profiles_has_the_names(all_five):
    gw, demos = all_five
    _, answer = await profile(gw, "openai")
    assert answer["data"]["title"] == "openai"
    assert set(answer["data"]["features"].values()) == {False}
    assert demos["openai"].requests == []


async def test_a_coze_workflow_is_described_end_to_end(gateway, demo):
    served = await demo("coze")
    flow = {**AGENTS["coze"], "mode": "workflow", "workflow_id": "75", "base_url": served.url}
    gw = await gateway(agents={"bot": flow})
    assert (await profile(gw))[1]["data"]["title"] == "demo_flow"


async def test_a_fastgpt_app_is_described_end_to_end(gateway, demo):
    served = await demo("fastgpt")
    agent = {**AGENTS["fastgpt"], "app_id": "66f0a1b2c3d4e5f6071829ff", "base_url": served.url}
    gw = await gateway(agents={"bot": agent})
    data = (await profile(gw))[1]["data"]
    assert (data["opening"], data["files"]["max_files"]) == ("你好，我是演示应用。", 10)


@pytest.mark.parametrize("version", ["delta", "cumulative"])
@pytest.mark.parametrize("kind", ["chat_id", "agent_id"])
async def test_a_ragflow_bot_is_described_end_to_end(gateway, demo, version, kind):
    field = {"key": "dept", "type": "line", "name": "dept", "optional": False}
    forms = {"parameters": [field], "inputs": {"dept": field}}
    served = await demo("ragflow", version=version, **forms)
    agent = {"platform": "ragflow", "api_key": "ragflow-test", kind: "b1", "base_url": served.url}
    gw = await gateway(agents={"bot": agent})
    data = (await profile(gw))[1]["data"]
    names = {"chat_id": ("演示助手 Demo", "你好，我是演示助手。")}
    assert (data["title"], data["opening"]) == names.get(
        kind, ("演示智能体 Demo", "你好，我是演示智能体。")
    )
    assert data["icon"]["url"].startswith("data:image/png;base64,")
    assert data["inputs"]["required"] == ["dept"]
    assert "The prompt" not in json.dumps(data)


async def test_a_zhipu_application_is_described_end_to_end(gateway, demo):
    served = await demo("zhipu")
    agent = {**AGENTS["zhipu"], "api": "application", "app_id": "18", "base_url": served.url}
    gw = await gateway(agents={"bot": {**agent, "profile": {"title": "问答"}}})
    data = (await profile(gw))[1]["data"]
    assert data["title"] == "问答"
    assert data["inputs"]["properties"]["语言"]["enum"] == ["中文", "English"]


SHOWN = {
    "title": "人事",
    "description": "假期",
    "icon": {"emoji": "🌴"},
    "opening": "你好",
    "suggestions": ["几天？"],
}


async def test_the_configuration_overrides_each_member(gateway, scripted):
    upstream = await scripted(whole(BOT))
    coze = {**AGENTS["coze"], "base_url": upstream.url}
    n8n = {"platform": "n8n", "base_url": "http://127.0.0.1:9/webhook/x"}
    agents = {"n8n": {**n8n, "profile": SHOWN}, "plain": {**coze, "profile": {"opening": ""}}}
    agents |= {name: {**coze, "profile": {name: SHOWN[name]}} for name in SHOWN}
    gw = await gateway(agents=agents)
    plain = (await profile(gw, "plain"))[1]["data"]
    assert (plain["title"], plain["opening"]) == ("天气", "")
    for name, value in SHOWN.items():
        data = (await profile(gw, name))[1]["data"]
        assert data[name] == value
        others = ["title", "description", "icon", "suggestions"]
        assert [data[each] for each in others if each != name] == [
            plain[each] for each in others if each != name
        ]
    data = (await profile(gw, "n8n"))[1]["data"]
    assert {name: data[name] for name in SHOWN} == SHOWN


async def test_accepts_in_the_configuration_wins(gateway, scripted):
    upstream = await scripted(whole(BOT))
    bot = {**AGENTS["coze"], "base_url": upstream.url, "accepts": ["image"]}
    gw = await gateway(agents={"bot": bot})
    assert (await profile(gw))[1]["data"]["files"]["kinds"] == ["image"]


# The platform is asked once in a while.


async def test_many_requests_are_one_call(watched):
    slow = Script([0.1, json.dumps(BOT).encode()], headers=JSON)
    gw, upstream, _ = await watched(slow)
    answers = await asyncio.gather(*[profile(gw) for _ in range(20)])
    assert {status for status, _ in answers} == {200}
    assert len(upstream.requests) == 1


async def test_a_profile_is_asked_again_after_some_minutes(watched):
    new = {**BOT, "data": {"name": "新"}}
    gw, upstream, clock = await watched(whole(BOT), whole(new))
    titles = []
    for clock[0] in (0.0, FRESH_S - 1, FRESH_S):
        titles.append((await profile(gw))[1]["data"]["title"])
    assert titles == ["天气", "天气", "新"]
    assert len(upstream.requests) == 2


async def test_a_failing_platform_keeps_its_last_profile(watched):
    gw, upstream, clock = await watched(whole(BOT), DOWN, DOWN, whole(BOT))
    first = (await profile(gw))[1]["data"]
    clock[0] = FRESH_S
    status, answer = await profile(gw)
    problem = answer["data"].pop("problem")
    assert (status, answer["data"]) == (200, first)
    assert problem.startswith("Agent 'bot': ")
    assert "on fire" in problem
    await profile(gw)
    assert len(upstream.requests) == 2  # the failure, too, is remembered
    clock[0] += RETRY_S
    assert "problem" in (await profile(gw))[1]["data"]
    clock[0] += RETRY_S
    assert "problem" not in (await profile(gw))[1]["data"]


async def test_an_unknown_profile_of_a_failing_platform_is_502(watched):
    gw, upstream, clock = await watched(DOWN, whole(BOT))
    for _ in range(2):
        status, answer = await profile(gw)
        assert status == 502
        assert "on fire" in answer["msg"]
    assert len(upstream.requests) == 1
    clock[0] = RETRY_S
    assert (await profile(gw))[0] == 200


async def test_a_reload_keeps_what_is_known(watched):
    gw, upstream, _ = await watched(whole(BOT))
    before = await profile(gw)
    holder = gw.app[STATE]
    holder.now = make_state(holder.now.config, {}, holder.now)
    assert await profile(gw) == before
    assert len(upstream.requests) == 1


async def test_a_profile_shows_no_secret_and_no_prompt(gateway, scripted):
    leaking = {
        "name": f"key {KEY}",
        "prompt_info": {"prompt": "never shown"},
        "onboarding_info": {"prologue": KEY, "suggested_questions": [KEY]},
        "variables": [{"keyword": KEY, "default_value": KEY}],
    }
    upstream = await scripted(whole({"code": 0, "data": leaking}))
    bot = {**AGENTS["coze"], "api_key": KEY, "base_url": upstream.url}
    gw = await gateway(agents={"bot": bot})
    status, answer = await profile(gw)
    text = json.dumps(answer)
    assert (status, KEY in text, "never shown" in text) == (200, False, False)
    assert answer["data"]["opening"] == "***"


# Who reads it.


KEYS = [
    {"name": "all", "key": "sk-key-for-all-agents"},
    {"name": "one", "key": "sk-key-for-one-agent", "agents": ["public"]},
    {"name": "route", "key": "sk-key-for-the-route", "agents": ["both"]},
]


@pytest.fixture
async def guarded(gateway, demo):
    dify, openai = await demo("dify"), await demo("openai", key="sk-upstream-key")
    agents = {
        "public": {**AGENTS["dify"], "base_url": dify.url},
        "hidden": {**AGENTS["openai"], "base_url": openai.url},
        "broken": {**AGENTS["dify"], "base_url": "http://127.0.0.1:9"},
    }
    routes = {"both": ["hidden", "public"], "down": ["broken", "public"]}
    keys = [*KEYS, {"name": "down", "key": "sk-key-for-the-other", "agents": ["down"]}]
    return await gateway(agents=agents, routes=routes, auth={"anonymous": False, "keys": keys})


async def test_an_agent_that_may_not_be_asked_is_404(guarded):
    for key in ("", KEYS[1]["key"], KEYS[2]["key"], "sk-unknown"):
        hidden, missing = (
            await profile(guarded, "hidden", key),
            await profile(guarded, "hiddeu", key),
        )
        assert hidden[0] == missing[0] == 404
        assert hidden[1]["msg"] == missing[1]["msg"].replace("hiddeu", "hidden")
    assert (await profile(guarded, "hidden", KEYS[0]["key"]))[0] == 200


async def test_a_page_token_reads_its_own_agents(guarded):
    body = {"user": "u", "agents": ["public"]}
    _, answer = await guarded.api("POST", "/tokens", KEYS[0]["key"], body)
    token = answer["data"]["token"]
    assert (await profile(guarded, "public", token))[1]["data"]["title"] == "演示应用 Demo"
    assert (await profile(guarded, "hidden", token))[0] == 404
    assert (await profile(guarded, "both", token))[0] == 404


async def test_a_route_has_its_first_agents_profile(guarded):
    for key in (KEYS[0]["key"], KEYS[2]["key"]):
        status, answer = await profile(guarded, "BOTH", key)
        assert (status, answer["data"]["name"], answer["data"]["platform"]) == (
            200,
            "both",
            "openai",
        )
        assert answer["data"]["title"] == "both"
        assert "hidden" not in json.dumps(answer)


async def test_a_routes_error_has_the_routes_name(guarded):
    status, answer = await profile(guarded, "down", "sk-key-for-the-other")
    assert status == 502
    assert answer["msg"].startswith("Agent 'down': ")
    assert "broken" not in json.dumps(answer)


async def test_the_problem_is_in_the_callers_language(watched):
    gw, _, clock = await watched(whole(BOT), DOWN)
    await profile(gw)
    clock[0] = FRESH_S
    _, answer = await profile(gw, **{"Accept-Language": "zh-CN"})
    assert "智能体" in answer["data"]["problem"]
