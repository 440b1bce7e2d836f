"""Other endpoints under /v1: passed on by the rules of chats, and as safe as every other answer."""

import asyncio
import io
import json
import re
from typing import Any

import aiohttp
import orjson
import pytest
from conftest import AGENTS, Script
from test_streaming import until
from wire import listening

from gateway.http.context import STATE

KEY = "sk-operators-own-key"


@pytest.fixture
def passed_on(gateway, scripted):
    """`await passed_on(script, **agent's settings)`: the answer of POST /v1/responses."""

    async def start(script: Script, **settings):
        upstream = await scripted(script)
        agent = {**AGENTS["openai"], "base_url": upstream.url, "api_key": KEY, **settings}
        gw = await gateway(agents={"bot": agent})
        return await gw.post("/v1/responses", {"model": "bot", "input": "x"})

    return start


async def test_a_page_of_the_upstream_can_do_nothing(passed_on):
    page = b"<script>alert(1)</script>"
    answer = await passed_on(Script([page], headers={"Content-Type": "text/html"}))
    assert await answer.read() == page
    assert answer.headers["Content-Type"] == "text/html"
    assert answer.headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("kind", ["", "text/pl\x01ain", "text/pl\0ain", "text/\udcff"])
async def test_a_content_type_that_is_none_is_replaced(passed_on, kind):
    answer = await passed_on(Script([b"hi"], headers={"Content-Type": kind}))
    assert (answer.status, await answer.read()) == (200, b"hi")
    assert answer.headers["Content-Type"] == "application/octet-stream"


EVENT = b'event: error\ndata: {"message":"bad key Bearer %b"}\n\n'


async def test_an_event_that_repeats_the_key_is_passed_on_without_it(passed_on):
    event = EVENT % KEY.encode()
    answer = await passed_on(Script([event[:60], 0.01, event[60:]]))
    assert await answer.read() == EVENT % b"***"


async def test_a_200_that_repeats_the_key_is_passed_on_without_it(passed_on):
    told = {"message": f"key {KEY}", "headers": ["Bearer geheim-token-99", "geheim-token-99"]}
    body = json.dumps({"error": told}).encode()
    script = Script([body], headers={"Content-Type": "application/json"})
    raw = await (await passed_on(script, headers={"X-Own": "Bearer geheim-token-99"})).read()
    masked = {"message": "key ***", "headers": ["***", "***"]}
    assert json.loads(raw) == {"error": masked}


async def test_what_is_no_credential_is_passed_on_as_it_is(passed_on):
    title = "A company's own title, no 1"
    body = f"{title}: not-needed, ollama, EMPTY".encode()
    script = Script([body], headers={"Content-Type": "text/plain"})
    answer = await passed_on(script, api_key="not-needed", headers={"X-Title": title})
    assert await answer.read() == body


async def test_azures_version_follows_every_endpoint(gateway, scripted):
    reply = Script([b'{"choices":[{"message":{"content":"hi"},"finish_reason":"stop"}]}'],
                   headers={"Content-Type": "application/json"})  # fmt: skip
    upstream = await scripted(reply)
    url = f"{upstream.url}/openai/deployments/gpt-4o?api-version=2024-06-01"
    gw = await gateway(agents={"bot": {**AGENTS["openai"], "base_url": url, "api_key": KEY}})
    await (await gw.complete("bot")).read()
    await (await gw.post("/v1/responses?stream=false", {"model": "bot", "input": "x"})).read()
    lines = [line.split()[1] for line, _, _ in upstream.requests]
    assert [line.partition("/gpt-4o")[2] for line in lines] == [
        "/chat/completions?api-version=2024-06-01",
        "/responses?api-version=2024-06-01&stream=false",
    ]


# Retries, fallbacks, slots and time limits: what holds for chats holds here.

JSON = {"Content-Type": "application/json"}
DONE = Script([b'{"data":[1],"usage":{"prompt_tokens":3,"total_tokens":3}}'], headers=JSON)
BODY = {"model": "both", "input": "hi"}


@pytest.fixture
def routed(gateway, scripted, demo):
    """`await routed(scripts, scripts, **settings)`: a gateway whose route `both` has two agents
    that follow these scripts, and an agent of Dify before them; and the two upstreams."""

    async def start(first, second, config=None, **settings):
        dify = await demo("dify", key="app-test-key")
        upstreams = [await scripted(*first), await scripted(*second)]
        agents: dict[str, Any] = {"bot": {**AGENTS["dify"], "base_url": dify.url}}
        for name, upstream in zip(("one", "two"), upstreams, strict=True):
            own = {"base_url": upstream.url, "model": f"model-{name}"}
            agents[name] = {**AGENTS["openai"], **own, **settings}
        gw = await gateway(agents=agents, routes={"both": ["bot", "one", "two"]}, **(config or {}))
        return gw, *upstreams

    return start


