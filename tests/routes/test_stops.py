"""POST /api/v1/conversations/{id}/stop: an answer under way ends where its user stops it."""

import asyncio
import json

import pytest
from conftest import AGENTS, Script, streamed

from gateway.conversations.register import Register
from gateway.http import remember

KEY = "sk-app-key-000001"
AUTH = {
    "anonymous": False,
    "jwt_secret": "0123456789abcdef" * 2,
    "keys": [{"name": "app", "key": KEY, "permissions": ["chat"]}],
}
WORD = b'data: {"id":"m","choices":[{"index":0,"delta":{"content":"one "}}]}\n\n'
CREATED = b'event: conversation.chat.created\ndata: {"id":"r1","conversation_id":"77"}\n\n'


def delta(text: str) -> bytes:
    data = {"id": "m", "conversation_id": "77", "role": "assistant", "type": "answer"}
    data |= {"content": text, "content_type": "text", "chat_id": "r1"}
    return b"event: conversation.message.delta\ndata: " + json.dumps(data).encode() + b"\n\n"


class Stopping:
    """A gateway, and an upstream that says a word and then waits."""

    def __init__(self, gateway, upstream):
        self.gateway, self.upstream = gateway, upstream

    async def stop(self, conversation="77", user="alice", gateway=None):
        path = f"/conversations/{conversation}/stop?user={user}"
        return await (gateway or self.gateway).api("POST", path, KEY)

    async def ask(self, **body):
        headers = {"Agent": "bot", "Authorization": f"Bearer {KEY}"}
        body = {"query": "hi", "user": "alice", **body}
        async with self.gateway.post("/api/v1/chat", body, headers=headers) as answer:
            return answer.status, await answer.read()

    async def until_stopped(self, **options):
        """The answer to the first stop that has found something to stop."""
        async with asyncio.timeout(10):
            while True:
                status, answer = await self.stop(**options)
                if status == 200 and answer["data"]["stopped"]:
                    return answer["data"]
                await asyncio.sleep(0.02)


@pytest.fixture
async def stopping(gateway, scripted, tmp_path):
    async def start(*pieces, **config):
        upstream = await scripted(
            Script([CREATED, *pieces], end="hang"), Script([b'{"code":0}'], headers={})
        )
        agents = {"bot": {**AGENTS["coze"], "base_url": upstream.url, "retries": 0}}
        agents["other"] = {**AGENTS["coze"], "base_url": upstream.url}
        settings = {"agents": agents, "auth": AUTH, **config}
        settings.setdefault("database", f"sqlite:///{tmp_path}/gateway.db")
        settings["record"] = {"spool": str(tmp_path / "spool")}
        return Stopping(await gateway(**settings), upstream)

    return start


async def test_a_stream_ends_where_it_is_stopped(stopping):
    it = await stopping(delta("one "), delta("two"))
    asking = asyncio.create_task(it.ask(stream=True))
    data = await it.until_stopped()
    assert data == {"id": "77", "stopped": True, "platform": "asked"}
    status, raw = await asking
    assert status == 200
    answer = streamed(raw)
    assert answer["text"] == "one two"
    last = [line for line in raw.splitlines() if line.startswith(b"data: {")][-1]
    chunk = json.loads(last[6:])
    assert (chunk["choices"][0]["finish_reason"], chunk["gateway"]["stopped"]) == ("stop", True)
    assert raw.rstrip().endswith(b"data: [DONE]")
    async with asyncio.timeout(5):
        while not it.upstream.bodies("/v3/chat/cancel"):
            await asyncio.sleep(0.01)
    assert it.upstream.bodies("/v3/chat/cancel") == [{"conversation_id": "77", "chat_id": "r1"}]


@pytest.mark.parametrize("server", [{}, {"keepalive_whole": True, "keepalive": 0.05}])
async def test_a_whole_answer_has_what_there_is(stopping, server):
    it = await stopping(delta("one "), server=server)
    asking = asyncio.create_task(it.ask())
    await it.until_stopped()
    status, raw = await asking
    answer = json.loads(raw)
    assert (status, answer["choices"][0]["message"]["content"]) == (200, "one ")
    assert answer["gateway"]["stopped"] is True


