"""Byte-exact answers of real FastGPT servers, judged by their events, not by the gateway's decoder.

One archive for each version, see captures/fastgpt/README.md.
"""

import json
import re
import tarfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from decoding import feed, summary

from gateway.errors import GatewayError, UpstreamMisconfigured
from gateway.platforms.base import Preliminary
from gateway.platforms.fastgpt.adapter import FastGPT
from gateway.platforms.fastgpt.decoder import FastGPTDecoder
from gateway.platforms.fastgpt.options import FastGPTOptions
from gateway.protocol.exchange import UpstreamReply, UpstreamRequest
from gateway.protocol.messages import ChatRequest, Failed, Message
from gateway.protocol.sse import Parser

FOLDER = Path(__file__).parent / "captures" / "fastgpt"


class Capture(NamedTuple):
    version: str
    name: str
    request: dict[str, Any]
    status: int
    headers: dict[str, str]
    body: bytes  # without chunked framing, as far as it was received
    is_whole: bool

    @property
    def is_chat(self) -> bool:
        return self.request["path"].endswith("/chat/completions")

    @property
    def is_stream(self) -> bool:
        return self.status == 200 and self.body.startswith((b"event:", b"data:"))

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.body) if self.body.startswith(b"{") else {}


def read_captures() -> list[Capture]:
    found = []
    for path in sorted(FOLDER.glob("*.tar.xz")):
        with tarfile.open(path) as archive:
            files = {
                member.name: archive.extractfile(member).read()  # type: ignore[union-attr]
                for member in archive.getmembers()
                if member.isfile()
            }
        version = path.name.removesuffix(".tar.xz")
        for name in sorted(files):
            if name.endswith(".http"):
                found.append(read_capture(version, name.removesuffix(".http"), files))
    return found


def read_capture(version: str, name: str, files: dict[str, bytes]) -> Capture:
    request = json.loads(files[f"{name}.req.json"])
    raw = files[f"{name}.http"]
    if not raw:
        return Capture(version, name, request, 0, {}, b"", False)
    head, _, rest = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {key.lower(): value for key, value in (line.split(": ", 1) for line in lines)}
    body, is_whole = rest, True
    if headers.get("transfer-encoding") == "chunked":
        body, is_whole = b"", False
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            is_whole = size == b"0"
            if not size or is_whole:
                break
            body += rest[: int(size, 16)]
            rest = rest[int(size, 16) + 2 :]
    if headers.get("content-encoding") == "gzip":
        body = zlib.decompress(body, 31)
    return Capture(version, name, request, int(first.split()[1]), headers, body, is_whole)


CAPTURES = read_captures()
ANSWERS = [c for c in CAPTURES if c.is_chat and (c.is_stream or "choices" in c.json)]
REFUSALS = [
    c
    for c in CAPTURES
    if c.is_chat and c.status and not c.is_stream and c.body and "choices" not in c.json
]


def named(capture: Capture) -> str:
    return f"{capture.version}/{capture.name}"


def capture(version: str, name: str) -> Capture:
    return next(c for c in CAPTURES if (c.version, c.name) == (version, name))


# An answer according to its events alone.


class Told(NamedTuple):
    text: str
    reasoning: str
    asks: list[dict[str, Any]]  # the `interactive` objects
    nodes: list[dict[str, Any]] | None
    error: Any  # an `error` event, or a whole answer's `error`
    is_ended: bool


def events(body: bytes) -> list[tuple[str, Any]]:
    found = []
    for block in body.decode("utf-8", "replace").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line)
        data = fields.get("data", "")
        if data.endswith(("}", "]")):
            found.append(
                (fields.get("event", ""), "DONE" if data == "[DONE]" else json.loads(data))
            )
    return found


def told(capture: Capture) -> Told:
    return told_stream(capture.body) if capture.is_stream else told_whole(capture.json)


