"""The findings of an attack on the gateway, each with its test."""

import asyncio
import logging

import aiohttp
import orjson
import pytest
import yarl
from conftest import AGENTS, Script, streamed
from test_streaming import HELLO, chunk, dify, idle, until

from gateway.errors import clean
from gateway.http.context import STATE

JSON = {"Content-Type": "application/json"}


def bot(kind: str, url: str, **more):
    return {**AGENTS[kind], "base_url": url, **({"mode": "chat"} if kind == "dify" else {}), **more}


# Secrets


@pytest.mark.parametrize(
    "text", ["eyJ" * 400_000, "Bearer " * 200_000, "sk-" * 300_000, "a." * 500_000]
)
@pytest.mark.timeout(5)  # without the bound this froze the process for minutes
def test_an_endless_error_text_costs_no_time(text):
    assert len(clean(text)) <= 2000


async def test_a_key_cut_by_the_length_limit_is_still_redacted(gateway, scripted):
    key = "unusual/key+without=known~shape-0123456789"
    for before in range(440, 520, 4):
        words = "x" * before + key
        body = orjson.dumps({"code": "x", "message": words})
        upstream = await scripted(Script([body], status="500 X", headers=JSON))
        gw = await gateway(agents={"bot": bot("dify", upstream.url, api_key=key, retries=0)})
        assert "unusual" not in await (await gw.chat("bot")).text()


async def test_a_key_in_any_member_of_an_error_is_masked(gateway, scripted):
    key = "ZebraKey-Quite.Secret99"
    body = orjson.dumps({"error": {"message": key, "param": key, "code": key, "type": key}})
    for status in (400, 401, 404, 409, 422, 429, 500):
        upstream = await scripted(Script([body], status=f"{status} X", headers=JSON))
        gw = await gateway(agents={"bot": bot("openai", upstream.url, api_key=key, retries=0)})
        for path in ("/v1/chat/completions", "/v1/embeddings"):
            body_ = {"model": "bot", "messages": [{"role": "user", "content": "x"}]}
            assert "Zebra" not in await (await gw.post(path, body_)).text()
        assert "Zebra" not in await (await gw.chat("bot")).text()


async def test_halves_of_keys_headers_and_tokens_are_masked_too(gateway, scripted):
    secret, header = "thesecrethalf99", "header-value-42"
    body = orjson.dumps({"error": {"message": f"bad {secret} in {header}", "code": 7}})
    upstream = await scripted(Script([body], status="500 X", headers=JSON))
    agent = bot("zhipu", upstream.url, api_key=f"theid.{secret}", headers={"X-A": header})
    gw = await gateway(agents={"bot": agent})
    text = await (await gw.chat("bot")).text()
    assert secret not in text
    assert header not in text
    health = await (await gw.get("/api/v1/agents/bot/health")).text()
    assert secret not in health


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"error"}],"error":{"message":"KEY"}}\n\n',
        b'data: {"error":["KEY"]}\n\n',
        b'data: {"error" : {"message":"KEY"}}\n\n',
        b'event: error\ndata: {"message":"KEY"}\n\n',
        b'data: {"error":"KEY"}\n\n',
    ],
)
async def test_an_error_in_any_shape_is_not_passed_through(gateway, scripted, event):
    upstream = await scripted(Script([chunk({"content": "a"}), event, b"data: [DONE]\n\n"]))
    key = "sk-upstream-key"
    event = event.replace(b"KEY", key.encode())
    upstream.scripts[0].pieces[1] = event
    gw = await gateway(agents={"bot": bot("openai", upstream.url)})
    raw = await (await gw.complete("bot", stream=True)).read()
    got = streamed(raw)
    assert got["error"]["type"]
    assert key.encode() not in raw
    assert "done" not in got
    assert got["finish"] == []


# One answer per request


async def test_a_pass_on_that_is_cut_is_cut_for_the_caller_too(gateway, scripted):
    headers = {**JSON, "Content-Length": "50"}
    upstream = await scripted(Script([b'{"a":'], headers=headers, chunked=False))
    gw = await gateway(agents={"bot": bot("openai", upstream.url)})
    with pytest.raises(aiohttp.ClientPayloadError):
        await (await gw.post("/v1/embeddings", {"model": "bot", "input": "x"})).read()


