"""POST /api/v1/chat against simulators of all five platforms."""

import pytest
from conftest import AGENTS, Script, sse_events, streamed
from test_fastgpt_captures import capture

MEMBERS = {"id", "object", "created", "model", "usage", "choices"}
AGENT_PLATFORMS = ["fastgpt", "dify", "coze"]


@pytest.mark.parametrize("agent", AGENTS)
async def test_a_whole_answer_has_every_member_of_the_design(all_five, agent):
    gw, _ = all_five
    answer = await gw.chat(agent, "你好，请介绍一下AI Gateway", user="test_user", stream=False)
    body = await answer.json()
    assert answer.status == 200
    assert body.keys() >= MEMBERS
    assert body["object"] == "chat.completion"
    message = body["choices"][0]["message"]
    assert message["role"] == "assistant"
    assert "demo" in message["content"]
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["total_tokens"] > body["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize("agent", AGENTS)
async def test_a_streamed_answer_says_the_same_as_the_whole_one(all_five, agent):
    gw, _ = all_five
    whole = await (await gw.chat(agent, "为什么？#think", user="a")).json()
    answer = await gw.chat(agent, "为什么？#think", user="b", stream=True)
    got = streamed(await answer.read())
    assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["X-Accel-Buffering"] == "no"
    message = whole["choices"][0]["message"]
    assert got["text"] == message["content"]
    assert got["reasoning"] == message["reasoning_content"] != ""
    assert got["finish"] == ["stop"]
    assert len(got["ids"]) == 1
    assert got["usage"] == [whole["usage"]]
    assert got["done"]


@pytest.mark.parametrize("name", ["conversation_id", "chat_id"])
@pytest.mark.parametrize("agent", AGENT_PLATFORMS)
async def test_the_id_continues_the_platforms_conversation(all_five, agent, name):
    gw, demos = all_five
    first = await (await gw.chat(agent, "第一个问题", user="u")).json()
    second = await (await gw.chat(agent, "第二个问题", user="u", **{name: first["id"]})).json()
    assert second["id"] == first["id"]
    assert "你上一个问题是“第一个问题”" in second["choices"][0]["message"]["content"]
    other = await (await gw.chat(agent, "第三个问题", user="u")).json()
    assert other["id"] != first["id"]
    assert "上一个问题" not in other["choices"][0]["message"]["content"]


async def test_behind_a_route_a_conversation_stays_with_its_agent(gateway, demo):
    agents = {}
    for name in ("dify", "coze"):
        served = await demo(name)
        agents[name] = {**AGENTS[name], "base_url": served.url}
    shared = [{"agent": "dify", "weight": 1}, {"agent": "coze", "weight": 1}]
    gw = await gateway(agents=agents, routes={"shared": shared})
    for i in range(12):
        first = await gw.chat("shared", f"第{i}个", user="u")
        id_ = (await first.json())["id"]
        assert id_.startswith(first.headers["x-gateway-agent"] + ":")
        second = await gw.chat("shared", "接着说", user="u", conversation_id=id_, stream=True)
        got = streamed(await second.read())
        assert f"你上一个问题是“第{i}个”" in got["text"]
        assert got["ids"] == {id_}
        third = await gw.complete("shared", user="u", conversation_id=id_)
        assert third.headers["x-conversation-id"] == id_


async def test_a_route_of_mixed_agents_can_always_be_continued(gateway, demo):
    agents = {}
    for name in ("openai", "dify", "客:服"):
        served = await demo("dify" if name == "客:服" else name)
        agents[name] = {**AGENTS.get(name, AGENTS["dify"]), "base_url": served.url}
    shared = [{"agent": name, "weight": 1} for name in agents]
    gw = await gateway(agents=agents, routes={"mix": shared})
    for _ in range(15):
        first = await gw.complete("mix", user="u")
        chat = await gw.chat("mix", user="u")
        id_ = (await chat.json())["id"]
        again = await gw.chat("mix", user="u", conversation_id=id_)
        assert again.status == 200
        assert again.headers["x-gateway-agent"] == chat.headers["x-gateway-agent"]
        if told := first.headers.get("x-conversation-id"):
            body = {"model": "mix", "user": "u", "messages": [{"role": "user", "content": "x"}]}
            back = await gw.post("/v1/chat/completions", body, headers={"x-conversation-id": told})
            assert back.headers["x-gateway-agent"] == first.headers["x-gateway-agent"]


async def test_an_unknown_conversation_is_404_and_says_what_to_do(all_five):
    gw, _ = all_five
    answer = await gw.chat("dify", user="u", conversation_id="11111111-1111-4111-8111-111111111111")
    assert answer.status == 404
    assert "conversation_id" in (await answer.json())["msg"]


@pytest.mark.parametrize("value", ["dify", "Dify", "DIFY", " dify "])
async def test_the_agents_name_is_taken_in_any_case(all_five, value):
    gw, _ = all_five
    answer = await gw.post("/api/v1/chat", {"query": "hi"}, headers={"AGENT": value})
    assert answer.status == 200


CHUNKS = b"""data: {"choices":[{"delta":{"content":"hi"},"finish_reason":"stop"}]}

data: [DONE]

"""


@pytest.mark.parametrize(
    ("agent", "body", "sent", "ignored"),
    [
        ("b/qwen", {}, "qwen", None),
        ("B/org/qwen", {"model": "glm"}, "org/qwen", "model"),
        ("b", {"model": "qwen"}, "qwen", None),
        ("b", {"model": "b/qwen"}, "qwen", None),
        ("gpt-4o", {}, "gpt-4o", None),
        ("gpt-4o", {"model": "qwen"}, "gpt-4o", "model"),
    ],
)
async def test_the_caller_chooses_the_model_of_an_agent_without_one(
    gateway, scripted, agent, body, sent, ignored
):
    upstream = await scripted(Script([CHUNKS]))
    bot = {"platform": "openai", "base_url": upstream.url, "api_key": "sk-up"}
    gw = await gateway(agents={"b": bot}, routes={"gpt-4o": ["b"]})
    answer = await gw.chat(agent, **body)
    assert answer.status == 200, await answer.text()
    assert (await answer.json())["choices"][0]["message"]["content"] == "hi"
    assert upstream.bodies()[0]["model"] == sent
    assert answer.headers.get("x-gateway-ignored") == ignored


async def test_an_agent_without_a_model_says_how_to_choose_one(gateway, scripted):
    upstream = await scripted()
    gw = await gateway(agents={"b": {"platform": "openai", "base_url": upstream.url}})
    answer = await gw.chat("b")
    assert answer.status == 400
    assert "put b/<model> in place of b, or <model> in 'model'" in (await answer.json())["msg"]


async def test_without_the_header_400_names_it_and_the_agents(all_five):
    gw, _ = all_five
    answer = await gw.post("/api/v1/chat", {"query": "hi"})
    body = await answer.json()
    assert answer.status == 400
    assert body["code"] == 400
    assert "Agent" in body["msg"]
    assert "fastgpt" in body["msg"]


async def test_an_unknown_agent_is_404_with_the_list_and_the_nearest(all_five):
    gw, _ = all_five
    answer = await gw.chat("dfy")
    body = await answer.json()
    assert answer.status == 404
    assert "Did you mean 'dify'?" in body["msg"]
    assert body["detail"]["info"]["known"] == list(AGENTS)


async def test_an_agent_may_have_a_chinese_name(gateway, demo):
    served = await demo("dify")
    gw = await gateway(
        agents={"客服": {"platform": "dify", "base_url": served.url, "api_key": "k"}}
    )
    for value in ("客服", "%E5%AE%A2%E6%9C%8D"):
        answer = await gw.post("/api/v1/chat", {"query": "hi"}, headers={"Agent": value})
        assert answer.status == 200
        assert answer.headers["x-gateway-agent"] == "%E5%AE%A2%E6%9C%8D"


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"x"', b"\x00\x01", b'{"query": 5, "stream": "maybe"}', b"{}",
     b'{"query": "  "}', b'{"query": null}', b'{"query":"a","files":["ftp://x"]}',
     b'{"query":"a","variables":[1]}', b"[" * 100_000,
     b'{"query":"a","conversation_id":"' + b"x" * 2000 + b'"}'],
)  # fmt: skip
async def test_a_body_that_cannot_be_used_is_400_in_the_envelope(all_five, body):
    gw, _ = all_five
    answer = await gw.post("/api/v1/chat", body, headers={"Agent": "dify"})
    envelope = await answer.json()
    assert answer.status == 400
    assert envelope["code"] == 400
    assert envelope["msg"]
    assert answer.headers["x-request-id"]