def told_stream(body: bytes) -> Told:
    text = reasoning = ""
    asks: list[dict[str, Any]] = []
    nodes: list[dict[str, Any]] | None = None
    error, is_ended = None, False
    for name, data in events(body):
        if data == "DONE":
            is_ended = True
        elif name == "error":
            error, is_ended = data, True
        elif name == "flowResponses":
            nodes = data
        elif name == "flowNodeResponse":
            nodes = [*(nodes or []), data]
        elif name == "interactive":
            asks.append(data["interactive"])
            text = "\n\n".join(filter(None, (text, shown(data["interactive"]))))
        elif name in ("", "answer", "fastAnswer") and "choices" in data:
            delta = data["choices"][0]["delta"]
            text += delta.get("content") or ""
            reasoning += delta.get("reasoning_content") or ""
    return Told(without_marks(text), reasoning, asks, nodes, error, is_ended)


def told_whole(body: dict[str, Any]) -> Told:
    content = body["choices"][0]["message"]["content"]
    items = content if isinstance(content, list) else [{"text": {"content": content}}]
    texts = [item["text"]["content"] for item in items if "text" in item]
    thoughts = [item["reasoning"]["content"] for item in items if "reasoning" in item]
    asks = [item["interactive"] for item in items if "interactive" in item]
    text = "\n".join(filter(None, texts))
    text = "\n\n".join(filter(None, (text, *map(shown, asks))))
    nodes, error = body.get("responseData"), body.get("error")
    return Told(without_marks(text), "".join(thoughts), asks, nodes, error, True)


def without_marks(text: str) -> str:
    return re.sub(r"\[[0-9a-f]{24}\]\((?:QUOTE|CITE)\)", "", text)


def shown(asked: dict[str, Any]) -> str:
    params = asked["params"]
    lines = [params["description"]]
    options = [option["value"] for option in params.get("userSelectOptions", ())]
    lines += [f"{i}. {option}" for i, option in enumerate(options, 1)]
    lines += [f"- {field['label']}" for field in params.get("inputForm", ())]
    return "\n".join(lines)


def failure_of(node: dict[str, Any]) -> Any:
    result = node.get("httpResult")
    return (
        node.get("error")
        or node.get("errorText")
        or (result.get("error") if isinstance(result, dict) else None)
    )


def told_failure(said: Told) -> bool:
    """The rule: an error event, a last node that failed, or no output at all."""
    if said.error or not said.is_ended:
        return True
    if said.asks:
        return False
    if said.text:
        return bool(said.nodes and failure_of(said.nodes[-1]))
    if any(map(failure_of, said.nodes or ())):
        return True
    return not said.reasoning


def told_usage(nodes: list[dict[str, Any]]) -> list[int] | None:
    prompt = completion = total = 0
    for node in nodes:
        if node["moduleType"] != "datasetSearchNode":
            prompt += node.get("inputTokens", 0) + node.get("toolCallInputTokens", 0)
            completion += node.get("outputTokens", 0) + node.get("toolCallOutputTokens", 0)
            if not {"inputTokens", "toolCallInputTokens"} & node.keys():
                total += node.get("tokens", 0) + node.get("toolCallTokens", 0)
        inner = told_usage([*node.get("toolDetail", ()), *node.get("pluginDetail", ())])
        prompt, completion, total = (
            have + more for have, more in zip((prompt, completion, total), inner, strict=True)
        )
    return [prompt, completion, total]


def told_finish(nodes: list[dict[str, Any]]) -> str:
    reasons = [node["finishReason"] for node in nodes if "finishReason" in node]
    return reasons[-1] if reasons and reasons[-1] in ("length", "content_filter") else "stop"


def fastgpt(**options: Any) -> FastGPT:
    agent = FastGPTOptions(
        platform="fastgpt", base_url="http://fastgpt.test", api_key="fastgpt-x", **options
    )
    return FastGPT("f", agent, agent.base_url)


def reply(capture: Capture) -> UpstreamReply:
    return UpstreamReply(capture.status, capture.headers, capture.body)


def as_fed(capture: Capture) -> bytes:
    """The bytes for the decoder: a whole answer becomes the platform's stream for it."""
    return capture.body if capture.is_stream else fastgpt().as_stream(reply(capture))


