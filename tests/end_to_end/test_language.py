"""Errors in the caller's language: what is translated, what stays, and when it is decided."""

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass

import orjson
import pytest
from conftest import AGENTS, Script, leave_all_to_aiohttp, sse_events
from test_streaming import HELLO, chunk

CHINESE = {"Accept-Language": "zh-CN,zh;q=0.9,en;q=0.8"}
SURFACES = ["/v1/chat/completions", "/api/v1/chat"]
KEY = "sk-static-12345678"
LIMITED = {
    "anonymous": False,
    "keys": [{"name": "web", "key": KEY, "permissions": ["chat"], "agents": ["support"]}],
}
JSON = {"Content-Type": "application/json"}


def is_chinese(text: str) -> bool:
    return bool(re.search("[一-鿿]", text))


def message_of(body: dict) -> str:
    return body["error"]["message"] if "error" in body else body["msg"]


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    raw: bytes

    @property
    def message(self) -> str:
        """That of an error, or of the event that ends a stream."""
        is_stream = self.headers["Content-Type"].startswith("text/event-stream")
        return message_of(sse_events(self.raw)[-1][1] if is_stream else orjson.loads(self.raw))


async def ask(gw, surface: str, agent: str = "bot", headers: dict[str, str] | None = None, **body):
    if surface == "/api/v1/chat":
        headers, body = {"Agent": agent, **(headers or {})}, {"query": "hi", **body}
    else:
        body = {"model": agent, "messages": [{"role": "user", "content": "hi"}], **body}
    async with gw.post(surface, body, headers=headers or {}) as answer:
        return Answer(answer.status, answer.headers, await answer.read())


async def connection(gw):
    return await asyncio.open_connection("127.0.0.1", int(gw.url.rpartition(":")[2]))


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    await writer.wait_closed()


async def raw(gw, request: str) -> str:
    """The answer to literal bytes on a connection of their own."""
    reader, writer = await connection(gw)
    writer.write(request.replace("\n", "\r\n").encode())
    answer = await reader.read()
    await close(writer)
    return answer.decode()


def failing(url: str = "http://127.0.0.1:9", **more) -> dict:
    return {**AGENTS["openai"], "base_url": url, "retries": 0, **more}


@pytest.fixture
async def gw(gateway):
    return await gateway(agents={"bot": failing()})


# Which language.


@pytest.mark.parametrize("surface", SURFACES)
@pytest.mark.parametrize(
    ("header", "language"),
    [(None, "en"), ("en-US,en;q=0.9,zh;q=0.8", "en"), ("fr", "en"), ("zh", "zh"), ("zh-Hant-TW", "zh"),
     ("zh-CN,zh;q=0.9,en;q=0.8", "zh"), ("x," * 2000 + "zh", "en")],
)  # fmt: skip
async def test_the_header_decides_which_language_an_error_has(gw, surface, header, language):
    headers = {} if header is None else {"Accept-Language": header}
    answer = await ask(gw, surface, "nobody", headers)
    assert is_chinese(answer.message) == (language == "zh")
    assert answer.headers["Content-Language"] == language
    assert answer.headers["Vary"] == "Accept-Language"


@pytest.mark.parametrize("surface", SURFACES)
@pytest.mark.parametrize("agent", ["nobody", "bot"])
async def test_all_but_the_message_is_the_same(gw, surface, agent):
    english = await ask(gw, surface, agent)
    chinese = await ask(gw, surface, agent, CHINESE)
    assert english.status == chinese.status
    assert english.message != chinese.message
    bodies = [orjson.loads(answer.raw) for answer in (english, chinese)]
    for body in bodies:
        body.get("error", body).pop("message", None) or body.pop("msg")
    assert bodies[0] == bodies[1]


async def test_the_configuration_may_say_chinese_for_all(gateway):
    gw = await gateway(agents={"bot": failing()}, server={"language": "zh"})
    for headers in ({}, {"Accept-Language": "en"}):
        answer = await ask(gw, SURFACES[0], headers=headers)
        assert is_chinese(answer.message)
        assert answer.headers["Content-Language"] == "zh"
        assert "Vary" not in answer.headers


async def test_an_answer_to_a_page_varies_by_both(gw):
    page = {**CHINESE, "Origin": "http://localhost:5173"}
    answer = await ask(gw, SURFACES[0], "nobody", page)
    assert answer.headers["Vary"] == "Accept-Language, Origin"
    assert answer.headers["Access-Control-Allow-Origin"] == page["Origin"]