def refusal(status: str, message: str = "no") -> Script:
    return Script([orjson.dumps({"error": {"message": message}})], status=status, headers=JSON)


async def test_an_agent_that_may_be_asked_again_is_asked_again(routed):
    gw, one, two = await routed([refusal("503 X"), DONE], [DONE])
    answer = await gw.post("/v1/embeddings", BODY)
    assert (answer.status, (await answer.json())["data"]) == (200, [1])
    assert answer.headers["x-gateway-agent"] == "one"
    assert answer.headers["x-gateway-attempts"] == "2"
    assert [len(one.requests), len(two.requests)] == [2, 0]


@pytest.mark.parametrize(
    "script",
    [
        refusal("500 X"),
        refusal("401 X"),
        refusal("429 X", "You exceeded your current quota, please check your plan and billing."),
        Script(end="reset", chunked=False, before_headers_s=3600, status="never"),
    ],
    ids=["broken", "its key is wrong", "no credit", "silent"],
)
async def test_the_next_agent_of_the_route_answers(script, routed):
    gw, one, two = await routed([script], [DONE], timeouts={"total": "1s"})
    answer = await gw.post("/v1/embeddings?x=y", BODY)
    assert answer.status == 200
    assert answer.headers["x-gateway-agent"] == "two"
    assert [upstream.bodies("/v1/embeddings?x=y") for upstream in (one, two)] == [
        [{"model": "model-one", "input": "hi"}],
        [{"model": "model-two", "input": "hi"}],
    ]


@pytest.mark.parametrize(
    ("script", "status"),
    [
        (refusal("400 X"), 400),
        (Script(status="404 X"), 404),
        (Script([b"{"], headers=JSON, end="reset"), 200),
        (Script(headers=JSON, end="reset"), 502),
    ],
    ids=["rejected", "no such endpoint", "cut after its first byte", "cut before it"],
)
async def test_what_may_have_acted_or_was_refused_is_not_sent_again(script, status, routed):
    gw, one, two = await routed([script], [DONE])
    answer = await gw.post("/v1/embeddings", BODY)
    assert answer.status == status
    if status == 200:
        with pytest.raises(aiohttp.ClientError):
            await answer.read()
    assert [len(one.requests), len(two.requests)] == [1, 0]


async def test_an_endpoint_that_the_upstream_lacks_is_named(routed):
    gw, *_ = await routed([Script(status="404 X")], [DONE])
    error = (await (await gw.post("/v1/embeddings", BODY)).json())["error"]
    assert error["message"].endswith("The upstream has no endpoint 'embeddings'.")


@pytest.mark.parametrize("is_form", [False, True], ids=["json", "form"])
async def test_a_body_without_a_model_is_400(is_form, routed):
    gw, one, _ = await routed([DONE], [DONE])
    form = aiohttp.FormData({"input": "hi"}, default_to_multipart=True)
    body = {"data": form} if is_form else {"body": {"input": "hi"}}
    answer = await gw.post("/v1/embeddings", **body)
    error = (await answer.json())["error"]
    assert (answer.status, error["param"]) == (400, "model")
    assert error["message"].startswith("'model' is missing")
    assert one.requests == []


async def test_a_form_goes_whole_to_the_next_agent(routed):
    gw, one, two = await routed([refusal("500 X")], [DONE])
    part = b'Content-Disposition: form-data; name="%b"\r\n\r\n%b'
    parts = [part % (b"model", b"both"), part % (b"file", b"x" * 3_000_000)]
    body = b"".join(b"--b\r\n" + p + b"\r\n" for p in parts) + b"--b--\r\n"
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = await gw.post("/v1/audio/transcriptions", body, headers=kind)
    assert answer.status == 200
    first, second = (upstream.requests[0][2] for upstream in (one, two))
    assert second.count(b"x") == 3_000_000
    assert first.replace(b"model-one", b"model-two") == second


async def test_a_route_alone_is_named_to_who_may_not_ask_its_agents(routed):
    keys = [{"name": "web", "key": "sk-web-key-1", "agents": ["both"]}]
    gw, _, two = await routed([refusal("500 X")], [DONE], config={"auth": {"keys": keys}})
    key = {"Authorization": "Bearer sk-web-key-1"}
    answer = await gw.post("/v1/embeddings", BODY, headers=key)
    assert answer.headers["x-gateway-agent"] == "both"
    two.scripts = [refusal("400 X", "Agent 'two' rejects this.")]
    answer = await gw.post("/v1/embeddings", BODY, headers=key)
    assert answer.headers["x-gateway-agent"] == "both"
    told = (await answer.json())["error"]["message"]
    assert "'both'" in told
    assert "'two'" not in told


