"""Background calls through the gateway: who answers them, in which form, and what they count in."""

import json
import logging
from pathlib import Path

import pytest
from conftest import AGENTS, UNLIMITED, streamed

from gateway.http.context import METRICS

REQUESTS = json.loads(
    (Path(__file__).parent.parent / "background" / "requests.json").read_text("utf-8")
)
BODIES = {(one["client"], one["action"]): one["body"] for one in REQUESTS}
TITLE = BODIES["open-webui", "title"]
STREAMED_TITLE = BODIES["lobechat", "title"]
SUMMARY = BODIES["nextchat", "summary-call"]
PROBE = BODIES["dify-as-client", "validate"]
BOTS = ("dify", "fastgpt", "coze")
KEY = "static-test-key"


async def send(gw, body, model="dify", key="", **headers):
    """(status, body, headers) of POST /v1/chat/completions."""
    if key:
        headers["Authorization"] = f"Bearer {key}"
    path = "/v1/chat/completions"
    async with gw.post(path, {**body, "model": model}, headers=headers) as answer:
        return answer.status, await answer.json(), answer.headers


def text_of(answer):
    return answer["choices"][0]["message"]["content"]


@pytest.fixture
def one_bot(gateway, demo):
    """`await one_bot(**config)`: (gateway, the Dify demo, the OpenAI demo)."""

    async def start(agent=None, **config):
        dify = await demo("dify", key="app-test-key")
        openai = await demo("openai", key="sk-upstream-key")
        agents = {
            "dify": {**AGENTS["dify"], "base_url": dify.url, **(agent or {})},
            "cheap": {**AGENTS["openai"], "base_url": openai.url},
        }
        return await gateway(agents=agents, **config), dify.demo, openai.demo

    return start


@pytest.mark.parametrize("name", BOTS)
async def test_a_title_is_answered_without_the_bot(all_five, name):
    gw, demos = all_five
    status, answer, headers = await send(gw, TITLE, name)
    assert (status, text_of(answer)) == (200, '{"title":"How do I clean a bicycle"}')
    assert (headers["x-gateway-task"], headers["x-gateway-agent"]) == ("title", name)
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["total_tokens"] == 0
    assert demos[name].requests == []


# Without those that ask a simulator for a fault.
QUIET = [one for one in REQUESTS if "#" not in str(one["body"]["messages"][-1]["content"])]
QUIET += [one for one in REQUESTS if one["kind"].startswith("background:")]


@pytest.mark.parametrize("one", QUIET, ids=lambda one: f"{one['client']}/{one['action']}")
async def test_only_recorded_chats_reach_the_bot_as_chats(all_five, one):
    gw, demos = all_five
    kinds = set()
    for name in BOTS:
        async with gw.post("/v1/chat/completions", {**one["body"], "model": name}) as answer:
            assert answer.status in (200, 400), await answer.text()
            await answer.read()
            kinds.add(answer.headers.get("x-gateway-task", ""))
    if one["kind"] == "chat":
        assert kinds == {""}
    elif one["kind"].startswith("background:"):
        assert kinds != {""}


async def test_a_stream_is_answered_as_a_stream(all_five):
    gw, demos = all_five
    async with gw.post("/v1/chat/completions", {**STREAMED_TITLE, "model": "dify"}) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        assert answer.headers["x-gateway-task"] == "title"
        out = streamed(await answer.read())
    assert (out["text"], out["finish"], out["done"]) == ("How do I clean a bicycle", ["stop"], True)
    assert [usage["total_tokens"] for usage in out["usage"]] == [0]  # it asks for the usage
    assert demos["dify"].requests == []


@pytest.mark.parametrize("name", ["openai", "zhipu"])
async def test_plain_models_answer_for_themselves(all_five, name):
    gw, demos = all_five
    status, _, headers = await send(gw, TITLE, name)
    assert (status, "x-gateway-task" in headers) == (200, False)
    assert len(demos[name].requests) == 1


@pytest.mark.parametrize("name", BOTS)
async def test_a_summary_runs_on_the_bot_without_a_conversation(all_five, name):
    """NextChat asks for it in a system turn after the last answer."""
    gw, demos = all_five
    async with gw.post("/v1/chat/completions", {**SUMMARY, "model": name}) as answer:
        out = streamed(await answer.read())
        assert (answer.status, answer.headers["x-gateway-task"]) == (200, "summary")
    assert (out["finish"], bool(out["text"])) == (["stop"], True)
    sent = json.dumps(demos[name].requests, ensure_ascii=False)
    assert "Summarize the discussion briefly" in sent


