"""Conflicts between options that are each valid alone: names, keys, files and access."""

from collections.abc import Iterator, Mapping
from typing import Any

from gateway.config import kinds
from gateway.config.access import check_access
from gateway.config.models import DEMO, Agent, Config
from gateway.config.wording import nearest


def check_together(config: Config) -> Iterator[str]:
    """Conflicts between sections that are each valid alone."""
    yield from check_access(config)
    yield from _check_files(config)
    if not config.demo:
        for name, agent in config.agents.items():
            if agent.is_demo:
                yield (
                    f"agents.{name}.base_url: is demo:, which `demo: false` refuses; name the"
                    " platform's address"
                )


def _check_files(config: Config) -> Iterator[str]:
    s3 = config.storage.s3
    if bool(s3.access_key) != bool(s3.secret_key):
        yield "storage.s3: give access_key and secret_key together (S3_ACCESS_KEY, S3_SECRET_KEY)"
    if (s3.endpoint or s3.access_key) and not (config.storage.url or s3.bucket):
        yield "storage.s3.bucket: is missing; name it (S3_BUCKET), or set storage.url"
    for name, agent in config.agents.items():
        if agent.upload == "platform" and not agent.keeps_files:
            yield f"agents.{name}.upload: this platform keeps no files; use gateway"


def check_names(tree: dict[str, Any]) -> Iterator[str]:
    """Names that clash or do not exist, from the raw tree, so that they are reported with the
    rest."""
    agents, routes = tree.get("agents"), tree.get("routes")
    agents = agents if isinstance(agents, dict) else {}
    routes = routes if isinstance(routes, dict) else {}
    taken: dict[str, str] = {}
    for section, names in (("agents", agents), ("routes", routes)):
        for name in names:
            path = f"{section}.{name}"
            if (first := taken.setdefault(name.lower(), path)) != path:
                yield f"{path}: the name is already used by {first} (case does not count)"
    for route, targets in routes.items():
        for i, target in enumerate(targets if isinstance(targets, list) else []):
            weighted = isinstance(target, dict)
            name = target.get("agent") if weighted else target
            path = f"routes.{route}[{i}]" + (".agent" if weighted else "")
            if isinstance(name, str) and name not in agents:
                yield f"{path}: there is no agent {name!r}{nearest(name, agents)}"
    background = tree.get("background")
    model = background.get("model") if isinstance(background, dict) else None
    if isinstance(model, str) and model and not _is_known(model, taken):
        yield f"background.model: there is no agent or route {model!r}{nearest(model, taken)}"
    for name, agent in agents.items():
        if isinstance(agent, dict) and (title := _lacks_simulator(agent)):
            yield f"agents.{name}.base_url: is missing; the gateway has no simulator of {title}"
        if isinstance(agent, dict) and _lacks_key(agent):
            yield f"agents.{name}.api_key: is empty; the platform at base_url will ask for one"
    yield from _check_keys(tree, taken)


def _is_known(model: str, known: Mapping[str, str]) -> bool:
    """Whether a call may name it: an agent or a route, or `agent/model`."""
    wanted = model.strip().lower()
    return wanted in known or wanted.partition("/")[0] in known


def _check_keys(tree: dict[str, Any], known: Mapping[str, str]) -> Iterator[str]:
    """Check the names of static keys, and the agents they are limited to; `known` has the names of
    agents and routes in lower case."""
    keys = (tree.get("auth") or {}).get("keys") if isinstance(tree.get("auth"), dict) else None
    seen: set[str] = set()
    for i, key in enumerate(keys if isinstance(keys, list) else []):
        name = key.get("name") if isinstance(key, dict) else None
        if isinstance(name, str) and name in seen:
            yield f"auth.keys[{i}].name: the name {name!r} is already used"
        seen.add(str(name))
        allowed = key.get("agents") if isinstance(key, dict) else None
        for j, agent in enumerate(allowed if isinstance(allowed, list) else []):
            if isinstance(agent, str) and agent.lower() not in known:
                near = nearest(agent, known)
                yield f"auth.keys[{i}].agents[{j}]: there is no agent or route {agent!r}{near}"


def _lacks_simulator(agent: dict[str, Any]) -> str:
    """The title of the agent's kind if it needs a simulator but the kind has none, else ""."""
    kind = kinds.find(str(agent.get("platform")))
    is_demo = agent.get("base_url", DEMO) == DEMO
    return kind.title if kind and is_demo and not kind.has_demo else ""


def _lacks_key(agent: dict[str, Any]) -> bool:
    """Whether a required key is missing. Self-hosted model servers often have no key; the platforms
    always require one."""
    kind = kinds.find(str(agent.get("platform")))
    wanted = kind.options.credentials if kind else Agent.credentials
    has_one = not wanted or any(agent.get(name) for name in wanted)
    return agent.get("base_url", DEMO) != DEMO and not has_one
