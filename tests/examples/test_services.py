"""nginx, Caddy and systemd with the examples' files."""

import asyncio
import contextlib
import io
import os
import re
import ssl
import sys
from configparser import RawConfigParser
from pathlib import Path

import aiohttp
import pytest
import servers
import trustme
from conftest import AGENTS, Script
from toolbox import END, EXAMPLES, KEY, edit, message, program, run

from gateway.config.models import Server

ROOT = EXAMPLES.parent
PROXIES = ROOT / "config/proxies"
HOST = "gateway.example.com"

pytestmark = pytest.mark.timeout(300)  # the first run may install the proxies


class Proxy(servers.Server):
    """A proxy with our example, on a free port, in front of a gateway."""

    def __init__(self, folder: Path, gateway: str) -> None:
        self.port, self.folder = servers.free_port(), folder
        self.upstream = gateway.removeprefix("http://")

    def file(self, name: str, *changes: tuple[str, str]) -> Path:
        copy = self.folder / name
        copy.write_text((PROXIES / name).read_text("utf-8"), "utf-8")
        edit(copy, ("127.0.0.1:3000", self.upstream), *changes)
        return copy


class Nginx(Proxy):
    def __init__(self, folder: Path, gateway: str) -> None:
        super().__init__(folder, gateway)
        authority = trustme.CA()
        pem = folder / "gateway.pem"
        authority.issue_cert(HOST).private_key_and_cert_chain_pem.write_to_path(str(pem))
        self.ssl = ssl.create_default_context()
        authority.configure_trust(self.ssl)
        self.url = f"https://127.0.0.1:{self.port}"
        site = self.file(
            "nginx.conf",
            ("listen 443 ssl", f"listen 127.0.0.1:{self.port} ssl"),
            (f"/etc/ssl/certs/{HOST}.pem", str(pem)),
            (f"/etc/ssl/private/{HOST}.key", str(pem)),
        )
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temp = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
        user = "user root;" if os.geteuid() == 0 else ""
        self.main = folder / "main.conf"
        self.main.write_text(
            f"{user} daemon off; pid {folder}/pid; error_log stderr; events {{}}"
            f"http {{ access_log off; {temp} include {site}; }}"
        )

    def command(self) -> list[str]:
        return [program("nginx", "nginx-light"), "-p", str(self.folder), "-c", str(self.main)]


class Caddy(Proxy):
    ssl = None

    def __init__(self, folder: Path, gateway: str) -> None:
        super().__init__(folder, gateway)
        self.url = f"http://127.0.0.1:{self.port}"
        self.site = self.file("Caddyfile", (f"{HOST} {{", f"http://{HOST}:{self.port} {{"))
        edit(self.site, ("# Caddy in front", "{\n\tadmin off\n}\n# Caddy in front"))

    def command(self) -> list[str]:
        caddy = [program("caddy"), "run", "--adapter", "caddyfile", "--config"]
        return [*caddy, str(self.site)]

    def options(self) -> dict[str, object]:
        return {"env": {**os.environ, "HOME": str(self.folder)}}


@pytest.fixture(params=[Nginx, Caddy])
def proxy(request, tmp_path):
    """`await proxy(gateway)`: the proxy, started."""
    with contextlib.ExitStack() as stack:

        async def start(gateway: str) -> Proxy:
            proxy = request.param(tmp_path, gateway)
            stack.callback(proxy.stop)
            await asyncio.to_thread(proxy.start)
            return proxy

        yield start


KEYS = [{"name": "web", "key": KEY, "permissions": ["chat", "upload"]}]
BEHIND_A_PROXY = {  # as the examples say
    "auth": {"anonymous": False, "keys": KEYS},
    "server": {"trusted_proxies": ["127.0.0.1"]},
}
HEADERS = {"Authorization": f"Bearer {KEY}", "Host": HOST}


