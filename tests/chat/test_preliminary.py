"""What an adapter fetches before it asks: modes, inputs, tokens and conversations."""

import asyncio

import orjson
import pytest
from conftest import AGENTS, Script, stopped, streamed
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from gateway.demo import serve_demo
from gateway.demo.base import json
from gateway.demo.dify import DifyDemo

JSON = {"Content-Type": "application/json"}


def dify(url: str, **more):
    return {**AGENTS["dify"], "base_url": url, **more}


@pytest.mark.parametrize("mode", ["chat", "agent-chat", "advanced-chat", "completion", "workflow"])
async def test_dify_auto_asks_info_once_and_remembers(gateway, demo, mode):
    served = await demo("dify", mode=mode)
    gw = await gateway(agents={"bot": dify(served.url)})
    for _ in range(2):
        answer = await gw.chat("bot", "讲个故事")
        assert answer.status == 200
        assert "讲个故事" in (await answer.json())["choices"][0]["message"]["content"]


async def test_dify_auto_is_learned_by_one_call_for_many(gateway, scripted):
    end = b'data: {"event":"message_end","conversation_id":"c","message_id":"m"}\n\n'
    text = b'data: {"event":"message","answer":"x","conversation_id":"c","message_id":"m"}\n\n'
    upstream = await scripted(
        Script([b'{"mode":"chat"}'], headers=JSON, before_headers_s=0.1), Script([text + end])
    )
    gw = await gateway(agents={"bot": dify(upstream.url)})
    answers = await asyncio.gather(*(gw.chat("bot") for _ in range(5)))
    assert [answer.status for answer in answers] == [200] * 5
    assert sum("/v1/info" in line for line, _, _ in upstream.requests) == 1


async def test_dify_is_stopped_even_if_its_mode_is_unknown(gateway, scripted):
    text = b'data: {"event":"message","answer":"x","task_id":"t-1","conversation_id":"c"}\n\n'
    no_info = Script([b"{}"], status="500 X", headers=JSON)
    upstream = await scripted(no_info, Script([text], end="hang"), stopped())
    agent = dify(upstream.url, timeouts={"idle": "50ms"})
    gw = await gateway(agents={"bot": agent})
    answer = await gw.chat("bot", stream=True)
    assert "error" in streamed(await answer.read())
    async with asyncio.timeout(20):
        while len(upstream.requests) < 3:
            await asyncio.sleep(0.01)
    assert "/v1/chat-messages/t-1/stop" in upstream.requests[2][0]


@pytest.mark.parametrize("mode", ["completion", "workflow"])
async def test_an_old_difys_mode_is_learned_from_its_refusals(gateway, stack, mode):
    class OldDify(DifyDemo):
        async def info(self, request):
            return json({"name": "old", "description": "", "tags": []})

    old = OldDify(mode=mode, pace_s=0)
    gw = await gateway(agents={"bot": dify(await stack.enter_async_context(serve_demo(old)))})
    for _ in range(2):
        assert (await gw.chat("bot", "hi")).status == 200
    assert [path for path, _ in old.requests].count("/v1/chat-messages") == 1  # then it is known


async def test_difys_wrong_mode_in_the_config_is_reported(gateway, demo):
    served = await demo("dify", mode="workflow")
    gw = await gateway(agents={"bot": dify(served.url, mode="chat")})
    answer = await gw.chat("bot")
    assert answer.status == 502
    assert "mode" in (await answer.json())["msg"]


