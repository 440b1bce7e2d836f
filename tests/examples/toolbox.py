"""What the tests of examples/ need: programs of the system, npm's packages, and copies to edit."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

import orjson
import servers
from playwright.async_api import Page, Route, async_playwright

HERE = Path(__file__).parent
EXAMPLES = HERE.parent.parent / "examples"
KEY = "sk-of-the-operator-1234"  # what the operator gives the server that hands out tokens


@cache
def program(name: str, package: str = "") -> str:
    """The path of a program; Debian's package is installed first where the program is missing."""
    if not shutil.which(name):
        apt = ["apt-get"] if os.geteuid() == 0 else ["sudo", "--non-interactive", "apt-get"]
        assert shutil.which(apt[0]), f"Install {name}: these tests run it."
        environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run([*apt, "update", "-qq"], env=environ, check=True)
        install = [*apt, "install", "-qq", "--yes", "--no-install-recommends", package or name]
        subprocess.run(install, env=environ, check=True)
    path = shutil.which(name)
    assert path, f"{package or name} has no program {name}"
    return path


def node() -> str:
    return program("node", "nodejs")


@cache
def modules() -> Path:
    """node_modules with what package-lock.json names: React, compilers, types. Kept between runs."""
    lock = (HERE / "package-lock.json").read_bytes()
    folder = servers.CACHE / f"node-{hashlib.sha256(lock).hexdigest()[:12]}"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, folder)
        npm = [program("npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        subprocess.run(npm, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        (folder / "complete").touch()
    return folder / "node_modules"


def run(*command: str | Path, **options: object) -> str:
    """What a program prints; fails with its complaints if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def copied(name: str, folder: Path) -> Path:
    """A copy of an example, to be edited as a user would."""
    target = folder / name
    if (EXAMPLES / name).is_dir():
        shutil.copytree(EXAMPLES / name, target)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(EXAMPLES / name, target)
    return target


def edit(file: Path, *changes: tuple[str, str]) -> None:
    """Replace text in a file; every text must be there."""
    text = file.read_text("utf-8")
    for old, new in changes:
        assert old in text, f"{file.name} has no {old!r}"
        text = text.replace(old, new)
    file.write_text(text, "utf-8")


class TokenServer(servers.Server):
    """One of examples/token-server, with the web page of `examples` in reach of it."""

    def __init__(self, name: str, gateway: str, key: str = KEY, examples: Path = EXAMPLES) -> None:
        self.port = servers.free_port()
        self._program = sys.executable if name.endswith(".py") else node()
        self._file = examples / "token-server" / name
        self._environ = {"GATEWAY": gateway, "GATEWAY_KEY": key, "PORT": str(self.port)}
        self.url = f"http://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        return [self._program, str(self._file)]

    def options(self) -> dict[str, object]:
        return {"env": {**os.environ, **self._environ}}


@asynccontextmanager
async def chromium() -> AsyncIterator[Page]:
    """An empty page in a browser of its own."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=program("chromium"), args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        try:
            page = await browser.new_page()
            page.set_default_timeout(20_000)
            yield page
        finally:
            await browser.close()


async def with_an_ended_token(page: Page) -> list[str]:
    """The tokens that the page is about to get; the first of them is no longer valid."""
    tokens: list[str] = []

    async def hand_out(route: Route) -> None:
        answer = await route.fetch()
        body = await answer.json()
        if not tokens:
            body["data"]["token"] += "x"
        tokens.append(body["data"]["token"])
        await route.fulfill(response=answer, json=body)

    await page.route("**/token", hand_out)
    return tokens


def message(text: str) -> bytes:
    """Dify's event with a piece of an answer."""
    event = {"event": "message", "answer": text, "conversation_id": "c"}
    return b"data: %s\n\n" % orjson.dumps(event)


END = b'data: {"event":"message_end","conversation_id":"c"}\n\n'
