"""Every answer carries the same headers, whoever writes it."""

import asyncio
from typing import Any

import pytest
from conftest import AGENTS
from test_fastwrite import OPEN, QUESTION, question, stream_question

from gateway.app import build_ops
from gateway.http.commonheaders import CONSTANT
from gateway.server.runner import Runner, bind, listen

GET = b"GET /%b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
ANSWERS = {
    "written directly": question(),
    "a stream written directly": stream_question(),
    "written by aiohttp": question("1.1", "Connection: close"),
    "a stream written by aiohttp": stream_question("Connection: close"),
    "to a page": question("1.1", "Origin: http://localhost:3000"),
    "an error": question(body=QUESTION.replace(b"bot", b"nothing")),
    "no such path": GET % b"nothing",
    "a health check": GET % b"livez",
    "bad HTTP": b"GET /livez HTTP/1.1\r\nBad Header\r\n\r\n",
}


async def headers_of(port: int, question: bytes = b"") -> dict[str, str]:
    """The answer's, by lower-case names. Each name appears once."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(question)
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("ascii").split("\r\n")[:-2]
    writer.close()
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    assert len(headers) == len(lines)
    return {"status": first.split()[1], **headers}


def port_of(gw: Any) -> int:
    return int(gw.url.rpartition(":")[2])


def require_common(headers: dict[str, str], is_stream: bool = False) -> None:
    expected = {name.lower(): value for name, value in CONSTANT.items()}
    if is_stream:
        expected["cache-control"] = "no-cache"
    assert expected.items() <= headers.items()
    assert headers["x-request-id"].startswith("req-")
    assert headers["date"].endswith(" GMT")


@pytest.mark.parametrize("name", ANSWERS)
async def test_each_answer_has_the_common_headers_once(name, gateway, demo):
    served = await demo("dify", key="app-test-key")
    agent = {**AGENTS["dify"], "base_url": served.url, "mode": "chat"}
    gw = await gateway(agents={"bot": agent}, auth=OPEN, rate_limits={"chat": "9/s"})
    headers = await headers_of(port_of(gw), ANSWERS[name])
    require_common(headers, is_stream="stream" in name)
    is_chat = ANSWERS[name].startswith(b"POST")
    assert ("x-ratelimit-limit-requests" in headers) is is_chat
    assert ("access-control-allow-origin" in headers) is (name == "to a page")


async def test_a_refused_connection_and_a_probe_have_them_too(gateway):
    gw = await gateway(agents={"bot": AGENTS["dify"]}, server={"max_connections": 10})
    ops = Runner(build_ops(gw.app))
    await ops.setup()
    await listen(ops, await bind("127.0.0.1", 0))
    held = [(await asyncio.open_connection("127.0.0.1", port_of(gw)))[1] for _ in range(10)]
    await asyncio.sleep(0.05)  # until it is accepted
    for port, status in ((port_of(gw), "503"), (ops.addresses[0][1], "200")):
        headers = await headers_of(port, GET % b"livez")
        assert headers["status"] == status
        require_common(headers)
    for writer in held:
        writer.close()
    await ops.cleanup()