async def test_a_workflows_output_variable_is_the_answer(gateway, scripted):
    frames = [
        b'data: {"event":"workflow_started","workflow_run_id":"r","task_id":"t","data":{}}\n\n',
        b'data: {"event":"text_chunk","data":{"text":"junk","from_variable_selector":["1","usage"]}}\n\n',
        b'data: {"event":"text_chunk","data":{"text":"\xe5\xa5\xbd","from_variable_selector":["1","text"]}}\n\n',
        b'data: {"event":"workflow_finished","data":{"status":"succeeded","total_tokens":9,'
        b'"outputs":{"text":"\xe5\xa5\xbd\xe7\x9a\x84","usage":"junk"}}}\n\n',
    ]
    upstream = await scripted(Script(frames))
    bot = dify(upstream.url, mode="workflow", input_variable="q", output_variable="text")
    gw = await gateway(agents={"bot": bot})
    answer = await (await gw.chat("bot", "hi")).json()
    assert answer["choices"][0]["message"]["content"] == "好的"
    assert answer["usage"]["total_tokens"] == 9
    assert upstream.bodies()[0]["inputs"] == {"q": "hi"}


async def test_moderation_replaces_whole_and_continues_streams(gateway, scripted):
    frames = [
        '{"event":"message","answer":"联系 138","conversation_id":"c","message_id":"m"}',
        '{"event":"message_replace","answer":"联系 ***"}',
        '{"event":"message","answer":"，谢谢"}',
        '{"event":"message_end","metadata":{}}',
    ]
    upstream = await scripted(Script([f"data: {frame}\n\n".encode() for frame in frames]))
    gw = await gateway(agents={"bot": dify(upstream.url, mode="chat")})
    whole = (await (await gw.chat("bot")).json())["choices"][0]
    assert (whole["message"]["content"], whole["finish_reason"]) == (
        "联系 ***，谢谢",
        "content_filter",
    )
    got = streamed(await (await gw.chat("bot", stream=True)).read())
    assert got["text"] == "联系 138\n\n联系 ***，谢谢"
    assert got["finish"] == ["content_filter"]


async def test_zhipu_assistants_use_one_token_and_yield_deltas(gateway, demo):
    served = await demo("zhipu", key="id.secret")
    bot = {"platform": "zhipu", "api": "glms", "assistant_id": "65a0", "api_key": "id.secret",
           "base_url": f"{served.url}/chatglm/assistant-api/v1/"}  # fmt: skip
    gw = await gateway(agents={"bot": bot})
    first = streamed(await (await gw.chat("bot", "第一问", stream=True)).read())
    assert first["text"].count("演示机器人") == 1
    assert first["done"]
    (conversation,) = first["ids"]
    second = await (await gw.chat("bot", "第二问", conversation_id=conversation)).json()
    assert "你上一个问题是“第一问”" in second["choices"][0]["message"]["content"]
    tokens = [path for path, _ in served.demo.requests if path.endswith("get_token")]
    assert len(tokens) == 1
    served.demo.tokens.clear()  # revoked early: one new token, and the call succeeds
    assert (await gw.chat("bot")).status == 200


async def test_zhipus_applications_make_a_conversation_and_go_on_in_it(gateway, demo):
    served = await demo("zhipu", key="id.secret")
    bot = {"platform": "zhipu", "api": "application", "app_id": "189", "api_key": "id.secret",
           "base_url": served.url}  # fmt: skip
    gw = await gateway(agents={"bot": bot})
    first = await (await gw.chat("bot", "第一问")).json()
    second = await (await gw.chat("bot", "第二问", conversation_id=first["id"])).json()
    assert "第一问" in second["choices"][0]["message"]["content"]
    assert second["usage"]["total_tokens"] > 0
    assert (await gw.chat("bot", "#fail")).status == 502


async def test_zhipus_model_api_gets_values_that_it_accepts(gateway, demo):
    served = await demo("zhipu")
    gw = await gateway(agents={"bot": {**AGENTS["zhipu"], "base_url": f"{served.url}/api/paas/v4"}})
    await gw.complete("bot", temperature=1.7, top_p=1, stop=["a", "b"], max_completion_tokens=5,
                      tool_choice="auto", seed=1, user="u")  # fmt: skip
    sent = served.demo.requests[-1][1]
    assert (sent["temperature"], sent["top_p"], sent["stop"]) == (1.0, 0.99, ["a"])
    assert sent["max_tokens"] == 5
    assert not {"tool_choice", "seed", "stream_options"} & sent.keys()
    assert len(sent["user_id"]) >= 6


