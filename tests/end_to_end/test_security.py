"""Credentials, cross-origin pages, secrets in answers and logs: other gateways' mistakes
as tests."""

import itertools
import logging

import pytest
from conftest import AGENTS, Script
from hypothesis import given
from hypothesis import strategies as st

from gateway.accounts.credentials import KeyRing, bare_key, presented_key
from gateway.errors import Unauthorized, clean

KEY = "sk-caller-12345678"
CARRIERS = [("Authorization", f"Bearer {KEY}"), ("Authorization", f"bearer   {KEY} "),
            ("Authorization", f"Bearer Bearer {KEY}"), ("x-api-key", KEY), ("api-key", KEY)]  # fmt: skip


@pytest.fixture
async def guarded(gateway, demo):
    served = await demo("dify")
    keys = [
        {"name": "web", "key": KEY},
        {"name": "files", "key": "upload-only-key", "permissions": ["upload"]},
    ]
    return await gateway(
        agents={"dify": {**AGENTS["dify"], "base_url": served.url}},
        auth={"anonymous": False, "keys": keys},
    )


@pytest.mark.parametrize(("header", "value"), CARRIERS)
async def test_a_key_is_taken_from_each_header_on_each_route(guarded, header, value):
    headers = {header: value}
    assert (await guarded.get("/v1/models", headers=headers)).status == 200
    body = {"query": "hi"}
    answer = await guarded.post("/api/v1/chat", body, headers={**headers, "Agent": "dify"})
    assert answer.status == 200


@pytest.mark.parametrize("other", ["dummy", "EMPTY", "sk-no-key-required", "Bearer", "x.y"])
@pytest.mark.parametrize("names", [("Authorization", "x-api-key"), ("api-key", "x-api-key")])
async def test_a_placeholder_next_to_the_key_does_no_harm(guarded, other, names):
    placeholder, key = names
    prefix = "Bearer " if placeholder == "Authorization" else ""
    for headers in (
        {placeholder: prefix + other, key: KEY},
        {placeholder: prefix + KEY, key: other},
    ):
        assert (await guarded.get("/v1/models", headers=headers)).status == 200


def test_of_several_keys_the_one_of_ours_is_meant():
    ours, token = "sk-gw-abcdefghijkl-x", "eyJhbGciOiJIUzI1NiJ9.eyJhIjoxfQ.x"
    for key in (ours, token):
        assert presented_key({"Authorization": "Bearer dummy", "api-key": key}) == key
    assert presented_key({"Authorization": "Bearer a", "x-api-key": "b", "api-key": "c"}) == "a"
    for name in ("Authorization", "x-api-key", "api-key"):  # a whole header, pasted as the key
        assert presented_key({name: "Bearer bearer  a "}) == "a"
    assert presented_key({"Authorization": "Basic a"}) == ""
    headers = {"Authorization": "Bearer a", "x-api-key": "b", "api-key": "c"}
    assert presented_key(headers, lambda key: key == "c") == "c"


OURS = "sk-gw-abcdefghijkl-x"


@pytest.mark.parametrize(
    ("value", "key", "bare"),
    [(f"Bearer {OURS}", OURS, ""), (f"bearer\t {OURS} ", OURS, ""), (OURS, "", OURS),
     (f"Bearer Bearer {OURS}", OURS, ""), (f"Bearer: {OURS}", OURS, ""), (f"Token {OURS}", "", OURS),
     ("any-key", "", "any-key"), ("Bearerx", "", "Bearerx"), ("Bearer", "", ""), ("Bearer ", "", ""),
     ("", "", ""), ("Basic dXNlcjpwYXNz", "", ""), ('Digest username="a", nonce="b"', "", "")],
)  # fmt: skip
def test_a_key_counts_only_after_bearer(value, key, bare):
    assert presented_key({"Authorization": value}) == key
    assert bare_key({"Authorization": value}) == bare
    assert presented_key({"Authorization": value, "x-api-key": OURS}) == OURS


@pytest.mark.parametrize("scheme", ["", "Bearer ", "Token "])
async def test_a_wrong_key_without_bearer_is_not_anonymous(gateway, demo, scheme):
    served = await demo("dify")
    gw = await gateway(agents={"dify": {**AGENTS["dify"], "base_url": served.url}})
    wrong = {"Authorization": f"{scheme}sk-gw-0123456789ab-secret"}
    assert (await gw.get("/v1/models")).status == 200
    assert (await gw.get("/v1/models", headers=wrong)).status == 401


async def test_a_key_without_bearer_is_refused_and_says_what_lacks(guarded):
    answer = await guarded.get("/v1/models", headers={"Authorization": KEY})
    assert answer.status == 401
    assert "lacks the word Bearer" in (await answer.json())["error"]["message"]


