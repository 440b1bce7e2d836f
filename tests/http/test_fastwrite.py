"""An answer that is written directly equals the one that aiohttp would have written."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from conftest import leave_all_to_aiohttp

from gateway.http import fastwrite as direct
from gateway.http.context import IN_FLIGHT, Context
from gateway.http.fastwrite import answer_json, begin_stream

QUESTION = b'{"model": "bot", "messages": [{"role": "user", "content": "hi"}]}'
# HTTP/1.0 is allowed here, too; on this machine only proxies speak it.
OPEN = {"anonymous": True, "anonymous_anywhere": True}
# They differ from one answer to the next.
CHANGING = ("date", "x-request-id", "x-conversation-id")


def lasting(headers: dict[str, str], *changing: str) -> dict[str, str]:
    """The headers that are equal for all answers; of others only the names."""
    for name in (*CHANGING, *changing):
        assert headers.pop(name)
    left = ("-remaining-requests", "-reset-requests", "-tokens")
    return {name: "" if name.endswith(left) else value for name, value in headers.items()}


def question(version: str = "1.1", *headers: str, body: bytes = QUESTION) -> bytes:
    lines = [f"POST /v1/chat/completions HTTP/{version}", "Host: gateway", *headers]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "\r\n"]).encode() + body


async def asked(gw: Any, *questions: bytes) -> list[tuple[str, dict[str, str], bytes]]:
    """(status line, headers, body) of each answer on one connection; all questions are sent
    together."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gw.url.rpartition(":")[2]))
    writer.write(b"".join(questions))
    answers = []
    for _ in questions:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("ascii").split("\r\n")[:-2]
        headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in lines)
        }
        assert len(headers) == len(lines)
        answers.append((first, headers, await reader.readexactly(int(headers["content-length"]))))
    writer.close()
    return answers


async def both_ways(gateway: Any, monkeypatch: Any, **config: Any) -> AsyncIterator[Any]:
    """A gateway that writes directly, then one whose aiohttp does all."""
    yield await gateway(auth=OPEN, **config)
    leave_all_to_aiohttp(monkeypatch)
    yield await gateway(auth=OPEN, **config)


@pytest.fixture
def agents(demo):
    """`await agents("bot")`: one agent of that name, which answers without pauses."""

    async def start(name: str = "bot") -> dict[str, dict[str, str]]:
        served = await demo("dify", key="app-key")
        dify = {"platform": "dify", "base_url": served.url, "api_key": "app-key", "mode": "chat"}
        return {name: dify}

    return start


@pytest.fixture
def sent(monkeypatch) -> list[bool]:
    """For each whole answer, whether it was written directly."""
    out: list[bool] = []

    def spy(*args: Any) -> Any:
        answer = answer_json(*args)
        out.append(answer is direct.ALREADY_SENT)
        return answer

    monkeypatch.setattr("gateway.http.whole.answer_json", spy)
    return out


@pytest.mark.parametrize("limits", [{"chat": None}, {"chat": "9/s"}, {"tokens": "9999999/min"}])
@pytest.mark.parametrize("name", ["bot", "机器人"])
async def test_both_ways_send_the_same_headers(name, limits, agents, gateway, sent, monkeypatch):
    got = []
    async for gw in both_ways(gateway, monkeypatch, agents=await agents(name), rate_limits=limits):
        body = QUESTION.replace(b"bot", name.encode())
        ((first, headers, _),) = await asked(gw, question(body=body))
        got.append((first, lasting(headers, "content-length")))
    assert sent == [True, False]
    assert got[0] == got[1]
    assert got[0][0] == "HTTP/1.1 200 OK"
    assert ("x-ratelimit-limit-requests" in got[0][1]) is (
        "chat" not in limits or bool(limits["chat"])
    )


async def test_both_ways_date_their_answers_alike(agents, gateway, sent, monkeypatch):
    async for gw in both_ways(gateway, monkeypatch, agents=await agents()):
        monkeypatch.setattr("gateway.http.fastwrite.time.time", lambda: 1_800_000_000.9)
        monkeypatch.setattr("aiohttp.helpers.time.time", lambda: 1_800_000_000.9)
        ((_, headers, _),) = await asked(gw, question())
        assert headers["date"] == "Fri, 15 Jan 2027 08:00:00 GMT"
    assert sent == [True, False]