async def test_an_answer_that_succeeds_never_looks_at_the_header(gateway, scripted, monkeypatch):
    def fail(header):
        raise AssertionError(header)

    monkeypatch.setattr("gateway.http.language.preferred", fail)
    upstream = await scripted(Script(HELLO))
    gw = await gateway(agents={"bot": {**AGENTS["dify"], "base_url": upstream.url, "mode": "chat"}})
    for surface in SURFACES:
        for stream in (True, False):
            answer = await ask(gw, surface, headers=CHINESE, stream=stream)
            assert answer.status == 200
            assert "Content-Language" not in answer.headers
            assert "Vary" not in answer.headers


async def test_the_log_stays_english(gw, caplog):
    caplog.set_level("INFO")
    await ask(gw, SURFACES[1], "nobody", CHINESE)
    lines = [orjson.loads(r.message) for r in caplog.records if r.name == "gateway.access"]
    assert lines[-1]["reason"].startswith("There is no agent 'nobody'.")


# After the answer has begun.


@pytest.mark.parametrize("surface", SURFACES)
@pytest.mark.parametrize("direct", [True, False])
async def test_an_error_in_a_stream_is_in_the_callers_language(
    gateway, scripted, surface, direct, monkeypatch
):
    if not direct:
        leave_all_to_aiohttp(monkeypatch)
    upstream = await scripted(Script([chunk({"content": "你"}), 0.05], end="reset"))
    gw = await gateway(agents={"bot": failing(upstream.url)})
    said = {}
    for language, headers in (("en", {}), ("zh", CHINESE)):
        answer = await ask(gw, surface, headers=headers, stream=True)
        _, said[language] = sse_events(answer.raw)[-1]
    assert answer.status == 200
    assert said["en"]["error"]["message"].startswith("Agent 'bot': The upstream")
    assert said["zh"]["error"]["message"].startswith("智能体 'bot'：上游")
    assert said["zh"]["error"]["type"] == said["en"]["error"]["type"] == "upstream_error"
    assert said["zh"]["error"]["code"] == said["en"]["error"]["code"]
    if surface == "/api/v1/chat":
        assert said["zh"]["msg"] == said["zh"]["error"]["message"]


@pytest.mark.parametrize("surface", SURFACES)
async def test_an_error_after_keep_alives_is_in_the_callers_language(gateway, scripted, surface):
    late = Script([b'{"error":{"message":"oh"}}'], "500 Oh", JSON, before_headers_s=0.3)
    upstream = await scripted(late)
    server = {"keepalive": "100ms", "keepalive_whole": True}
    gw = await gateway(agents={"bot": failing(upstream.url)}, server=server)
    whole = await ask(gw, surface, headers=CHINESE, stream=False)
    assert whole.status == 200
    assert whole.message.startswith("智能体 'bot'：")
    stream = await ask(gw, surface, headers=CHINESE, stream=True)
    assert stream.status == 200
    assert stream.message.startswith("智能体 'bot'：")


# What an error quotes.


async def test_an_upstreams_words_stay_as_they_are(gateway, scripted):
    body = b'{"error":{"message":"Your horse is lame.","code":"x"}}'
    upstream = await scripted(Script([body], "400 Bad Request", JSON))
    gw = await gateway(agents={"bot": failing(upstream.url)})
    answer = await ask(gw, SURFACES[0], headers=CHINESE)
    assert answer.message == (
        "智能体 'bot'：上游 API 不接受这个请求。上游 API 的原话：Your horse is lame."
    )


@pytest.mark.parametrize("stream", [True, False])
async def test_a_secret_is_masked_and_a_message_cut_in_chinese(gateway, scripted, stream):
    secret = "up-0123456789-secret-9876543210"
    words = f"the key {secret} is refused " + "x" * 2000
    body = orjson.dumps({"error": {"message": words}})
    whole = Script([body], "400 Bad Request", JSON)
    begun = Script([chunk({"content": "a"}), 0.05, b"data: " + body + b"\n\n"])
    upstream = await scripted(begun if stream else whole)
    gw = await gateway(agents={"bot": failing(upstream.url, api_key=secret)})
    answer = await ask(gw, SURFACES[0], headers=CHINESE, stream=stream)
    assert is_chinese(answer.message)
    assert "the key *** is refused" in answer.message
    assert secret[:8].encode() not in answer.raw
    assert len(answer.message) == 500
    assert answer.message.endswith("…")


