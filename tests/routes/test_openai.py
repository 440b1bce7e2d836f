"""The OpenAI surface: what a strict client needs, whichever platform answers."""

import pytest
from conftest import AGENTS, Script, sse_events, streamed

TURNS = [
    {"role": "system", "content": "你是客服"},
    {"role": "user", "content": "第一问"},
    {"role": "assistant", "content": "第一答"},
    {"role": "user", "content": [{"type": "text", "text": "第二问"}]},
]


@pytest.mark.parametrize("agent", AGENTS)
async def test_a_stream_is_what_a_strict_client_needs(all_five, agent):
    gw, _ = all_five
    options = {"stream": True, "stream_options": {"include_usage": True}}
    answer = await gw.complete(agent, "hi #think", **options)
    events = sse_events(await answer.read())
    chunks = [data for _, data in events if data != "[DONE]"]
    assert events[-1] == ("", "[DONE]")
    assert {name for name, _ in events} == {""}
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert len({(c["id"], c["created"], c["model"], c["object"]) for c in chunks}) == 1
    assert chunks[0]["id"].startswith("chatcmpl-")
    assert chunks[0]["object"] == "chat.completion.chunk"
    assert [c["usage"] is None for c in chunks] == [True] * (len(chunks) - 1) + [False]
    assert chunks[-1]["choices"] == []
    assert chunks[-2]["choices"][0]["delta"] == {}
    finishes = [c["choices"][0]["finish_reason"] for c in chunks[:-1]]
    assert finishes == [None] * (len(finishes) - 1) + ["stop"]
    for c in chunks[1:-2]:
        assert len(c["choices"][0]["delta"]) == 1  # never text and thinking in one delta


async def test_without_include_usage_no_chunk_speaks_of_it(all_five):
    gw, _ = all_five
    for agent in AGENTS:
        raw = await (await gw.complete(agent, stream=True)).read()
        assert b'"usage":{' not in raw
        assert b'"usage":null' not in raw


@pytest.mark.parametrize("agent", ["fastgpt", "dify", "coze", "zhipu"])
async def test_a_whole_answer_names_the_model_that_was_asked_for(all_five, agent):
    gw, _ = all_five
    body = await (await gw.complete(agent.upper())).json()
    assert body["object"] == "chat.completion"
    assert body["model"] == agent.upper()
    assert body["id"].startswith("chatcmpl-")
    assert body["choices"][0]["message"]["role"] == "assistant"


async def test_earlier_turns_reach_each_platform_in_its_form(all_five):
    gw, demos = all_five
    for agent in AGENTS:
        assert (await gw.complete(agent, messages=TURNS)).status == 200
    sent = {agent: demos[agent].requests[-1][1] for agent in AGENTS}
    prompt = "你是客服\n\nUser: 第一问\n\nAssistant: 第一答\n\nUser: 第二问"
    assert sent["dify"]["query"] == prompt
    assert [(m["role"], m["content"]) for m in sent["fastgpt"]["messages"]] == [
        ("user", "你是客服\n\n第一问"), ("assistant", "第一答"), ("user", "第二问"),
    ]  # fmt: skip
    coze = sent["coze"]["additional_messages"]
    assert [(m["role"], m["content"]) for m in coze] == [
        ("user", "你是客服\n\n第一问"), ("assistant", "第一答"), ("user", "第二问"),
    ]  # fmt: skip
    assert sent["openai"]["messages"] == TURNS
    assert sent["zhipu"]["messages"] == TURNS


@pytest.mark.parametrize("agent", ["fastgpt", "dify", "coze"])
async def test_with_a_conversation_only_the_question_is_sent(all_five, agent):
    gw, demos = all_five
    first = await gw.complete(agent, user="u")
    conversation = (await first.json())["gateway"]["conversation_id"]
    assert first.headers["x-conversation-id"] == conversation
    answer = await gw.complete(agent, messages=TURNS, user="u", conversation_id=conversation)
    assert answer.status == 200
    sent = str(demos[agent].requests[-1])
    assert "第二问" in sent
    assert "第一问" not in sent
    assert "你是客服" not in sent
    by_header = await gw.post(
        "/v1/chat/completions",
        {"model": agent, "user": "u", "messages": TURNS},
        headers={"x-conversation-id": conversation},
    )
    assert (await by_header.json())["gateway"]["conversation_id"] == conversation