async def test_numbers_for_ids_and_null_for_anything_are_fine(all_five):
    gw, demos = all_five
    body = {"query": "hi", "user": 42, "stream": None, "variables": None, "files": None}
    answer = await gw.post("/api/v1/chat", body, headers={"Agent": "dify"})
    assert answer.status == 200
    assert demos["dify"].requests[-1][1]["user"] == "42"


async def test_a_body_over_the_limit_is_413_and_a_form_415(gateway, demo):
    served = await demo("dify")
    agents = {"dify": {"platform": "dify", "base_url": served.url, "api_key": "k"}}
    gw = await gateway(agents=agents, server={"max_body": "10KiB"})
    answer = await gw.chat("dify", "x" * 20_000)
    assert answer.status == 413
    assert "max_body" in (await answer.json())["msg"]
    form = {"Agent": "dify", "Content-Type": "multipart/form-data; boundary=x"}
    assert (await gw.post("/api/v1/chat", b"--x--", headers=form)).status == 415


async def test_variables_and_user_reach_each_platform_in_its_form(all_five):
    gw, demos = all_five
    for agent in AGENT_PLATFORMS:
        body = {"variables": {"name": "李雷", "age": 7}, "user": "u-1"}
        assert (await gw.chat(agent, "hi", **body)).status == 200
    fastgpt, dify, coze = (demos[name].requests[-1][1] for name in AGENT_PLATFORMS)
    assert (fastgpt["customUid"], fastgpt["variables"]) == ("u-1", {"name": "李雷", "age": 7})
    assert (dify["user"], dify["inputs"]) == ("u-1", {"name": "李雷", "age": 7})
    assert (coze["user_id"], coze["custom_variables"]) == ("u-1", {"name": "李雷", "age": "7"})