async def test_pipelined_questions_are_answered_in_order(agents, gateway, sent):
    gw = await gateway(agents=await agents(), auth=OPEN)
    ids = [f"question-{n}" for n in range(5)]
    answers = await asked(gw, *(question("1.1", f"x-request-id: {id_}") for id_ in ids))
    assert [headers["x-request-id"] for _, headers, _ in answers] == ids
    assert sent == [True] * 5


async def test_long_bodies_that_aiohttp_takes_in_parts_arrive_whole(agents, gateway, monkeypatch):
    """aiohttp pauses reading within them, and resumes when they are read."""
    long = QUESTION.replace(b"hi", b"h" * 500_000)
    async for gw in both_ways(gateway, monkeypatch, agents=await agents()):
        for _ in range(2):
            answers = await asked(gw, question(body=long), question(), question(body=long))
            assert [first for first, _, _ in answers] == ["HTTP/1.1 200 OK"] * 3


@pytest.mark.parametrize(
    ("version", "header", "expected"),
    [
        ("1.0", "x: y", {"connection": "close"}),
        ("1.0", "Connection: keep-alive", {"connection": "keep-alive"}),
        ("1.1", "Connection: close", {"connection": "close"}),
        ("1.1", "Origin: http://localhost:3000", {"vary": "Origin"}),
        ("1.1", "Connection: Upgrade\r\nUpgrade: websocket", {"server": "ai-gateway"}),
    ],
)
async def test_what_is_not_quite_plain_is_left_to_aiohttp(
    version, header, expected, agents, gateway, sent
):
    gw = await gateway(agents=await agents(), auth=OPEN)
    ((first, headers, body),) = await asked(gw, question(version, header))
    assert first == f"HTTP/{version} 200 OK"
    if expected != {"connection": "close"} or version == "1.1":
        assert expected.items() <= headers.items()
    assert body.startswith(b"{")
    assert sent == [False]


async def test_a_long_answer_is_left_to_aiohttp(agents, gateway, sent, monkeypatch):
    monkeypatch.setattr(direct, "MAX_BODY", 10)
    gw = await gateway(agents=await agents(), auth=OPEN)
    ((_, _, body),) = await asked(gw, question())
    assert len(body) > 10
    assert sent == [False]


async def test_connections_close_while_the_process_stops(agents, gateway, sent, monkeypatch):
    gw = await gateway(agents=await agents(), auth=OPEN)
    in_flight = gw.app[IN_FLIGHT]

    def stop(*args: Any) -> Any:
        in_flight.stopping = True
        return answer_json(*args)

    monkeypatch.setattr("gateway.http.whole.answer_json", stop)
    ((_, headers, _),) = await asked(gw, question())
    assert headers["connection"] == "close"


def stream_question(*headers: str, version: str = "1.1", name: str = "bot") -> bytes:
    body = QUESTION.replace(b"bot", name.encode()).replace(b"{", b'{"stream": true, ', 1)
    return question(version, *headers, body=body)


