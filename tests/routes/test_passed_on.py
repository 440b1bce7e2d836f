"""Answers passed through under /v1 are as safe as every other answer."""

import json

import pytest
from conftest import AGENTS, Script

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