async def test_without_a_user_a_stable_one_is_derived_from_the_caller(all_five):
    gw, demos = all_five
    await gw.chat("dify", "one")
    await gw.chat("dify", "two")
    users = [body["user"] for path, body in demos["dify"].requests if "chat-messages" in path]
    assert users[-1] == users[-2] != ""


async def test_difys_type_for_other_files_is_read_from_the_file(all_five):
    gw, demos = all_five
    custom = {"type": "custom", "transfer_method": "remote_url"}
    urls = ["https://x.test/a.py", "https://x.test/a.png"]
    answer = await gw.chat("dify", "?", files=[{**custom, "url": url} for url in urls])
    assert answer.status == 200
    sent = demos["dify"].requests[-1][1]["files"]
    assert [(file["type"], file["url"]) for file in sent] == [
        ("document", urls[0]), ("image", urls[1]),
    ]  # fmt: skip


async def test_files_reach_each_platform_in_its_form(all_five):
    gw, demos = all_five
    files = [
        "https://x.test/a.png",
        {"url": "https://x.test/b.pdf", "type": "document", "name": "b.pdf"},
    ]
    for agent in AGENT_PLATFORMS:
        answer = await (await gw.chat(agent, "看图", files=files)).json()
        assert "2 个文件" in answer["choices"][0]["message"]["content"]
    dify = demos["dify"].requests[-1][1]["files"]
    assert [file["type"] for file in dify] == ["image", "document"]
    assert {file["transfer_method"] for file in dify} == {"remote_url"}
    parts = demos["fastgpt"].requests[-1][1]["messages"][0]["content"]
    assert parts[1:] == [
        {"type": "image_url", "image_url": {"url": "https://x.test/a.png"}},
        {"type": "file_url", "name": "b.pdf", "url": "https://x.test/b.pdf"},
    ]


async def test_a_file_that_a_platform_cannot_take_is_400_and_named(gateway, demo):
    served = await demo("zhipu")
    agent = {"platform": "zhipu", "api": "application", "app_id": "a", "base_url": served.url,
             "api_key": "id.secret"}  # fmt: skip
    gw = await gateway(agents={"app": agent})
    answer = await gw.chat("app", files=["https://x.test/a.png"])
    assert answer.status == 400
    assert "image" in (await answer.json())["msg"]


async def test_detail_adds_named_events_and_the_gateway_member(all_five):
    gw, _ = all_five
    raw = await (await gw.chat("coze", "hi", stream=True, detail=True)).read()
    got = streamed(raw)
    assert ("suggestions", ["还能做什么？"]) in got["named"]
    assert got["gateway"]["suggestions"] == ["还能做什么？", "怎么接入我的智能体？"]
    assert got["gateway"]["conversation_id"] in got["ids"]
    plain = await (await gw.chat("coze", "hi", stream=True)).read()
    assert {name for name, _ in sse_events(plain)} == {""}