async def test_coze_workflows_and_oauth(gateway, demo):
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()
    served = await demo("coze", key="only-tokens-from-oauth")
    bot = {"platform": "coze", "mode": "workflow", "workflow_id": "75", "base_url": served.url,
           "oauth": {"app_id": "1", "key_id": "k", "private_key": pem}}  # fmt: skip
    gw = await gateway(agents={"bot": bot})
    first = await (await gw.chat("bot", "第一问")).json()
    second = await (await gw.chat("bot", "第二问", conversation_id=first["id"])).json()
    assert "第一问" in second["choices"][0]["message"]["content"]
    paths = [path for path, _ in served.demo.requests]
    assert paths.count("/api/permission/oauth2/token") == 1
    assert served.demo.requests[-1][1]["conversation_id"] == first["id"]


async def test_a_broken_oauth_key_is_reported_but_not_shown(gateway, demo):
    served = await demo("coze")
    oauth = {"app_id": "1", "key_id": "k", "private_key": "not-a-pem-key-at-all"}
    bot = {"platform": "coze", "bot_id": "1", "base_url": served.url, "oauth": oauth}
    gw = await gateway(agents={"bot": bot})
    answer = await gw.chat("bot")
    assert answer.status == 502
    assert "private_key" in (text := await answer.text())
    assert "not-a-pem" not in text


@pytest.mark.parametrize(
    ("platform", "tail"),
    [
        ("fastgpt", ""), ("fastgpt", "/"), ("fastgpt", "/api"), ("fastgpt", "/api/v1/"),
        ("fastgpt", "/api/v1/chat/completions"), ("dify", ""), ("dify", "/v1"), ("dify", "/v1/"),
        ("dify", "/v1/chat-messages"), ("coze", "/"), ("coze", "/v3/chat"), ("coze", "/open_api/v2"),
        ("zhipu", ""), ("zhipu", "/api"), ("zhipu", "/api/paas/v4/"),
        ("zhipu", "/api/paas/v4/chat/completions"), ("openai", ""), ("openai", "/v1"),
        ("openai", "/v1/"), ("openai", "/v1/v1"), ("openai", "/v1/chat/completions"),
    ],
)  # fmt: skip
async def test_base_urls_are_forgiving(gateway, demo, platform, tail):
    served = await demo(platform)
    gw = await gateway(agents={"bot": {**AGENTS[platform], "base_url": served.url + tail}})
    assert (await gw.chat("bot")).status == 200


LOST = {
    "dify": ("404 X", {"code": "not_found", "message": "Conversation Not Exists."}),
    "ragflow": ("200 OK", {"code": 102, "message": "Session does not belong to this chat!"}),
}


@pytest.mark.parametrize("kind", LOST)
async def test_a_lost_conversation_begins_again_once(gateway, scripted, kind):
    status, body = LOST[kind]
    upstream = await scripted(Script([orjson.dumps(body)], status=status, headers=JSON))
    own = {"dify": {"mode": "chat"}, "ragflow": {"chat_id": "c1"}}[kind]
    agent = {"platform": kind, "api_key": "app-test-key", "base_url": upstream.url, **own}
    gw = await gateway(agents={"bot": agent})
    turns = [{"role": r, "content": "hi"} for r in ("user", "assistant", "user")]
    old = "5e3f4c1a-8a55-4b0e-9b1c-0d6c1b2f7a11"

    async def sent(messages: list[dict[str, str]], **more: str) -> list[bool]:
        upstream.requests.clear()
        answer = await gw.complete("bot", messages=messages, **more)
        assert answer.status == 404
        assert (await answer.json())["error"]["code"] == "conversation_not_found"
        return [old.encode() in body for _, _, body in upstream.requests]

    assert await sent(turns, conversation_id=old) == [True, False]
    assert await sent(turns[-1:], conversation_id=old) == [True]
    assert await sent(turns) == [False]
