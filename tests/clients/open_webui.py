"""Open WebUI, the program itself, in front of the gateway: `make test-clients`.

A platform sees the conversations that a person would expect, and no background call.
"""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from webui import Chat, Person, Process, gateway, open_webui

KEY = "sk-webui-0123456789"
SECRET = "0123456789abcdef0123456789abcdef"
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
# Open WebUI's environment and the key of the gateway, if it signs the users that it names.
SIGNED = {
    "environ": {
        "ENABLE_FORWARD_USER_INFO_HEADERS": "true", "FORWARD_USER_INFO_HEADER_JWT_SECRET": SECRET,
    },
    "key": {"trust_client_headers": True, "client_headers_secret": SECRET},
}  # fmt: skip
PLAIN = {
    "environ": {"ENABLE_FORWARD_USER_INFO_HEADERS": "true"}, "key": {"trust_client_headers": True},
}  # fmt: skip
SUGGESTED = ["还能做什么？", "怎么接入我的智能体？"]  # by the demo Dify, after any answer
NOTES = b"Workshop notes. The blue bench opens at nine. The gauge is in drawer four."


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def start(tmp_path, demo, http):
    """`await start(**config)`: (the administrator of an Open WebUI in front of a gateway, the demo
    Dify behind it). `agents` and `key` add to the configuration."""
    running: list[Process] = []

    async def run(process: Process) -> str:
        running.append(process)
        await process.begin()
        return process.url

    async def begin(agents: Any = None, key: Any = None, environ: Any = None, **config: Any):
        dify, model = (
            await demo("dify", key="app-key", suggests=True),
            await demo("openai", key="sk-model"),
        )
        config["agents"] = {
            "bot": {"platform": "dify", "api_key": "app-key", "base_url": dify.url},
            "model": {"platform": "openai", "api_key": "sk-model", "base_url": model.url},
            **(agents or {}),
        }
        config["auth"] = {"keys": [{"name": "webui", "key": KEY, **(key or {})}]}
        url = await run(gateway(tmp_path / "gateway", {"database": "none", **config}))
        url = await run(open_webui(tmp_path / "webui", f"{url}/v1", KEY, **(environ or {})))
        return await Person.sign_up(url, http, "admin"), dify.demo

    yield begin
    for process in reversed(running):
        process.stop()


def runs(demo: Any) -> list[dict[str, Any]]:
    """The bodies of the bot's runs."""
    return [body for path, body in demo.requests if path == "/v1/chat-messages"]


def conversations(demo: Any) -> list[list[str]]:
    """The questions of each of the bot's conversations; the last one is that asked last."""
    return [list(questions) for questions in demo._conversations.values()]


async def test_branches_of_a_chat_are_conversations(start):
    person, dify = await start()
    assert "bot" in await person.models()
    chat = Chat(person, "bot")
    first = await chat.ask("Where is the chain gauge?")
    assert "Your previous question was" in await chat.ask("And the pump?")
    assert (await chat.stored())["title"] == "Where is the chain gauge"
    assert await chat.follow_ups() == SUGGESTED
    await chat.regenerate()
    await chat.ask("Who has it?")
    await chat.edit(1, "And the oil?")
    await chat.edit(0, "Where is the blue bench?")
    assert (await chat.stored())["title"] == "Where is the blue bench"
    seed = f"User: Where is the chain gauge?\n\nAssistant: {first}\n\nUser: "
    assert conversations(dify) == [
        ["Where is the chain gauge?", "And the pump?"],
        [f"{seed}And the pump?", "Who has it?"],
        [f"{seed}And the oil?"],
        ["Where is the blue bench?"],
    ]


def hang(demo: Any, pieces: int) -> list[str]:
    """Let the bot say so many pieces and no more; returns the list into which they go."""
    said: list[str] = []
    speak = demo.pieces

    async def spoken(*args: Any) -> AsyncIterator[tuple[str, str]]:
        async for kind, piece in speak(*args):
            if len(said) == pieces:
                await asyncio.sleep(60)
            said.append(piece)
            yield kind, piece

    demo.pieces = spoken
    return said


async def test_a_stopped_answer_stays_in_its_conversation(start):
    person, dify = await start()
    chat = Chat(person, "bot")
    await chat.ask("one?")
    said = hang(dify, 30)
    dify.pace_s = 0.02
    answer = await chat.stop("two?", lambda: len(said) == 30)
    del dify.pieces
    assert answer
    assert "".join(said).startswith(answer)
    await chat.ask("three?")
    assert conversations(dify) == [["one?", "two?", "three?"]]


