"""Detects values pasted into config.yaml by mistake: addresses of pages, notes, other keys.

A value that can never work is a problem, which stops the start. An odd value is a warning, for the
log and for `run.py check`. Problems are found in the raw tree, so that they are reported together
with all others.
"""

import os
import re
import shlex
import sqlite3
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from gateway.config import kinds, outgoing
from gateway.config.kinds import Kind
from gateway.config.models import DEMO, Agent, Config
from gateway.secret import Secret

_ENDPOINT = re.compile(
    r"(?:/v\d)?/(?:chat/completions|completions|chat-messages|completion-messages|workflows/run"
    r"|workflows/chat|workflow/run|workflow/stream_run|v3/chat|open_api/v2/chat|messages|responses"
    r"|embeddings|models|files|files/upload|application/invoke|assistant-api/v1/stream|parameters)$"
)
_PLACEHOLDER = re.compile(
    r"(?:sk|app|pat|fastgpt|dataset)?[-_]?(?:x{3,}|\.{3,}|\*{3,})"
    r"|.*\byour[-_ ]?(?:own[-_ ]?)?(?:api|app|access|secret|key|token|dify|coze|openai|bot).*"
    r"|(?:api|secret)[-_]?key|change[-_]?me|replace[-_]?me|todo|placeholder|<.*>|\{.*\}",
    re.IGNORECASE,
)
_MASKED = re.compile(r"\*{3,}|\.{3,}")
_SEVERAL = re.compile(r"(sk-|app-|fastgpt-|pat_)[^,;|]+[,;|]\1")
# Members that hold an id or a name, and where the addresses of pages contain ids.
_IDS = ("bot_id", "workflow_id", "app_id", "assistant_id", "model")
_ID_IN_ADDRESS = re.compile(r"(?:/bot/|/gdetail/|(?:bot_id|workflow_id|app_?id)=)(\w{1,64})", re.I)


def check_agents(tree: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(line, path) of every problem in the agents of the raw tree."""
    agents = tree.get("agents")
    for name, agent in agents.items() if isinstance(agents, dict) else ():
        if not isinstance(agent, dict):
            continue
        platform, url = str(agent.get("platform")), str(agent.get("base_url", DEMO))
        for member, problem in (
            ("base_url", address_problem(platform, url)),
            ("api_key", key_problem(agent)),
            *((member, name_problem(agent.get(member))) for member in _IDS),
            *(("models", name_problem(model)) for model in _listed(agent.get("models"))),
        ):
            if problem:
                path = f"agents.{name}.{member}"
                yield f"{path}: {problem}", path


_HOLE = re.compile(r"<[a-z][a-z _-]*>", re.IGNORECASE)


def check_stores(tree: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(line, path) of every address or name of a store that still has an example's placeholder."""
    storage = tree.get("storage")
    storage = storage if isinstance(storage, dict) else {}
    for section, value in (
        ("database", tree.get("database")),
        ("redis", tree.get("redis")),
        ("storage.url", storage.get("url")),
        ("storage.s3", storage.get("s3")),
    ):
        members = value if isinstance(value, dict) else {"": value}
        for name, member in members.items():
            text = member.reveal() if isinstance(member, Secret) else str(member)
            if hole := _HOLE.search(text):
                path = f"{section}.{name}".rstrip(".")
                yield f"{path}: has the placeholder {hole[0]} in it; put the real value there", path


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def name_problem(value: Any) -> str:
    """Why `value` cannot be the id of a bot or app, or the name of a model, or ""."""
    if not isinstance(value, str) or not value.strip():
        return ""
    if value != value.strip() or _has_unseen(value):
        return "has a space at an end, or a character that cannot be seen; give the name alone"
    if "://" in value:
        found = _ID_IN_ADDRESS.search(value)
        return "is an address; give the id alone" + (f": {found[1]}" if found else "")
    return ""


def _has_unseen(text: str) -> bool:
    """Whether `text` has invisible characters, often copied from web pages, such as U+200B."""
    return any(unicodedata.category(sign) in ("Cf", "Cc", "Zl", "Zp") for sign in text)


def address_problem(platform: str, url: str) -> str:
    """Why no API can answer at `url`, or "". The models report text that is not a URL."""
    parts = _split(url)
    if parts is None:
        return ""
    if re.search(r"[\s<>{}…\"'`]|[,;，；。]$", url):
        return "has a space, quotes or a placeholder in it; it must be the address alone"
    if _has_unseen(url):
        return "has a character in it that cannot be seen, such as U+200B; type it by hand"
    if re.match(r"https?://+https?:?/", url, re.IGNORECASE):
        return "has http:// in it twice"
    if hint := _page(platform, parts):
        return f"is the address of a page for people; the API is at {hint}"
    kind = kinds.find(platform)
    has_its_query = kind and re.fullmatch(kind.query, parts.query)
    if (parts.query and not has_its_query) or parts.fragment or url.endswith(("?", "#")):
        return (
            "must not contain a query (? or #), but for Azure OpenAI's api-version; keys belong in"
            " api_key or headers"
        )
    endpoint = _ENDPOINT.search(parts.path.rstrip("/"))
    if endpoint and not (kind and re.search(kind.endpoints, parts.path.rstrip("/"))):
        return f"is an endpoint; leave out {endpoint[0]} at its end"
    return ""


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url.strip())
        return parts if parts.scheme in ("http", "https") and parts.hostname else None
    except ValueError:
        return None


