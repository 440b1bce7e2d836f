"""Outgoing connections: proxies of every kind, and the certificates they trust."""

import asyncio
import gc
import json
import os
import socket
import ssl
import threading
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import aiohttp
import anyio
import pytest
import servers
import trustme
import uvloop
import yaml
from aiohttp import web
from conftest import AGENTS, UNLIMITED, Script
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from doorway import Doorway
from tiny_proxy import Socks5ProxyHandler
from wire import listening

from gateway.cli import main
from gateway.config import load as configfile
from gateway.config.load import ConfigError
from gateway.config.models import Fetch, Outgoing
from gateway.config.outgoing import Trust, Way
from gateway.config.proxy import is_excepted, read_proxy
from gateway.errors import InvalidRequest, UpstreamFailed
from gateway.files.fetcher import Guard
from gateway.http.context import RELOAD, STATE
from gateway.protocol.exchange import UpstreamRequest
from gateway.server.check import check_live
from gateway.server.greeting import greet, look_around
from gateway.upstream.client import open_upstream
from gateway.upstream.pool import Pool

SAID = {
    "id": "c", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop",
                 "message": {"role": "assistant", "content": "from afar"}}],
}  # fmt: skip
JSON = {"Content-Type": "application/json"}


class Pems:
    """An untrusted authority, and the certificates that it has signed."""

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        self.ca = str(folder / "ca.pem")
        self.authority.cert_pem.write_to_path(self.ca)
        self._folder = folder

    def signed(self, *names: str) -> str:
        """A file with a key and its certificate."""
        path = self._folder / f"{names[0]}.pem"
        self.authority.issue_cert(*names).private_key_and_cert_chain_pem.write_to_path(path)
        return str(path)


@pytest.fixture(scope="module")
def pems(tmp_path_factory):
    return Pems(tmp_path_factory.mktemp("pems"))


@pytest.fixture(scope="module")
def http_proxy(tmp_path_factory):
    proxy = servers.HttpProxy(tmp_path_factory.mktemp("http-proxy"))
    proxy.start()
    yield proxy
    proxy.stop()


@pytest.fixture(scope="module")
def https_proxy(tmp_path_factory, pems):
    folder = tmp_path_factory.mktemp("https-proxy")
    proxy = servers.HttpProxy(folder, pems.signed("localhost", "127.0.0.1"))
    proxy.start()
    yield proxy
    proxy.stop()


class Socks(Socks5ProxyHandler):
    """Counts its connections."""

    def __init__(self) -> None:
        super().__init__(username="user", password="pass")
        self.count = 0

    def create_proxy(self, stream):
        self.count += 1
        return super().create_proxy(stream)

    async def serve(self, stack) -> int:
        """Returns the port."""
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        task = asyncio.ensure_future(listener.serve(self.handle))

        async def stop():
            task.cancel()
            await asyncio.wait({task})
            await listener.aclose()
            with warnings.catch_warnings():  # a cancelled handler leaves its sockets open
                warnings.simplefilter("ignore", ResourceWarning)
                gc.collect()

        stack.push_async_callback(stop)
        return listener.extra(anyio.abc.SocketAttribute.local_port)


KINDS = ["http", "https", "socks5", "socks5h"]


@pytest.fixture
def proxy_url(request, stack):
    """`await proxy_url(kind)`: the URL of a real proxy of that kind."""

    async def start(kind: str, user: str = "user:pass@") -> str:
        if kind.startswith("socks5"):
            return f"{kind}://{user}127.0.0.1:{await Socks().serve(stack)}"
        return f"{kind}://{user}127.0.0.1:{request.getfixturevalue(f'{kind}_proxy').port}"

    return start


@pytest.fixture
def doorway(stack):
    """`await doorway(target=…, answer=…)`."""

    async def start(**settings) -> Doorway:
        door = Doorway(**settings)
        await door.start()
        stack.push_async_callback(door.stop)
        return door

    return start


async def serve_app(stack, app: web.Application, context: ssl.SSLContext | None = None) -> int:
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    return runner.addresses[0][1]