async def test_private_network_preflights_pass_for_listed_pages_only(guarded):
    asks = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Private-Network": "true",
    }
    answers = {}
    for origin in ("http://localhost:5173", "https://evil.example"):
        headers = {"Origin": origin, **asks}
        async with guarded.client.options(guarded.url + "/v1/models", headers=headers) as answer:
            answers[origin] = answer.headers.get("Access-Control-Allow-Private-Network")
    assert answers == {"http://localhost:5173": "true", "https://evil.example": None}


@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": "Bearer"}, {"Authorization": "Bearer "}, {"Authorization": KEY},
     {"Authorization": f"Basic {KEY}"}, {"Authorization": "Bearer sk-wrong-12345678"},
     {"x-api-key": KEY[:-1]}, {"x-api-key": KEY + "x"}, {"api-key": KEY.upper()},
     {"Authorization": "Bearer sk-wrong-12345678", "x-api-key": KEY[:-1]}],
)  # fmt: skip
async def test_without_the_right_key_401_in_both_envelopes(guarded, headers):
    openai = await guarded.get("/v1/models", headers=headers)
    assert openai.status == 401
    assert (await openai.json())["error"]["code"] == "invalid_api_key"
    api = await guarded.post("/api/v1/chat", {"query": "x"}, headers={**headers, "Agent": "dify"})
    assert api.status == 401
    assert (await api.json())["code"] == 401


async def test_a_key_without_the_permission_is_403(guarded):
    answer = await guarded.get("/v1/models", headers={"x-api-key": "upload-only-key"})
    assert answer.status == 403
    assert (await answer.json())["error"]["type"] == "permission_error"


async def test_public_routes_stay_public(guarded):
    for path in ("/health", "/livez", "/readyz", "/api/v1/agents", "/api/v1/agents/dify/health"):
        assert (await guarded.get(path)).status == 200


async def test_anonymous_mode_takes_any_key_but_a_wrong_gateway_key(all_five):
    gw, _ = all_five
    for headers in ({}, {"Authorization": "Bearer anything"}, {"x-api-key": "x"}):
        assert (await gw.get("/v1/models", headers=headers)).status == 200
    ours = {"Authorization": "Bearer sk-gw-0123456789ab-secret"}
    assert (await gw.get("/v1/models", headers=ours)).status == 401


async def test_with_keys_a_wrong_key_is_401_even_on_anonymous_access(gateway, demo):
    served = await demo("dify")
    gw = await gateway(
        agents={"dify": {**AGENTS["dify"], "base_url": served.url}},
        auth={"anonymous": True, "keys": [{"name": "a", "key": KEY}]},
    )
    assert (await gw.get("/v1/models")).status == 200
    assert (await gw.get("/v1/models", headers={"api-key": "typo-typo-typo"})).status == 401


@given(st.text(max_size=40))
def test_the_extractor_survives_any_header(value):
    for name in ("Authorization", "x-api-key", "api-key"):
        presented_key({name: value})


@given(st.text(min_size=1, max_size=60))
def test_no_other_text_is_the_key(text):
    from gateway.config.load import parse

    config = parse(
        f"agents: {{a: {{platform: dify}}}}\nauth: {{anonymous: false, keys: [{{name: a, key: {KEY}}}]}}",
        {},
    )
    if text != KEY:
        with pytest.raises(Unauthorized) as caught:
            ring = KeyRing(config)
            assert ring.static(text) is None
            ring.without_key(text, "")
        assert len(text) < 16 or text not in caught.value.message


# Web pages


PAGE = "https://chat.example.com"


@pytest.fixture
async def listing(gateway, demo):
    """A gateway with a key, whose config.yaml lists the origin of one page."""
    served = await demo("dify")
    agents = {"dify": {**AGENTS["dify"], "base_url": served.url}}
    keys = [{"name": "web", "key": KEY}]
    return await gateway(
        agents=agents, server={"cors_origins": [PAGE]}, auth={"anonymous": False, "keys": keys}
    )


async def preflight(gw, path, origin, asked="authorization,content-type,x-stainless-os"):
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST",
               "Access-Control-Request-Headers": asked}  # fmt: skip
    return await gw.client.options(gw.url + path, headers=headers)