async def test_fastgpts_nodes_are_hidden_from_callers_who_did_not_ask(all_five):
    gw, demos = all_five
    plain = await (await gw.chat("fastgpt", "hi")).json()
    assert "progress" not in plain["gateway"]
    assert demos["fastgpt"].requests[-1][1]["detail"] is True
    detailed = await (await gw.chat("fastgpt", "hi", detail=True)).json()
    assert detailed["gateway"]["progress"] == [{"node": "AI 对话", "status": "running"}]


@pytest.mark.parametrize("agent", AGENTS)
async def test_failures_on_request_come_as_the_rules_say(all_five, agent):
    gw, _ = all_five
    failed = await gw.chat(agent, "#fail", stream=True)
    assert failed.status == 502
    limited = await gw.chat(agent, "#limit")
    assert limited.status == 429
    assert int(limited.headers["Retry-After"]) >= 1
    for word in ("#break", "#cut"):
        got = streamed(await (await gw.chat(agent, word, stream=True)).read())
        assert got["text"]
        assert got["error"]["message"]
        assert got["finish"] == []
        assert "done" not in got
        assert (await gw.chat(agent, word)).status == 502


@pytest.mark.parametrize("agent", AGENTS)
async def test_a_wrong_upstream_key_is_the_operators_fault(gateway, demo, agent):
    served = await demo(agent, key="the-right-key")
    bot = {**AGENTS[agent], "base_url": served.url, "api_key": "sk-wrong.key-987654321"}
    gw = await gateway(agents={"my-bot": bot})
    for stream in (False, True):
        answer = await gw.chat("my-bot", stream=stream)
        text = await answer.text()
        assert answer.status == 502
        assert "my-bot" in text
        assert "api_key" in text
        assert "987654321" not in text


async def test_an_app_id_cannot_leave_the_configured_app(gateway, demo):
    served = await demo("fastgpt")
    bot = {"platform": "fastgpt", "base_url": served.url, "api_key": "k"}
    gw = await gateway(agents={"bound": {**bot, "app_id": "a1"}, "free": bot})
    assert (await gw.chat("bound", app_id="a2")).status == 403
    assert (await gw.chat("bound", app_id="a1")).status == 200
    assert (await gw.chat("free", app_id="a2")).status == 200
    assert served.demo.requests[-1][1]["appId"] == "a2"


async def test_the_callers_headers_do_not_go_upstream(gateway, scripted):
    upstream = await scripted(Script([b"data: [DONE]\n\n"]))
    agent = {**AGENTS["openai"], "base_url": upstream.url, "headers": {"X-Team": "a"}}
    gw = await gateway(agents={"bot": agent})
    headers = {"x-stainless-lang": "python", "Cookie": "a=b", "X-Api-Key": "caller-key",
               "OpenAI-Organization": "o"}  # fmt: skip
    body = {"model": "bot", "messages": [{"role": "user", "content": "x"}]}
    await gw.post("/v1/chat/completions", body, headers=headers)
    (_, sent, _) = upstream.requests[0]
    assert sent["authorization"] == "Bearer sk-upstream-key"
    assert sent["x-team"] == "a"
    assert not {"x-stainless-lang", "cookie", "x-api-key", "openai-organization"} & sent.keys()


async def test_a_choice_by_its_number_reaches_fastgpt(gateway, scripted):
    names = ("select_pause_stream_detail", "select_continue_stream_detail")
    upstream = await scripted(*(Script([capture("4.9.7", name).body]) for name in names))
    gw = await gateway(agents={"bot": {**AGENTS["fastgpt"], "base_url": upstream.url}})
    asked = await (await gw.chat("bot", "我要请假")).json()
    text = asked["choices"][0]["message"]["content"]
    assert text == "请选择部门 🏢\n1. 人事部\n2. 财务部 💰"
    answer = await (await gw.chat("bot", "2", chat_id=asked["id"])).json()
    assert answer["choices"][0]["message"]["content"] == "\n已转财务部"
    assert upstream.bodies()[-1]["messages"] == [{"role": "user", "content": "财务部 💰"}]