@pytest.fixture
def platform(stack, pems):
    """`await platform(tls=True)`: the port of a server that answers every POST; over TLS as
    `localhost` and `far.test`. `peers` are the connections it has accepted."""

    async def start(tls=False) -> int:
        async def answer(request):
            start.hosts.append(request.host)
            start.peers.add(request.transport.get_extra_info("peername"))
            body = await request.json() if request.can_read_body else {}
            if not body.get("stream"):
                return web.json_response(SAID)
            delta = {"index": 0, "delta": {"content": "from afar"}, "finish_reason": "stop"}
            chunk = {**SAID, "object": "chat.completion.chunk", "choices": [delta]}
            events = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"
            return web.Response(text=events, content_type="text/event-stream")

        context = None
        if tls:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(pems.signed("localhost", "far.test", "127.0.0.1"))
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        return await serve_app(stack, app, context)

    start.peers, start.hosts = set(), []
    return start


def bot(url: str, **settings) -> dict:
    breaker = {"failures": 1000}
    return {**AGENTS["openai"], "base_url": url, "retries": 0, "breaker": breaker, **settings}


async def ask(gw, stream=False, model="bot"):
    """(status, text or the error's code, the error's message)."""
    async with gw.complete(model, stream=stream) as answer:
        text = await answer.text()
        if answer.status != 200:
            error = json.loads(text)["error"]
            return answer.status, error["code"], error["message"]
        return 200, "from afar" if "from afar" in text else text, ""


# Every kind of proxy, for upstreams with and without TLS.


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("kind", KINDS)
async def test_chats_go_by_every_kind_of_proxy(gateway, platform, proxy_url, pems, kind, tls):
    port = await platform(tls)
    url = f"http{'s' if tls else ''}://localhost:{port}/v1"
    agents = {
        "bot": bot(url, proxy=await proxy_url(kind), ca=pems.ca),
        "other": bot(url, proxy=await proxy_url(kind, user=""), ca=pems.ca),
    }
    gw = await gateway(agents=agents)
    assert await ask(gw) == (200, "from afar", "")
    assert await ask(gw, stream=True) == (200, "from afar", "")
    assert len(platform.peers) == 1  # the connection is reused
    status, code, message = await ask(gw, model="other")
    assert (status, code) == (502, "upstream_auth_failed")
    assert f"The proxy {kind}://127.0.0.1:" in message
    assert "user and password" in message


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("kind", ["http", "https"])
def test_both_event_loops_make_tls_inside_of_a_tunnel(request, pems, kind, run):
    proxy = request.getfixturevalue(f"{kind}_proxy")
    port = request.getfixturevalue("https_proxy").port  # any server with TLS

    async def call():
        way = Way(
            read_proxy(f"{kind}://user:pass@localhost:{proxy.port}"),
            Trust(ca=pems.ca),
            Trust(ca=pems.ca),
        )
        async with open_upstream() as upstream:
            request = UpstreamRequest("GET", f"https://localhost:{port}/")
            return (await upstream.fetch(request, way, 10)).status

    assert run(call()) == 400


async def test_connections_by_a_proxy_serve_its_agent_alone(gateway, platform, proxy_url):
    url = f"http://localhost:{await platform()}/v1"
    agents = {
        "bot": bot(url, proxy=await proxy_url("socks5h")),
        "direct": bot(url),
        "too": bot(url),
    }
    gw = await gateway(agents=agents)
    for model in ("bot", "direct", "too", "bot"):
        assert (await ask(gw, model=model))[0] == 200
    assert len(platform.peers) == 2


async def test_a_plain_upstream_is_asked_for_by_its_whole_url(gateway, scripted):
    said = Script([json.dumps(SAID).encode()], headers=JSON)
    proxy = await scripted(said)
    address = proxy.url.replace("//", "//user:p%40ss@")
    gw = await gateway(agents={"bot": bot("http://far.test/base?x=1".split("?")[0], proxy=address)})
    assert await ask(gw) == (200, "from afar", "")
    line, headers, _ = proxy.requests[0]
    assert line == "POST http://far.test/base/chat/completions HTTP/1.1"
    assert headers["host"] == "far.test"
    assert headers["proxy-authorization"] == "Basic dXNlcjpwQHNz"
    assert headers["authorization"] == "Bearer sk-upstream-key"


