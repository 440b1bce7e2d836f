"""The import rule: a module imports only from entries below it."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "gateway"

# Top to bottom. A folder's modules do not import each other, except the ones marked as shared.
ORDER = [
    "cli", "serve", "live", "greeting", "connections", "app", "admin", "reload", "routes", "middlewares", "access", "cors", "locality", "reply", "pump", "direct", "books", "formcopy", "form", "body", "proxies", "vitals", "keys",
    "recorder", "directory", "health", "relay", "handover", "routing", "breaker", "platforms", "attachments",
    "files", "flights", "guard", "upstream", "links", "link", "lookups", "tunnel", "scrub", "render", "passthrough", "pattern", "thinking", "citemarks", "pauses", "turns", "history", "failures", "failuretable", "failurewords",
    "content", "sse", "usage", "stores", "limits", "metrics", "tally", "call", "traces", "messages", "exchange", "loosejson", "charsets", "tokens", "passwords", "places",
    "configschema", "configfile", "configcheck", "environment", "credentials", "outgoing", "config", "configvalues", "origins", "proxy", "filetypes", "secret", "invocation", "logs", "accesslog", "alarm", "timers", "oneaturn", "ids", "seals", "private",
    "times", "errors", "headernames", "addresses",
]  # fmt: skip
SHARED = {
    "stores.database",
    "stores.files",
    "stores.calls",
    "stores.redisbuckets",
    "platforms.base",
    "platforms.fastgpterrors",
    "platforms.fastgptnodes",
    "platforms.openai_compatible",
    "demo.stage",
    "demo.mind",
    "demo.openai",
}
WEB_FROM = ORDER[: ORDER.index("keys") + 1]


def modules() -> dict[str, ast.Module]:
    out = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        out[name.removesuffix(".__init__")] = ast.parse(path.read_text("utf-8"))
    del out["__init__"]
    return out


def imports(tree: ast.Module) -> set[str]:
    out = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            out |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        elif isinstance(node, ast.Import):
            out |= {alias.name for alias in node.names}
    return out


def ours(tree: ast.Module, known: dict[str, ast.Module]) -> set[str]:
    names = {name.removeprefix("gateway.") for name in imports(tree) if name.startswith("gateway.")}
    return names & known.keys()


def test_a_module_imports_only_from_below():
    known = modules()
    wrong = []
    for name, tree in known.items():
        top = name.split(".")[0]
        if top == "demo":
            continue
        for other in ours(tree, known):
            other_top = other.split(".")[0]
            if other_top == "demo":
                allowed = top == "app"
            elif other_top == top:
                is_folder = name == top
                allowed = is_folder or other in SHARED
            else:
                allowed = ORDER.index(top) < ORDER.index(other_top)
            if not allowed:
                wrong.append(f"{name} imports {other}")
    assert wrong == []


def test_demos_stand_beside_the_gateway_and_use_its_config_only():
    known = modules()
    for name, tree in known.items():
        if name.startswith("demo"):
            others = {o for o in ours(tree, known) if not o.startswith("demo")}
            assert others <= {"config"}, name


def test_aiohttp_web_appears_only_from_keys_upwards():
    for name, tree in modules().items():
        top = name.split(".")[0]
        if any(i.startswith("aiohttp.web") for i in imports(tree)):
            assert top in WEB_FROM or top == "demo", name


def test_what_few_need_is_not_loaded_for_all():
    """Passwords, tokens, uploads, S3, Redis, PostgreSQL, traces and the simulators are loaded when used."""
    heavy = "argon2 jwt cryptography filetype aiobotocore redis asyncpg opentelemetry gateway.demo"
    code = f"import sys, gateway.serve; print([n for n in {heavy.split()} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, cwd=PACKAGE.parent, check=True
    )
    assert done.stdout.strip() == b"[]"


def test_platforms_do_no_io():
    forbidden = {"aiohttp", "asyncio", "socket", "requests", "httpx", "os", "logging", "pathlib"}
    for name, tree in modules().items():
        if name.startswith("platforms.") or name in ("sse", "passthrough", "thinking", "render"):
            assert not {i.split(".")[0] for i in imports(tree)} & forbidden, name
            awaits = [n for n in ast.walk(tree) if isinstance(n, ast.AsyncFunctionDef | ast.Await)]
            assert awaits == [], name
