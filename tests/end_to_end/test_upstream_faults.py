"""Everything that can go wrong with an answer, for every kind of upstream, over real sockets.

The same rule for all: a failure before the first delta is a status, one after it is one error
event, and only a complete answer has a `finish_reason` and `[DONE]`.
"""

import asyncio
import gzip
import json
import time
from pathlib import Path

import pytest
from conftest import AGENTS, Script, stopped, streamed

SAMPLES = Path(__file__).parent.parent / "platforms" / "samples"
FILES = {
    "fastgpt": "detail", "dify": "chat", "coze": "chat", "zhipu": "chat", "openai": "stream-usage",
}  # fmt: skip
SSE = {"Content-Type": "text/event-stream"}
JSON = {"Content-Type": "application/json"}


class Sample:
    """A platform's event stream, and its text for the caller."""

    def __init__(self, kind: str) -> None:
        path = SAMPLES / kind / f"{FILES[kind]}.sse"
        self.kind = kind
        self.raw = path.read_bytes().replace(b"\r\n", b"\n")
        self.text = json.loads(path.with_suffix(".json").read_text("utf-8"))["text"]
        self.events = [event + b"\n\n" for event in self.raw.split(b"\n\n") if event]


@pytest.fixture(params=FILES)
def sample(request):
    return Sample(request.param)


@pytest.fixture
async def serve(gateway, scripted, sample):
    """`await serve(script, …, **agent's settings)`: (gateway, upstream); the agent is `bot`."""

    async def start(*scripts: Script, **settings):
        upstream = await scripted(*scripts)
        mode = {"mode": "chat"} if sample.kind == "dify" else {}
        bot = {**AGENTS[sample.kind], "base_url": upstream.url, "retries": 0, **mode, **settings}
        bot["breaker"] = {"failures": 1000}
        return await gateway(agents={"bot": bot}), upstream

    return start


async def ask(gw, stream=True):
    """(status, body) of one call; a stream's body is what a client makes of it."""
    async with gw.complete("bot", stream=stream) as answer:
        raw = await answer.read()
        if answer.status != 200 or not stream:
            return answer, json.loads(raw)
        return answer, streamed(raw)


def is_whole(got, sample) -> bool:
    return got["text"] == sample.text and bool(got["finish"]) and got.get("done") is True


def is_cut(got) -> bool:
    """An error object, and no sign of success."""
    return bool(got["error"]["message"]) and not got["finish"] and "done" not in got


@pytest.mark.parametrize(
    "script",
    [
        {"before_headers_s": 0.15},
        {"headers": {"Content-Type": "text/plain"}},
        {"headers": {"Content-Type": "application/octet-stream"}},
        {"headers": {}},
        {"version": "1.0", "chunked": False},
        {"chunked": False},
    ],
    ids=["late headers", "text/plain", "octets", "no type", "HTTP 1.0 without length", "no length"],
)
async def test_what_is_odd_but_whole_is_an_answer(serve, sample, script):
    gw, _ = await serve(Script([sample.raw], **{"headers": SSE, **script}))
    _, got = await ask(gw)
    assert is_whole(got, sample)
    if sample.kind != "openai":  # it is asked for a whole answer then
        answer, body = await ask(gw, stream=False)
        assert answer.status == 200
        assert body["choices"][0]["finish_reason"]


async def test_unrequested_gzip_is_read(serve, sample):
    headers = {**SSE, "Content-Encoding": "gzip"}
    gw, upstream = await serve(Script([gzip.compress(sample.raw)], headers=headers))
    assert is_whole((await ask(gw))[1], sample)
    assert upstream.requests[0][1]["accept-encoding"] == "identity"


async def test_one_byte_at_a_time_is_the_same_answer(serve, sample):
    gw, _ = await serve(Script([sample.raw[i : i + 1] for i in range(len(sample.raw))]))
    assert is_whole((await ask(gw))[1], sample)


async def test_an_end_that_comes_twice_is_one_end(serve, sample):
    gw, _ = await serve(Script([sample.raw, sample.events[-1], sample.events[-1]]))
    _, got = await ask(gw)
    assert is_whole(got, sample)
    assert len(got["finish"]) == 1