async def test_an_upstream_with_tls_is_asked_for_by_connect(gateway, doorway, platform, pems):
    door = await doorway(target=await platform(tls=True))
    proxy = door.url.replace("//", "//user:pass@")
    gw = await gateway(agents={"bot": bot("https://far.test/v1", proxy=proxy, ca=pems.ca)})
    assert await ask(gw) == (200, "from afar", "")
    head = door.heads[0].lower()
    assert head.startswith("connect far.test:443 http/1.1\r\nhost: far.test:443\r\n")
    assert "proxy-authorization: basic dxnlcjpwyxnz\r\n" in head
    assert "bearer" not in head
    assert platform.hosts == ["far.test"]


# The environment.


async def test_the_environments_proxies_are_taken(gateway, doorway, platform, pems, scripted):
    tunnel = await doorway(target=await platform(tls=True))
    plain = await scripted(Script([json.dumps(SAID).encode()], headers=JSON))
    gw = await gateway(
        {"HTTPS_PROXY": tunnel.url, "http_proxy": plain.url.removeprefix("http://")},
        agents={
            "bot": bot("https://far.test/v1", ca=pems.ca),
            "plain": bot("http://far.test/v1"),
        },
    )
    assert await ask(gw) == (200, "from afar", "")
    assert tunnel.heads[0].startswith("CONNECT far.test:443 HTTP/1.1\r\n")
    assert platform.hosts == ["far.test"]
    assert await ask(gw, model="plain") == (200, "from afar", "")


def proxies(environ: dict[str, str], **agent) -> tuple[str, str]:
    """The ways to https://far.test and http://far.test."""
    from gateway.chat.routing import Routing

    agents = {
        "s": bot("https://far.test/v1", **agent),
        "p": bot("http://far.test/v1", **agent),
        "d": {"platform": "openai"},
    }
    config = configfile.parse(yaml.safe_dump({"agents": agents}), environ)
    targets = Routing(config, {"d": "http://127.0.0.1:1"}).targets
    assert str(targets["d"].way) == "direct"  # a simulator, inside the process
    return str(targets["s"].way), str(targets["p"].way)


PROXY = "by proxy http://one:3128"


@pytest.mark.parametrize(
    ("environ", "ways"),
    [
        ({}, ("direct", "direct")),
        ({"HTTPS_PROXY": "http://one:3128"}, (PROXY, "direct")),
        ({"https_proxy": "one:3128"}, (PROXY, "direct")),
        ({"HTTP_PROXY": "http://one:3128"}, ("direct", PROXY)),
        ({"ALL_PROXY": "http://one:3128"}, (PROXY, PROXY)),
        ({"all_proxy": "socks://one:1080/"}, ("by proxy socks5h://one:1080",) * 2),
        ({"ALL_PROXY": "x:1", "HTTPS_PROXY": "http://one:3128"}, (PROXY, "by proxy http://x:1")),
        ({"https_proxy": "http://one:3128", "HTTPS_PROXY": "http://x:1"}, (PROXY, "direct")),
        ({"https_proxy": "", "HTTPS_PROXY": "http://one:3128"}, (PROXY, "direct")),
        ({"ALL_PROXY": "http://one:3128", "NO_PROXY": "far.test"}, ("direct", "direct")),
        ({"ALL_PROXY": "http://one:3128", "no_proxy": "x, .test:443"}, ("direct", PROXY)),
        ({"ALL_PROXY": "http://u:secret@one:3128"}, (PROXY, PROXY)),
    ],
)
def test_variables_of_the_environment_name_proxies(environ, ways):
    assert proxies(environ) == ways


@pytest.mark.parametrize("own", ["none", "", None])
def test_an_agent_may_go_direct_whatever_the_environment_says(own):
    assert proxies({"ALL_PROXY": "http://one:3128"}, proxy=own) == ("direct", "direct")