async def test_a_failed_question_stays_in_its_conversation(start):
    person, dify = await start()
    chat = Chat(person, "bot")
    await chat.ask("Please think about it: one?")
    assert (await chat.ask("#fail two?")).startswith("error: Agent 'bot': Dify could not finish")
    await chat.ask("three?")
    assert conversations(dify) == [["Please think about it: one?", "#fail two?", "three?"]]


async def test_a_fork_and_a_corrected_answer_are_branches(start):
    person, dify = await start()
    chat = Chat(person, "bot")
    await chat.ask("one?")
    fork = await chat.fork()
    await chat.ask("two?")
    await fork.ask("two of the fork?")
    await chat.correct("The chain gauge is in drawer five, as Robin says.")
    await chat.ask("three?")
    await fork.ask("three of the fork?")
    first, corrected, forked = conversations(dify)
    assert first == ["one?", "two?"]
    assert [question.rpartition("User: ")[2] for question in corrected] == ["three?"]
    assert "drawer five" in corrected[0]
    assert [question.rpartition("User: ")[2] for question in forked] == [
        "two of the fork?", "three of the fork?",
    ]  # fmt: skip


async def test_a_question_about_a_file_is_no_background_call(start):
    person, dify = await start(**SIGNED)  # embeddings and searches for queries, too
    chat = Chat(person, "bot")
    await chat.ask("Where is the gauge?", await person.upload("notes.txt", NOTES, "text/plain"))
    assert await chat.follow_ups() == SUGGESTED
    await chat.ask("And the pump?")
    assert await chat.follow_ups() == SUGGESTED
    await chat.regenerate()
    one, two = conversations(dify)
    assert [question.rpartition("\n\n")[2] for question in one] == [
        "Where is the gauge?", "And the pump?",
    ]  # fmt: skip
    assert all(NOTES.decode() in question for question in one)
    assert "attached_files" not in str(one)
    assert [question.rpartition("\n\n")[2] for question in two] == ["And the pump?"]
    assert len(runs(dify)) == 3


async def test_a_picture_reaches_the_bot_once_as_a_file(start):
    person, dify = await start()
    chat = Chat(person, "bot")
    await chat.ask("What colour is it?", await person.upload("pic.png", PNG, "image/png"))
    await chat.ask("Why?")
    assert await chat.follow_ups() == SUGGESTED
    assert conversations(dify) == [["What colour is it?", "Why?"]]
    first, second = runs(dify)
    assert [file["type"] for file in first["files"]] == ["image"]
    assert "files" not in second
    assert len(dify.uploads) == 1


@pytest.fixture
async def small(aiohttp_server):
    """A small model that answers background calls in JSON, and what it was asked."""
    asked: list[str] = []

    async def complete(request: web.Request) -> web.Response:
        prompt = (await request.json())["messages"][-1]["content"]
        forms = {"title": "Tools", "follow_ups": ["And then?", "Why?"], "tags": ["Workshop"]}
        (name,) = [name for name in forms if f'"{name}"' in prompt]
        asked.append(name)
        message = {"role": "assistant", "content": json.dumps({name: forms[name]})}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return web.json_response({"object": "chat.completion", "choices": [choice]})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", complete)
    server = await aiohttp_server(app)
    return str(server.make_url("/v1")), asked


async def test_sixteen_questions_make_sixteen_runs(start, small):
    url, asked = small
    agent = {"platform": "openai", "base_url": url, "model": "small"}
    person, dify = await start(agents={"small": agent}, background={"model": "small"})
    chats = [Chat(person, "bot") for _ in range(4)]
    for number in range(4):
        for place, chat in enumerate(chats):
            await chat.ask(f"Question {number} in chat {place}?")
    assert len(runs(dify)) == 16
    assert conversations(dify) == [
        [f"Question {number} in chat {place}?" for number in range(4)] for place in range(4)
    ]
    for chat in chats:
        assert (await chat.stored())["title"] == "Tools"
        assert await chat.follow_ups() == ["And then?", "Why?"]
    assert {name: asked.count(name) for name in asked} == {"title": 4, "tags": 4, "follow_ups": 16}


@pytest.mark.parametrize("headers", [PLAIN, SIGNED], ids=["plain", "signed"])
async def test_chats_with_equal_words_stay_apart(start, headers):
    person, dify = await start(**headers)
    people = [person, await person.add("ann"), await person.add("ben")]
    chats = [Chat(each, "bot") for each in people for _ in range(2)]
    for question in ("hi", "and then?", "thanks"):
        for chat in chats:
            await chat.ask(question)
    assert conversations(dify) == [["hi", "and then?", "thanks"]] * 6
    prefix = "key-webui/" if headers is SIGNED else ""
    users = [f"{prefix}{each.id}" for each in people for _ in range(2)]
    assert [body["user"] for body in runs(dify)] == users * 3
