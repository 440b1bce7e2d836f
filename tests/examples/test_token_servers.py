"""The servers that hand out tokens, run as they stand, with a real gateway and a real page."""

import asyncio
import subprocess
from urllib.request import urlopen

import aiohttp
import pytest
import servers
from conftest import AGENTS
from toolbox import EXAMPLES, KEY, TokenServer

SERVERS = {"python": "server.py", "node": "server.mjs"}

pytestmark = pytest.mark.timeout(300)  # the first run may install what it needs


@pytest.fixture
async def gw(gateway, demo):
    dify = await demo("dify")
    keys = [{"name": "web", "key": KEY, "permissions": ["chat", "upload"]}]
    auth = {"anonymous": False, "keys": keys}
    return await gateway(agents={"dify": {**AGENTS["dify"], "base_url": dify.url}}, auth=auth)


@pytest.fixture(params=SERVERS)
def name(request):
    return SERVERS[request.param]


@pytest.fixture
def start(name):
    """`await start(url of a gateway)`: that server, started."""
    running = []

    async def start(gateway: str, key: str = KEY) -> TokenServer:
        server = TokenServer(name, gateway, key)
        running.append(server)
        await asyncio.to_thread(server.start)
        return server

    yield start
    for server in running:
        server.stop()


async def test_a_page_gets_a_token_that_asks_the_agent(gw, start):
    server = await start(gw.url)
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as browser:
        async with browser.post(f"{server.url}/token") as answer:
            data = (await answer.json())["data"]
            assert answer.status == 200
            assert answer.headers["Cache-Control"] == "no-store"
            assert "HttpOnly" in answer.headers["Set-Cookie"]
            assert "SameSite=Lax" in answer.headers["Set-Cookie"]
        async with browser.post(f"{server.url}/token") as answer:
            again = (await answer.json())["data"]
    assert again["user"] == data["user"]  # the same browser may go on in its conversations
    assert data["user"].startswith("visitor-")
    assert data["agents"] == ["dify"]
    assert KEY not in str(data)
    assert (await gw.ask(data["token"]))[0] == 200


async def test_other_browsers_are_other_users(gw, start):
    server = await start(gw.url)
    users = set()
    for cookie in ({}, {}, {"visitor": "alice"}, {"visitor": "x" * 200}):
        jar = aiohttp.DummyCookieJar()
        async with (
            aiohttp.ClientSession(cookie_jar=jar) as browser,
            browser.post(f"{server.url}/token", cookies=cookie) as answer,
        ):
            users.add((await answer.json())["data"]["user"])
    assert len(users) == 4
    assert {len(user) for user in users} == {len("visitor-") + 36}


async def test_it_serves_the_page_and_nothing_else(gw, start):
    server = await start(gw.url)
    async with aiohttp.ClientSession() as browser:
        async with browser.get(server.url) as answer:
            assert answer.content_type == "text/html"
            assert await answer.text() == (EXAMPLES / "web-page/index.html").read_text("utf-8")
        async with browser.get(f"{server.url}/page.js") as answer:
            assert answer.content_type.endswith("/javascript")
        for path in ("/server.py", "/..%2ftoken-server/server.mjs", "/token"):
            async with browser.get(server.url + path) as answer:
                assert answer.status in (403, 404, 405), path


async def test_the_gateways_errors_come_with_its_own_sentence(gw, start):
    server = await start(gw.url, key="sk-of-another-operator")
    async with aiohttp.ClientSession() as browser, browser.post(f"{server.url}/token") as answer:
        assert answer.status == 401
        assert "API key" in (await answer.json())["msg"]


async def test_a_gateway_that_cannot_be_reached_is_said(start):
    server = await start(f"http://127.0.0.1:{servers.free_port()}")
    async with aiohttp.ClientSession() as browser, browser.post(f"{server.url}/token") as answer:
        assert answer.status == 502
        assert (await answer.json())["msg"] == "The gateway cannot be reached."


def test_without_a_key_it_says_what_to_set(name):
    server = TokenServer(name, "http://localhost:3000", key="")
    ended = subprocess.run(
        server.command(), **server.options(), capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("Set GATEWAY_KEY to a key of the gateway: GATEWAY_KEY=sk-gw-")
    assert ended.stderr.count("\n") == 1


def test_it_prints_where_the_page_is(name):
    server = TokenServer(name, "http://localhost:3000")
    pipe = {"stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(server.command(), **server.options(), **pipe) as process:
        while not server.answers():
            assert process.poll() is None
        urlopen(server.url, timeout=60).close()
        process.terminate()
        assert f"http://127.0.0.1:{server.port}" in process.communicate(timeout=60)[0]