@pytest.mark.parametrize("origin", [PAGE, "http://localhost:5173", "http://127.0.0.1:8080"])
async def test_listed_pages_and_pages_of_this_machine_may_call(listing, origin):
    asked = "authorization,content-type,x-stainless-os"
    for path in ("/v1/chat/completions", "/v1/models", "/api/v1/chat", "/v1/nothing"):
        answer = await preflight(listing, path, origin, asked)
        assert answer.status == 204
        assert answer.headers["Access-Control-Allow-Origin"] == origin
        assert answer.headers["Access-Control-Allow-Headers"] == asked
        assert "POST" in answer.headers["Access-Control-Allow-Methods"]
        assert "Access-Control-Allow-Credentials" not in answer.headers


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
async def test_pages_may_rename_and_delete_conversations(listing, method):
    asks = {
        "Origin": PAGE,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "agent,authorization,content-type",
    }
    path = f"{listing.url}/api/v1/conversations/c"
    async with listing.client.options(path, headers=asks) as answer:
        assert answer.status == 204
        assert answer.headers["Access-Control-Allow-Origin"] == PAGE
        assert method in answer.headers["Access-Control-Allow-Methods"].split(", ")
        assert answer.headers["Access-Control-Allow-Headers"] == "agent,authorization,content-type"


async def test_pages_may_read_what_answers_say_of_themselves(listing):
    headers = {"Origin": PAGE, "Agent": "dify", "Authorization": f"Bearer {KEY}"}
    async with listing.post("/api/v1/chat", {"query": "hi"}, headers=headers) as answer:
        exposed = answer.headers["Access-Control-Expose-Headers"].split(", ")
        own = {name.lower() for name in answer.headers if name.lower().startswith("x-")}
        assert {"x-conversation-id", "x-gateway-agent", "x-request-id"} <= own <= {
            *exposed, "x-content-type-options"
        }  # fmt: skip


@pytest.mark.parametrize("origin", ["https://evil.example", "null", f"{PAGE}.evil.example"])
async def test_other_pages_are_refused_with_the_setting_to_change(listing, origin):
    answer = await preflight(listing, "/v1/chat/completions", origin)
    assert answer.status == 403
    assert "server.cors_origins" in await answer.text()
    plain = await listing.get("/health", headers={"Origin": origin})
    for headers in (answer.headers, plain.headers):
        assert "Access-Control-Allow-Origin" not in headers
    assert answer.headers["Vary"] == "Accept-Language, Origin"  # an error
    assert plain.headers["Vary"] == "Origin"