def _page(platform: str, parts: SplitResult) -> str:
    """The address of the API if `parts` is the address of a page, else ""."""
    host = (parts.hostname or "").lower()
    for each in kinds.built_in().values():
        if host in each.pages:
            return each.pages[host]
    kind, path = kinds.find(platform), parts.path.rstrip("/")
    if kind and ("shareId=" in parts.query or re.match(kind.page_paths, path)):
        host = parts.netloc.rpartition("@")[2]
        return f"{parts.scheme}://{host}{kind.api_path}"
    return ""


def key_problem(agent: dict[str, Any]) -> str:
    """Why the platform cannot accept `api_key`, or "". The reason never contains the key."""
    value = agent.get("api_key")
    key = value.reveal() if isinstance(value, Secret) else str(value or "")
    if not key or agent.get("base_url", DEMO) == DEMO:
        return ""
    if re.match(r"bearer\b", key.strip(), re.IGNORECASE):
        return "begins with Bearer; give the key alone, the gateway adds that word"
    if re.match(r"[\w-]*(?:key|token|authorization)\s*[:=]", key.strip(), re.IGNORECASE):
        return "has its name in it; give the key alone"
    if key[0] in "\"'`“”‘’" or key[-1] in "\"'`“”‘’":
        return "has quotes in it; give the key alone"
    if re.search(r"\s", key):
        return "has a space or a line end in it; give the key alone"
    if not key.isascii() or not key.isprintable():
        return "has characters in it that no key has, such as … or Chinese; give the key alone"
    if key[-1] in ",;":
        return f"ends in {key[-1]!r}; give the key alone"
    kind = kinds.find(str(agent.get("platform")))
    return (kind.key_problem(agent) if kind else "") or _no_whole_key(agent, kind, key)


def _no_whole_key(agent: dict[str, Any], kind: Kind | None, key: str) -> str:
    # A self-hosted model server accepts any key.
    clouds = {urlsplit(url).hostname for url in kind.pages.values()} if kind else set()
    is_strict = not kind or kind.options.credentials or _host(agent) in clouds
    if _PLACEHOLDER.fullmatch(key) and is_strict:
        return "is a placeholder; put the platform's key there"
    if _MASKED.search(key) and not _PLACEHOLDER.fullmatch(key):
        return "is masked, as pages show keys; copy the whole of it, or make a new one"
    if _SEVERAL.search(key) or (is_strict and re.search(r"[,;|]", key)):
        return "holds several keys; give one, and further agents the others"
    return ""


def _host(agent: dict[str, Any]) -> str:
    parts = _split(str(agent.get("base_url", "")))
    return (parts.hostname or "") if parts else ""


def warnings(config: Config, folder: Path | None = None) -> Iterator[str]:
    """Oddities of a usable configuration. `folder` is `load.home`."""
    yield from _demo_warnings(config)
    yield from outgoing.warnings(config)
    yield from _origin_warnings(config)
    for name, agent in config.agents.items():
        if not agent.is_demo:
            yield from _agent_warnings(f"agents.{name}", agent)
    yield from _place_warnings(config, folder or Path())
    if config.auth.admin_password and not config.database:
        yield "auth.admin_password: is not used, since there is no database"
    elif config.auth.admin_password and _has_users(config.sqlite_file):
        yield (
            "auth.admin_password: is not used, since the database has accounts already; change a"
            " password with: users set-password admin"
        )


def _origin_warnings(config: Config) -> Iterator[str]:
    """Entries of server.cors_origins that are valid, but not what most people mean."""
    origins = config.server.cors_origins
    for i, origin in enumerate(origins):
        if origin == "null":
            yield (
                f"server.cors_origins[{i}]: any web page can make its origin null, so such pages"
                " never call without a key"
            )
        elif origin != "*" and "*" in origins:
            yield f"server.cors_origins[{i}]: * stands in the list, which is any page"


