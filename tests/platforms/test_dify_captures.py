"""Byte-exact answers of real Dify servers, judged by their events, not by the gateway's decoder."""

import gzip
import json
import re
from pathlib import Path

import pytest
from decoding import feed, summary

from gateway.errors import GatewayError
from gateway.platforms.dify.adapter import Dify
from gateway.platforms.dify.decoder import DifyDecoder
from gateway.platforms.dify.failures import explain
from gateway.platforms.dify.options import DifyOptions
from gateway.protocol.exchange import UpstreamReply
from gateway.protocol.messages import ChatRequest, Message

FOLDER = Path(__file__).parent / "captures" / "dify"
FILES = sorted(FOLDER.glob("*/*.http*"))


def read_capture(path: Path) -> tuple[int, dict[str, str], bytes]:
    """(status, headers, body without chunked framing)."""
    raw = path.read_bytes()
    raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
    head, _, rest = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    if headers.get("Transfer-Encoding") != "chunked":
        return int(first.split()[1]), headers, rest
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        if not size or int(size, 16) == 0:
            break
        body += rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]
    return int(first.split()[1]), headers, body


def is_stream(path: Path) -> bool:
    status, headers, _ = read_capture(path)
    return status == 200 and "event-stream" in headers.get("Content-Type", "")


STREAMS = [path for path in FILES if is_stream(path)]
REFUSALS = [path for path in FILES if read_capture(path)[0] >= 400]


def events(body: bytes) -> list[dict]:
    blocks = body.decode("utf-8", "replace").split("\n\n")
    return [json.loads(b[6:]) for b in blocks if b.startswith("data: ") and b.endswith("}")]


def told_text(body: bytes) -> str:
    """The text according to the events."""
    text = ""
    for event in events(body):
        if event["event"] in ("message", "agent_message"):
            text += event["answer"]
        elif event["event"] == "text_chunk":
            text += event["data"]["text"]
        elif event["event"] == "message_replace":
            text = event["answer"]
    return text


def told_failure(body: bytes) -> bool:
    return any(
        e["event"] == "error"
        or (e["event"] == "workflow_finished" and e["data"]["status"] == "failed")
        for e in events(body)
    )


def decoder(path: Path) -> DifyDecoder:
    workflow = path.name.startswith(("workflow", "param_workflow", "hang_workflow"))
    return DifyDecoder("workflow" if workflow else "chat")


def named(path: Path) -> str:
    return f"{path.parent.name}/{path.name.split('.')[0]}"


@pytest.mark.parametrize("path", STREAMS, ids=named)
@pytest.mark.parametrize("size", [None, 1, 3])
def test_text_usage_and_failure_are_what_the_events_say(path, size):
    _, _, body = read_capture(path)
    got = summary(feed(decoder(path), body, size if len(body) < 200_000 or not size else 1000))
    text = told_text(body)
    if "<details" not in text and (text or "error" in got):
        assert got["text"] == text
    if told_failure(body):
        assert "error" in got
        assert "finish" not in got
    for event in events(body):
        if event["event"] == "message_end":
            usage = event["metadata"]["usage"]
            assert got["usage"][:2] == [usage["prompt_tokens"], usage["completion_tokens"]]
            assert got["usage"][2] == max(usage["total_tokens"], sum(got["usage"][:2]))
            assert got["finish"] in ("stop", "content_filter")


def test_the_old_thinking_markup_becomes_reasoning():
    _, _, body = read_capture(FOLDER / "0.15.3" / "chat_streaming_reasoning.http")
    got = summary(feed(decoder(Path("chat")), body))
    assert got["reasoning"] == "先想一想🤔"
    assert "<details" not in got["text"]
    assert got["text"].startswith("答案")


def test_a_stream_that_only_pings_is_a_failure():
    _, _, body = read_capture(FOLDER / "1.14.2" / "hang_workflow_required_missing_full.http")
    assert summary(feed(decoder(Path("workflow")), body))["error"] == "UpstreamCut"


def test_a_file_made_by_a_tool_is_kept_with_the_answer():
    _, _, body = read_capture(FOLDER / "1.16.0" / "agent-chat_streaming_tool_image.http")
    (file,) = summary(feed(decoder(Path("chat")), body))["notes"]["files"]
    assert file["type"] == "image"
    assert file["url"].startswith("http://127.0.0.1:5021/files/tools/")


CHAT = ChatRequest("dify", (Message("user", "你好"),), "user-001")


@pytest.mark.parametrize("path", REFUSALS, ids=named)
def test_every_refusal_has_a_status_and_says_what_to_do(path):
    status, headers, body = read_capture(path)
    agent = DifyOptions(platform="dify", base_url="http://dify.test", api_key="app-x", mode="chat")
    dify = Dify("dify", agent, agent.base_url)
    with pytest.raises(GatewayError) as caught:
        dify.recover(UpstreamReply(status, headers, body), CHAT)
    error = caught.value
    assert error.status != 401  # the caller's key was not refused
    assert len(error.message) > 20
    if path.name.startswith(("auth_", "chat_api_disabled", "wrongmode")):
        assert error.status == 502
        assert error.should_retry is False
    if path.name.startswith("ratelimit"):
        assert error.status == 429
        assert error.retry_after_s
    if path.name.startswith("param_conversation_unknown"):
        assert error.status == 404
    if path.name.startswith(
        ("param_missing_query", "param_required_input", "param_input_too_long")
    ):
        assert error.status == 400


def test_a_model_that_is_limited_makes_429_and_its_key_502():
    for version in ("0.15.3", "1.16.0"):
        _, _, body = read_capture(FOLDER / version / "chat_streaming_provider_429.http")
        got = summary(feed(decoder(Path("chat")), body))
        assert (got["error"], got["status"]) == ("RateLimited", 429)
    _, _, body = read_capture(FOLDER / "0.15.3" / "chat_streaming_provider_401.http")
    assert summary(feed(decoder(Path("chat")), body))["error"] == "UpstreamMisconfigured"


REFUSED_INPUTS = [path for path in FILES if b" in input form" in read_capture(path)[2]]


@pytest.mark.parametrize("path", REFUSED_INPUTS, ids=named)
def test_a_refused_input_is_named(path):
    """In a refusal, and in a run that fails before its first step."""
    status, _, body = read_capture(path)
    if status == 200:
        error = feed(decoder(path), body)[-1].error
    else:
        error = explain(UpstreamReply(status, {}, body))
    name = re.search(rb"(\w+) (?:is required )?in input form", body)[1].decode()
    assert (error.status, error.param) == (400, f"variables.{name}")


@pytest.mark.parametrize("message", ["query is required", "it is in input form, they say", "a: b"])
def test_another_refusal_names_no_input(message):
    body = json.dumps({"code": "invalid_param", "message": message, "status": 400}).encode()
    assert explain(UpstreamReply(400, {}, body)).param is None