def test_an_agents_own_proxy_wins_over_the_environment():
    environ = {"ALL_PROXY": "http://x:1", "NO_PROXY": "*"}
    assert proxies(environ, proxy="http://one:3128") == (PROXY, PROXY)


@pytest.mark.parametrize(
    ("no_proxy", "host", "port", "is_direct"),
    [
        ("", "far.test", 443, False),
        ("", "localhost", 80, True),
        ("", "a.localhost", 80, True),
        ("", "127.9.9.9", 80, True),
        ("", "::1", 80, True),
        ("*", "far.test", 443, True),
        ("far.test", "far.test", 443, True),
        ("FAR.test", "far.TEST.", 443, True),
        ("far.test", "a.far.test", 443, True),
        ("far.test", "notfar.test", 443, False),
        (".far.test", "a.far.test", 443, True),
        ("*.far.test", "a.far.test", 443, True),
        ("far.test:443", "far.test", 443, True),
        ("far.test:443", "far.test", 80, False),
        ("x,far.test", "far.test", 80, True),
        ("x far.test", "far.test", 80, True),
        (", ,.,", "far.test", 80, False),
        ("10.0.0.0/8", "10.1.2.3", 80, True),
        ("10.0.0.0/8", "11.1.2.3", 80, False),
        ("10.0.0.0/8", "far.test", 80, False),
        ("10.1.2.3", "10.1.2.3", 80, True),
        ("10.1.2.3:80", "10.1.2.3", 81, False),
        ("2.3", "10.1.2.3", 80, False),
        ("fd00::/8", "fd00::1", 80, True),
        ("fd00::1", "fd00::1", 80, True),
        ("[fd00::1]:80", "fd00::1", 80, True),
        ("[fd00::1]:80", "fd00::1", 81, False),
        ("10.0.0.0/99", "10.1.2.3", 80, False),
    ],
)
def test_no_proxy_lists_hosts_domains_addresses_and_networks(no_proxy, host, port, is_direct):
    assert is_excepted(no_proxy, host, port) is is_direct


# Other calls of an agent go the same way.


@pytest.fixture
def nothing_goes_direct(monkeypatch):
    async def refuse(self, connection, origin, *_):
        raise AssertionError(f"{origin} is connected to directly")

    monkeypatch.setattr(Pool, "_connect", refuse)


@pytest.mark.usefixtures("nothing_goes_direct")
async def test_probes_uploads_and_stop_calls_go_the_same_way(gateway, demo, proxy_url):
    served = await demo("dify", key="app-test-key")
    url = await proxy_url("http")
    agent = {**AGENTS["dify"], "base_url": served.url, "proxy": url, "upload": "platform"}
    gw = await gateway(agents={"dify": agent})
    async with gw.get("/api/v1/agents/dify/health") as answer:
        assert (await answer.json())["data"]["status"] == "healthy"
    form = aiohttp.FormData()
    form.add_field("file", b"\x89PNG\r\n\x1a\n", filename="a.png")
    async with gw.client.post(
        f"{gw.url}/api/v1/upload", data=form, headers={"Agent": "dify"}
    ) as answer:
        assert answer.status == 200, await answer.text()
    async with gw.chat("dify") as answer:
        assert answer.status == 200


@pytest.mark.usefixtures("nothing_goes_direct")
async def test_tokens_of_coze_go_the_same_way(gateway, demo, proxy_url):
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    served = await demo("coze", key="only-tokens-from-oauth")
    oauth = {"app_id": "1", "key_id": "k", "private_key": key.decode()}
    agent = {"platform": "coze", "bot_id": "7", "base_url": served.url, "oauth": oauth}
    gw = await gateway(agents={"coze": {**agent, "proxy": await proxy_url("socks5h")}})
    async with gw.chat("coze") as answer:
        assert answer.status == 200, await answer.text()
    assert "/api/permission/oauth2/token" in [path for path, _ in served.demo.requests]


# Faults of proxies.

