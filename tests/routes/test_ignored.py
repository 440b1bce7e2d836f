"""Options that a bot does not support, and other platforms' names for the gateway's members."""

import orjson
import pytest

TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
NAMED = {"type": "function", "function": {"name": "f"}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
FILE = "7b1e6b1c-2f3a-4f0e-9a53-0c9b1f8f0a11"
BOTS = ["fastgpt", "dify", "coze"]


@pytest.mark.parametrize("agent", [*BOTS, "zhipu"])
@pytest.mark.parametrize(
    "choice",
    ["required", "any", NAMED, {"type": "any"}, {"type": "allowed_tools", "mode": "required"}],
)
async def test_a_tool_that_must_be_called_is_400_by_name(all_five, agent, choice):
    answer = await all_five[0].complete(agent, tools=[TOOL], tool_choice=choice)
    await answer.read()
    error = (await answer.json())["error"]
    assert (answer.status, error["param"]) == (400, "tool_choice")
    assert error["code"] == "unsupported_parameter"
    assert "'tool_choice'" in error["message"]


@pytest.mark.parametrize("agent", BOTS)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_schema_that_must_be_followed_is_400_by_name(all_five, agent, stream):
    answer = await all_five[0].complete(agent, response_format=SCHEMA, stream=stream)
    await answer.read()
    assert (answer.status, (await answer.json())["error"]["param"]) == (400, "response_format")


@pytest.mark.parametrize(
    "choice",
    [
        "auto",
        "none",
        {"type": "auto"},
        {"type": "allowed_tools", "allowed_tools": {"mode": "auto"}},
    ],
)
async def test_a_tool_that_may_be_called_is_no_demand(all_five, choice):
    answer = await all_five[0].complete("dify", tools=[TOOL], tool_choice=choice)
    await answer.read()
    assert answer.status == 200


async def test_a_route_asks_the_agent_that_can(gateway, demo):
    dify, openai = await demo("dify"), await demo("openai")
    agents = {
        "bot": {"platform": "dify", "api_key": "app-1", "base_url": dify.url},
        "model": {"platform": "openai", "api_key": "sk-1", "base_url": openai.url, "model": "m"},
    }
    gw = await gateway(agents=agents, routes={"both": ["bot", "model"]})
    answer = await gw.complete("both", tools=[TOOL], tool_choice="required")
    await answer.read()
    assert (answer.status, answer.headers["x-gateway-agent"]) == (200, "model")
    assert "x-gateway-ignored" not in answer.headers


@pytest.mark.parametrize("agent", BOTS)
@pytest.mark.parametrize("stream", [False, True])
async def test_options_without_effect_are_named_on_the_answer(all_five, agent, stream):
    asked = {"tools": [TOOL], "n": 2, "logprobs": True, "response_format": {"type": "json_object"},
             "temperature": 0, "seed": 7, "tool_choice": "auto"}  # fmt: skip
    answer = await all_five[0].complete(agent, stream=stream, **asked)
    await answer.read()
    assert answer.status == 200
    assert answer.headers["x-gateway-ignored"] == (
        "logprobs, n, response_format, seed, temperature, tools"
    )


async def test_options_that_zhipu_follows_are_not_named(all_five):
    answer = await all_five[0].complete("zhipu", tools=[TOOL], temperature=0.5, n=2, max_tokens=9)
    await answer.read()
    assert answer.headers["x-gateway-ignored"] == "n"


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"stop": ["a", "b"]}, "stop"), ({"stop": ["a"]}, None), ({"stop": "a"}, None), ({"stop": [7]}, "stop"),
        ({"thinking": "enabled"}, None), ({"thinking": "high"}, "thinking"),
        ({"thinking": {"type": "disabled"}, "reasoning_effort": "low"}, None),
        ({"max_tokens": 100.0}, None), ({"max_tokens": 0.5}, "max_tokens"), ({"max_tokens": -1}, None),
        ({"max_tokens": 500_000}, "max_tokens"), ({"max_tokens": 8, "max_completion_tokens": 9}, "max_completion_tokens"),
        ({"temperature": "0.5"}, "temperature"), ({"temperature": 1.5}, "temperature"), ({"temperature": 1}, None),
        ({"top_p": 0.5, "do_sample": True}, None), ({"do_sample": "yes", "top_p": 1}, "do_sample, top_p"),
        ({"response_format": SCHEMA}, None), ({"tools": [TOOL]}, None), ({"tools": "f", "n": 2}, "n, tools"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
async def test_values_that_were_put_right_are_named(all_five, asked, named, stream):
    answer = await all_five[0].complete("zhipu", stream=stream, **asked)
    await answer.read()
    assert answer.status == 200
    assert answer.headers.get("x-gateway-ignored") == named


async def test_openai_compatible_agents_ignore_nothing(all_five):
    answer = await all_five[0].complete("openai", n=2, logprobs=True, made_up=1)
    await answer.read()
    assert "x-gateway-ignored" not in answer.headers


@pytest.mark.parametrize(
    "asked",
    [{"n": 1}, {"tools": []}, {"tools": None}, {"logprobs": False}, {"tool_choice": "none"},
     {"response_format": {"type": "text"}}, {"stop": ""}, {"function_call": None}, {"stream_options": {"include_usage": True}}],
)  # fmt: skip
async def test_what_asks_for_nothing_is_not_named(all_five, asked):
    answer = await all_five[0].complete("dify", **asked)
    await answer.read()
    assert answer.status == 200
    assert "x-gateway-ignored" not in answer.headers


async def test_names_are_fit_for_a_header_and_not_too_many(all_five):
    odd = {"名\r\nx: y": 1, "a,b": 1, "c" * 900: 1, **{f"z{i}": 1 for i in range(50)}}
    answer = await all_five[0].complete("dify", **odd)
    await answer.read()
    value = answer.headers["x-gateway-ignored"]
    assert value.endswith(", ...")
    assert "a%2Cb" in value
    assert len(value) < 1000


# /api/v1/chat.


async def test_difys_own_body_is_understood(all_five):
    gw, demos = all_five
    body = {"inputs": {"city": "杭州"}, "query": "hi", "response_mode": "streaming", "user": "u",
            "conversation_id": "", "auto_generate_name": False, "files": []}  # fmt: skip
    answer = await gw.post("/api/v1/chat", body, headers={"Agent": "dify"})
    await answer.read()
    assert answer.content_type == "text/event-stream"
    assert answer.headers["x-gateway-ignored"] == "auto_generate_name"
    assert demos["dify"].requests[-1][1]["inputs"]["city"] == "杭州"


async def test_fastgpts_own_body_is_understood(all_five):
    gw, demos = all_five
    body = {"chatId": "c-1", "stream": False, "detail": False, "variables": {"a": "1"}, "customUid": "u-7",
            "messages": [{"role": "user", "content": "你好"}]}  # fmt: skip
    answer = await gw.post("/api/v1/chat", body, headers={"Agent": "fastgpt"})
    await answer.read()
    assert (answer.status, (await answer.json())["id"]) == (200, "c-1")
    sent = demos["fastgpt"].requests[-1][1]
    assert (sent["chatId"], sent["customUid"], sent["variables"]["a"]) == ("c-1", "u-7", "1")
    assert sent["messages"][-1]["content"] == "你好"


async def test_own_names_win_and_the_others_are_listed(all_five):
    gw, demos = all_five
    body = {"query": "hi", "stream": False, "response_mode": "streaming", "variables": {"a": "ours"},
            "inputs": {"a": "theirs", "b": "theirs"}, "messages": [1], "madeUp": 1}  # fmt: skip
    answer = await gw.post("/api/v1/chat", body, headers={"Agent": "dify"})
    await answer.read()
    assert (answer.status, answer.content_type) == (200, "application/json")
    assert answer.headers["x-gateway-ignored"] == "madeUp, response_mode, messages"
    inputs = demos["dify"].requests[-1][1]["inputs"]
    assert (inputs["a"], inputs["b"]) == ("ours", "theirs")


@pytest.mark.parametrize("mode", ["sse", "", 1, [], None])
async def test_a_response_mode_that_is_none_is_400(all_five, mode):
    body = {"query": "hi", "response_mode": mode}
    answer = await all_five[0].post("/api/v1/chat", body, headers={"Agent": "dify"})
    await answer.read()
    assert answer.status == (200 if mode is None else 400)


async def test_a_file_may_be_given_as_dify_takes_it(all_five):
    gw, demos = all_five
    file = {"type": "image", "transfer_method": "local_file", "upload_file_id": FILE}
    body = {"query": "hi", "files": [file]}
    answer = await gw.post("/api/v1/chat", body, headers={"Agent": "dify"})
    await answer.read()
    assert demos["dify"].requests[-1][1]["files"][0]["upload_file_id"] == FILE


# Bodies that are not in UTF-8.


@pytest.mark.parametrize(
    ("told", "codec"),
    [("gbk", "gbk"), ("GB2312", "gbk"), ("gb18030", "gb18030"), ('"gbk"', "gbk"), ("big5", "big5"),
     ("utf-16", "utf-16"), ("utf-16le", "utf-16-le"), ("UTF-16BE", "utf-16-be"), ("", "utf-16"),
     ("", "utf-16-le"), ("", "utf-8-sig"), ("utf-8", "utf-8"), ("utf-8", "utf-16")],
)  # fmt: skip
async def test_a_body_is_read_as_it_says_or_shows(all_five, told, codec):
    gw, demos = all_five
    body = orjson.dumps({"query": "小羊，你好嗎"}).decode().encode(codec)
    kind = f"application/json; charset={told}" if told else "application/json"
    headers = {"Agent": "dify", "Content-Type": kind}
    answer = await gw.post("/api/v1/chat", body, headers=headers)
    await answer.read()
    assert answer.status == 200, await answer.text()
    assert demos["dify"].requests[-1][1]["query"] == "小羊，你好嗎"


async def test_declared_latin_1_is_read_and_utf_8_as_well(all_five):
    gw, demos = all_five
    kind = {"Agent": "dify", "Content-Type": "application/json; charset=ISO-8859-1"}
    for raw in ('{"query": "déjà vu"}'.encode("latin-1"), '{"query": "déjà vu"}'.encode()):
        answer = await gw.post("/api/v1/chat", raw, headers=kind)
        await answer.read()
        assert demos["dify"].requests[-1][1]["query"] == "déjà vu"


async def test_half_a_character_in_utf_16_is_replaced(all_five):
    gw, demos = all_five
    raw = '{"query": "a\ud83d"}'.encode("utf-16-le", "surrogatepass")
    answer = await gw.post("/api/v1/chat", raw, headers={"Agent": "dify"})
    await answer.read()
    assert demos["dify"].requests[-1][1]["query"] == "a\ufffd"


@pytest.mark.parametrize("told", ["gbk", "utf-16", "klingon", "rot13", "base64", "unicode_escape"])
async def test_a_body_that_cannot_be_read_is_400(all_five, told):
    headers = {"Agent": "dify", "Content-Type": f"application/json; charset={told}"}
    answer = await all_five[0].post("/api/v1/chat", b'{"query": "\xff\xff\xff"}', headers=headers)
    await answer.read()
    assert answer.status == 400