def decoded(capture: Capture, size: int | None = None) -> dict[str, Any]:
    return summary(feed(FastGPTDecoder("chat-1", detail=True), as_fed(capture), size))


@pytest.mark.parametrize("capture", ANSWERS, ids=named)
@pytest.mark.parametrize("size", [None, 1, 3])
def test_an_answer_is_what_its_events_say(capture, size):
    said = told(capture)
    got = decoded(capture, size if len(capture.body) < 100_000 or not size else 1000)
    assert got["text"] == said.text
    assert got.get("reasoning", "") == said.reasoning
    assert [note["params"] for note in noted(got, "interaction")] == [
        asked["params"] for asked in said.asks
    ]
    if told_failure(said):
        assert "error" in got
        assert "finish" not in got
    else:
        assert "error" not in got
        assert got["finish"] == told_finish(said.nodes or [])
        prompt, completion, total = told_usage(said.nodes or [])
        total += prompt + completion
        assert got.get("usage") == ([prompt, completion, total] if total else None)


def noted(got: dict[str, Any], name: str) -> list[Any]:
    found = got.get("notes", {}).get(name)
    return [] if found is None else [found]


@pytest.mark.parametrize("capture", ANSWERS, ids=named)
def test_nothing_that_no_reader_understands_is_shown(capture):
    deltas = feed(FastGPTDecoder("chat-1", detail=True), as_fed(capture))
    shown = "".join(getattr(delta, "text", "") for delta in deltas)
    assert not re.search(r"\((QUOTE|CITE)\)", shown)
    if isinstance(deltas[-1], Failed):
        words = deltas[-1].error.message
        assert not re.search(r"common:|chat:|: null |<html", words)
    assert "6b0b0d72fffc594cee679627" not in str(deltas)  # the internal `userId` of 4.8.11


CHAT = ChatRequest("f", (Message("user", "你好"),), "user-001")


def refused(capture: Capture) -> GatewayError:
    headers = {name.title(): value for name, value in capture.headers.items()}
    with pytest.raises(GatewayError) as caught:
        fastgpt().recover(UpstreamReply(capture.status, headers, capture.body), CHAT)
    return caught.value


@pytest.mark.parametrize("capture", REFUSALS, ids=named)
def test_every_refusal_has_a_status_and_says_what_it_means(capture):
    error = refused(capture)
    assert error.status != 401  # the caller's key was not refused
    assert len(error.message) > 20
    assert "common:" not in error.message
    if capture.name.startswith(("auth_", "cors_error", "app_id_", "err_wrong_path", "err_double")):
        assert (error.status, error.code) == (502, "upstream_auth_failed")
        assert error.should_retry is False
    if capture.name.startswith(("err_messages", "err_body_empty", "err_content_null", "err_get")):
        assert error.status == 400


REASONS = [
    ("4.8.11", "model_429_stream", "rate_limit_exceeded"),
    ("4.8.20", "model_429_stream_detail", "rate_limit_exceeded"),
    ("4.9.7", "model_429_whole", "rate_limit_exceeded"),
    ("4.12.2", "model_429_stream_detail", "rate_limit_exceeded"),
    ("4.12.2", "tools_model_429_whole_detail", "rate_limit_exceeded"),
    ("4.9.7", "model_403_whole_detail", "insufficient_quota"),
    ("4.12.2", "model_403_whole_detail", "insufficient_quota"),
    ("4.8.11", "model_401_stream", "upstream_auth_failed"),
    ("4.12.2", "model_401_stream_detail", "upstream_auth_failed"),
    ("4.8.11", "chat_content_filter_400_stream", "content_filter"),
    ("4.9.7", "chat_content_filter_400_whole", "content_filter"),
    ("4.12.2", "http_fail_stream_detail", "upstream_failed"),
    ("4.8.11", "http_fail_stream_detail", "upstream_failed"),
    ("4.9.7", "code_nosandbox_whole_detail", "upstream_failed"),
    ("4.12.2", "model_500_stream_detail", "upstream_failed"),
    ("4.9.7", "midstream_cut_stream_detail", "upstream_failed"),
    ("4.12.2", "select_continue_wrong_value", "invalid_value"),
    ("4.12.2", "auth_account_key_stream", "upstream_auth_failed"),
]


