"""The variables of a question are checked against the bot's form before the platform is asked."""

import asyncio

import pytest
from aiohttp import web
from conftest import AGENTS

from gateway.chat import profiles
from gateway.chat.profiles import FRESH_S, PATIENCE_S, RECENT_S
from gateway.demo import serve_demo
from gateway.demo.coze import CozeDemo
from gateway.http.context import STATE

CITY = {"variable": "city", "label": "城市", "required": True, "max_length": 5, "default": ""}
TONE = {"variable": "tone", "label": "语气", "required": False, "options": ["正式", "轻松"]}
FORM = [{"text-input": CITY}, {"select": TONE}]
GOOD = {"city": "北京", "tone": "正式"}


def asked(demo) -> list:
    """The questions that have reached the simulator."""
    return [body for path, body in demo.requests if "chat-messages" in path]


@pytest.fixture
async def bot(gateway, demo):
    """A gateway in front of a Dify app with a form, and the simulator."""

    async def start(**options):
        served = await demo("dify", form=FORM)
        agent = {**AGENTS["dify"], "base_url": served.url, **options}
        return await gateway(agents={"bot": agent}), served.demo

    return start


async def answer(call) -> tuple[int, dict]:
    async with call as response:
        return response.status, await response.json()


# What is refused, and how.


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ["variables", "inputs"])
async def test_a_wrong_variable_is_named_on_both_surfaces(bot, stream, name):
    gw, demo = await bot()
    wrong = {name: {**GOOD, "tone": "随便"}, "stream": stream}
    status, body = await answer(gw.chat("bot", **wrong))
    sentence = "Agent 'bot': The variable 'tone' must be one of: '正式', '轻松'."
    assert (status, body["code"], body["msg"]) == (400, 400, sentence)
    assert body["detail"]["param"] == "variables.tone"
    status, body = await answer(gw.complete("bot", **wrong))
    assert (status, body["error"]["message"]) == (400, sentence)
    assert (body["error"]["param"], body["error"]["type"]) == (
        "variables.tone",
        "invalid_request_error",
    )
    assert asked(demo) == []


async def test_a_missing_variable_is_named(bot):
    gw, demo = await bot()
    status, body = await answer(gw.chat("bot", variables={"tone": "正式"}))
    assert (status, body["detail"]["param"]) == (400, "variables.city")
    assert body["msg"].endswith(
        "The variable 'city' is missing: it must be text of at most 5 characters."
    )
    assert asked(demo) == []


async def test_the_sentence_is_in_the_callers_language(bot):
    gw, _ = await bot()
    body = {"query": "hi", "variables": {"city": "a" * 6}}
    headers = {"Agent": "bot", "Accept-Language": "zh-CN"}
    _, body = await answer(gw.post("/api/v1/chat", body, headers=headers))
    assert body["msg"] == "智能体 'bot'：变量 'city' 必须是不超过 5 个字符的文本。"


async def test_good_and_unknown_variables_reach_the_platform(bot):
    gw, demo = await bot()
    variables = {**GOOD, "unknown": [1], "number": "5"}
    for stream in (False, True):
        for call in (
            gw.chat("bot", variables=variables, stream=stream),
            gw.complete("bot", variables=variables, stream=stream),
        ):
            async with call as response:
                assert response.status == 200
                await response.read()
    assert [body["inputs"] for body in asked(demo)] == [variables] * 4


async def test_a_refused_question_has_asked_no_one(bot):
    gw, _ = await bot()
    async with gw.chat("bot", variables={"city": 5}) as response:
        assert response.headers["x-gateway-attempts"] == "0"
    async with gw.get("/metrics") as metrics:
        assert "gateway_upstream_attempts_total{" not in await metrics.text()


# What counts as missing.


async def test_the_configuration_fills_a_required_variable(bot):
    gw, demo = await bot(inputs={"city": "上海"})
    assert (await answer(gw.chat("bot", variables={"tone": "轻松"})))[0] == 200
    assert asked(demo)[0]["inputs"] == {"city": "上海", "tone": "轻松"}


async def test_later_questions_need_no_variables_again(bot):
    gw, demo = await bot()
    _, first = await answer(gw.chat("bot", variables=GOOD))
    again = {"conversation_id": first["id"], "variables": {"tone": "轻松"}}
    await answer(gw.chat("bot", **again))
    assert asked(demo)[1]["inputs"] == {"tone": "轻松"}
    again["variables"] = {"tone": "随便"}
    assert (await answer(gw.chat("bot", **again)))[0] == 400
    assert len(asked(demo)) == 2


async def test_a_known_form_is_checked_for_calls_without_variables(bot):
    gw, demo = await bot()
    await gw.api("GET", "/agents/bot")
    before = len(demo.requests)
    status, body = await answer(gw.chat("bot"))
    assert (status, body["detail"]["param"]) == (400, "variables.city")
    assert asked(demo) == []
    assert len(demo.requests) == before


