"""Shared fixtures: a real gateway and real upstreams, all on loopback sockets."""

import asyncio
import gc
import io
import itertools
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import orjson
import pytest
import yaml
from aiohttp import web
from argon2 import PasswordHasher

# `decoding`, for the tests of all platforms
sys.path.insert(0, str(Path(__file__).parent / "platforms"))

import servers
from wire import listening

from gateway.accounts.passwords import Passwords
from gateway.app import build
from gateway.config import load as configfile
from gateway.demo import Demo, serve_demo, simulator
from gateway.server import aiohttp_internals
from gateway.server.runner import Runner


def pytest_sessionstart(session: pytest.Session) -> None:
    """pytest-asyncio asks for the current loop before it makes one for a test. If there is none,
    Python 3.11 makes one that is never closed, which fails some later test."""
    asyncio.set_event_loop(_unused := asyncio.new_event_loop())
    session.config.add_cleanup(_unused.close)


def pytest_collection_finish() -> None:
    """Exclude all loaded modules from garbage collection. Collecting them during the tests would
    stop everything for longer than some tests' time limits."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _what_earlier_modules_left() -> None:
    """The same for the results of earlier tests that pytest keeps: there are thousands."""
    gc.collect()
    gc.freeze()


@dataclass
class Gateway:
    """A running gateway and a client for it."""

    url: str
    app: web.Application
    client: aiohttp.ClientSession

    def post(self, path: str, body: Any = None, **kwargs: Any):
        if body is not None:
            kwargs["data"] = io.BytesIO(body if isinstance(body, bytes) else orjson.dumps(body))
        return self.client.post(self.url + path, **kwargs)

    def get(self, path: str, **kwargs: Any):
        return self.client.get(self.url + path, **kwargs)

    def chat(self, agent: str, query: str = "你好", **body: Any):
        """POST /api/v1/chat."""
        return self.post("/api/v1/chat", {"query": query, **body}, headers={"Agent": agent})

    async def api(self, method: str, path: str, token: str = "", body: Any = None):
        """(status, body) of a call under /api/v1 with a key or a token."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        data = None if body is None else orjson.dumps(body)
        url = f"{self.url}/api/v1{path}"
        async with self.client.request(method, url, data=data, headers=headers) as answer:
            return answer.status, await answer.json()

    async def login(self, username: str = "admin", password: str = "") -> str:
        """A login's token."""
        body = {"username": username, "password": password or ADMIN_PASSWORD}
        status, answer = await self.api("POST", "/login", body=body)
        assert status == 200, answer
        return answer["access_token"]

    async def key(self, token: str, **settings: Any) -> tuple[str, str]:
        """(id, whole key) of a new key."""
        body = {"name": "test", **settings}
        status, answer = await self.api("POST", "/api-keys", token, body)
        assert status == 200, answer
        return answer["data"]["id"], answer["data"]["full_key"]

    async def ask(self, key: str, agent: str = "dify", **body: Any) -> tuple[int, Any]:
        """(status, body) of a whole answer from /api/v1/chat."""
        headers = {"Agent": agent, "Authorization": f"Bearer {key}"}
        body = {"query": "hi", **body}
        async with self.post("/api/v1/chat", body, headers=headers) as answer:
            return answer.status, await answer.json()

    def complete(self, model: str, question: str = "hi", **body: Any):
        """POST /v1/chat/completions with one user message, or with `messages`."""
        messages = body.pop("messages", [{"role": "user", "content": question}])
        return self.post("/v1/chat/completions", {"model": model, "messages": messages, **body})