@pytest.mark.parametrize(("version", "name", "code"), REASONS)
def test_a_failure_has_the_code_of_its_reason(version, name, code):
    deltas = feed(FastGPTDecoder("chat-1", detail=True), as_fed(capture(version, name)))
    assert isinstance(deltas[-1], Failed)
    assert deltas[-1].error.code == code


@pytest.mark.parametrize("name", ["model_403_whole_detail", "chat_content_filter_400_whole"])
def test_a_vendors_message_alone_gives_the_reason(name):
    code = {"model_403_whole_detail": "insufficient_quota"}.get(name, "content_filter")
    assert refused(capture("4.8.11", name)).code == code


def test_a_model_that_is_cut_leaves_its_text_and_an_error():
    got = decoded(capture("4.12.2", "midstream_cut_stream_detail"))
    assert got["text"] == "你好，年假一共"
    assert (got["error"], got["status"]) == ("UpstreamFailed", 502)


def test_a_failed_node_that_others_follow_is_no_failure():
    got = decoded(capture("4.12.2", "http_catch_stream_detail"))
    assert (got["text"], got["finish"]) == ("\n服务暂时不可用 🙏：", "stop")


def test_a_model_that_reaches_its_limit_says_so():
    assert decoded(capture("4.9.7", "chat_finish_length_stream_detail"))["finish"] == "length"


def test_tool_tokens_count_and_embeddings_do_not():
    assert decoded(capture("4.8.11", "tools_stream_detail"))["usage"] == [0, 0, 202]
    assert decoded(capture("4.8.11", "kb_quote_stream_detail"))["usage"] == [0, 0, 263]


def test_a_heartbeat_is_not_an_answer():
    decoder, beats = FastGPTDecoder("chat-1", detail=True), []
    body = capture("4.12.2", "model_hang_mid_stream_detail").body
    for name, data in Parser().feed(body):
        beats.append(decoder.event(name, data, []) is False)
    assert beats == [False] * 5 + [True] * 3


def test_a_cite_mark_is_cut_out_of_the_text():
    got = decoded(capture("4.9.7", "kb_quote_stream_detail"))
    assert got["text"] == "退货期限 7 天。"


def test_a_refusal_is_no_answer():
    for capture in REFUSALS:
        assert fastgpt().as_stream(reply(capture)) == b""


# The bot's name, and whether the key is valid.


@pytest.mark.parametrize("version", ["4.8.20", "4.12.2"])
def test_a_good_key_reads_the_apps_name(version):
    assert fastgpt(app_id="6b").describe(reply(capture(version, "init"))) == "app 客服助手"


def test_an_old_server_is_asked_for_a_chat_without_messages():
    platform = fastgpt(app_id="6b")
    step = platform.describe(reply(capture("4.8.11", "init")))
    assert isinstance(step, Preliminary)
    assert step.request.url == "http://fastgpt.test/api/v1/chat/completions"
    assert step.request.body == b'{"messages":[]}'
    assert "key is good" in step.learn(reply(capture("4.8.11", "err_body_empty")))
    for refused in ("auth_bad_key_whole", "init"):  # 514 and 403, both under HTTP 200
        with pytest.raises(UpstreamMisconfigured, match="refused the gateway's API key"):
            step.learn(reply(capture("4.8.11", refused)))


def test_a_bad_key_is_found_without_an_app_id():
    request = fastgpt().probe()
    assert isinstance(request, UpstreamRequest)
    assert request.url.endswith("/core/chat/init?appId=000000000000000000000000")
    with pytest.raises(UpstreamMisconfigured):
        fastgpt().describe(reply(capture("4.12.2", "histories_bad_key")))