async def test_models_lists_agents_and_routes_and_gives_each(gateway, demo):
    served = await demo("openai")
    agents = {
        "客服": {"platform": "openai", "base_url": served.url, "models": ["gpt-4o", "org/m"]},
        "dify": {"platform": "dify", "base_url": "demo:"},
    }
    gw = await gateway(agents=agents, routes={"support": ["dify"]})
    body = await (await gw.get("/v1/models")).json()
    names = ["客服", "客服/gpt-4o", "客服/org/m", "dify", "support"]
    assert [model["id"] for model in body["data"]] == names
    assert body["object"] == "list"
    for name in names:
        for path in (f"/v1/models/{name}", f"/v1/models/{name.replace('/', '%2F')}"):
            model = await (await gw.get(path)).json()
            assert (model["id"], model["object"]) == (name, "model")
            assert isinstance(model["created"], int)
    missing = await gw.get("/v1/models/nope")
    assert missing.status == 404
    assert (await missing.json())["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("prefix", ["/v1", "", "/v1/v1"])
async def test_a_doubled_or_missing_v1_is_tolerated(all_five, prefix):
    gw, _ = all_five
    body = {"model": "dify", "messages": [{"role": "user", "content": "hi"}]}
    assert (await gw.post(f"{prefix}/chat/completions", body)).status == 200
    assert (await gw.get(f"{prefix}/models")).status == 200
    assert (await gw.get(f"{prefix}/models/dify")).status == 200


USER = {"role": "user", "content": "hi"}
BAD_BODIES = [
    ({"messages": [USER]}, "model"),
    ({"model": 5.5, "messages": [USER]}, "model"),
    ({"model": "dify"}, "messages"),
    ({"model": "dify", "messages": []}, "messages"),
    ({"model": "dify", "messages": {}}, "messages"),
    ({"model": "dify", "messages": ["x"]}, "messages[0]"),
    ({"model": "dify", "messages": [{"role": "boss", "content": "x"}]}, "messages[0].role"),
    ({"model": "dify", "messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"model": "dify", "messages": [{"role": "user", "content": [{"type": "smell"}]}]},
     "messages[0].content[0].type"),
    ({"model": "dify", "messages": [USER, {"role": "assistant", "content": "x"}]}, "messages"),
    ({"model": "dify", "messages": [USER], "stream": "yes"}, "stream"),
    ({"model": "dify", "messages": [USER], "variables": 3}, "variables"),
    ({"model": "dify", "messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]},
     "messages[0].content[0].image_url.url"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "param"), BAD_BODIES)
async def test_a_bad_request_is_400_and_names_the_member(all_five, body, param):
    gw, _ = all_five
    answer = await gw.post("/v1/chat/completions", body)
    error = (await answer.json())["error"]
    assert answer.status == 400
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert isinstance(error["message"], str)


async def test_unknown_members_are_ignored_and_null_is_fine(all_five):
    gw, _ = all_five
    extra = {"temperature": None, "stream": None, "stream_options": None, "user": None, "n": 2,
             "x-new-thing": [1], "tools": None, "metadata": {"a": "b"}}  # fmt: skip
    answer = await gw.complete("dify", **extra)
    assert answer.status == 200
    assert len((await answer.json())["choices"]) == 1


async def test_other_paths_under_v1_are_json_404_and_other_methods_405(all_five):
    gw, _ = all_five
    for path in ("/v1/responses", "/v1/nothing", "/v1/completions"):
        answer = await gw.post(path, {"model": "dify", "input": "x"})
        assert answer.status == 404
        assert (await answer.json())["error"]["type"] == "invalid_request_error"
    answer = await gw.get("/v1/chat/completions")
    assert answer.status == 405
    assert "POST" in (await answer.json())["error"]["message"]
    assert (await gw.get("/nowhere")).status == 404


# An OpenAI-compatible agent: passed through.


async def test_unknown_members_pass_and_the_model_is_replaced(all_five):
    gw, demos = all_five
    body = {"model": "openai", "messages": TURNS, "seed": 7, "vendor": {"a": [1]}, "n": 2}
    answer = await gw.post("/v1/chat/completions", body)
    assert len((await answer.json())["choices"]) == 2
    assert demos["openai"].requests[-1][1] == {**body, "model": "gpt-4o-mini"}


async def test_agent_slash_model_asks_for_that_model(all_five):
    gw, demos = all_five
    await gw.complete("OpenAI/org/some-model")
    assert demos["openai"].requests[-1][1]["model"] == "org/some-model"


async def test_a_stream_is_passed_through_byte_for_byte(gateway, scripted):
    pieces = [
        b'data: {"id":"x","choices":[{"index":0,"delta":{"role":"assistant"}}],"vendor":1}\r\n\r\n',
        b': note\n\ndata: {"id":"x","choices":[{"index":0,"delta":{"content":"\xe4\xbd', b"\xa0",
        b'"},"finish_reason":null}],"x":{"y":"\xe2\x80\xa8"}}\n\n',
        b'data: {"id":"x","choices":[{"index":0,"delta":{},"finish_reason":"eos_token"}]}\n\n',
        b"data: [DONE]\n\n",
    ]  # fmt: skip
    upstream = await scripted(Script(pieces))
    gw = await gateway(agents={"bot": {**AGENTS["openai"], "base_url": upstream.url}})
    assert await (await gw.complete("bot", stream=True)).read() == b"".join(pieces)


async def test_a_whole_answer_is_passed_through_byte_for_byte(gateway, scripted):
    body = b'{"id":"x", "choices":[{"message":{"content":"hi"},"vendor":[1]}],"usage":null, "z":1}'
    upstream = await scripted(Script([body], headers={"Content-Type": "application/json"}))
    gw = await gateway(agents={"bot": {**AGENTS["openai"], "base_url": upstream.url}})
    assert await (await gw.complete("bot")).read() == body


async def test_tools_and_their_results_work(all_five):
    gw, _ = all_five
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": {}}}]
    body = await (await gw.complete("openai", "#tool", tools=tools)).json()
    (call,) = body["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    assert body["choices"][0]["finish_reason"] == "tool_calls"
    raw = await (await gw.complete("openai", "#tool", tools=tools, stream=True)).read()
    assert streamed(raw)["finish"] == ["tool_calls"]


async def test_a_coze_tool_call_and_its_result_pass_through(all_five):
    gw, demos = all_five
    body = await (await gw.complete("coze", "#tool")).json()
    assert body["choices"][0]["finish_reason"] == "tool_calls"
    message = body["choices"][0]["message"]
    assert message["content"] is None
    (call,) = message["tool_calls"]
    result = {"role": "tool", "tool_call_id": call["id"], "content": "18℃"}
    answer = await gw.complete("coze", messages=[USER, message, result])
    assert "工具结果：18℃" in (await answer.json())["choices"][0]["message"]["content"]
    path, sent = demos["coze"].requests[-1]
    assert "submit_tool_outputs" in path
    assert sent["tool_outputs"] == [{"tool_call_id": "call_demo1", "output": "18℃"}]


async def test_embeddings_and_other_posts_are_passed_on(all_five):
    gw, demos = all_five
    body = {"model": "openai/text-embedding-3-small", "input": ["a", "b"], "dimensions": 2}
    answer = await gw.post("/v1/embeddings", body)
    assert answer.status == 200
    assert len((await answer.json())["data"]) == 2
    assert demos["openai"].requests[-1] == (
        "/v1/embeddings", {**body, "model": "text-embedding-3-small"},
    )  # fmt: skip
    missing = await gw.post("/v1/rerank", {"model": "openai", "query": "a"})
    assert missing.status in (404, 502)
    assert (await missing.json())["error"]["message"]


async def test_an_upstreams_400_reaches_the_caller_with_its_message(gateway, scripted):
    body = b'{"error":{"message":"temperature too high","type":"invalid_request_error","param":"temperature","code":null}}'
    json = {"Content-Type": "application/json"}
    upstream = await scripted(Script([body], status="400 Bad Request", headers=json))
    gw = await gateway(agents={"bot": {**AGENTS["openai"], "base_url": upstream.url}})
    answer = await gw.complete("bot")
    error = (await answer.json())["error"]
    assert (answer.status, error["param"]) == (400, "temperature")
    assert "temperature too high" in error["message"]


async def test_no_credit_upstream_is_429_that_sdks_do_not_retry(gateway, scripted):
    body = b'{"error":{"message":"quota","type":"insufficient_quota","code":"insufficient_quota"}}'
    json = {"Content-Type": "application/json"}
    upstream = await scripted(Script([body], status="429 X", headers=json))
    gw = await gateway(agents={"bot": {**AGENTS["openai"], "base_url": upstream.url}})
    answer = await gw.complete("bot")
    assert answer.status == 429
    assert answer.headers["x-should-retry"] == "false"
    assert (await answer.json())["error"]["code"] == "insufficient_quota"


async def test_an_empty_data_event_does_not_reach_the_client(gateway, scripted):
    text = b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}\n\n'
    upstream = await scripted(Script([b"data:\n\n", text + b"data: \n\n", b"data: [DONE]\n\n"]))
    gw = await gateway(agents={"bot": {**AGENTS["openai"], "base_url": upstream.url}})
    raw = await (await gw.complete("bot", stream=True)).read()
    assert raw == text + b"data: [DONE]\n\n"
