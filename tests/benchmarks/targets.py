"""The measured servers: how each is started, and the requests that it gets."""

import json
import shutil
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from machine import Process, free_port

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
KEY = "sk-bench-12345678"
PATHS = {
    "dify": "/v1/chat-messages",
    "coze": "/v3/chat",
    "fastgpt": "/api/v1/chat/completions",
    "openai": "/v1/chat/completions",
}
_SETTINGS = {
    "dify": {"mode": "chat"},
    "coze": {"bot_id": "1"},
    "fastgpt": {},
    "openai": {"model": "bench"},
}
_SECRET = "s" * 48  # of every key in the database; only their ids differ
NUMBERED_KEY = "sk-gw-bench{n}-" + _SECRET  # {n}: the load client inserts seven digits


@dataclass(frozen=True)
class Target:
    """A path through one server to one platform."""

    name: str
    server: str
    platform: str
    agent: str = ""  # sent as the model; empty: the platform's own body is passed through
    key: str = KEY

    @property
    def path(self) -> str:
        return PATHS["openai" if self.agent else self.platform]

    @property
    def headers(self) -> list[str]:
        return [f"Authorization: Bearer {self.key}"] if self.agent else []

    def body(self, question: str, is_streamed: bool) -> str:
        if self.agent:
            return json.dumps(_openai_body(self.agent, question, is_streamed) | {"user": "u"})
        return json.dumps(_own_body(self.platform, question, is_streamed))


def _openai_body(model: str, question: str, is_streamed: bool) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return {"model": model, "stream": is_streamed, "messages": messages}


def _own_body(platform: str, question: str, is_streamed: bool) -> dict[str, Any]:
    if platform == "dify":
        mode = "streaming" if is_streamed else "blocking"
        return {"inputs": {}, "query": question, "response_mode": mode, "user": "u"}
    if platform == "coze":
        message = {"role": "user", "content": question, "content_type": "text"}
        messages = [message]
        asked = {"bot_id": "1", "user_id": "u", "stream": is_streamed}
        return asked | {"additional_messages": messages}
    return _openai_body("bench", question, is_streamed)


def gateway(platform: str) -> Target:
    return Target(f"gateway, {platform}", "gateway", platform, agent=platform)


def passed(server: str, platform: str) -> Target:
    return Target(f"{server}, {platform}", server, platform)


LITELLM = Target("LiteLLM, openai", "LiteLLM", "openai", agent="bench")


def has_nginx() -> bool:
    return shutil.which("nginx") is not None


def litellm_program() -> str | None:
    """litellm of the extra `bench-litellm`, or of another environment: its pinned versions may not
    be the gateway's."""
    beside = Path(sys.executable).with_name("litellm")
    return str(beside) if beside.exists() else shutil.which("litellm")


# The servers.


@dataclass
class Server:
    process: Process
    port: int


def upstream(folder: Path) -> Server:
    """`folder` holds the compiled rig, and receives files and logs of everything that is
    started."""
    port = free_port()
    command = [str(folder / "upstream"), str(port)]
    process = Process(command, folder / "upstream.log", is_measured=False)
    process.wait_for(port)
    return Server(process, port)


def bare_aiohttp(folder: Path, upstream_port: int) -> Server:
    port = free_port()
    program = str(HERE / "baselines" / "bare_aiohttp.py")
    command = [sys.executable, program, str(port), f"http://127.0.0.1:{upstream_port}"]
    return _started(Process(command, folder / "bare.log"), port)


def nginx(folder: Path, upstream_port: int) -> Server:
    port = free_port()
    config = _filled("nginx.conf", folder, upstream_port, port)
    command = ["nginx", "-e", "stderr", "-p", str(folder), "-c", str(config)]
    return _started(Process(command, folder / "nginx.log"), port)


def litellm(folder: Path, upstream_port: int) -> Server:
    port = free_port()
    config = _filled("litellm.yaml", folder, upstream_port, port)
    command = [litellm_program() or "litellm", "--config", str(config), "--host", "127.0.0.1"]
    return _started(Process([*command, "--port", str(port)], folder / "litellm.log"), port)


def _filled(name: str, folder: Path, upstream_port: int, port: int) -> Path:
    text = (HERE / "baselines" / name).read_text("utf-8")
    filled = folder / name
    filled.write_text(text.replace("UPSTREAM", str(upstream_port)).replace("PORT", str(port)))
    return filled


def _started(process: Process, port: int) -> Server:
    try:
        process.wait_for(port)
    except RuntimeError:
        process.stop()
        raise
    return Server(process, port)


# The gateway.


@dataclass
class GatewayFiles:
    """A config.yaml in a folder of its own. Keys, limits, log and record are on, as in production;
    files are written to `data` below it, since the folder of config.yaml is watched.

    `agents` is the number of agents of one platform, named `agent` and seven digits; without it
    there is one of each platform, with the platform's name.
    """

    folder: Path
    upstream_port: int
    agents: int = 0
    redis: str = ""

    @property
    def path(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def write(self) -> "GatewayFiles":
        self.data.mkdir(parents=True)
        self.path.write_text(json.dumps(self._config(), indent=1), "utf-8")  # JSON is also YAML
        return self

    def command(self, port: int) -> list[str]:
        return [sys.executable, "run.py", "--config", str(self.path), "--port", str(port)]

    def start(self) -> Server:
        port = free_port()
        process = Process(self.command(port), self.data / "gateway.log", cwd=ROOT)
        return _started(process, port)

    def _config(self) -> dict[str, Any]:
        if self.agents:
            named = {f"agent{n:07}": self._agent("openai") for n in range(self.agents)}
        else:
            named = {platform: self._agent(platform) for platform in PATHS}
        return {
            "server": {"max_connections": 20_000},
            "auth": {"anonymous": False, "keys": [{"name": "bench", "key": KEY}]},
            "rate_limits": {"chat": "1000000/s"},
            "database": f"sqlite:///{self.data}/gateway.db",
            "record": {"spool": f"{self.data}/spool"},
            "storage": {"url": f"file:{self.data}/uploads"},
            "redis": self.redis,
            "agents": named,
        }

    def _agent(self, platform: str) -> dict[str, Any]:
        url = f"http://127.0.0.1:{self.upstream_port}"
        common = {"platform": platform, "base_url": url, "api_key": "k", "concurrency": 20_000}
        return common | _SETTINGS[platform]

    def add_keys(self, count: int) -> None:
        """Insert `NUMBERED_KEY` with every number below `count` directly into the database."""
        migrate = [sys.executable, "run.py", "migrate", "--config", str(self.path)]
        subprocess.run(migrate, check=True, cwd=ROOT, capture_output=True)
        database, now_ms = sqlite3.connect(self.data / "gateway.db"), int(time.time() * 1000)
        with database:
            database.execute(
                "INSERT INTO users (id, username, name_key, password_hash, role, status,"
                " created_ms, updated_ms) VALUES ('bench', 'bench', 'bench', '', 'user',"
                " 'active', ?, ?)",
                (now_ms, now_ms),
            )
            hashed = sha256(_SECRET.encode()).hexdigest()
            database.executemany(
                "INSERT INTO api_keys (id, owner_id, name, secret_sha256, permissions, created_ms)"
                " VALUES (?, 'bench', ?, ?, '[\"chat\"]', ?)",
                ((f"bench{n:07}", f"key {n}", hashed, now_ms) for n in range(count)),
            )
        database.close()