async def test_a_bug_in_a_decoder_fails_that_answer_only(gateway, scripted, monkeypatch, caplog):
    from gateway.platforms.dify.decoder import DifyDecoder

    upstream = await scripted(Script([HELLO[0], 0.05, HELLO[1]]))
    gw = await gateway(agents={"bot": bot("dify", upstream.url)})
    feed, calls = DifyDecoder.feed, []

    def fails_on_the_second(self, data):
        calls.append(data)
        if len(calls) == 2:
            raise KeyError("a bug")
        return feed(self, data)

    monkeypatch.setattr(DifyDecoder, "feed", fails_on_the_second)
    raw = await (await gw.complete("bot", stream=True)).read()
    assert streamed(raw)["error"]["code"] == "upstream_failed"
    assert b"HTTP/1.1" not in raw
    assert "a bug" in caplog.text


@pytest.mark.parametrize(
    "usage",
    [
        '{"prompt_tokens":18446744073709551615,"completion_tokens":18446744073709551615}',
        '{"total_tokens":-1}',
        "[]",
        '"x"',
        '{"prompt_tokens":1e300}',
    ],
)
async def test_counts_that_are_no_counts_are_unknown(gateway, scripted, usage):
    end = b'data: {"event":"message_end","metadata":{"usage":%s}}\n\n' % usage.encode()
    upstream = await scripted(Script([HELLO[0], end]))
    gw = await gateway(agents={"bot": bot("dify", upstream.url)})
    body = await (await gw.chat("bot")).json()
    assert body["usage"]["total_tokens"] == 0
    assert body["gateway"]["usage"] == "unknown"


async def test_notes_that_cannot_be_written_again_are_dropped(gateway, scripted):
    deep = b"[" * 400 + b"]" * 400
    frames = [
        dify("workflow_started", workflow_run_id="r"),
        b'data: {"event":"text_chunk","data":{"text":"ok"}}\n\n',
        b'data: {"event":"workflow_finished","data":{"status":"succeeded","outputs":{"x":%s}}}\n\n'
        % deep,
    ]
    upstream = await scripted(Script(frames))
    agent = bot("dify", upstream.url, mode="workflow", input_variable="q")
    gw = await gateway(agents={"bot": agent})
    for stream in (False, True):
        answer = await gw.chat("bot", stream=stream, detail=True)
        assert answer.status == 200
        assert "ok" in await answer.text()


@pytest.mark.parametrize("code", ['"²"', '"' + "9" * 5000 + '"', "1e400", "[]", '"404"'])
async def test_odd_error_codes_are_survived(gateway, scripted, code):
    body = b'data: {"error":{"message":"m","code":%s}}\n\n' % code.encode()
    upstream = await scripted(Script([body]))
    gw = await gateway(agents={"bot": bot("openai", upstream.url)})
    assert (await gw.complete("bot", stream=True)).status == 502


# Pass-on


PATHS = ["/v1/%2e%2e/admin", "/v1/..%2fzz", "/v1/a%2f%2e%2e%2fz", "/v1/a%3fq=1%23f", "/v1/a%00b",
         "/v1/chat/completions//", "/v1/.x"]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
async def test_no_path_leads_out_of_the_base_url(gateway, scripted, path):
    upstream = await scripted(Script([b"{}"], headers=JSON))
    gw = await gateway(agents={"bot": bot("openai", upstream.url)})
    url = yarl.URL(gw.url + path, encoded=True)
    async with gw.client.post(url, data=b'{"model":"bot","input":"x"}') as answer:
        assert answer.status in (400, 404)
    assert upstream.requests == []


async def test_a_plain_path_and_its_query_are_passed_on(gateway, scripted):
    upstream = await scripted(Script([b'{"ok":1}'], headers=JSON))
    gw = await gateway(agents={"bot": bot("openai", upstream.url)})
    answer = await gw.post("/v1/audio/speech?x=1", {"model": "bot"})
    assert await answer.json() == {"ok": 1}
    assert upstream.requests[0][0] == "POST /v1/audio/speech?x=1 HTTP/1.1"


