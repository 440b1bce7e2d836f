"""The log lines of a start: warnings, the address, the agents, and what to do next."""

import logging
import os
import shlex
import socket
from collections.abc import Iterator
from pathlib import Path

import gateway
from gateway.config import kinds
from gateway.config.access import access_note, lock_out
from gateway.config.check import unmounted, warnings
from gateway.config.invocation import command
from gateway.config.models import Config
from gateway.config.outgoing import way_of
from gateway.errors import StartError
from gateway.shipped import shipped

log = logging.getLogger("gateway")

_ANY = ("0.0.0.0", "::")  # noqa: S104 - not bound here


def look_around(config: Config, folder: Path) -> None:
    """Log warnings before the start creates anything: afterwards a missing folder would exist.

    Raises StartError if a folder is missing that the start must not create.
    """
    for warning in warnings(config, folder):
        log.warning("%s", warning)
    if missing := unmounted(config, folder):
        raise StartError(missing)


def greet(config: Config, path: Path, port: int, *, for_people: bool) -> None:
    """Log the start. `path` is config.yaml; `for_people` adds what to do next."""
    url = _url(config, port, _host(config))
    log.info("AI Gateway %s listens on %s", gateway.__version__, url)
    for name, agent in config.agents.items():
        way = way_of(agent, agent.base_url, config.outgoing)
        where = "demo, answers by itself" if agent.is_demo else f"{agent.base_url}, {way}"
        log.info("  agent %s: %s (%s)", name, agent.platform, where)
    if not path.exists():
        log.info(
            "  there is no %s, so the built-in routing table is used; to write the file: %s init",
            path.absolute(),
            command(),
        )
    if warning := lock_out(config):
        log.warning("  %s", warning)
    else:
        log.info("  %s", access_note(config))
    if config.database and not config.anonymous:
        log.info(
            "  make a key with: cd %s && %s keys create web",
            shlex.quote(os.getcwd()),
            command(path),
        )
    if for_people:
        for line in _next_steps(config, path, port):
            log.info("  %s", line)


def _next_steps(config: Config, path: Path, port: int) -> Iterator[str]:
    url = _url(config, port, "localhost" if config.server.host in _ANY else _host(config))
    if config.server.host in _ANY and (address := _lan_address()):
        yield f"for others in your network: {_url(config, port, address)}"
    key = "" if config.anonymous else " -H 'Authorization: Bearer <key>'"
    body = '{"query": "hi", "user": "me", "stream": false}'
    yield f"try: curl {url}/api/v1/chat -H 'Agent: {next(iter(config.agents))}'{key} -d '{body}'"
    if config.demos:
        yield _make_real(config, path)
    docs = shipped("docs")
    if docs.is_dir():  # in a checkout
        yield f"docs: {os.path.relpath(docs)}/configuration.md, api.md, operations.md"


def _make_real(config: Config, path: Path) -> str:
    name = config.demos[0]
    kind = kinds.find(config.agents[name].platform)
    variables = kind.environment if kind else ()
    try:
        file = path if path.exists() else shipped("config.yaml")
        is_named = bool(variables) and variables[0] in file.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        is_named = False
    where = path.parent / ".env"
    listed = " and ".join(filter(None, (", ".join(variables[:-1]), *variables[-1:])))
    how = f"put {listed} into {where}" if is_named else (
        f"set its base_url and api_key in {path}"
    )  # fmt: skip
    return f"{name} is a demo; to make it your bot {how} (no restart needed)"


def _host(config: Config) -> str:
    host = config.server.host
    return "localhost" if host in ("127.0.0.1", "::1") else host


def _url(config: Config, port: int, host: str) -> str:
    scheme = "https" if config.server.tls else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def _lan_address() -> str:
    """The address that other machines see, or "". Nothing is sent: UDP only chooses a route."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
    except OSError:
        return ""