def _demo_warnings(config: Config) -> Iterator[str]:
    if config.exposed_demos:
        names = ", ".join(config.exposed_demos[:10])
        yield (
            f"demo: a simulator answers for {names}, and others can reach it; set base_url and"
            " api_key, or `demo: false` to refuse simulators"
        )
    for name in config.demos:
        if config.agents[name].api_key:
            yield f"agents.{name}.api_key: is not used, since base_url is demo:; set base_url too"


def _agent_warnings(path: str, agent: Agent) -> Iterator[str]:
    if end := _ENDPOINT.search(urlsplit(agent.base_url).path):
        yield f"{path}.base_url: is an endpoint; {end[0]} at its end is left out"
    if urlsplit(agent.base_url).query:
        yield f"{path}.base_url: has a query, which goes behind every endpoint"
    key, kind = agent.api_key.reveal(), kinds.find(agent.platform)
    owner = _owner(key)
    is_theirs = not owner or (kind and owner == kind.title)
    takes_any = not kind or not kind.options.credentials
    # Proxies in front of a platform issue keys in OpenAI's format.
    may_be_a_proxys = owner == _OPENAI and kind and not kind.has_only_these_keys
    if not (is_theirs or takes_any or may_be_a_proxys):
        yield f"{path}.api_key: looks like a key of {owner}"
    if kind and not kind.options.credentials and _PLACEHOLDER.fullmatch(key):
        yield f"{path}.api_key: is a placeholder, which only a server without keys takes"
    for warning in agent.warnings():
        yield f"{path}.{warning}"


_OPENAI = "OpenAI or its like"


def _owner(key: str) -> str:
    """The platform whose keys begin like `key`; "" if unknown."""
    if key.startswith("sk-gw-"):
        return "this gateway"
    if key.startswith("sk-"):
        return _OPENAI
    for kind in kinds.built_in().values():
        if key.startswith(kind.key_prefixes):
            return kind.title
    return ""


def unmounted(config: Config, folder: Path) -> str:
    """A sentence if the start must not create a missing folder, else "". `folder` is `load.home`.

    If a disk is not mounted, the start would create an empty database with a new `admin`, and store
    uploads that the disk hides once it is mounted.
    """
    for name, place in _missing_places(config, folder):
        if needed := _needed(name, place):
            return (
                f"{name}: the folder {needed} is not there. Is a disk not mounted? Mount it, or"
                f" make the folder: mkdir -p {shlex.quote(needed)}"
            )
    return ""


def _missing_places(config: Config, folder: Path) -> Iterator[tuple[str, str]]:
    """(option, folder) of each missing folder outside `folder`. The start creates those inside."""
    places = {"storage.url": config.storage.folder}
    if config.database:
        places["record.spool"] = config.record.spool
    if config.sqlite_file:
        places["database"] = os.path.dirname(config.sqlite_file)
    for name, place in places.items():
        if place and not os.path.exists(place) and not _is_within(Path(place), folder):
            yield name, place


def _needed(name: str, place: str) -> str:
    """The folder that must exist before the start, or "" if it does: the start creates a folder for
    files inside an existing one, and none for a database."""
    needed = place if name == "database" else os.path.dirname(place.rstrip("/"))
    return "" if os.path.exists(needed) else needed


def _place_warnings(config: Config, folder: Path) -> Iterator[str]:
    for name, place in _missing_places(config, folder):
        then = "it is made at the start" if not _needed(name, place) else "the start needs it"
        yield f"{name}: the folder {place} is not there ({then}); is a disk not mounted?"
    if tls := config.server.tls:
        for name, file in (("cert", tls.cert), ("key", tls.key)):
            if not Path(file).is_file():
                yield f"server.tls.{name}: there is no file {file}"


def _is_within(path: Path, folder: Path) -> bool:
    return path.absolute().is_relative_to(folder.absolute())


def _has_users(file: str) -> bool:
    """Whether the SQLite file has accounts; opens it read-only and never creates it."""
    if not file or not os.path.isfile(file):
        return False
    try:
        connection = sqlite3.connect(f"{Path(file).absolute().as_uri()}?mode=ro", uri=True)
        try:
            return connection.execute("SELECT 1 FROM users LIMIT 1").fetchone() is not None
        finally:
            connection.close()
    except sqlite3.Error:
        return False