@pytest.mark.parametrize(
    "script", [Script(before_headers_s=60), Script([b"{"], end="hang", headers=JSON)]
)
async def test_pass_on_has_time_limits_and_gives_its_place_back(gateway, scripted, script):
    upstream = await scripted(script)
    limits = {"total": "300ms", "idle": "200ms"}
    gw = await gateway(agents={"bot": bot("openai", upstream.url, timeouts=limits)})
    answer = await gw.post("/v1/embeddings", {"model": "bot", "input": "x"})
    if script.pieces:  # it had begun, so it can only be cut off
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()
    else:
        assert answer.status == 504
    await until(lambda: idle(gw))


# Learned settings


async def test_many_first_calls_find_an_old_difys_mode_together(gateway, stack):
    from gateway.demo import serve_demo
    from gateway.demo.base import json
    from gateway.demo.dify import DifyDemo

    class OldDify(DifyDemo):
        async def info(self, request):
            return json({"name": "old"})

    old = OldDify(mode="workflow", pace_s=0)
    url = await stack.enter_async_context(serve_demo(old))
    gw = await gateway(agents={"bot": bot("dify", url, mode="auto")})
    answers = await asyncio.gather(*(gw.chat("bot") for _ in range(20)))
    assert {answer.status for answer in answers} == {200}


async def test_a_failed_preliminary_is_not_learned_from(gateway, scripted):
    form = b'{"user_input_form":[{"paragraph":{"variable":"topic","required":true}}]}'
    run = Script(
        [
            b'data: {"event":"workflow_finished","data":{"status":"succeeded","outputs":{"a":"b"}}}\n\n'
        ]
    )
    upstream = await scripted(
        Script([b"oops"], status="500 X"), run, Script([form], headers=JSON), run
    )
    gw = await gateway(agents={"bot": bot("dify", upstream.url, mode="workflow")})
    for _ in range(2):
        assert (await gw.chat("bot", "hi")).status == 200
    inputs = [body["inputs"] for body in upstream.bodies("/workflows/run")]
    assert inputs == [{"query": "hi"}, {"topic": "hi"}]


@pytest.mark.parametrize("kind", ["zhipu", "coze"])
async def test_a_token_refused_twice_ends_with_the_real_error(gateway, scripted, kind):
    token = {"result": {"access_token": "t-0123456789", "expires_in": 864000}}
    if kind == "coze":
        token = {"access_token": "t-0123456789", "expires_in": 4_000_000_000}
    refusal = {"code": 4100, "msg": "token invalid", "message": "token invalid", "status": 401}
    give = Script([orjson.dumps(token)], headers=JSON)
    refuse = Script([orjson.dumps(refusal)], status="401 X", headers=JSON)
    upstream = await scripted(give, refuse, give, refuse, give, refuse)
    if kind == "zhipu":
        agent = bot("zhipu", upstream.url, api="glms", assistant_id="a")
    else:
        from cryptography.hazmat.primitives import serialization as ser
        from cryptography.hazmat.primitives.asymmetric import rsa

        pem = rsa.generate_private_key(65537, 2048).private_bytes(
            ser.Encoding.PEM, ser.PrivateFormat.PKCS8, ser.NoEncryption()
        )
        oauth = {"app_id": "1", "key_id": "k", "private_key": pem.decode()}
        agent = {"platform": "coze", "bot_id": "1", "base_url": upstream.url, "oauth": oauth}
    gw = await gateway(agents={"bot": agent})
    answer = await gw.chat("bot")
    assert answer.status == 502
    assert "api_key" in (await answer.json())["msg"]
    assert len(upstream.requests) == 4  # one token, one refusal, one new token, the error


async def test_the_next_target_answers_when_one_refuses_for_good(gateway, scripted):
    refusals = {
        "key": Script([b'{"code":"unauthorized"}'], status="401 X", headers=JSON),
        "quota": Script([b'{"code":"provider_quota_exceeded"}'], status="400 X", headers=JSON),
        "page": Script([b"<html>"], status="404 X", headers={"Content-Type": "text/html"}),
    }
    good = await scripted(Script(HELLO))
    for script in refusals.values():
        bad = await scripted(script)
        agents = {"bad": bot("dify", bad.url), "good": bot("dify", good.url)}
        gw = await gateway(agents=agents, routes={"any": ["bad", "good"]})
        answer = await gw.complete("any")
        assert (answer.status, answer.headers["x-gateway-agent"]) == (200, "good")
        assert len(bad.requests) == 1