async def streamed(gw: Any, asked: bytes) -> tuple[str, dict[str, str], bytes]:
    """(status line, headers, the deltas' contents) of a stream's answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gw.url.rpartition(":")[2]))
    writer.write(asked)
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("ascii").split("\r\n")[:-2]
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    assert len(headers) == len(lines)
    chunked = headers.get("transfer-encoding") == "chunked"
    body = await (unchunked(reader) if chunked else reader.read())
    writer.close()
    assert body.endswith(b"data: [DONE]\n\n")
    return first, headers, b"".join(re.findall(rb'"content":"([^"]*)"', body))


async def unchunked(reader: asyncio.StreamReader) -> bytes:
    out = b""
    while size := int((await reader.readuntil(b"\r\n"))[:-2], 16):
        out += await reader.readexactly(size)
        assert await reader.readexactly(2) == b"\r\n"
    assert await reader.readexactly(2) == b"\r\n"
    return out


@pytest.fixture
def begun(monkeypatch) -> list[bool]:
    """For each stream, whether it was written directly."""
    out: list[bool] = []

    async def spy(*args: Any) -> Any:
        answer = await begin_stream(*args)
        out.append(isinstance(answer, direct.Stream))
        return answer

    monkeypatch.setattr("gateway.http.answer.begin_stream", spy)
    return out


@pytest.mark.parametrize("limits", [{"chat": None}, {"chat": "9/s"}, {"tokens": "9999999/min"}])
@pytest.mark.parametrize("name", ["bot", "机器人"])
async def test_both_ways_begin_a_stream_alike(name, limits, agents, gateway, begun, monkeypatch):
    got = []
    async for gw in both_ways(gateway, monkeypatch, agents=await agents(name), rate_limits=limits):
        first, headers, text = await streamed(gw, stream_question(name=name))
        got.append((first, lasting(headers), text))
    assert begun == [True, False]
    assert got[0] == got[1]
    assert got[0][1]["content-type"] == "text/event-stream; charset=utf-8"
    assert got[0][1]["cache-control"] == "no-cache"


@pytest.mark.parametrize(
    ("version", "header", "expected"),
    [
        ("1.0", "x: y", ("transfer-encoding", None)),
        ("1.0", "Connection: keep-alive", ("transfer-encoding", None)),
        ("1.1", "Connection: close", ("connection", "close")),
        ("1.1", "Origin: http://localhost:3000", ("vary", "Origin")),
        ("1.1", "Connection: Upgrade\r\nUpgrade: websocket", ("server", "ai-gateway")),
    ],
)
async def test_a_stream_that_is_not_quite_plain_is_left_to_aiohttp(
    version, header, expected, agents, gateway, begun
):
    gw = await gateway(agents=await agents(), auth=OPEN)
    first, headers, text = await streamed(gw, stream_question(header, version=version))
    assert first == f"HTTP/{version} 200 OK"
    assert headers.get(expected[0]) == expected[1]
    assert text
    assert begun == [False]


async def test_a_question_after_a_stream_is_answered_after_it(agents, gateway, begun, sent):
    gw = await gateway(agents=await agents(), auth=OPEN)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gw.url.rpartition(":")[2]))
    writer.write(stream_question() + question() + stream_question())
    assert b"chunked" in await reader.readuntil(b"\r\n\r\n")
    assert (await unchunked(reader)).endswith(b"data: [DONE]\n\n")
    length = re.search(rb"Content-Length: (\d+)", await reader.readuntil(b"\r\n\r\n"))
    assert length
    assert orjson.loads(await reader.readexactly(int(length[1])))["choices"]
    assert b"chunked" in await reader.readuntil(b"\r\n\r\n")
    assert (await unchunked(reader)).endswith(b"data: [DONE]\n\n")
    writer.close()
    assert (begun, sent) == ([True, True], [True])


class Transport:
    """The transport of a caller that has disconnected, or does not read."""

    def __init__(self, is_closing: bool) -> None:
        self.is_closing = lambda: is_closing

    def write(self, data: bytes) -> None:
        raise AssertionError("it is not to be written to")


class Connection(direct.ClientConnection):
    def __init__(self, goes_on: bool) -> None:
        self._goes_on = goes_on

    @property
    def goes_on(self) -> bool:
        return self._goes_on


@pytest.mark.parametrize(
    ("transport", "caller"),
    [
        (None, Connection(True)),
        (Transport(is_closing=True), Connection(True)),
        (Transport(is_closing=False), Connection(False)),
        (Transport(is_closing=False), object()),
    ],
)
def test_no_direct_write_to_a_caller_that_left_or_does_not_read(transport, caller):
    class Request:
        def __init__(self) -> None:
            self.transport, self.protocol = transport, caller
            self.version, self.keep_alive, self.secure = direct.HttpVersion11, True, False
            self.headers: dict[str, str] = {}

    answer: Any = answer_json(Request(), Context("r", "a", None), {"x": "y"}, b"{}")  # type: ignore[arg-type]
    assert (answer.status, answer.body, answer.headers["x"]) == (200, b"{}", "y")


async def test_a_stream_is_not_written_to_a_caller_who_has_left():
    request: Any = object()
    stream = direct.Stream(request, Transport(is_closing=True), b"head")  # type: ignore[arg-type]
    for write in (stream.write, stream.write_eof):
        with pytest.raises(ConnectionResetError):
            await write(b"data: x\n\n")
