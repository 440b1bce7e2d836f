"""The house: which room may import which, and who does I/O."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "gateway"

# Top to bottom: a room imports rooms on lower floors only. `demo` is a separate house.
FLOORS: list[set[str]] = [
    {"cli"},
    {"server"},
    {"app", "admin"},
    {"routes"},
    {"middlewares", "reload"},
    {"http"},
    {"chat"},
    {"telemetry", "limits", "files", "memory", "conversations"},
    {"platforms", "accounts", "upstream"},
    {"config"},
    {"protocol", "database", "background"},
    {"filetypes"},
    {"errors", "secret", "times", "ids", "headers", "private", "shipped", "system", "columns"},
    {"language"},
]
FLOOR = {room: number for number, floor in enumerate(FLOORS) for room in floor}
WEB = {"server", "app", "routes", "middlewares", "http", "demo"}  # may import aiohttp.web
NO_IO = {"platforms", "protocol", "background"}
IO = {"aiohttp", "asyncio", "socket", "requests", "httpx", "os", "logging", "pathlib"}


def modules() -> dict[str, ast.Module]:
    """By dotted name below `gateway`; a package under its own name."""
    out = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        out[name.removesuffix(".__init__")] = ast.parse(path.read_text("utf-8"))
    del out["__init__"]
    return out


MODULES = modules()


def imported(name: str) -> set[str]:
    """Everything that the module imports, as written, and each imported name."""
    out = set()
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.ImportFrom) and node.module:
            out |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        elif isinstance(node, ast.Import):
            out |= {alias.name for alias in node.names}
    return out


def ours(name: str) -> set[str]:
    """The modules of `gateway` that the module imports."""
    found = {i.removeprefix("gateway.") for i in imported(name) if i.startswith("gateway.")}
    return found & MODULES.keys()


def room(name: str) -> str:
    return name.partition(".")[0]


def test_every_room_has_a_floor():
    assert {room(name) for name in MODULES} - {"demo"} == FLOOR.keys()


def test_a_room_imports_lower_floors_only():
    wrong = [
        f"{name} imports {other}"
        for name in MODULES
        for other in ours(name)
        if room(name) != room(other)
        and not (room(other) == "demo" and room(name) == "app")
        and room(name) != "demo"
        and FLOOR[room(name)] >= FLOOR[room(other)]
    ]
    assert wrong == []


def test_no_cycles_inside_a_room():
    graph = {name: {o for o in ours(name) if room(o) == room(name)} - {name} for name in MODULES}
    for name, others in graph.items():
        if "." in name:  # a module may import its package itself
            others.discard(name.rpartition(".")[0])
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(str(error.args[1]))


def test_one_platform_never_imports_another():
    for name in MODULES:
        own = name.split(".")[:2]
        if own[0] == "platforms" and len(name.split(".")) > 2:
            folders = {tuple(o.split(".")[:2]) for o in ours(name) if len(o.split(".")) > 2}
            assert {f for f in folders if f[0] == "platforms"} <= {tuple(own)}, name


def test_demo_imports_the_models_of_the_configuration_only():
    for name in MODULES:
        if room(name) == "demo":
            assert {o for o in ours(name) if room(o) != "demo"} <= {"config", "config.models"}, name


def test_only_web_rooms_import_aiohttp_web():
    for name in MODULES:
        if any(i.startswith("aiohttp.web") for i in imported(name)):
            assert room(name) in WEB, name


def test_translation_and_recognition_do_no_io():
    for name, tree in MODULES.items():
        if room(name) in NO_IO:
            assert not {i.split(".")[0] for i in imported(name)} & IO, name
            awaits = [n for n in ast.walk(tree) if isinstance(n, ast.AsyncFunctionDef | ast.Await)]
            assert awaits == [], name


def test_heavy_libraries_are_imported_when_used():
    """Passwords, tokens, uploads, S3, Redis, PostgreSQL, traces and the simulators."""
    heavy = "argon2 jwt cryptography filetype aiobotocore redis asyncpg opentelemetry gateway.demo"
    code = (
        "import sys, gateway.server.process;"
        f"print([n for n in {heavy.split()} if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, cwd=PACKAGE.parent, check=True
    )
    assert done.stdout.strip() == b"[]"