CODES = {"unreachable": "upstream_unreachable", "setup": "upstream_auth_failed"}


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (b"HTTP/1.1 407 No\r\n\r\n", "setup", "user and password (407)"),
        (b"HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno", "setup", "(403)"),
        (b"HTTP/1.1 502 No\r\n\r\n", "unreachable", "(502)"),
        (b"HTTP/1.1 503 No\r\n\r\n", "unreachable", "(503)"),
        (b"HTTP/1.1 504 No\r\n\r\n", "unreachable", "(504)"),
    ],
)
async def test_a_proxy_that_refuses_is_named(gateway, doorway, scheme, answer, kind, words):
    door = await doorway(answer=answer)
    url = door.url.replace("//", "//user:geheim99@")
    gw = await gateway(agents={"bot": bot(f"{scheme}://far.test/v1", proxy=url)})
    status, code, message = await ask(gw)
    assert (status, code) == (502, CODES[kind])
    assert f"The proxy {door.url}" in message
    assert words in message
    assert "geheim99" not in message
    assert "user:" not in message.replace("//user:password@host", "")


@pytest.mark.parametrize(
    "answer",
    [b"", b"SSH-2.0-OpenSSH\r\n", b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 2x0 OK\r\n\r\n", b"x" * 70_000,
     b"\x05\xff", b"\x05\x00\x05", b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n"],
)  # fmt: skip
@pytest.mark.parametrize("scheme", ["http", "socks5h"])
async def test_what_is_no_such_proxy_is_said(gateway, stack, answer, scheme):
    async def serve(reader, writer):
        await reader.read(1)
        writer.write(answer)

    url = f"{scheme}://127.0.0.1:{await stack.enter_async_context(listening(serve))}"
    gw = await gateway(agents={"bot": bot("https://far.test/v1", proxy=url)})
    status, code, message = await ask(gw)
    assert (status, code) == (502, "upstream_auth_failed")
    assert url in message


@pytest.mark.parametrize("scheme", KINDS)
async def test_a_proxy_that_is_not_there_is_unreachable(gateway, scheme):
    port = servers.free_port()
    gw = await gateway(
        agents={
            "bot": bot("https://far.test/v1", proxy=f"{scheme}://u:geheim99@127.0.0.1:{port}"),
            "name": bot("https://far.test/v1", proxy=f"{scheme}://u:geheim99@nowhere.invalid"),
        }
    )
    for model, words in (("bot", "refuses connections"), ("name", "cannot be resolved")):
        status, code, message = await ask(gw, model=model)
        assert (status, code) == (502, "upstream_unreachable")
        if scheme != "socks5":  # socks5 finds out earlier that far.test has no address
            assert words in message
        assert "geheim99" not in message


async def test_a_proxy_that_says_nothing_is_left_in_time(gateway, stack):
    async def serve(reader, writer):
        await reader.read()

    url = f"http://127.0.0.1:{await stack.enter_async_context(listening(serve))}"
    agent = bot("https://far.test/v1", proxy=url, timeouts={"connect": "200ms"})
    status, code, message = await ask(await gateway(agents={"bot": agent}))
    assert (status, code) == (504, "upstream_timeout")
    assert f"proxy {url}" in message


async def test_a_proxys_certificate_must_be_trusted(gateway, https_proxy):
    """Even if the upstream's certificate is not checked."""
    url = f"https://user:pass@127.0.0.1:{https_proxy.port}"
    gw = await gateway(agents={"bot": bot("https://far.test/v1", proxy=url, verify=False)})
    status, code, message = await ask(gw)
    assert (status, code) == (502, "upstream_auth_failed")
    assert "No TLS connection to the proxy" in message
    assert "with ca" in message


async def test_a_socks_proxy_says_why_it_does_not_reach(gateway, proxy_url):
    url = f"https://127.0.0.1:{servers.free_port()}/v1"
    gw = await gateway(agents={"bot": bot(url, proxy=await proxy_url("socks5h"))})
    status, code, message = await ask(gw)
    assert (status, code) == (502, "upstream_unreachable")
    assert "cannot reach the upstream (" in message


# Certificates of one's own.


async def test_an_own_authority_is_trusted_where_it_is_named(gateway, platform, pems):
    url = f"https://localhost:{await platform(tls=True)}/v1"
    agents = {"bot": bot(url, ca=pems.ca), "other": bot(url), "off": bot(url, verify=False)}
    gw = await gateway(agents=agents)
    assert await ask(gw) == (200, "from afar", "")
    assert await ask(gw, model="off") == (200, "from afar", "")
    status, code, message = await ask(gw, model="other")
    assert (status, code) == (502, "upstream_auth_failed")
    assert "certificate is not accepted" in message
    assert "Set the agent's ca" in message


async def test_the_name_in_a_certificate_counts_with_an_own_authority(gateway, platform, pems):
    url = f"https://ip6-other.localhost:{await platform(tls=True)}/v1"
    gw = await gateway(agents={"bot": bot(url, ca=pems.ca)})
    status, _, message = await ask(gw)
    assert status == 502
    assert "mismatch" in message or "cannot be resolved" in message


class Says(BaseHTTPRequestHandler):
    def setup(self):
        try:
            self.request.do_handshake()
        # the client must receive the alert: unread bytes would reset the connection
        except ssl.SSLError:
            with socket.socket(fileno=os.dup(self.request.fileno())) as raw:
                while raw.recv(65536):
                    pass
            raise
        super().setup()

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        body = json.dumps(SAID).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def strict(request, pems):
    """The port of a server that requires a certificate of the test authority. (asyncio's own
    servers close without sending the reason.)"""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=pems.ca)
    context.load_cert_chain(pems.signed("localhost"))
    context.verify_mode = ssl.CERT_REQUIRED
    context.maximum_version = request.param
    with ThreadingHTTPServer(("127.0.0.1", 0), Says) as server:
        server.handle_error = lambda *_: None
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