def leave_all_to_aiohttp(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gateways that start after this find an aiohttp without the internals that they know."""
    monkeypatch.setitem(aiohttp_internals.NEEDED, aiohttp.web.Request, ("_not_there",))


UNLIMITED = dict.fromkeys(("chat", "upload", "agents", "login", "accounts"))


@asynccontextmanager
async def run_gateway(config: dict[str, Any], environ: dict[str, str] | None = None):
    """A gateway with this config.yaml on a free port; by default without database and limits."""
    with TemporaryDirectory(prefix="ai-gateway-files-") as folder:
        storage = {"url": f"file:{folder}"}
        config = {"database": "none", "rate_limits": UNLIMITED, "storage": storage, **config}
        loaded = configfile.parse(yaml.safe_dump(config, sort_keys=False), environ or {})
        app = build(loaded)
        server = loaded.server
        runner = Runner(app, server.max_connections, server.send_timeout, patience_s=0.2)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            async with aiohttp.ClientSession() as client:
                yield Gateway(f"http://127.0.0.1:{runner.addresses[0][1]}", app, client)
        finally:
            await runner.cleanup()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[servers.PostgreSQL]:
    server = servers.PostgreSQL()
    server.start()
    yield server
    server.remove()


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Redis]:
    server = servers.Redis(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def shared_s3() -> Iterator[servers.S3]:
    server = servers.S3()
    server.start()
    yield server
    server.stop(signal.SIGKILL)


@pytest.fixture(params=["folder", "bucket"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """An empty `storage` of a config.yaml: the same tests run on both kinds."""
    if request.param == "folder":
        return {"url": f"file:{tmp_path}/uploads"}
    s3 = request.getfixturevalue("shared_s3")
    return s3.storage(s3.bucket(f"bucket-{next(_unique)}"))


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[servers.Redis]:
    server = servers.Redis(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database: the same tests run on both kinds."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/gateway.db"
    return request.getfixturevalue("postgresql").database()


_unique = itertools.count()

ADMIN_PASSWORD = "correct horse battery"


@pytest.fixture
def quick_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    """argon2 at almost no cost; one test measures the real cost."""
    cheap = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)
    monkeypatch.setattr("gateway.app.Passwords", lambda: Passwords(cheap))


@pytest.fixture
def with_accounts(request, gateway, demo, tmp_path, quick_passwords) -> Callable[..., Any]:
    """`await with_accounts(url, **config)`: a gateway on that database, in front of a demo Dify and
    a demo OpenAI, that requires keys. With PostgreSQL it also has a Redis."""
    prefix = f"gw{next(_unique)}"

    async def start(url: str, **config: Any) -> "Gateway":
        if url.startswith("postgresql:"):
            redis = request.getfixturevalue("shared_redis")
            config = {"redis": {"url": redis.url, "prefix": prefix}, **config}
        dify, openai = await demo("dify"), await demo("openai", key="sk-upstream-key")
        settings = {
            "agents": {
                "dify": {**AGENTS["dify"], "base_url": dify.url},
                "openai": {**AGENTS["openai"], "base_url": openai.url},
            },
            "database": url,
            "record": {"spool": str(tmp_path / "spool")},
            **config,
        }
        settings["auth"] = {
            "anonymous": False,
            "jwt_secret": "0123456789abcdef0123456789abcdef",
            "admin_password": ADMIN_PASSWORD,
            **config.get("auth", {}),
        }
        return await gateway(**settings)

    return start


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def gateway(stack: AsyncExitStack) -> Callable[..., Any]:
    """`await gateway(agents={…}, **rest of config.yaml)`."""

    async def start(environ: dict[str, str] | None = None, **config: Any) -> Gateway:
        return await stack.enter_async_context(run_gateway(config, environ))

    return start


@dataclass
class Served:
    """A simulator and its address."""

    demo: Demo
    url: str


@pytest.fixture
def demo(stack: AsyncExitStack) -> Callable[..., Any]:
    """`await demo("dify", mode="workflow")`: a simulator without pauses."""

    async def start(kind: str, **kwargs: Any) -> Served:
        demo = simulator(kind)(**{"pace_s": 0, "silence_s": 60, **kwargs})
        return Served(demo, await stack.enter_async_context(serve_demo(demo)))

    return start


AGENTS: dict[str, dict[str, Any]] = {
    "fastgpt": {"platform": "fastgpt", "api_key": "fastgpt-test-key"},
    "dify": {"platform": "dify", "api_key": "app-test-key"},
    "coze": {"platform": "coze", "api_key": "pat_test-key", "bot_id": "7553210987654300001"},
    "zhipu": {"platform": "zhipu", "api_key": "testid.testsecret", "model": "glm-4.6"},
    "openai": {"platform": "openai", "api_key": "sk-upstream-key", "model": "gpt-4o-mini"},
}


@pytest.fixture
async def all_five(gateway, demo):
    """A gateway in front of one simulator of each kind; (gateway, simulators by name)."""
    served = {name: await demo(name, key=agent["api_key"]) for name, agent in AGENTS.items()}
    agents = {name: {**agent, "base_url": served[name].url} for name, agent in AGENTS.items()}
    return await gateway(agents=agents), {name: one.demo for name, one in served.items()}


@dataclass
class Script:
    """How a scripted upstream answers a request, byte for byte.

    `pieces` are bytes to write, each in its own write, or seconds or an event to wait for. `end`:
    close, hang, reset.
    """

    pieces: list[bytes | float | asyncio.Event] = field(default_factory=list)
    status: str = "200 OK"
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "text/event-stream"})
    chunked: bool = True
    end: str = "close"
    before_headers_s: float = 0.0
    version: str = "1.1"


def stopped() -> Script:
    """The answer to a stop call."""
    return Script([b'{"result":"success"}'], headers={"Content-Type": "application/json"})


class Scripted:
    """An upstream on a bare socket: it can do what no HTTP server would."""

    def __init__(self) -> None:
        self.scripts: list[Script] = []  # one per request; the last one serves all further ones
        self.requests: list[tuple[str, dict[str, str], bytes]] = []  # (line, headers, body)
        self.gone = asyncio.Event()  # a caller closed its connection before the answer's end
        self.written = 0
        self._listening = listening(self._serve)
        self.url = ""

    async def start(self) -> None:
        self.url = f"http://127.0.0.1:{await self._listening.__aenter__()}"

    async def stop(self) -> None:
        await self._listening.__aexit__(None, None, None)

    def bodies(self, path: str = "") -> list[Any]:
        return [orjson.loads(body or b"null") for line, _, body in self.requests if path in line]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in head[1:]) if k}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        self.requests.append((head[0], headers, body))
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        answering = asyncio.ensure_future(self._answer(script, writer))
        leaving = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                self.gone.set()
        finally:
            answering.cancel()
            leaving.cancel()
            await asyncio.wait({answering, leaving})

    async def _answer(self, script: Script, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(script.before_headers_s)
        headers = {**script.headers, "Connection": "close"}
        if script.chunked:
            headers["Transfer-Encoding"] = "chunked"
        lines = "".join(f"{key}: {value}\r\n" for key, value in headers.items())
        writer.write(
            f"HTTP/{script.version} {script.status}\r\n{lines}\r\n".encode(
                "utf-8", "surrogateescape"
            )
        )
        for piece in script.pieces:
            if isinstance(piece, bytes):
                framed = b"%x\r\n%s\r\n" % (len(piece), piece) if script.chunked else piece
                writer.write(framed)
                self.written += len(piece)
                await writer.drain()
                await asyncio.sleep(0)
            elif isinstance(piece, asyncio.Event):
                await piece.wait()
            else:
                await asyncio.sleep(piece)
        if script.end == "hang":
            await asyncio.sleep(3600)
        if script.end == "reset":
            writer.transport.abort()
        elif script.chunked and script.end == "close":
            writer.write(b"0\r\n\r\n")
            await writer.drain()


@pytest.fixture
def scripted(stack: AsyncExitStack) -> Callable[..., Any]:
    """`await scripted(Script(…), …)`: an upstream that follows the scripts in turn."""

    async def start(*scripts: Script) -> Scripted:
        server = Scripted()
        server.scripts = list(scripts)
        await server.start()
        stack.push_async_callback(server.stop)
        return server

    return start


def sse_events(raw: bytes) -> list[tuple[str, Any]]:
    """(event name, parsed data) of a stream; `[DONE]` stays a string."""
    out = []
    for block in raw.decode().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line[1:])
        if "data" in lines:
            data = lines["data"]
            out.append((lines.get("event", ""), data if data == "[DONE]" else orjson.loads(data)))
    return out


def streamed(raw: bytes) -> dict[str, Any]:
    """What a client collects from a stream of OpenAI chunks."""
    out: dict[str, Any] = {"text": "", "reasoning": "", "finish": [], "usage": [], "ids": set()}
    for name, data in sse_events(raw):
        if data == "[DONE]":
            out["done"] = True
        elif name:
            out.setdefault("named", []).append((name, data))
        elif "error" in data:
            out["error"] = data["error"]
        else:
            out["ids"].add(data["id"])
            out["usage"] += [data["usage"]] if data.get("usage") else []
            out["gateway"] = data.get("gateway") or out.get("gateway")
            for choice in data["choices"]:
                out["text"] += choice["delta"].get("content") or ""
                out["reasoning"] += choice["delta"].get("reasoning_content") or ""
                out["finish"] += [choice["finish_reason"]] if choice["finish_reason"] else []
    return out