async def test_dify_judges_while_its_form_is_unknown(bot):
    """A call without variables looks nothing up; Dify's own refusal names the variable, too."""
    gw, demo = await bot()
    status, body = await answer(gw.chat("bot"))
    assert (status, body["detail"]["param"]) == (400, "variables.city")
    assert len(asked(demo)) == 1


async def test_without_variables_only_dify_insists(gateway, demo):
    variables = [{"key": "name", "label": "姓名", "type": "input", "required": True}]
    served = await demo("fastgpt", variables=variables)
    agent = {**AGENTS["fastgpt"], "app_id": "66f0", "base_url": served.url}
    gw = await gateway(agents={"bot": agent})
    await gw.api("GET", "/agents/bot")
    assert (await answer(gw.complete("bot")))[0] == 200
    assert (await answer(gw.chat("bot", uid="u1")))[0] == 200
    status, body = await answer(gw.chat("bot", variables={"other": 1}))
    assert (status, body["detail"]["param"]) == (400, "variables.name")


# The platform is asked for its form once, and no question waits long for it.


class Flow(CozeDemo):
    """A Coze workflow that answers look-ups of its form as told; the last answer repeats."""

    def __init__(self) -> None:
        super().__init__(pace_s=0)
        self.replies: list[web.Response | asyncio.Event] = []
        self.looked_up = 0

    async def workflow(self, request: web.Request) -> web.Response:
        reply = self.replies[min(self.looked_up, len(self.replies) - 1)]
        self.looked_up += 1
        if isinstance(reply, asyncio.Event):
            await reply.wait()
            return web.json_response({"code": 500, "msg": "too late"})
        return web.Response(body=reply.body, status=reply.status, headers=reply.headers)

    @property
    def asked(self) -> int:
        return sum("workflows/chat" in path for path, _ in self.requests)


def form(**parameters) -> web.Response:
    detail = {"workflow_name": "f"}
    data = {"workflow_detail": detail, "input": {"parameters": parameters}}
    return web.json_response({"code": 0, "msg": "", "data": data})


COUNT = {"type": "integer", "required": True}
WORD = {"count": "many"}  # no integer


@pytest.fixture
async def flow(gateway, stack):
    """A gateway in front of a `Flow`, the flow, and a clock to set."""

    async def start(*replies, **options):
        served = Flow()
        served.replies = list(replies)
        url = await stack.enter_async_context(serve_demo(served))
        agent = {**AGENTS["coze"], "mode": "workflow", "workflow_id": "7", "retries": 0}
        agent |= options
        gw = await gateway(agents={"bot": {**agent, "base_url": url}})
        clock = [0.0]
        gw.app[STATE].now.profiles.now = lambda: clock[0]
        return gw, served, clock

    return start


async def statuses(gw, calls: int, **variables) -> set[int]:
    """Those of so many questions at the same time."""
    all_calls = [answer(gw.chat("bot", variables=variables)) for _ in range(calls)]
    return {status for status, _ in await asyncio.gather(*all_calls)}


async def test_concurrent_questions_share_one_look_up(flow):
    gw, bot, _ = await flow(form(count=COUNT))
    assert await statuses(gw, 20, **WORD) == {400}
    assert (bot.looked_up, bot.asked) == (1, 0)


async def test_a_form_that_fits_is_not_asked_for_again(flow):
    gw, bot, clock = await flow(form(count=COUNT))
    for clock[0] in (0.0, 10_000.0):
        assert await statuses(gw, 1, count=5) == {200}
    assert (bot.looked_up, bot.asked) == (1, 2)


async def test_no_question_is_refused_for_an_old_form(flow):
    """The author may have changed it."""
    gw, bot, clock = await flow(form(count=COUNT), form(count={"type": "string"}))
    assert await statuses(gw, 1, **WORD) == {400}
    clock[0] = RECENT_S
    assert await statuses(gw, 1, **WORD) == {400}
    clock[0] += 1
    assert await statuses(gw, 5, **WORD) == {200}
    assert (bot.looked_up, bot.asked) == (2, 5)


async def test_an_old_form_of_a_failing_platform_refuses_nothing(flow):
    gw, bot, clock = await flow(form(count=COUNT), DOWN)
    assert await statuses(gw, 1, **WORD) == {400}
    clock[0] = RECENT_S + 1
    assert await statuses(gw, 2, **WORD) == {200}
    assert bot.looked_up == 2