async def test_streams_come_through_as_they_arrive(proxy, gateway, scripted):
    rest = asyncio.Event()
    upstream = await scripted(Script([message("Hello"), rest, END]))
    agents = {"dify": {**AGENTS["dify"], "base_url": upstream.url, "mode": "chat"}}
    gw = await gateway(agents=agents, **BEHIND_A_PROXY)
    one = await proxy(gw.url)
    async with (
        aiohttp.ClientSession() as caller,
        caller.post(
            f"{one.url}/api/v1/chat",
            json={"query": "hi", "stream": True},
            headers={**HEADERS, "Agent": "dify"},
            ssl=one.ssl or True,
            server_hostname=HOST if one.ssl else None,
        ) as answer,
    ):
        assert answer.status == 200, await answer.text()
        async with asyncio.timeout(20):
            await answer.content.readuntil(b"Hello")  # while the platform still writes
        rest.set()
        assert (await answer.text()).endswith("data: [DONE]\n\n")


async def test_large_files_pass_and_links_have_the_public_address(proxy, gateway, demo):
    agents = {"dify": {**AGENTS["dify"], "base_url": (await demo("dify")).url}}
    gw = await gateway(agents=agents, **BEHIND_A_PROXY)
    one = await proxy(gw.url)
    form = aiohttp.FormData()
    form.add_field("file", io.BytesIO(b"x" * 3_000_000), filename="large.txt")
    async with (
        aiohttp.ClientSession() as caller,
        caller.post(
            f"{one.url}/api/v1/upload",
            data=form,
            headers=HEADERS,
            ssl=one.ssl or True,
            server_hostname=HOST if one.ssl else None,
        ) as answer,
    ):
        body = await answer.json()
        assert answer.status == 200, body
    scheme = "https" if one.ssl else "http"
    assert body["data"]["id"].startswith(f"{scheme}://{HOST}")  # as the caller sees it


def test_the_proxies_accept_the_files_as_they_stand(tmp_path):
    home = {**os.environ, "HOME": str(tmp_path)}
    caddy = [program("caddy"), "validate", "--adapter", "caddyfile", "--config"]
    run(*caddy, PROXIES / "Caddyfile", env=home)
    nginx = Nginx(tmp_path, "http://127.0.0.1:3000")
    run(*nginx.command(), "-t")


# systemd.

COMMAND = Path(sys.executable).with_name("ai-gateway")  # as `make install` makes it
UNIT = EXAMPLES / "systemd/ai-gateway.service"


def unit() -> RawConfigParser:
    parser = RawConfigParser(strict=False, delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str
    parser.read_string(UNIT.read_text("utf-8"))
    return parser


def test_systemd_accepts_the_unit(tmp_path):
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text("utf-8"), "utf-8")
    edit(copy, ("/opt/ai-gateway/venv/bin/ai-gateway", str(COMMAND)))
    analyze = program("systemd-analyze", "systemd")
    run(analyze, "verify", "--man=no", copy)
    (tmp_path / "wrong").mkdir()
    wrong = tmp_path / "wrong" / UNIT.name
    wrong.write_text(UNIT.read_text("utf-8"), "utf-8")
    with pytest.raises(AssertionError, match="not executable"):
        run(analyze, "verify", "--man=no", wrong)


def test_the_unit_exposes_little(tmp_path):
    analyze = program("systemd-analyze", "systemd")
    report = run(analyze, "security", "--offline=true", "--threshold=100", UNIT)
    assert float(re.search(r"Overall exposure level.*?: ([\d.]+)", report)[1]) < 2.0


def test_the_unit_runs_a_command_that_there_is():
    _, serve, option, _ = unit()["Service"]["ExecStart"].split()
    assert serve == "serve"
    gateway = [COMMAND, "check", option, ROOT / "config.yaml"]
    run(*gateway, env={"PATH": os.environ["PATH"], "GATEWAY_HOME": "/tmp"}, cwd="/")


def test_the_unit_waits_longer_than_the_gateway_drains():
    drain_s = Server.model_fields["drain_timeout"].default
    assert float(unit()["Service"]["TimeoutStopSec"]) > drain_s
