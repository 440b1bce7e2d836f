"""What leans on names that aiohttp does not promise: one module, checked at the start."""

import ast
import asyncio
import configparser
import importlib
import inspect
import logging
import os
import re
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from conftest import AGENTS, leave_all_to_aiohttp
from test_connections import talk

from gateway.server import aiohttp_internals
from gateway.server.aiohttp_internals import NEEDED, BoundedConnection, obstacle
from gateway.server.connections import Connection
from gateway.server.runner import Runner

ROOT = Path(__file__).parent.parent.parent
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
(ALLOWED,) = re.findall(r"^aiohttp (.*)$", SETUP["options"]["install_requires"], re.M)
OLDEST = ALLOWED.removeprefix(">= ").partition(",")[0]

# Private names of the standard library that the gateway reads, and `_replace` of named tuples.
OTHERS = {"_exit", "_SubParsersAction", "_create_unverified_context", "_Decompress", "_replace"}


def privates(source: str, of: str = r"\w*") -> set[str]:
    return set(re.findall(rf"\b{of}\.(_[A-Za-z]\w*)", source)) - OTHERS


SOURCE = "\n".join(p.read_text("utf-8") for p in Path(aiohttp.__file__).parent.glob("*.py"))
AIOHTTPS = privates(SOURCE) | set(re.findall(r"^(?:class|def) (_[A-Za-z]\w*)", SOURCE, re.M))


def inherited(tree: ast.ClassDef, module: str) -> set[str]:
    """The private names that a class of the gateway has from classes of aiohttp."""
    bases = getattr(importlib.import_module(module), tree.name).__mro__
    sources = [inspect.getsource(b) for b in bases if b.__module__.startswith("aiohttp.")]
    defined = {
        name for base in bases if base.__module__.startswith("aiohttp.") for name in vars(base)
    }
    return {name for source in sources for name in privates(source, "self")} | defined


def read(module: str, tree: ast.Module) -> set[str]:
    """The private names of aiohttp that a module of the gateway reads, imports or overrides."""
    out: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("aiohttp"):
            out |= {alias.name for alias in node.names if alias.name.startswith("_")}
        if isinstance(node, ast.Attribute) and not is_own(node.value):
            out |= {node.attr} & AIOHTTPS
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            names = {
                n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute) and is_own(n.value)
            }
            names |= {n.name for n in ast.walk(node) if isinstance(n, ast.FunctionDef)}
            names &= inherited(node, module)
            out |= {name for name in names if re.match("_[A-Za-z]", name)}
    return out


def is_own(value: ast.expr) -> bool:
    """Whether it is `self`, `cls` or `super()`."""
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name):
        return value.func.id == "super"
    return isinstance(value, ast.Name) and value.id in ("self", "cls")


def test_only_one_module_reads_private_names_of_aiohttp():
    found = {}
    for path in (ROOT / "gateway").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if names := read(module, ast.parse(path.read_text("utf-8"))):
            found[module] = names
    private = {name for names in NEEDED.values() for name in names if name.startswith("_")}
    assert found == {aiohttp_internals.__name__: private}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("def f(request):\n return request._payload_writer", {"_payload_writer"}),
        ("from aiohttp.web_protocol import _ErrInfo", {"_ErrInfo"}),
        ("class Connection:\n def f(self):\n  return self._force_close", {"_force_close"}),
        ("class Connection:\n def _process_keepalive(self): ...", {"_process_keepalive"}),
        ("class Connection:\n def f(self):\n  return self._stalled", set()),
    ],
)
def test_a_private_name_is_found_however_it_is_read(source, found):
    assert read(Connection.__module__, ast.parse(source)) == found


async def kind_of_connection(caplog) -> type[Connection]:
    runner = Runner(web.Application())
    with caplog.at_level(logging.WARNING):
        await runner.setup()
    assert runner.bounded
    try:
        return runner.bounded.kind
    finally:
        await runner.cleanup()


async def test_with_every_name_the_bounded_connection_serves(caplog):
    assert obstacle() == ""
    assert await kind_of_connection(caplog) is BoundedConnection
    assert caplog.text == ""