DOWN = web.json_response({"code": 500, "msg": "on fire"}, status=500)
FORBIDDEN = web.json_response({"code": 4101, "msg": "token"}, status=403)
PAGE = web.Response(body=b"<html>not here</html>", status=404, content_type="text/html")
ODD = web.json_response({"code": 0, "data": {"input": {"parameters": {"count": 5, "": {}}}}})
LIST = web.json_response([1, 2])
HUGE = web.Response(body=b'{"code":0,"data":"' + b"a" * (5 << 20) + b'"}')


@pytest.mark.parametrize("reply", [DOWN, FORBIDDEN, PAGE, LIST, HUGE])
async def test_a_platform_that_tells_no_form_judges_the_variables(flow, reply):
    gw, bot, _ = await flow(reply)
    for _ in range(3):
        assert await statuses(gw, 1, **WORD) == {200}
    assert (bot.looked_up, bot.asked) == (1, 3)


async def test_an_odd_form_is_read_as_far_as_it_goes(flow):
    gw, bot, _ = await flow(ODD)
    assert await statuses(gw, 1, **WORD) == {200}


async def test_a_huge_form_is_checked_up_to_its_limit(flow):
    gw, bot, _ = await flow(form(**{f"n{i}": {"type": "integer"} for i in range(5000)}))
    assert await statuses(gw, 1, n99="x") == {400}
    assert await statuses(gw, 1, n4999="x") == {200}


async def test_after_a_failure_nothing_waits_for_the_next_look_up(flow):
    gate = asyncio.Event()
    gw, bot, clock = await flow(DOWN, gate)
    for clock[0] in (0.0, FRESH_S - 1):
        assert await statuses(gw, 1, **WORD) == {200}
        assert bot.looked_up == 1
    clock[0] = FRESH_S
    async with asyncio.timeout(PATIENCE_S / 2):
        assert await statuses(gw, 3, **WORD) == {200}
    assert bot.looked_up == 2
    gate.set()


async def test_a_silent_look_up_delays_only_the_first_questions(flow, monkeypatch):
    monkeypatch.setattr(profiles, "PATIENCE_S", 0.2)
    gate = asyncio.Event()
    gw, bot, _ = await flow(gate)
    began = asyncio.get_running_loop().time()
    for _ in range(10):
        assert await statuses(gw, 1, **WORD) == {200}
    assert asyncio.get_running_loop().time() - began < 1.5
    assert bot.looked_up == 1
    gate.set()


async def test_a_look_up_takes_no_time_from_the_answer(flow):
    gate = asyncio.Event()
    gw, bot, _ = await flow(gate, timeouts={"first_delta": "300ms"})
    asyncio.get_running_loop().call_later(0.5, gate.set)
    assert await statuses(gw, 1, **WORD) == {200}


async def test_a_look_up_ends_with_the_time_of_the_call(flow):
    gate = asyncio.Event()
    gw, bot, _ = await flow(gate, timeouts={"total": "300ms"})
    assert await statuses(gw, 2, **WORD) == {504}
    assert bot.asked == 0
    gate.set()


async def test_a_caller_that_leaves_keeps_the_look_up_for_others(flow):
    gate = asyncio.Event()
    gw, bot, _ = await flow(gate)
    leaving = asyncio.ensure_future(statuses(gw, 1, **WORD))
    while not bot.looked_up:
        await asyncio.sleep(0.01)
    leaving.cancel()
    other = asyncio.ensure_future(statuses(gw, 1, **WORD))
    gate.set()
    assert await other == {200}
    assert bot.looked_up == 1


async def test_an_open_circuit_prevents_the_look_up(gateway):
    agent = {**AGENTS["coze"], "base_url": "http://127.0.0.1:9", "retries": 0}
    gw = await gateway(agents={"bot": {**agent, "breaker": {"failures": 1, "cooldown": "1h"}}})
    await answer(gw.chat("bot"))
    status, body = await answer(gw.chat("bot", variables={"a": 1}))
    assert (status, body["detail"]["error"]) == (503, "circuit_open")
    target = gw.app[STATE].now.routing.targets["bot"]
    assert target not in gw.app[STATE].now.profiles._entries


# Routes.


@pytest.fixture
async def route(gateway, demo):
    """A gateway whose route `r` asks `first`, then a Dify app with a form, then one without."""

    async def start(first: str = "", **options):
        strict, free = await demo("dify", form=FORM), await demo("dify")
        agents = {
            "first": {**AGENTS["dify"], "base_url": first or free.url, "retries": 0, **options},
            "strict": {**AGENTS["dify"], "base_url": strict.url},
            "free": {**AGENTS["dify"], "base_url": free.url},
        }
        routes = {
            "r": ["first", "strict", "free"],
            "s": ["strict", "free"],
            "t": ["first", "strict"],
        }
        return await gateway(agents=agents, routes=routes), strict.demo, free.demo

    return start


DEAD = "http://127.0.0.1:9"
WRONG = {"city": "a" * 6}