@pytest.mark.parametrize("stream", [True, False])
async def test_it_can_be_stopped_before_its_first_word(stopping, stream):
    it = await stopping(conversations="off")
    asking = asyncio.create_task(it.ask(stream=stream, conversation_id="77"))
    await it.until_stopped()
    status, raw = await asking
    assert (status, b'"stopped":true' in raw) == (200, True)


async def test_another_user_stops_nothing(stopping):
    it = await stopping(delta("one "))
    asking = asyncio.create_task(it.ask(stream=True))
    async with asyncio.timeout(5):
        while not it.upstream.bodies("/v3/chat"):
            await asyncio.sleep(0.01)
    for user in ("bob", ""):
        status, answer = await it.stop(user=user)
        assert (status, answer["detail"]["error"]) == (404, "conversation_not_found")
    assert not asking.done()
    await it.until_stopped()
    await asking


async def test_nothing_is_under_way(stopping):
    it = await stopping(delta("one "))
    asking = asyncio.create_task(it.ask(stream=True))
    await it.until_stopped()
    await asking
    status, answer = await it.stop()
    assert (status, answer["data"]) == (200, {"id": "77", "stopped": False, "platform": None})
    status, answer = await it.stop("other")
    assert status == 404


async def test_another_replica_can_be_asked(stopping, gateway, redis_server, postgresql):
    shared = {"redis": {"url": redis_server.url}, "database": postgresql.database()}
    it = await stopping(delta("one "), **shared)
    agents = {"bot": {**AGENTS["coze"], "base_url": it.upstream.url}}
    other = await gateway(agents=agents, auth=AUTH, **shared)
    asking = asyncio.create_task(it.ask(stream=True))
    data = await it.until_stopped(gateway=other)
    assert data["platform"] == "asked"
    status, raw = await asking
    assert (status, b'"stopped":true' in raw) == (200, True)
    status, _ = await it.stop(user="bob", gateway=other)
    assert status == 404


ENDS = [{"stream": True}, {"stream": False}, {"stream": False, "keepalive": 0.05}]


@pytest.mark.parametrize("mode", ENDS)
async def test_a_second_stop_finds_the_end_on_its_way(
    gateway, scripted, tmp_path, monkeypatch, mode
):
    """The end waits for the turn to be kept; a stop in this moment must not break it off."""
    upstream = await scripted(Script([WORD], end="hang"))
    stream, keepalive = mode["stream"], mode.get("keepalive")
    gw = await gateway(
        agents={"bot": {**AGENTS["openai"], "base_url": upstream.url, "retries": 0}},
        auth=AUTH,
        database=f"sqlite:///{tmp_path}/gateway.db",
        record={"spool": str(tmp_path / "spool")},
        server={"keepalive_whole": True, "keepalive": keepalive} if keepalive else {},
    )
    it, settling, is_settled = Stopping(gw, upstream), asyncio.Event(), asyncio.Event()
    monkeypatch.setattr(remember, "new_id", lambda digits: "a1b2")

    async def settle(register):
        settling.set()
        await is_settled.wait()

    monkeypatch.setattr(Register, "settle", settle)
    asking = asyncio.create_task(it.ask(stream=stream))
    data = await it.until_stopped(conversation="a1b2")
    await settling.wait()
    assert (await it.stop("a1b2"))[1]["data"] == data
    is_settled.set()
    status, raw = await asking
    assert (status, b'"stopped":true' in raw) == (200, True)


async def test_a_page_stops_answers_of_its_own_agents_alone(stopping):
    it = await stopping(delta("one "))
    body = {"user": "alice", "agents": ["other"]}
    token = (await it.gateway.api("POST", "/tokens", KEY, body))[1]["data"]["token"]
    asking = asyncio.create_task(it.ask(stream=True))
    async with asyncio.timeout(5):
        while not it.upstream.bodies("/v3/chat"):
            await asyncio.sleep(0.01)
    for _ in range(3):
        status, _ = await it.gateway.api("POST", "/conversations/77/stop", token)
        assert status == 404
    status, _ = await it.gateway.api("POST", "/conversations/77/stop?user=alice&agent=other", KEY)
    assert status == 404
    assert not asking.done()
    await it.until_stopped()
    await asking