async def test_a_model_of_the_operator_answers_if_there_is_one(one_bot):
    gw, dify, openai = await one_bot(background={"model": "cheap"})
    for body in (TITLE, {**SUMMARY, "stream": False}):
        status, _, headers = await send(gw, body)
        assert (status, headers["x-gateway-agent"]) == (200, "cheap")
    assert dify.requests == []
    assert [body["messages"] for _, body in openai.requests] == [
        TITLE["messages"],
        SUMMARY["messages"],
    ]


async def test_a_caller_need_not_be_allowed_to_ask_that_model(one_bot):
    auth = {"anonymous": False, "keys": [{"name": "web", "key": KEY, "agents": ["dify"]}]}
    gw, _, openai = await one_bot(background={"model": "cheap"}, auth=auth)
    status, answer, headers = await send(gw, TITLE, key=KEY)
    assert (status, headers["x-gateway-agent"]) == (200, "dify")  # and does not see its name
    assert "cheap" not in json.dumps(answer)
    assert len(openai.requests) == 1
    assert (await send(gw, TITLE, "cheap", key=KEY))[0] == 403


async def test_the_agent_must_exist_and_be_allowed(one_bot):
    auth = {"anonymous": False, "keys": [{"name": "web", "key": KEY, "agents": ["cheap"]}]}
    gw, _, _ = await one_bot(auth=auth)
    assert (await send(gw, TITLE, "nothing", key=KEY))[0] == 404
    assert (await send(gw, TITLE, "dify", key=KEY))[0] == 403


@pytest.mark.parametrize(
    ("agent", "background"),
    [({}, {"mode": "run"}), ({"background": "run"}, {}), ({}, {"rules": {"title": False}})],
)
async def test_an_operator_may_let_the_bot_run_them(one_bot, agent, background):
    gw, dify, _ = await one_bot(agent, background=background)
    status, _, headers = await send(gw, TITLE)
    assert (status, "x-gateway-task" in headers) == (200, False)
    assert any("chat-messages" in path for path, _ in dify.requests)


@pytest.mark.parametrize(
    ("agent", "background"), [({}, {"mode": "refuse"}), ({"background": "refuse"}, {"mode": "run"})]
)
async def test_an_operator_may_refuse_them(one_bot, agent, background):
    gw, dify, _ = await one_bot(agent, background=background)
    status, answer, _ = await send(gw, TITLE)
    assert (status, answer["error"]["code"]) == (400, "invalid_value")
    assert "switch them off in the chat client" in answer["error"]["message"]
    assert dify.requests == []
    assert (await send(gw, {"messages": [{"role": "user", "content": "hi"}]}))[0] == 200


async def test_an_agents_mode_may_divert_those_of_a_model(all_five, gateway, demo):
    served = await demo("openai", key="sk-upstream-key")
    agent = {**AGENTS["openai"], "base_url": served.url, "background": "divert"}
    gw = await gateway(agents={"plain": agent})
    _, answer, _ = await send(gw, TITLE, "plain")
    assert text_of(answer) == '{"title":"How do I clean a bicycle"}'
    assert served.demo.requests == []


async def test_a_probe_asks_for_the_bots_health(all_five, gateway):
    gw, demos = all_five
    status, answer, headers = await send(gw, PROBE)
    assert (status, text_of(answer), headers["x-gateway-task"]) == (200, "ok", "probe")
    assert not any("chat-messages" in path for path, _ in demos["dify"].requests)
    dead = await gateway(agents={"dify": {**AGENTS["dify"], "base_url": "http://127.0.0.1:9"}})
    status, answer, _ = await send(dead, PROBE)
    assert (status, answer["error"]["code"]) == (502, "upstream_failed")


async def test_a_route_is_healthy_if_one_of_its_agents_is(gateway, demo):
    served = await demo("dify", key="app-test-key")
    agents = {
        "dead": {**AGENTS["dify"], "base_url": "http://127.0.0.1:9"},
        "alive": {**AGENTS["dify"], "base_url": served.url},
    }
    gw = await gateway(agents=agents, routes={"both": ["dead", "alive"]})
    assert (await send(gw, PROBE, "both"))[0] == 200