@pytest.mark.parametrize("surface", SURFACES)
@pytest.mark.parametrize("stream", [True, False])
async def test_a_routes_caller_learns_no_agents_name_in_chinese(gateway, scripted, surface, stream):
    pieces = [chunk({"content": "a"}), 0.05] if stream else []
    upstream = await scripted(Script(pieces, end="reset"))
    agents = {"secret-bot": failing(upstream.url)}
    gw = await gateway(agents=agents, routes={"support": ["secret-bot"]}, auth=LIMITED)
    headers = {**CHINESE, "Authorization": f"Bearer {KEY}"}
    answer = await ask(gw, surface, "support", headers, stream=stream)
    assert answer.message.startswith("智能体 'support'：")
    assert "secret-bot" not in answer.raw.decode() + str(answer.headers)


# Other places.


async def test_a_bad_body_is_explained_in_chinese(with_accounts, tmp_path):
    gw = await with_accounts(f"sqlite:///{tmp_path}/gateway.db")
    token = await gw.login()
    headers = {**CHINESE, "Authorization": f"Bearer {token}"}
    cases = [
        ({}, "'name' 缺失。"),
        ({"name": 1}, "'name' 必须是文本。"),
        ({"name": ""}, "'name' 太短（至少 1）。"),
        ({"name": "a", "max_calls": 0}, "'max_calls' 不能小于 1。"),
        ({"name": "a", "agent": ["x"]}, "'agent' 在这里无效；是不是想写 'agents'？"),
        ({"name": "a", "permissions": []}, "'permissions' 条目太少（至少 1）。"),
        ({"name": "a", "permissions": ["x"] * 30}, "'permissions' 最多可有 20 个条目。"),
        ({"name": "a", "rate_limits": {"chat": "often"}},
         "'rate_limits' 不可用：'chat' 必须是速率，如 60/min、5/s 或 1000/day。"),
        ({"name": "a", "agents": ["nobody"]}, "没有名为 'nobody' 的智能体。可用的有：dify, openai。"),
    ]  # fmt: skip
    for body, words in cases:
        async with gw.post("/api/v1/api-keys", body, headers=headers) as answer:
            assert (answer.status, (await answer.json())["msg"]) == (400, words)


async def test_the_health_of_an_agent_is_described_in_chinese(gw):
    async with gw.get("/api/v1/agents/bot/health", headers=CHINESE) as answer:
        detail = (await answer.json())["data"]["detail"]
        assert detail == "智能体 'bot'：上游拒绝连接；它在运行吗？base_url 写对了吗？"
        assert answer.headers["Content-Language"] == "zh"
    async with gw.get("/api/v1/agents/bot/health") as answer:  # cached, and yet English
        assert (await answer.json())["data"]["detail"].startswith("Agent 'bot': The upstream")


BAD_HTTP = "GET /v1/models HTTP/1.1\nHost: x y\nAccept-Language: zh\nbad header\n\n"


async def test_bad_http_is_answered_in_the_configured_language(gateway):
    """Its headers cannot be read."""
    for language in ("en", "zh"):
        gw = await gateway(agents={"bot": failing()}, server={"language": language})
        answer = await raw(gw, BAD_HTTP)
        assert answer.split()[1] == "400"
        assert is_chinese(answer) == (language == "zh")
        assert f"Content-Language: {language}\r\n" in answer


async def test_a_connection_too_many_has_the_configured_language(gateway):
    """No header has been read."""
    server = {"language": "zh", "max_connections": 10}
    gw = await gateway(agents={"bot": failing()}, server=server)
    held = [await connection(gw) for _ in range(10)]
    answer = await raw(gw, "")
    assert answer.split()[1] == "503"
    assert "Content-Language: zh\r\n" in answer
    assert "网关的连接数已达上限" in answer
    for _, writer in held:
        await close(writer)


async def test_a_preflight_of_a_strange_page_is_refused_in_chinese(gateway):
    gw = await gateway(agents={"bot": failing()}, auth={"anonymous": True})
    headers = {**CHINESE, "Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    async with gw.client.options(gw.url + SURFACES[0], headers=headers) as answer:
        assert answer.status == 403
        assert message_of(await answer.json()).startswith(
            "来自 https://evil.example 的网页不能调用"
        )


async def test_an_expectation_is_refused_in_chinese(gw):
    headers = {**CHINESE, "Expect": "tea"}
    async with gw.client.get(gw.url + "/livez", headers=headers) as answer:
        assert is_chinese(message_of(await answer.json()))