# Bytes


async def test_text_before_an_event_that_is_too_long_is_not_lost(gateway, scripted):
    upstream = await scripted(Script([HELLO[0] + HELLO[1] + b"x" * 1_200_000 + b"\n\n"]))
    gw = await gateway(agents={"bot": bot("dify", upstream.url)})
    got = streamed(await (await gw.complete("bot", stream=True)).read())
    assert got["text"] == "你好"
    assert "more than" in got["error"]["message"]


@pytest.mark.parametrize("kind", [None, "text/plain", "application/octet-stream"])
async def test_json_without_the_right_label_is_still_a_refusal(gateway, scripted, kind):
    headers = {"Content-Type": kind} if kind else {}
    upstream = await scripted(Script([b'{"code":4101,"msg":"x"}'], headers=headers))
    gw = await gateway(agents={"bot": bot("coze", upstream.url)})
    answer = await gw.complete("bot", stream=True)
    assert (await answer.json())["error"]["code"] == "upstream_auth_failed"


async def test_events_labelled_as_json_are_still_events(gateway, scripted):
    upstream = await scripted(Script(HELLO, headers=JSON))
    gw = await gateway(agents={"bot": bot("dify", upstream.url)})
    assert streamed(await (await gw.complete("bot", stream=True)).read())["text"] == "你好"


async def test_comments_alone_are_no_sign_of_life(gateway, scripted):
    upstream = await scripted(Script([b": ping\n\n", 0.1] * 30, end="hang"))
    limits = {"first_delta": "500ms", "total": "50s"}
    gw = await gateway(agents={"bot": bot("openai", upstream.url, timeouts=limits)})
    async with asyncio.timeout(20):
        assert (await gw.complete("bot", stream=True)).status == 504


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_body_that_is_not_compressed_as_it_says_is_400(all_five, caplog, encoding):
    gw, _ = all_five
    headers = {"Content-Encoding": encoding}
    answer = await gw.post("/v1/chat/completions", b'{"model":"dify"}', headers=headers)
    assert answer.status == 400
    assert "Traceback" not in caplog.text


async def test_what_only_looks_like_an_id_is_400(all_five):
    gw, _ = all_five
    host, port = gw.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = b'{"model":"coze","messages":[{"role":"user","content":"x"}]}'
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nx-conversation-id: \xff\xfe\r\n"
    )
    writer.write(head + b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
    assert (await reader.readline()).startswith(b"HTTP/1.1 400")
    writer.close()


async def test_oversized_names_and_lists_are_refused_quickly(all_five):
    gw, _ = all_five
    many = [{"type": "text", "text": "x"}] * 100_000
    bodies = [
        {"model": "m" * 5_000_000, "messages": [{"role": "user", "content": "x"}]},
        {"model": "dify", "messages": [{"role": "user", "content": many}]},
    ]
    async with asyncio.timeout(20):
        for body in bodies:
            assert (await gw.post("/v1/chat/completions", body)).status in (400, 404)
        answer = await gw.chat("dify", files=["x"] * 100_000)
        assert answer.status == 400


async def test_a_broken_stream_is_logged(all_five, caplog):
    caplog.set_level(logging.INFO)
    gw, _ = all_five
    await (await gw.complete("dify", "#break", stream=True)).read()
    await asyncio.sleep(0)
    assert '"error":"upstream_failed"' in caplog.text


async def test_nothing_is_left_of_many_leavers(all_five):
    gw, _ = all_five
    before = len(asyncio.all_tasks())

    async def leave(i: int) -> None:
        body = {
            "model": list(AGENTS)[i % 5],
            "stream": True,
            "messages": [{"role": "user", "content": "#long"}],
        }
        async with aiohttp.ClientSession() as client:
            call = asyncio.ensure_future(client.post(f"{gw.url}/v1/chat/completions", json=body))
            await asyncio.sleep(0.001 * (i % 20))
            call.cancel()
            await asyncio.wait({call})
            if not call.cancelled() and not call.exception():
                call.result().close()

    await asyncio.gather(*(leave(i) for i in range(60)))
    await until(lambda: idle(gw))
    await until(lambda: len(asyncio.all_tasks()) <= before + 10)
    assert gw.app[STATE].now.routing.targets["dify"].running == 0