async def test_a_client_certificate_is_shown(gateway, strict, pems):
    url, cert = f"https://localhost:{strict}/v1", pems.signed("client.test")
    agents = {
        "bot": bot(url, ca=pems.ca, cert=cert),
        "two": bot(url, ca=pems.ca, cert=cert, key=cert),
        "other": bot(url, ca=pems.ca),
    }
    gw = await gateway(agents=agents)
    assert await ask(gw) == (200, "from afar", "")
    assert await ask(gw, model="two") == (200, "from afar", "")
    status, code, message = await ask(gw, model="other")
    assert (status, code) == (502, "upstream_auth_failed")
    assert "Set the agent's cert and key" in message


async def test_a_pem_file_that_has_gone_since_is_said(gateway, platform, pems, tmp_path):
    path = tmp_path / "ca.pem"
    path.write_bytes(Path(pems.ca).read_bytes())
    url = f"https://localhost:{await platform(tls=True)}/v1"
    gw = await gateway(agents={"bot": bot(url, ca=str(path))})
    path.unlink()
    status, code, message = await ask(gw)
    assert (status, code) == (502, "upstream_auth_failed")
    assert "cannot be read any more" in message


async def test_an_upstream_without_tls_is_said(gateway, platform):
    url = f"https://localhost:{await platform()}/v1"
    status, code, message = await ask(await gateway(agents={"bot": bot(url)}))
    assert (status, code) == (502, "upstream_auth_failed")
    assert "base_url right with https" in message


# Mistakes in config.yaml.


def problems(environ=None, **agent) -> list[str]:
    text = yaml.safe_dump({"agents": {"bot": bot("https://far.test/v1", **agent)}})
    with pytest.raises(ConfigError) as caught:
        configfile.parse(text, environ or {})
    return caught.value.problems


def test_pem_files_that_are_not_there_are_problems_by_their_path(tmp_path):
    for member in ("ca", "cert"):
        path = f"{tmp_path}/none.pem"
        assert problems(**{member: path}) == [
            f"agents.bot.{member}: {path}: No such file or directory"
        ]


def test_pem_files_that_hold_something_else_are_problems(tmp_path, pems):
    path = tmp_path / "x.pem"
    path.write_text("nonsense")
    assert "agents.bot.ca: " in problems(ca=str(path))[0]
    assert "agents.bot.cert: " in problems(cert=str(path))[0]
    assert "agents.bot.cert: " in problems(cert=pems.ca)[0]  # no key in it
    other = pems.signed("a.test"), pems.signed("b.test")
    assert "agents.bot.cert: " in problems(cert=other[0], key=other[1])[0]
    assert problems(key=other[0]) == [
        "agents.bot.cert: is missing; key is the key of that certificate"
    ]