async def test_answers_errors_and_streams_carry_the_origin_header(listing):
    origin = {"Origin": PAGE}
    key = {**origin, "x-api-key": KEY}
    body = {"model": "dify", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    answers = [
        await listing.get("/v1/models", headers=origin),
        await listing.get("/nowhere", headers=origin),
        await listing.post("/v1/chat/completions", body, headers=key),
    ]
    assert [answer.status for answer in answers] == [401, 404, 200]
    assert [bool(await answer.read()) for answer in answers] == [True] * 3
    for answer in answers:
        assert answer.headers["Access-Control-Allow-Origin"] == PAGE
        exposed = answer.headers["Access-Control-Expose-Headers"]
        for name in ("x-request-id", "x-ratelimit-remaining-requests", "retry-after"):
            assert name in exposed
        assert "Access-Control-Allow-Credentials" not in answer.headers


async def test_a_star_is_for_every_page_and_never_with_credentials(gateway, demo):
    served = await demo("dify")
    agents = {"dify": {**AGENTS["dify"], "base_url": served.url}}
    gw = await gateway(agents=agents, server={"cors_origins": ["*"]})
    answer = await gw.get("/health", headers={"Origin": "https://any.example"})
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert "Access-Control-Allow-Credentials" not in answer.headers


async def test_every_answer_has_the_safety_headers(listing):
    body = {"model": "dify", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    answers = [
        await listing.get("/health"),
        await listing.get("/nowhere"),
        await listing.get("/metrics"),
        await listing.get("/health", headers={"x": "y" * 9000}),
        await listing.post("/v1/chat/completions", body, headers={"x-api-key": KEY}),
    ]
    for answer in answers:
        await answer.read()
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert "no-" in answer.headers["Cache-Control"]


@pytest.mark.parametrize(
    ("origin", "status"),
    [("https://evil.example", 403), ("null", 403), ("http://localhost.evil.example", 403),
     ("http://[bad", 403), ("http://localhost:5173", 200), ("http://127.0.0.1:8080", 200)],
)  # fmt: skip
async def test_a_foreign_page_cannot_borrow_anonymous_access(all_five, origin, status):
    gw, _ = all_five
    body = {"model": "dify", "messages": [{"role": "user", "content": "hi"}]}
    answer = await gw.post("/v1/chat/completions", body, headers={"Origin": origin})
    assert answer.status == status


# Secrets


CANARIES = ["app-canary0123456789", "sk-canary-0123456789abcdef", "pat_canary0123456789",
            "fastgpt-canary0123456789", "0123456789abcdef0123456789abcdef.canary0123"]  # fmt: skip


@pytest.mark.parametrize("canary", CANARIES)
def test_keys_in_an_upstreams_message_are_redacted(canary):
    assert canary not in clean(f"Incorrect API key provided: {canary}. Bearer {canary}")
    assert "canary" not in clean(f"{{'key': '{canary}'}}")


@pytest.mark.parametrize("place", ["json", "event", "html"])
async def test_an_upstream_that_repeats_the_key_does_not_leak_it(gateway, scripted, caplog, place):
    caplog.set_level(logging.DEBUG)
    key = "unusual:key/with+no=known~shape"
    words = f"bad key {key}"
    script = {
        "json": Script([f'{{"code":"x","message":"{words}"}}'.encode()], status="500 X",
                       headers={"Content-Type": "application/json"}),
        "event": Script([f'data: {{"event":"error","message":"{words}"}}\n\n'.encode()]),
        "html": Script([words.encode()], status="401 X", headers={"Content-Type": "text/html"}),
    }[place]  # fmt: skip
    upstream = await scripted(script)
    bot = {**AGENTS["dify"], "base_url": upstream.url, "api_key": key, "mode": "chat"}
    gw = await gateway(agents={"bot": bot})
    for stream in (True, False):
        assert key not in await (await gw.complete("bot", stream=stream)).text()
    assert key not in caplog.text


async def test_callers_keys_and_questions_are_not_logged(guarded, caplog):
    caplog.set_level(logging.DEBUG)
    headers = {"x-api-key": KEY, "Agent": "dify"}
    await guarded.post("/api/v1/chat", {"query": "机密的问题"}, headers=headers)
    await guarded.get("/v1/models", headers={"x-api-key": "sk-wrong-but-secret-1"})
    assert KEY not in caplog.text
    assert "机密" not in caplog.text
    assert "sk-wrong-but-secret-1" not in caplog.text
    assert '"caller":"key-web"' in caplog.text


# Request ids and what is not HTTP


@pytest.mark.parametrize(
    ("given", "kept"),
    [("abc-123_X.y:z", True), ("a b", False), ("x" * 200, False), ("", False), ("<script>", False)],
)
async def test_a_sane_request_id_is_kept_and_any_other_replaced(all_five, given, kept):
    gw, _ = all_five
    answer = await gw.get("/health", headers={"x-request-id": given})
    assert (answer.headers["x-request-id"] == given) is kept
    assert answer.headers["x-request-id"]


SHAPES = [
    "pat_AbCdEfGh12345678ijkl", "app-AbCdEfGh12345678ijkl", "APP-ABCDEFGH12345678", "SK-proj-AbCdEfGh12345678",
    "25bda2c39c0f8ca0.e0008b9b9727cb8ceea5", "0123456789abcdef0123456789abcdef.AbCdEfGh", "dataset-AbCdEfGh12345",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIi.c2ln",
]  # fmt: skip


@pytest.mark.parametrize("key", SHAPES)
async def test_what_looks_like_a_key_is_not_in_the_log(all_five, caplog, key):
    gw, _ = all_five
    caplog.set_level("INFO")
    answer = await gw.get(f"/v1/models/{key}", headers={"User-Agent": key, "x-request-id": key})
    assert answer.headers["x-request-id"].startswith("req-")
    await gw.get(f"/v1/models/req-{key}", headers={"x-request-id": f"req-{key}"})
    assert key not in caplog.text


async def test_a_static_key_is_no_request_id(gateway):
    key = "plain0words0as0key"
    agents = {"d": {"platform": "openai", "base_url": "http://127.0.0.1:9/v1", "api_key": "none"}}
    gw = await gateway(agents=agents, auth={"keys": [{"name": "web", "key": key}]})
    for id_, kept in ((key, False), (f"{key}1", True), ("task-12345678-a", True)):
        answer = await gw.get("/health", headers={"x-request-id": id_})
        assert (answer.headers["x-request-id"] == id_) is kept


BAD_HTTP = [
    b"hello\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(64)),
    b"GET /nowhere\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nBad Header\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X-A: b\r\n" * 100_000 + b"\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX-A: " + b"b" * 1_000_000 + b"\r\n\r\n",
    b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX-A: \x00\r\n\r\n",
]  # fmt: skip


@pytest.mark.parametrize("raw", BAD_HTTP, ids=itertools.count())
async def test_what_is_not_http_is_a_clear_4xx_and_no_traceback(all_five, caplog, raw):
    import asyncio

    gw, _ = all_five
    host, port = gw.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(raw)
    async with asyncio.timeout(20):
        answer = await reader.read(65536)
    writer.close()
    if answer:  # a connection may also just be closed under a flood
        assert answer.startswith(b"HTTP/")
        assert answer[9:10] == b"4"
        assert b'"error"' in answer
    assert "Traceback" not in caplog.text
    assert (await gw.get("/health")).status == 200