async def test_a_callers_own_header_marks_a_call(one_bot):
    gw, dify, _ = await one_bot()
    body = {"messages": [{"role": "user", "content": "How do I clean a chain?"}]}
    _, answer, headers = await send(gw, body, **{"x-gateway-task": "title"})
    assert (text_of(answer), headers["x-gateway-task"]) == ("How do I clean a chain", "title")
    assert dify.requests == []
    status, answer, _ = await send(gw, body, **{"x-gateway-task": "poem"})
    assert (status, answer["error"]["param"]) == (400, "x-gateway-task")
    _, _, headers = await send(gw, TITLE, **{"x-gateway-task": "chat"})
    assert "x-gateway-task" not in headers


async def test_a_call_in_a_conversation_is_a_chat(one_bot):
    gw, _, _ = await one_bot()
    status, _, headers = await send(gw, TITLE, **{"x-conversation-id": "made-up"})
    assert status == 404  # Dify knows no such conversation
    assert "x-gateway-task" not in headers


# Limits.


@pytest.fixture
def limited(one_bot):
    """A gateway with one key and these limits; the Dify demo."""

    async def start(**limits):
        auth = {"anonymous": False, "keys": [{"name": "web", "key": KEY}]}
        gw, dify, _ = await one_bot(auth=auth, rate_limits={**UNLIMITED, **limits})
        return gw, dify

    return start


CHAT = {"messages": [{"role": "user", "content": "How do I clean a chain?"}]}


async def statuses(gw, *bodies):
    return [(await send(gw, {**body, "stream": False}, key=KEY))[0] for body in bodies]


async def test_background_calls_do_not_count_in_the_limit_of_chats(limited):
    gw, _ = await limited(chat="2/hour", tasks="100/hour")
    assert await statuses(gw, TITLE, TITLE, CHAT, TITLE, CHAT, CHAT) == [200] * 5 + [429]
    # Also beyond the limit, and still not for chats.
    assert await statuses(gw, TITLE, CHAT, TITLE) == [200, 429, 200]


async def test_background_calls_have_a_limit_of_their_own(limited):
    gw, _ = await limited(chat="9/hour", tasks="2/hour")
    assert await statuses(gw, TITLE, TITLE, TITLE, CHAT) == [200, 200, 429, 200]
    _, answer, headers = await send(gw, TITLE, key=KEY)
    assert answer["error"]["code"] == "rate_limit_exceeded"
    assert headers["x-ratelimit-limit-requests"] == "2"


async def test_the_limit_is_four_times_that_of_chats_by_default(limited):
    gw, _ = await limited(chat="2/hour")
    assert await statuses(gw, *[TITLE] * 9) == [200] * 8 + [429]


async def test_what_runs_the_bot_counts_as_a_chat(limited):
    gw, dify = await limited(chat="1/hour", tasks="100/hour")
    assert await statuses(gw, SUMMARY, SUMMARY, CHAT) == [200, 429, 429]
    assert len([path for path, _ in dify.requests if "chat-messages" in path]) == 1


async def test_beyond_both_limits_nothing_is_read(limited):
    gw, _ = await limited(chat="1/hour", tasks="1/hour")
    assert await statuses(gw, CHAT, CHAT) == [200, 429]
    status, _, headers = await send(gw, {"messages": "not read"}, key=KEY)
    assert (status, headers["x-ratelimit-limit-requests"]) == (429, "1")


async def test_background_calls_use_no_quota(with_accounts, database_url):
    gw = await with_accounts(database_url)
    admin = await gw.login()
    _, key = await gw.key(admin, max_calls=1)
    assert [(await send(gw, body, key=key))[0] for body in (TITLE, TITLE, CHAT, CHAT)] == [
        200, 200, 200, 429,
    ]  # fmt: skip


async def test_replicas_share_the_limit_of_background_calls(with_accounts, database_url):
    gw = await with_accounts(database_url, rate_limits={**UNLIMITED, "chat": "2/hour"})
    _, key = await gw.key(await gw.login())
    bodies = (TITLE, CHAT, TITLE, CHAT, CHAT, TITLE)
    assert [(await send(gw, body, key=key))[0] for body in bodies] == [200] * 4 + [429, 200]


# What the operator sees.