@pytest.mark.parametrize("owner", NEEDED)
async def test_without_a_name_aiohttp_serves_and_a_warning_says_so(owner, caplog, monkeypatch):
    monkeypatch.setitem(NEEDED, owner, (*NEEDED[owner], "_renamed"))
    assert await kind_of_connection(caplog) is Connection
    assert "slower and less bounded: it has no " in caplog.text
    assert "._renamed" in caplog.text


async def test_with_a_version_not_tested_aiohttp_serves(caplog, monkeypatch):
    monkeypatch.setattr(aiohttp, "__version__", "3.99.0")
    assert await kind_of_connection(caplog) is Connection
    assert "aiohttp 3.99.0 parses and writes by itself" in caplog.text


@pytest.mark.parametrize("way", ["bounded", "aiohttp"])
async def test_bad_http_is_400_in_the_gateways_format_either_way(way, gateway, monkeypatch):
    if way == "aiohttp":
        leave_all_to_aiohttp(monkeypatch)
    gw = await gateway(agents={"bot": AGENTS["dify"]})
    bad = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nBad Header\r\n\r\n"
    answer = await asyncio.to_thread(talk, gw, bad)
    assert b" 400 " in answer[:16]
    assert b'"type":"invalid_request_error"' in answer


# Other versions of aiohttp: the tests of what leans on its private names run again with each, in an
# environment that has this one package of its own and all others from here. pip downloads it.

EITHER_WAY = [
    "tests/server/test_aiohttp_internals.py::test_bad_http_is_400_in_the_gateways_format_either_way",
    "tests/end_to_end/test_streaming.py::test_a_failure_after_the_first_delta_is_one_error_event",
    "tests/end_to_end/test_streaming.py::test_a_client_that_leaves_closes_the_upstream_request",
    "tests/end_to_end/test_streaming.py::test_a_slow_reader_slows_the_upstream",
]
BOUNDED = [
    "tests/server/test_aiohttp_internals.py::test_only_one_module_reads_private_names_of_aiohttp",
    "tests/server/test_aiohttp_internals.py::test_with_every_name_the_bounded_connection_serves",
    "tests/server/test_connections.py",
    "tests/http/test_fastwrite.py",
]


@pytest.fixture
def python_with(tmp_path) -> Callable[[str], list[str]]:
    """`python_with("==3.14.4")`: the command of a Python whose aiohttp is of that version."""

    def make(version: str) -> list[str]:
        venv.create(tmp_path, symlinks=os.name != "nt")
        scripts, packages = (
            Path(sysconfig.get_path(name, "venv", {"base": str(tmp_path)}))
            for name in ("scripts", "purelib")
        )
        python = str(scripts / "python")
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
        pip += ["--python", python, "install", "--no-deps", f"aiohttp{version}"]
        subprocess.run(pip, check=True)
        (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
        found = "import aiohttp; print(aiohttp.__file__)"
        where = subprocess.run([python, "-c", found], capture_output=True, text=True, check=True)
        assert Path(where.stdout.strip()).is_relative_to(tmp_path)
        return [python]

    return make


def run_tests(python: list[str], tests: list[str]) -> None:
    command = [*python, "-m", "pytest", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


@pytest.mark.timeout(240)  # a download, and the tests of several files
@pytest.mark.parametrize("version", [f"=={OLDEST}", ALLOWED.replace(" ", "")], ids=["old", "new"])
def test_the_oldest_and_the_newest_aiohttp_allowed_pass(version, python_with):
    run_tests(python_with(version), [*BOUNDED, *EITHER_WAY])


@pytest.mark.timeout(240)
def test_an_older_aiohttp_lacks_names_and_serves_by_itself(python_with):
    python = python_with("==3.14.0")
    told = subprocess.run(
        [*python, "-c", "from gateway.server import aiohttp_internals as i; print(i.obstacle())"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert told.stdout.strip() == "it has no RequestHandler._buffer_paused"
    run_tests(python, EITHER_WAY)
