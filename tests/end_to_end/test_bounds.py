"""The limits of what one caller may cost: bytes, CPU on the loop, seconds of a slot. docs/limits.md
has the table.

CPU is the time of the loop's own thread between two of its iterations, so other work on the machine
does not count. The callers are threads.
"""

import asyncio
import gc
import gzip
import http.client
import io
import socket
import time
import zlib
from contextlib import ExitStack, asynccontextmanager, closing, suppress

import orjson
import pytest
import uvloop
from abuse.abuse import LIVEZ_S, measure
from aiohttp import FormData, web
from argon2 import PasswordHasher
from conftest import AGENTS, UNLIMITED, Script, streamed
from test_streaming import chunk, idle, until

from gateway.accounts.passwords import Passwords
from gateway.errors import Overloaded, ShareTaken, TargetBusy, TooManyAtOnce
from gateway.http import body
from gateway.http.context import BODIES, FILES, IN_FLIGHT
from gateway.limits.shares import Part, Shares
from gateway.secret import Secret
from gateway.server import connections
from gateway.server.runner import AT_ONCE, Runner, bind, listen

MIB = 1 << 20
AT_ONCE_S = 0.1  # CPU time, in one iteration of the loop
NOWHERE = "http://127.0.0.1:9"
BOTS = {
    name: {**agent, "base_url": NOWHERE, "retries": 0, "breaker": {"failures": 1_000_000}}
    for name, agent in AGENTS.items()
}
BOTS["dify"] = {**BOTS["dify"], "mode": "chat"}
KEYS = [
    {"name": name, "key": f"sk-{name}-key-0001", "permissions": ["chat", "upload"]}
    for name in ("evil", "good")
]