@pytest.mark.parametrize(
    "url",
    ["ftp://u:geheim99@one:1", "http://u:geheim99@", "http://u:geheim99@one:99999", "socks4://one",
     "http://u:geheim99@one/path", "http://u:geheim99@one:1?x", "http://u%3Ax:geheim99@one",
     "socks5://u@one", "socks5://ü:geheim99@one", "http://u:geheim99@o ne:1", "http://[::1", "true://"],
)  # fmt: skip
def test_a_bad_proxy_url_is_a_problem_without_its_password(url):
    for found, path in ((problems(proxy=url), "agents.bot.proxy"),
                        (problems({"ALL_PROXY": url}), "outgoing.http_proxy")):  # fmt: skip
        assert found[0].startswith(f"{path}: ")
        assert "geheim99" not in "".join(found)
    assert "ALL_PROXY" in problems({"ALL_PROXY": url})[0]


def test_a_proxys_password_is_shown_nowhere():
    text = yaml.safe_dump(
        {"agents": {"bot": bot("https://far.test", proxy="http://u:geheim99@one")}}
    )
    config = configfile.parse(text, {"HTTPS_PROXY": "http://u:geheim99@one"})
    assert "geheim99" not in repr(config) + str(config) + config.model_dump_json()


# Callers' URLs are fetched through proxies as well.


async def test_a_file_is_fetched_from_the_address_that_was_judged(
    doorway, platform, pems, monkeypatch
):
    monkeypatch.setenv("SSL_CERT_FILE", pems.ca)
    door = await doorway(target=await platform(tls=True))
    guard = Guard(
        Fetch(allow=["10.0.0.0/8"]), lambda: Outgoing(https_proxy=door.url), answering("10.1.2.3")
    )
    async with guard.open("https://far.test/a.json") as source:
        body = b"".join([chunk async for chunk in source.chunks])
    await guard.close()
    assert json.loads(body) == SAID
    assert door.heads[0].startswith("CONNECT 10.1.2.3:443 HTTP/1.1\r\n")
    assert "far.test" not in door.heads[0]
    assert platform.hosts == ["far.test"]  # and the certificate was far.test's


async def test_a_plain_file_goes_by_a_tunnel_as_well(doorway, platform, proxy_url):
    """In absolute form a proxy would replace the address and the Host."""
    port = await platform()
    for url in (await proxy_url("socks5h"), await proxy_url("socks5"), await proxy_url("http")):
        guard = Guard(Fetch(allow=["127.0.0.0/8"], proxy=url), resolve=answering("127.0.0.1"))
        async with guard.open(f"http://far.test:{port}/") as source:
            assert json.loads(b"".join([chunk async for chunk in source.chunks])) == SAID
        await guard.close()
    assert platform.hosts == [f"far.test:{port}"] * 3


async def test_a_forbidden_address_never_comes_to_the_proxy(doorway):
    door = await doorway()
    guard = Guard(Fetch(proxy=door.url), resolve=answering("8.8.8.8", "10.1.2.3"))
    for url in ("http://far.test/", "https://far.test/", "http://10.0.0.1/", "https://[::1]/"):
        with pytest.raises(InvalidRequest, match="private or reserved"):
            async with guard.open(url):
                pass
    await guard.close()
    assert door.heads == []


async def test_a_fetch_that_the_proxy_refuses_is_explained(doorway):
    for answer, kind in (
        (b"HTTP/1.1 403 No\r\n\r\n", InvalidRequest),
        (b"HTTP/1.1 407 No\r\n\r\n", UpstreamFailed),
    ):
        door = await doorway(answer=answer)
        guard = Guard(Fetch(proxy=door.url), resolve=answering("8.8.8.8"))
        with pytest.raises(kind, match=f"The proxy {door.url}") as caught:
            async with guard.open("https://far.test/"):
                pass
        assert "8.8.8.8" not in caught.value.message
        assert not caught.value.outage
        await guard.close()