async def test_a_route_refuses_what_its_first_agent_does_not_take(route):
    gw, strict, free = await route()
    status, body = await answer(gw.chat("s", variables=WRONG))
    assert (status, body["detail"]["param"]) == (400, "variables.city")
    assert asked(strict) == asked(free) == []


async def test_a_fallback_whose_form_does_not_fit_is_passed_over(route):
    gw, strict, free = await route(DEAD)
    async with gw.chat("r", variables=WRONG) as response:
        assert (response.status, response.headers["x-gateway-agent"]) == (200, "free")
    assert asked(strict) == []
    assert asked(free)[0]["inputs"] == WRONG


async def test_no_fallback_that_fits_leaves_the_first_failure(route):
    gw, strict, _ = await route(DEAD)
    status, body = await answer(gw.chat("t", variables=WRONG))
    assert (status, body["detail"]["param"]) == (502, None)
    assert "Agent 'first'" in body["msg"]
    assert asked(strict) == []


async def test_a_hidden_agent_is_not_named(gateway, demo):
    served = await demo("dify", form=FORM)
    keys = [{"name": "k", "key": "sk-key-for-the-route", "agents": ["r"]}]
    agents = {"secret": {**AGENTS["dify"], "base_url": served.url}}
    auth = {"anonymous": False, "keys": keys}
    gw = await gateway(agents=agents, routes={"r": ["secret"]}, auth=auth)
    status, body = await gw.ask("sk-key-for-the-route", "r", variables=WRONG)
    assert (status, body["msg"].startswith("Agent 'r': The variable 'city'")) == (400, True)
    assert "secret" not in str(body)


# Other platforms and files.


LINE = {"key": "dept", "type": "options", "options": ["研发"], "optional": False}
OTHERS = {
    "fastgpt": (
        {"app_id": "66f0"},
        {"variables": [{"key": "dept", "type": "select", "list": [{"value": "研发"}]}]},
    ),
    "fastgpt plugin": (
        {"app_id": "66f0"},
        {"plugin_inputs": [{"key": "dept", "renderTypeList": ["select"], "list": [{"value": "研发"}]}]},
    ),
    "coze workflow": (
        {"mode": "workflow", "workflow_id": "7"},
        {"parameters": {"dept": {"type": "integer"}}},
    ),
    "ragflow": ({"agent_id": "a", "api_key": "ragflow-k"}, {"inputs": {"dept": LINE}}),
    "ragflow old": (
        {"agent_id": "a", "api_key": "ragflow-k"},
        {"inputs": {"dept": LINE}, "version": "cumulative"},
    ),
    "zhipu": (
        {"api": "application", "app_id": "18"},
        {"variables": [{"name": "dept", "type": "selection_list", "allowed_values": ["研发"]}]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", OTHERS)
async def test_every_platform_with_a_form_has_it_checked(gateway, demo, name, stream):
    options, settings = OTHERS[name]
    platform = name.split()[0]
    served = await demo(platform, **settings)
    agent = {"platform": platform, **AGENTS.get(platform, {}), "base_url": served.url, **options}
    gw = await gateway(agents={"bot": agent})
    for call in (gw.chat, gw.complete):
        async with call("bot", variables={"dept": "销售"}, stream=stream) as response:
            body = await response.json()
            assert response.status == 400
        assert (body.get("detail") or body["error"])["param"] == "variables.dept"
    assert served.demo.requests == []  # no question has reached it
    good = "5" if name == "coze workflow" else "研发"
    for call in (gw.chat, gw.complete):
        async with call("bot", variables={"dept": good}, stream=stream) as response:
            assert response.status == 200
            await response.read()
    assert good in str(served.demo.requests[-1])


async def test_a_file_variable_of_dify_works(gateway, demo):
    doc = {"variable": "doc", "label": "文档", "required": True}
    served = await demo("dify", form=[{"file": doc}])
    gw = await gateway(agents={"bot": {**AGENTS["dify"], "base_url": served.url}})
    file = {"type": "document", "transfer_method": "remote_url", "url": "https://x.test/a.pdf"}
    assert (await answer(gw.chat("bot", variables={"doc": file})))[0] == 200
    assert asked(served.demo)[0]["inputs"] == {"doc": file}
    status, body = await answer(gw.chat("bot", variables={"doc": "https://x.test/a.pdf"}))
    assert (status, "an object that describes a file" in body["msg"]) == (400, True)


async def test_an_agent_without_a_form_passes_variables_on(all_five):
    gw, demos = all_five
    for name in ("openai", "zhipu", "coze", "fastgpt"):
        assert (await answer(gw.chat(name, variables={"x": [1], "y": None})))[0] == 200
    assert len(demos["openai"].requests) == 1