async def test_a_cut_in_or_after_any_event_is_never_an_end(serve, sample):
    gw, upstream = await serve(Script([]))
    whole = 0
    for i, event in enumerate(sample.events):
        before = b"".join(sample.events[:i])
        for raw in (before, before + event[: len(event) // 2]):
            upstream.scripts = [Script([raw], end="reset"), stopped()]
            answer, got = await ask(gw)
            if answer.status != 200:
                assert answer.status == 502
                assert answer.headers["x-should-retry"] == "false" or not raw
            elif "error" in got:
                assert is_cut(got)
                assert sample.text.startswith(got["text"])
            else:
                whole += 1  # only bytes after the end were cut off
                assert is_whole(got, sample)
    assert whole <= 6


async def test_a_cut_whole_answer_is_an_error(serve, sample):
    half = b"".join(sample.events[: len(sample.events) // 2])
    gw, _ = await serve(Script([half], end="reset"), stopped())
    answer, body = await ask(gw, stream=False)
    assert answer.status == 502
    assert answer.headers["x-should-retry"] == "false"
    assert body["error"]["code"] == "upstream_cut"


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_a_silent_upstream_is_504_in_time(serve, sample, stream):
    # A whole answer of an OpenAI-compatible upstream begins when it is complete: `total` limits it.
    name = "total" if sample.kind == "openai" and not stream else "first_delta"
    gw, upstream = await serve(Script(before_headers_s=60), timeouts={name: "500ms"})
    began = time.monotonic()
    answer, body = await ask(gw, stream)
    assert answer.status == 504
    assert body["error"]["code"] == "upstream_timeout"
    assert time.monotonic() - began < 20
    await asyncio.wait_for(upstream.gone.wait(), 20)


async def test_headers_and_then_silence_is_504_and_not_asked_again(serve, sample):
    gw, upstream = await serve(
        Script([], end="hang"), stopped(), retries=3, timeouts={"first_delta": "200ms"}
    )
    answer, _ = await ask(gw)
    assert answer.status == 504
    assert answer.headers["x-should-retry"] == "false"
    assert (
        len(
            [
                line
                for line, _, _ in upstream.requests
                if "POST" in line and "stop" not in line and "cancel" not in line
            ]
        )
        == 1
    )


async def test_silence_in_the_middle_ends_in_an_error_in_time(serve, sample):
    text_at = next(i for i in range(1, len(sample.events)) if _has_text(sample, i))
    pieces = [b"".join(sample.events[: text_at + 1])]
    gw, _ = await serve(Script(pieces, end="hang"), stopped(), timeouts={"idle": "200ms"})
    async with asyncio.timeout(20):
        _, got = await ask(gw)
    assert is_cut(got)
    assert got["error"]["code"] == "upstream_timeout"


def _has_text(sample, i: int) -> bool:
    from platforms.decoding import decoder_for, feed, summary

    decoder = decoder_for(sample.kind, FILES[sample.kind])
    return bool(summary(feed(decoder, b"".join(sample.events[: i + 1]))).get("text"))


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\xff\xfe\x80" * 50 + b"\n\n",
        b"data: {half\n\n",
        b"data: \xff\xff\n\n",
        b"data: " + b"[" * 5000 + b"\n\n",
    ],
    ids=["bytes", "half json", "no text", "deep"],
)
async def test_garbage_in_place_of_an_answer_is_an_error(serve, sample, garbage):
    gw, _ = await serve(Script([garbage]))
    answer, body = await ask(gw)
    assert answer.status == 502
    assert body["error"]["message"].startswith("Agent 'bot'")


async def test_a_5_mb_line_without_data_is_refused_and_not_kept(serve, sample):
    gw, _ = await serve(Script([b"a" * 5_000_000 + b"\n\n", sample.raw]), stopped())
    answer, body = await ask(gw)
    assert answer.status == 502
    assert "more than" in body["error"]["message"] or "over" in body["error"]["message"]


@pytest.mark.parametrize(
    ("status", "headers", "body", "ours"),
    [
        ("429 X", {**JSON, "Retry-After": "30"}, b"{}", 429),
        ("429 X", JSON, b"{}", 429),
        ("500 X", JSON, b"{}", 502),
        ("502 X", {"Content-Type": "text/html"}, b"<html><h1>502 Bad Gateway</h1></html>", 502),
        ("503 X", {}, b"", 502),
        ("504 X", {"Content-Type": "text/html"}, b"<html>504</html>", 504),
        ("200 OK", {"Content-Type": "text/html"}, b"<!doctype html><title>login</title>", 502),
        ("404 X", {"Content-Type": "text/html"}, b"<html>no</html>", 502),
    ],
    ids=["429 with a time", "429", "500", "502 page", "503", "504 page", "200 page", "404 page"],
)
async def test_refusals_and_pages_are_clear_errors(serve, sample, status, headers, body, ours):
    gw, _ = await serve(Script([body], status=status, headers=headers))
    for stream in (True, False):
        answer, told = await ask(gw, stream)
        assert answer.status == ours
        assert set(told["error"]) == {"message", "type", "param", "code"}
        assert AGENTS[sample.kind]["api_key"] not in str(told)
        if ours == 429:
            assert answer.headers["Retry-After"] == headers.get("Retry-After", "5")


@pytest.mark.parametrize("status", ["301", "302", "303", "307", "308"])
async def test_redirects_are_not_followed_with_the_key(serve, sample, scripted, status):
    other = await scripted(Script([sample.raw]))
    gw, _ = await serve(Script(status=f"{status} X", headers={"Location": f"{other.url}/x"}))
    answer, body = await ask(gw)
    assert answer.status == 502
    assert "base_url" in body["error"]["message"]
    assert other.requests == []


async def test_keep_alive_comments_come_before_the_first_delta(gateway, scripted, sample):
    upstream = await scripted(Script([sample.raw], before_headers_s=0.3))
    mode = {"mode": "chat"} if sample.kind == "dify" else {}
    bot = {**AGENTS[sample.kind], "base_url": upstream.url, **mode}
    gw = await gateway(agents={"bot": bot}, server={"keepalive": "50ms"})
    async with gw.complete("bot", stream=True) as answer:
        raw = await answer.read()
    head, _, rest = raw.partition(b"data:")
    assert 2 <= head.count(b": keep-alive\n\n") <= 8
    assert is_whole(streamed(b"data:" + rest), sample)


async def test_a_failure_after_keep_alive_comments_is_one_error_event(gateway, scripted, sample):
    upstream = await scripted(Script([b"{}"], status="401 X", headers=JSON, before_headers_s=0.2))
    mode = {"mode": "chat"} if sample.kind == "dify" else {}
    bot = {**AGENTS[sample.kind], "base_url": upstream.url, **mode, "retries": 0}
    gw = await gateway(agents={"bot": bot}, server={"keepalive": "50ms"})
    answer, got = await ask(gw)
    assert answer.status == 200
    assert is_cut(got)
    assert got["error"]["code"] == "upstream_auth_failed"