async def test_passed_on_calls_know_places_and_breakers_too(gateway, scripted):
    upstream = await scripted(Script(status="503 X"))
    settings = {"base_url": upstream.url, "breaker": {"failures": 2, "cooldown": "1m"}}
    gw = await gateway(agents={"bot": {**AGENTS["openai"], **settings, "retries": 0}})
    body = {"model": "bot", "input": "hi"}
    statuses = [(await gw.post("/v1/embeddings", body)).status for _ in range(3)]
    assert statuses == [502, 502, 503]
    assert len(upstream.requests) == 2


async def test_an_empty_answer_is_passed_on(passed_on):
    answer = await passed_on(Script(headers=JSON))
    assert (answer.status, await answer.read()) == (200, b"")
    assert answer.headers["x-gateway-attempts"] == "1"


@pytest.mark.parametrize("limit", ["idle", "total"])
async def test_an_answer_that_stops_coming_is_broken_off(limit, passed_on):
    answer = await passed_on(Script([b"{"], headers=JSON, end="hang"), timeouts={limit: "300ms"})
    assert answer.status == 200
    with pytest.raises(aiohttp.ClientError):
        await answer.read()


async def test_a_slow_reader_slows_the_upstream_and_is_not_its_silence(gateway, scripted):
    """The upstream sends all it has while the client waits longer than `idle`."""
    piece = b"x" * 1_000_000
    upstream = await scripted(Script([piece] * 60, headers=JSON))
    own = {"base_url": upstream.url, "timeouts": {"idle": "500ms"}}
    gw = await gateway(agents={"bot": {**AGENTS["openai"], **own}})
    answer = await gw.post("/v1/responses", {"model": "bot", "input": "x"})
    await asyncio.sleep(1.0)
    assert upstream.written < 40_000_000
    assert len(await answer.read()) == 60_000_000


async def test_a_caller_that_leaves_ends_the_call_and_frees_its_slot(gateway, scripted):
    upstream = await scripted(Script([b"{"], headers=JSON, end="hang"))
    gw = await gateway(agents={"bot": {**AGENTS["openai"], "base_url": upstream.url}})
    answer = await gw.post("/v1/responses", {"model": "bot", "input": "x"})
    target = gw.app[STATE].now.routing.targets["bot"]
    assert target.running == 1
    answer.close()
    async with asyncio.timeout(5):
        await upstream.gone.wait()
    await until(lambda: target.running == 0)


async def test_on_disconnect_drain_reads_the_rest(gateway, scripted):
    ready = asyncio.Event()
    upstream = await scripted(Script([b"{", ready, b"}"], headers=JSON))
    own = {"base_url": upstream.url, "on_disconnect": "drain"}
    gw = await gateway(agents={"bot": {**AGENTS["openai"], **own}})
    answer = await gw.post("/v1/responses", {"model": "bot", "input": "x"})
    target = gw.app[STATE].now.routing.targets["bot"]
    answer.close()
    await until(lambda: target.draining == 1)
    ready.set()
    await until(lambda: target.running == 0)
    assert not upstream.gone.is_set()


async def test_a_form_refused_halfway_ends_its_connection(gateway, stack):
    """What follows on that connection would be read as the rest of the form."""
    said = b'{"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}'

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])  # type: ignore[index]
            is_form = b"transcriptions" in head
            if not is_form:
                await reader.readexactly(length)
            status, body = (b"404 Not Found", b"{}") if is_form else (b"200 OK", said)
            writer.write(b"HTTP/1.1 %b\r\nContent-Type: application/json\r\n" % status)
            writer.write(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
            if is_form:
                await reader.readexactly(length)

    url = f"http://127.0.0.1:{await stack.enter_async_context(listening(serve))}/v1"
    gw = await gateway(agents={"bot": {**AGENTS["openai"], "base_url": url}})
    for _ in range(3):
        form = aiohttp.FormData({"model": "bot"})
        form.add_field("file", io.BytesIO(bytes(8 << 20)), filename="a.wav")
        answer = await gw.post("/v1/audio/transcriptions", data=form)
        assert answer.status == 404
        async with asyncio.timeout(5):
            answer = await gw.complete("bot")
        assert answer.status == 200