def answering(*addresses: str):
    async def resolve(host, port, owner):
        return [(2, 1, 0, "", (address, port)) for address in addresses]

    return resolve


# Messages for the operator.


async def test_check_live_shows_each_way(demo, proxy_url, pems):
    served = await demo("dify", key="app-test-key")
    far = {**AGENTS["dify"], "base_url": served.url}
    agents = {
        "near": far,
        "far": {**far, "proxy": await proxy_url("socks5h"), "ca": pems.ca, "verify": False},
        "demo": {"platform": "dify"},
    }
    config = configfile.parse(yaml.safe_dump({"agents": agents}), {})
    words = {name: words for name, *_, words in await check_live(config)}
    assert words["near"].endswith(" [direct]")
    proxy = str(config.agents["far"].proxy)
    assert words["far"].endswith(f" [by proxy {proxy}, ca {pems.ca}, verify off]")
    assert "[" not in words["demo"]


def test_check_shows_each_way_and_warns_of_verify_off(tmp_path, capsys):
    agents = {
        "bot": bot("https://far.test/v1", proxy="http://u:geheim99@one:3128", verify=False),
        "near": bot("https://near.test/v1"),
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"agents": agents}))
    assert main(["check", "--config", str(path)]) == 0
    out = capsys.readouterr().out
    assert "https://far.test/v1, by proxy http://one:3128, verify off\n" in out
    assert "https://near.test/v1, direct\n" in out
    assert "agents.bot.verify is false" in out
    assert "geheim99" not in out


def test_the_start_logs_each_way_and_warns_of_verify_off(caplog):
    agents = {"bot": bot("https://far.test/v1", verify=False), "near": bot("https://near.test/v1")}
    caplog.set_level("INFO", logger="gateway")
    config = configfile.parse(yaml.safe_dump({"agents": agents}), {"HTTPS_PROXY": "one:3128"})
    look_around(config, Path())
    greet(config, Path("config.yaml"), 3000, for_people=False)
    assert "(https://far.test/v1, by proxy http://one:3128, verify off)" in caplog.text
    assert "(https://near.test/v1, by proxy http://one:3128)" in caplog.text
    assert "agents.bot.verify is false" in caplog.text


async def test_readyz_warns_of_verify_off(gateway):
    agents = {"bot": bot("https://far.test/v1", verify=False), "near": bot("https://near.test/v1")}
    async with (await gateway(agents=agents)).get("/readyz") as answer:
        body = await answer.json()
    assert (answer.status, body["degraded"]) == (200, [])
    assert body["detail"]["warning"] == "certificates of 1 upstream(s) are not checked"


async def test_a_reload_reads_pem_files_again(gateway, platform, pems, tmp_path):
    other = Pems(tmp_path)
    path = tmp_path / "trusted.pem"
    path.write_bytes(Path(other.ca).read_bytes())
    agents = {"bot": bot(f"https://localhost:{await platform(tls=True)}/v1", ca=str(path))}
    gw = await gateway(agents=agents)
    assert (await ask(gw))[0] == 502
    path.write_bytes(Path(pems.ca).read_bytes())
    config = gw.app[STATE].now.config
    before = gw.app[STATE].now.routing.targets["bot"]
    await gw.app[RELOAD](config)
    assert gw.app[STATE].now.routing.targets["bot"] is before
    assert await ask(gw) == (200, "from afar", "")


async def test_a_reload_changes_proxies_of_the_environment(gateway, scripted):
    said = Script([json.dumps(SAID).encode()], headers=JSON)
    proxy = await scripted(said)
    agents = {"bot": bot("http://far.test/v1")}
    gw = await gateway({"HTTP_PROXY": f"http://127.0.0.1:{servers.free_port()}"}, agents=agents)
    assert (await ask(gw))[0] == 502
    text = yaml.safe_dump({"agents": agents, "database": "none", "rate_limits": UNLIMITED})
    await gw.app[RELOAD](configfile.parse(text, {"HTTP_PROXY": proxy.url}))
    assert await ask(gw) == (200, "from afar", "")