async def test_the_record_and_the_log_name_the_kind(with_accounts, database_url, caplog):
    caplog.set_level(logging.INFO, "gateway.access")
    gw = await with_accounts(database_url)
    admin = await gw.login()
    _, key = await gw.key(admin)
    await send(gw, TITLE, key=key)
    await send(gw, {**SUMMARY, "stream": False}, key=key)
    await send(gw, CHAT, key=key)
    rows = (await gw.api("GET", "/calls", admin))[1]["data"]["calls"]
    assert [(row["task"], row["agent"], row["status"]) for row in rows] == [
        ("", "dify", 200), ("summary", "dify", 200), ("title", "", 200),
    ]  # fmt: skip
    rows = (await gw.api("GET", "/calls?task=title", admin))[1]["data"]["calls"]
    assert [row["task"] for row in rows] == ["title"]
    lines = [json.loads(line) for line in caplog.messages if "completions" in line]
    assert [line.get("task") for line in lines] == ["title", "summary", None]


async def test_metrics_count_the_kinds_and_who_answered(one_bot):
    gw, _, _ = await one_bot()
    for body in (TITLE, TITLE, {**SUMMARY, "stream": False}, CHAT):
        await send(gw, body)
    text = gw.app[METRICS].text("")[0].decode()
    counted = [line for line in text.splitlines() if line.startswith("gateway_background_calls_t")]
    assert sorted(counted) == [
        'gateway_background_calls_total{answered_by="agent",task="summary"} 1.0',
        'gateway_background_calls_total{answered_by="gateway",task="title"} 2.0',
    ]


async def test_16_questions_of_open_webui_make_16_runs(one_bot):
    """Each question comes with a title or suggested questions, and often with tags."""
    gw, dify, _ = await one_bot()
    question = BODIES["open-webui", "chat-first"]
    for _ in range(16):
        async with gw.post("/v1/chat/completions", {**question, "model": "dify"}) as answer:
            await answer.read()
        for action in ("title", "follow-ups", "file-query-generation"):
            assert (await send(gw, BODIES["open-webui", action]))[0] == 200
    assert len([path for path, _ in dify.requests if "chat-messages" in path]) == 16


FOLLOW_UPS = BODIES["open-webui", "follow-ups"]


def asked(question: str):
    """A call for the next questions after that one, as Open WebUI sends it."""
    history = f"<chat_history>\nUSER: {question}\nASSISTANT: yes\n</chat_history>"
    text = FOLLOW_UPS["messages"][0]["content"].partition("<chat_history>")[0] + history
    return {**FOLLOW_UPS, "messages": [{"role": "user", "content": text}]}


async def test_follow_ups_are_those_that_the_bot_suggests(all_five):
    gw, demos = all_five
    chat = {"messages": [{"role": "user", "content": "How do I clean a bicycle?"}]}
    for name in ("coze", "dify"):
        status, _, _ = await send(gw, chat, name)
        assert status == 200
    paths = [path for path, _ in demos["dify"].requests]
    status, answer, headers = await send(gw, asked("How do I clean a bicycle?"), "coze")
    shown = json.loads(text_of(answer))["follow_ups"]
    assert (status, bool(shown), headers["x-gateway-task"]) == (200, True, "follow_ups")
    status, answer, _ = await send(gw, asked("How do I clean a bicycle?"), "dify")
    assert status == 200
    later = [path for path, _ in demos["dify"].requests][len(paths) :]
    assert not any("chat-messages" in path for path in later)


async def test_follow_ups_of_an_unknown_question_are_none(all_five):
    gw, _ = all_five
    status, answer, _ = await send(gw, asked("Who was that?"), "coze")
    assert (status, json.loads(text_of(answer))) == (200, {"follow_ups": []})


async def test_follow_ups_after_a_question_about_a_file(all_five):
    """Its question comes in a prompt of the client, and bare in the call for follow-ups."""
    gw, _ = all_five
    chat = {**BODIES["open-webui", "file-1"], "stream": False}
    assert (await send(gw, chat, "coze"))[0] == 200
    wrapped = '<attached_files>\n<file type="file" id="1"/>\n</attached_files>\n\n'
    for before in ("", wrapped):
        _, answer, _ = await send(gw, asked(f"{before}Where is the chain gauge?"), "coze")
        assert json.loads(text_of(answer))["follow_ups"]