class Turns:
    """The longest iteration of the loop, in seconds of CPU time."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def watch(self) -> None:
        while True:
            began = time.thread_time()
            await asyncio.sleep(0)
            self.longest = max(self.longest, time.thread_time() - began)


@asynccontextmanager
async def turns():
    watched = Turns()
    gc.freeze()  # as the gateway does: exclude the objects of earlier tests from collections
    watching = asyncio.ensure_future(watched.watch())
    try:
        yield watched
    finally:
        watching.cancel()
        gc.unfreeze()


def send(gw, method: str, path: str, data: bytes = b"", **headers: str) -> int:
    """From a thread: the caller's CPU time is not the gateway's."""
    address = gw.url.removeprefix("http://")
    with closing(http.client.HTTPConnection(address, timeout=50)) as line:
        told = {name.replace("_", "-"): value for name, value in headers.items()}
        line.request(method, path, data, told)
        answer = line.getresponse()
        answer.read()
        return answer.status


async def costs(gw, *request, **headers: str) -> tuple[float, int]:
    """(the longest iteration that the request caused, its status): the best of three, since caches
    are cold, and a garbage collection may happen in any of them."""
    longest = []
    for _ in range(3):
        async with turns() as watched:
            status = await asyncio.to_thread(send, gw, *request, **headers)
        longest.append(watched.longest)
        if watched.longest < AT_ONCE_S / 2:
            break
    return min(longest), status


def filled(before: bytes, unit: bytes, after: bytes, most: int) -> bytes:
    count = (most - len(before) - len(after)) // (len(unit) + 1)
    return before + b",".join([unit] * count) + after


def question(content: bytes, *, most: int = 10 * MIB) -> bytes:
    """A question of nearly `most` bytes, whose text repeats `content`."""
    head = b'{"model":"bot","messages":[{"role":"user","content":"'
    return head + content * ((most - 100) // len(content)) + b'"}]}'


_HEAD = b'{"model":"bot","messages":[{"role":"user","content":"x"}],'
WORST = {
    "a text": question("一".encode()),
    "escapes": question(b"\\n"),
    "pairs": question(b"\\ud83d\\ude00"),
    "members": _HEAD + b'"a":{' + b",".join(b'"%x":1' % i for i in range(149_000)) + b"}}",
    "entries": filled(_HEAD + b'"a":[', b'"a"', b"]}", 399_000 * 4),
    "objects": filled(_HEAD + b'"a":[', b"{}", b"]}", 99_000 * 3),
    "history": filled(
        b'{"model":"bot","messages":[', b'{"role":"user","content":"%s"}' % (b"a" * 2000), b"]}",
        10 * MIB,
    ),
    "parts": filled(
        b'{"model":"bot","messages":[{"role":"user","content":[', b'{"type":"text","text":"a"}',
        b"]}]}", 2 * MIB,
    ),
    "files": filled(
        b'{"model":"bot","messages":[{"role":"user","content":[',
        b'{"type":"image_url","image_url":{"url":"http://a/b"}}', b"]}]}", 2 * MIB,
    ),
    "tool calls": filled(
        b'{"model":"bot","messages":[{"role":"assistant","tool_calls":[',
        b'{"id":"c","type":"function","function":{"name":"f","arguments":"{}"}}',
        b']},{"role":"user","content":"x"}]}', 30_000 * 68,
    ),
    "tool results": filled(
        b'{"model":"bot","messages":[',
        b'{"role":"tool","tool_call_id":"coze-1-2-3","content":"%s"}' % (b"a" * 1900), b"]}",
        9 * MIB,
    ),
    "lists, too many": filled(_HEAD + b'"a":[', b"[]", b"]}", 10 * MIB),
    "objects, too many": filled(_HEAD + b'"a":[', b'{"a":1}', b"]}", 10 * MIB),
    "nesting": _HEAD + b'"a":' + b"[" * 5 * MIB + b"]" * 5 * MIB + b"}",
    "a number": _HEAD + b'"a":' + b"9" * 10 * 1_000_000 + b"}",
}  # fmt: skip


# CPU.


@pytest.mark.parametrize("bot", ["openai", "zhipu", "coze"])
@pytest.mark.parametrize("name", WORST)
async def test_no_body_of_a_chat_holds_up_the_loop(gateway, name, bot):
    gw = await gateway(agents={"bot": BOTS[bot]})
    longest, status = await costs(gw, "POST", "/v1/chat/completions", WORST[name])
    assert status in (400, 404, 413, 502)
    assert longest < AT_ONCE_S


@pytest.mark.parametrize("bot", ["dify", "fastgpt"])
async def test_no_question_holds_up_the_loop(gateway, bot):
    gw = await gateway(agents={"bot": BOTS[bot]})
    data = b'{"query":"' + b"a\\n" * (3 * MIB) + b'"}'
    longest, status = await costs(gw, "POST", "/api/v1/chat", data, Agent="bot")
    assert status == 502
    assert longest < AT_ONCE_S


async def test_concurrent_large_bodies_take_turns(gateway):
    gw = await gateway(agents={"bot": BOTS["openai"]})
    path, data = "/v1/chat/completions", WORST["escapes"]
    longest, _ = await costs(gw, "POST", path, data)
    async with turns() as watched:
        sent = [asyncio.to_thread(send, gw, "POST", path, data) for _ in range(6)]
        assert set(await asyncio.gather(*sent)) == {502}
    assert watched.longest < 2 * longest + 0.02


def test_many_who_connect_do_not_hold_up_the_next_one():
    """uvloop by itself accepts one connection per iteration of the loop."""

    async def accepted() -> int:
        runner = Runner(web.Application())
        await runner.setup()
        await listen(runner, await bind("127.0.0.1", 0))
        with ExitStack() as lines:
            for _ in range(2 * AT_ONCE):
                address = runner.addresses[0]
                lines.enter_context(closing(socket.create_connection(address)))
            for _ in range(4):
                await asyncio.sleep(0)
            count = len(runner.server.connections)
        await runner.cleanup()
        return count

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runs:
        assert runs.run(accepted()) >= AT_ONCE


SETTINGS = {
    "members": b"{" + b",".join(b'"snoissimrep%05d":1' % i for i in range(3000)) + b"}",
    "entries": filled(b'{"user":"u","permissions":[', b"0", b"]}", 65_000),
    "agents": filled(b'{"user":"u","agents":[', b'"x"', b"]}", 65_000),
    "a text": b'{"user":"' + "\ufdfa".encode() * 21_000 + b'"}',
    "a name": b'{"username":"' + "\ufdfa".encode() * 21_000 + b'","password":"x"}',
    "an address": b'{"email":"' + "\ufdfa".encode() * 21_000 + b'"}',
    "limits": b'{"name":"n","rate_limits":{' + b",".join(b'"k%d":1' % i for i in range(5000)) + b"}}",
    "nesting": b'{"name":"n","rate_limits":' + b"[" * 900 + b"]" * 900 + b"}",
    "too long": b'{"user":"' + b"a" * 5 * MIB + b'"}',
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
async def test_no_body_that_sets_something_holds_up_the_loop(with_accounts, tmp_path, name):
    url = f"sqlite:///{tmp_path}/g"
    auth = {"registration": True}
    gw = await with_accounts(url, auth=auth, rate_limits=UNLIMITED)
    admin = await gw.login()
    _, key = await gw.key(admin)
    for method, path, token in (
        ("POST", "/tokens", key), ("POST", "/login", ""), ("POST", "/auth/register", ""),
        ("PUT", "/auth/me", admin), ("POST", "/auth/change-password", admin),
        ("POST", "/auth/users", admin), ("POST", "/api-keys", admin),
    ):  # fmt: skip
        told = {"Authorization": f"Bearer {token}"} if token else {}
        longest, status = await costs(gw, method, f"/api/v1{path}", SETTINGS[name], **told)
        assert status in (400, 413), path
        assert longest < AT_ONCE_S / 2, path


@pytest.mark.parametrize("path", ["/health", "/v1/chat/completions", "/nothing", "/v1/files"])
async def test_a_body_that_is_not_read_is_not_inflated(gateway, path):
    bomb = gzip.compress(b"\0" * 200 * MIB, 9)
    auth = {"keys": KEYS, "anonymous": False}
    gw = await gateway(agents={"bot": BOTS["openai"]}, auth=auth)
    began = time.thread_time()
    longest, status = await costs(gw, "POST", path, bomb, Content_Encoding="gzip")
    assert status in (401, 404, 405)
    assert longest < AT_ONCE_S / 2
    assert time.thread_time() - began < 1.0


@pytest.mark.parametrize(
    "data",
    [gzip.compress(b"\0" * 200 * MIB), zlib.compress(b"\0" * 200 * MIB),
     gzip.compress(b"") * 100_000, gzip.compress(b"{}") + b"\0" * MIB, gzip.compress(b"{}" * 99)[:-9]],
    ids=["gzip", "deflate", "many members", "more behind it", "cut"],
)  # fmt: skip
async def test_a_bomb_is_refused_before_it_is_inflated(gateway, data):
    gw = await gateway(agents={"bot": BOTS["openai"]})
    coding = "gzip" if data[:2] == b"\x1f\x8b" else "deflate"
    longest, status = await costs(gw, "POST", "/v1/chat/completions", data, Content_Encoding=coding)
    assert status in (400, 413)
    assert longest < AT_ONCE_S / 2


@pytest.mark.parametrize("size", [b"1\r\na\r\n", b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"])
async def test_what_is_dear_to_parse_is_parsed_in_steps(gateway, size):
    """Chunks of one byte, and pipelined requests, many in one read."""
    gw = await gateway(agents={"bot": BOTS["openai"]})
    host, port = gw.url.removeprefix("http://").split(":")
    head = b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    data = (head if size[:1] == b"1" else b"") + size * (600_000 // len(size))

    def flood() -> None:
        with closing(socket.create_connection((host, int(port)))) as line:
            line.settimeout(5)
            with suppress(TimeoutError):
                line.sendall(data)
                line.recv(1)

    longest = []
    for _ in range(3):
        async with turns() as watched:
            await asyncio.gather(*(asyncio.to_thread(flood) for _ in range(4)))
            assert await asyncio.to_thread(send, gw, "GET", "/livez") == 200
        longest.append(watched.longest)
        if watched.longest < AT_ONCE_S / 2:
            break
    assert min(longest) < AT_ONCE_S / 2


@pytest.mark.parametrize("unit", [b"1\r\na\r\n", b"4\r\n\r\n\r\n\r\n"])
async def test_a_body_in_tiny_chunks_arrives_whole(gateway, unit):
    gw = await gateway(agents={"bot": BOTS["openai"]})
    host, port = gw.url.removeprefix("http://").split(":")
    text = b'{"model":"nothing","x":"%s"}' % (b"a" * 60_000)
    spaces = b"".join([unit] * 20_000).replace(b"a", b" ")
    pieces = b"".join(b"1\r\n%c\r\n" % byte for byte in text)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"

    def ask() -> bytes:
        with closing(socket.create_connection((host, int(port)))) as line:
            line.settimeout(20)
            line.sendall(
                head + spaces + pieces + b"0\r\n\r\nGET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
            )
            told = b""
            while told.count(b"HTTP/1.1 ") < 2:
                told += line.recv(65_536)
            return told

    told = await asyncio.to_thread(ask)
    assert b"There is no model 'nothing'" in told
    assert told.index(b" 404 ") < told.index(b" 200 ")


async def test_long_heads_hold_nothing_up(gateway):
    gw = await gateway(agents={"bot": BOTS["openai"]}, server={"trusted_proxies": ["127.0.0.0/8"]})
    many = {"X-Forwarded-For": "127.0.0.1," * 800}
    for method, path, told in (
        ("GET", "/v1/models", many),
        ("GET", "/v1/models/" + "a/" * 4000, {}),
        ("GET", "/v1/models?" + "&".join(f"a{i}" for i in range(1500)), {}),
        ("GET", "/v1/models", {"Cookie": "a=b;" * 2000}),
        ("POST", "/v1/files", {"Content-Type": "multipart/form-data" + ";a=b" * 2000}),
        ("POST", "/api/v1/chat", {"Agent": "%e4" * 2700}),
    ):
        longest, _ = await costs(gw, method, path, b"", **told)
        assert longest < AT_ONCE_S / 2, path[:20]


# Threads.


async def test_concurrent_logins_beyond_the_limit_are_503(monkeypatch):
    monkeypatch.setattr("gateway.accounts.passwords._MAX_WAITING", 2)
    cheap = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)
    passwords = Passwords(cheap)
    logins = [passwords.check(None, Secret("x")) for _ in range(5)]
    told = await asyncio.gather(*logins, return_exceptions=True)
    passwords.close()
    assert sum(isinstance(one, Overloaded) for one in told) == 3


# Bytes.


async def test_bodies_under_way_are_bounded_for_each_caller(gateway, scripted):
    hanging = await scripted(Script([], before_headers_s=30))
    agents = {"bot": {**AGENTS["openai"], "base_url": hanging.url}}
    gw = await gateway(agents=agents, auth={"keys": KEYS}, server={"max_bodies": "4MiB"})
    evil, good = ({"Authorization": f"Bearer {key['key']}"} for key in KEYS)
    data = question(b"a", most=MIB - 1000)
    waiting = [
        asyncio.ensure_future(gw.client.post(gw.url + "/v1/chat/completions", data=data, headers=evil))
        for _ in range(2)
    ]  # fmt: skip
    await until(lambda: gw.app[BODIES].total > 1.9 * MIB)
    refused = await gw.client.post(gw.url + "/v1/chat/completions", data=data, headers=evil)
    assert refused.status == 429
    assert "max_bodies" in await refused.text()
    waiting.append(
        asyncio.ensure_future(gw.client.post(gw.url + "/v1/chat/completions", data=data, headers=good))
    )  # fmt: skip
    await until(lambda: gw.app[BODIES].total > 2.9 * MIB)
    for each in waiting:
        each.cancel()
    await until(lambda: gw.app[BODIES].total == 0)


@pytest.mark.parametrize(
    ("text", "width"),
    [("a", 1), ("é", 2), ("中", 2), ("😀", 4), ("\\u4e2d", 2), ("\\ud83d\\ude00", 4)],
)
async def test_a_body_counts_as_what_its_text_takes(gateway, scripted, text, width):
    hanging = await scripted(Script([], before_headers_s=30))
    gw = await gateway(agents={"bot": {**AGENTS["openai"], "base_url": hanging.url}})
    data = b'{"model":"bot","messages":[{"role":"user","content":"%s%s"}]}'
    data %= (text.encode(), b"a" * (MIB - 2000))
    asked = asyncio.ensure_future(gw.client.post(gw.url + "/v1/chat/completions", data=data))
    await until(lambda: gw.app[BODIES].total > width * (MIB - 2000))
    assert gw.app[BODIES].total < width * MIB
    asked.cancel()
    await until(lambda: gw.app[BODIES].total == 0)


async def test_chinese_text_counts_for_no_more_than_its_bytes(gateway, scripted):
    hanging = await scripted(Script([], before_headers_s=30))
    gw = await gateway(agents={"bot": {**AGENTS["openai"], "base_url": hanging.url}})
    data = '{"model":"bot","messages":[{"role":"user","content":"%s"}]}' % ("中" * 300_000)
    asked = asyncio.ensure_future(gw.client.post(gw.url + "/v1/chat/completions", data=data))
    await until(lambda: gw.app[BODIES].total == len(data.encode()))
    asked.cancel()


async def test_files_inside_requests_count_as_bodies(gateway, scripted):
    hanging = await scripted(Script([], before_headers_s=30))
    gw = await gateway(
        agents={"bot": {**AGENTS["openai"], "base_url": hanging.url, "retries": 2}},
        auth={"keys": KEYS},
        server={"max_bodies": "16MiB"},
    )
    evil, good = ({"Authorization": f"Bearer {key['key']}"} for key in KEYS)

    async def upload(headers: dict[str, str]) -> str:
        form = FormData()
        form.add_field("file", io.BytesIO(b"a" * (2 * MIB)), filename="a.txt")
        answer = await gw.client.post(gw.url + "/v1/files", data=form, headers=headers)
        return str((await answer.json())["id"])

    def ask(id_: str, headers: dict[str, str]):
        parts = [{"type": "text", "text": "q"}, {"type": "file", "file": {"file_id": id_}}]
        data = {"model": "bot", "messages": [{"role": "user", "content": parts}]}
        return gw.client.post(gw.url + "/v1/chat/completions", json=data, headers=headers)

    mine, theirs = await upload(evil), await upload(good)
    waiting = [asyncio.ensure_future(ask(mine, evil))]
    await until(lambda: gw.app[BODIES].total == 6 * MIB)
    refused = await ask(mine, evil)
    assert refused.status == 429
    assert "max_bodies" in await refused.text()
    assert refused.headers["x-gateway-attempts"] == "1"
    waiting.append(asyncio.ensure_future(ask(theirs, good)))
    await until(lambda: gw.app[BODIES].total == 12 * MIB)
    for each in waiting:
        each.cancel()
    await until(lambda: gw.app[BODIES].total == 0)


async def test_a_stream_lets_its_body_go_when_it_begins(gateway, scripted):
    goes_on = asyncio.Event()
    upstream = await scripted(
        Script([chunk({"content": "a"}), goes_on, chunk({}, "stop"), b"data: [DONE]\n\n"])
    )
    gw = await gateway(agents={"bot": {**AGENTS["openai"], "base_url": upstream.url}})
    text = "a" * MIB
    async with gw.complete("bot", [{"role": "user", "content": text}], stream=True) as answer:
        await answer.content.readany()
        assert gw.app[BODIES].total == 0
        goes_on.set()
        assert streamed(await answer.read())["done"]


def test_who_holds_nothing_may_have_one_of_any_size():
    shares = Shares(10, 0.5)
    first, second = Part(shares, ("a",)), Part(shares, ("a",))
    assert first.grow(8)
    assert first.grow(10)
    assert not second.grow(1)
    first.give_back()
    assert second.grow(5)
    assert not first.grow(1)
    assert Part(shares, ("b",)).grow(5)
    assert not Part(shares, ("c",)).grow(1)
    second.give_back()
    assert shares.total == 5


@pytest.mark.parametrize(
    ("data", "words"),
    [({"messages": [{"role": "user", "content": ["x"] * 900}] * 12}, "parts"),
     ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "http://a/b"}] * 501}]}, "files"),
     ({"user": "u" * 2000}, "user"), ({"variables": {str(i): i for i in range(1001)}}, "members"),
     ({"a": [0] * 400_001}, "holds more than")],
)  # fmt: skip
async def test_what_is_out_of_proportion_is_refused_by_name(gateway, data, words):
    gw = await gateway(agents={"bot": BOTS["openai"]})
    answer = await gw.complete("bot", **data)
    assert answer.status == 400
    assert words in await answer.text()


async def test_a_large_body_says_so_before_it_is_read(gateway):
    gw = await gateway(agents={"bot": BOTS["openai"]}, auth={"keys": KEYS})
    host, port = gw.url.removeprefix("http://").split(":")
    for path, size, most in (
        ("/v1/chat/completions", 11 * MIB, 10 * MIB),
        ("/api/v1/tokens", 65 * 1024, body.MAX_SETTINGS),
    ):
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n"
        writer.write(f"{head}Authorization: Bearer {KEYS[0]['key']}\r\n\r\n".encode())
        answer = await reader.readuntil(b"}")
        assert b" 413 " in answer
        assert f"larger than {most} bytes" in answer.decode()
        writer.close()


# Slots.


def places(concurrency: int, queue: int, **more):
    """A target without any calls."""
    from gateway.chat.routing import Routing
    from gateway.config.load import parse

    settings = {**BOTS["openai"], "concurrency": concurrency, "queue": queue, **more}
    config = parse(orjson.dumps({"agents": {"bot": settings}}).decode(), {})
    return Routing(config, {}).targets["bot"]


async def test_one_caller_has_its_share_of_an_agents_places():
    bot = places(8, 0, timeouts={"queue": "10ms"})
    for _ in range(6):
        await bot.acquire(holders=("evil",))
    with pytest.raises(ShareTaken):
        await bot.acquire(holders=("evil",))
    for _ in range(2):
        await bot.acquire(holders=("good",))
    with pytest.raises(TargetBusy):
        await bot.acquire(holders=("third",))
    bot.release(("evil",))
    await bot.acquire(holders=("third",))


async def test_a_pages_user_has_its_share_of_its_keys_share():
    bot = places(16, 0, timeouts={"queue": "10ms"})
    for _ in range(9):
        await bot.acquire(holders=("key", "key/evil"))
    with pytest.raises(ShareTaken):
        await bot.acquire(holders=("key", "key/evil"))
    for _ in range(3):
        await bot.acquire(holders=("key", "key/good"))
    with pytest.raises(ShareTaken):
        await bot.acquire(holders=("key", "key/good"))


async def test_who_has_its_share_lets_others_pass_in_the_queue():
    bot = places(4, 4, timeouts={"queue": "1m"})
    for _ in range(3):
        await bot.acquire(holders=("evil",))
    greedy = [asyncio.ensure_future(bot.acquire(holders=("evil",))) for _ in range(3)]
    await asyncio.sleep(0)
    assert bot.waiting == 3
    await bot.acquire(holders=("good",))
    patient = asyncio.ensure_future(bot.acquire(holders=("good",)))
    await asyncio.sleep(0)
    bot.release(("good",))
    await patient
    assert not any(each.done() for each in greedy)
    bot.release(("evil",))
    await greedy[0]
    assert not greedy[1].done()
    for each in greedy:
        each.cancel()


async def test_a_share_of_one_takes_every_place():
    bot = places(3, 0, share=1)
    for _ in range(3):
        await bot.acquire(holders=("only",))


async def test_a_caller_over_its_share_is_429_or_gets_the_next_agent(gateway, scripted):
    hanging = await scripted(Script([chunk({"content": "a"})], end="hang"))
    quick = await scripted(Script([chunk({"content": "b"}, "stop"), b"data: [DONE]\n\n"]))
    one = {**AGENTS["openai"], "timeouts": {"queue": "10ms"}, "concurrency": 2}
    agents = {"a": {**one, "base_url": hanging.url}, "b": {**one, "base_url": quick.url}}
    gw = await gateway(agents=agents, routes={"r": ["a", "b"]}, auth={"keys": KEYS})
    headers = {"Authorization": f"Bearer {KEYS[0]['key']}"}
    body_ = {"model": "a", "stream": True, "messages": [{"role": "user", "content": "x"}]}
    async with gw.post("/v1/chat/completions", body_, headers=headers) as first:
        await first.content.readany()
        refused = await gw.post("/v1/chat/completions", body_, headers=headers)
        assert refused.status == 429
        assert (await refused.json())["error"]["code"] == "concurrency_limit_exceeded"
        assert refused.headers["Retry-After"] == "1"
        other = await gw.post("/v1/chat/completions", {**body_, "model": "r"}, headers=headers)
        assert other.headers["x-gateway-agent"] == "b"


async def stalled(gw, body_: bytes = b'{"query":"x","stream":true}') -> socket.socket:
    """A caller that asks and reads nothing."""
    host, port = gw.url.removeprefix("http://").split(":")
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    line.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(line, (host, int(port)))
    head = f"POST /api/v1/chat HTTP/1.1\r\nHost: localhost\r\nAgent: bot\r\nContent-Length: {len(body_)}"
    await loop.sock_sendall(line, f"{head}\r\n\r\n".encode() + body_)
    return line


POURS = [chunk({"content": "x" * 50_000})] * 400


@pytest.mark.parametrize("body_", [b'{"query":"x","stream":true}', b'{"query":"x"}'])
async def test_who_reads_nothing_is_cut_off(gateway, scripted, body_):
    end = [chunk({}, "stop"), b"data: [DONE]\n\n"]
    upstream = await scripted(Script([*POURS, *end]))
    bot = {**AGENTS["openai"], "base_url": upstream.url}
    gw = await gateway(agents={"bot": bot}, server={"send_timeout": "300ms"})
    with closing(await stalled(gw, body_)):
        await until(lambda: len(gw.app[IN_FLIGHT]) > 0)
        await until(lambda: idle(gw) and len(gw.app[IN_FLIGHT]) == 0)


async def test_who_reads_slowly_but_steadily_is_not_cut_off(gateway, scripted, monkeypatch):
    monkeypatch.setattr(connections, "LEAST_READ", 4096)
    upstream = await scripted(Script([*POURS, chunk({}, "stop"), b"data: [DONE]\n\n"]))
    bot = {**AGENTS["openai"], "base_url": upstream.url}
    gw = await gateway(agents={"bot": bot}, server={"send_timeout": "300ms"})
    with closing(await stalled(gw)) as line:
        loop, ends_at = asyncio.get_running_loop(), time.monotonic() + 1.5
        while time.monotonic() < ends_at:  # several times as long as it may take nothing
            assert await loop.sock_recv(line, 1 << 20)
            await asyncio.sleep(0.02)
    await until(lambda: idle(gw))


async def test_users_of_one_key_do_not_take_all_places_for_uploads(gateway):
    gw = await gateway(agents={"bot": BOTS["openai"]})
    files = gw.app[FILES]
    with ExitStack() as held:
        for i in range(25):
            held.enter_context(files.slot(f"key-evil/user{i // 9}"))
        with pytest.raises(TooManyAtOnce):
            held.enter_context(files.slot("key-evil/another"))
        held.enter_context(files.slot("key-good"))


async def test_forms_that_are_passed_on_take_places_of_uploads(gateway, monkeypatch):
    monkeypatch.setattr("gateway.files.library.MAX_COMING_EACH", 0)
    gw = await gateway(agents={"bot": BOTS["openai"]})
    form = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nbot\r\n--b--\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = await gw.post("/v1/audio/transcriptions", form, headers=headers)
    assert answer.status == 429
    assert (await answer.json())["error"]["code"] == "concurrency_limit_exceeded"


# Seen by another caller.


@pytest.mark.parametrize(
    "name", ["places", "unknown_members", "many_values", "one_long_question", "tiny_chunks"]
)
def test_another_caller_is_answered_meanwhile(name):
    """The margin is for a busy machine; the tool itself has none."""
    told = measure(name, 1.5)
    assert told.failed == []
    assert sorted(told.livez)[len(told.livez) // 2] < 10 * LIVEZ_S


# Rates.


async def test_routes_of_accounts_are_limited(with_accounts, tmp_path):
    limits = {**UNLIMITED, "accounts": "2/min"}
    gw = await with_accounts(f"sqlite:///{tmp_path}/g", rate_limits=limits)
    admin = await gw.login()
    assert [(await gw.api("GET", "/auth/me", admin))[0] for _ in range(3)] == [200, 200, 429]
    for method, path in (
        ("PUT", "/auth/me"), ("GET", "/auth/me/usage"), ("GET", "/auth/users"),
        ("POST", "/auth/users"), ("GET", "/auth/users/x"), ("PUT", "/auth/users/x"),
        ("DELETE", "/auth/users/x"), ("GET", "/auth/users/x/usage"), ("GET", "/api-keys"),
        ("POST", "/api-keys"), ("GET", "/api-keys/my"), ("GET", "/api-keys/admin/all"),
        ("POST", "/api-keys/admin/cleanup"), ("GET", "/api-keys/x"), ("PUT", "/api-keys/x"),
        ("DELETE", "/api-keys/x"), ("POST", "/api-keys/x/revoke"), ("GET", "/api-keys/x/usage"),
        ("GET", "/usage"), ("GET", "/calls"), ("GET", "/calls/x"),
    ):  # fmt: skip
        assert (await gw.api(method, path, admin, {}))[0] == 429, path


async def test_tokens_of_pages_are_limited_by_key(gateway):
    limits = {**UNLIMITED, "accounts": "2/min"}
    gw = await gateway(
        agents={"bot": BOTS["openai"]}, auth={"keys": KEYS, "anonymous": False}, rate_limits=limits
    )
    evil, good = ({"Authorization": f"Bearer {key['key']}"} for key in KEYS)
    asked = [await gw.post("/api/v1/tokens", {"user": str(i)}, headers=evil) for i in range(3)]
    assert [answer.status for answer in asked] == [200, 200, 429]
    assert (await gw.post("/api/v1/tokens", {"user": "x"}, headers=good)).status == 200


async def test_requests_after_a_stream_wait_unread(gateway, scripted):
    upstream = await scripted(Script([chunk({"content": "a"})], end="hang"))
    gw = await gateway(agents={"bot": {**AGENTS["openai"], "base_url": upstream.url}})
    with closing(await stalled(gw)) as line:
        loop, sent = asyncio.get_running_loop(), 0
        assert await loop.sock_recv(line, 64)
        line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                while sent < 60 * MIB:
                    piece = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000
                    await loop.sock_sendall(line, piece)
                    sent += len(piece)
        assert sent < 10 * MIB  # nearly all of it is in the system's own buffers
        assert len(gw.app[IN_FLIGHT]) == 1
