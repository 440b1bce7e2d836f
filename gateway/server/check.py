"""`run.py check --live`: ask every platform for its bot, and check that every store is
reachable."""

import asyncio
import socket
from collections.abc import Awaitable
from typing import Literal
from urllib.parse import urlsplit

from gateway.chat.health import ask
from gateway.chat.routing import Routing
from gateway.columns import aligned
from gateway.config.models import DEMO, Config
from gateway.database import connect
from gateway.errors import (
    DatabaseUnavailable,
    GatewayError,
    StartError,
    StorageUnavailable,
    describe_fault,
)
from gateway.files.s3 import S3Files
from gateway.limits.redis import RedisBuckets
from gateway.upstream.client import open_upstream

_PATIENCE_S = 15.0
_WIDEST = 60  # columns of an address

# Where each store is configured: in config.yaml, and as variables.
_SETTINGS = {
    "database": "database (DATABASE_URL)",
    "redis": "redis (REDIS_URL)",
    "storage": "storage.url and storage.s3 (S3_ENDPOINT, S3_BUCKET …)",
}

State = Literal["ok", "warning", "FAILED", "demo"]
Row = tuple[str, str, str, State, str]  # name, kind, address, state, message


async def check_live(config: Config) -> list[Row]:
    """One row for each agent, and one for each configured store.

    Only `FAILED` is sure to fail; `warning` names what to check, and `demo` was not asked.
    """
    rows = [_agents(config), _stores(config)]
    return [row for part in await asyncio.gather(*rows) for row in part]


async def _agents(config: Config) -> list[Row]:
    """Ask all agents concurrently. Demos have no upstream to ask: the gateway serves them while it
    runs."""
    urls = {name: DEMO for name, agent in config.agents.items() if agent.is_demo}
    routing = Routing(config, urls)
    async with open_upstream() as upstream:
        asked = [
            ask(upstream, target) for target in routing.targets.values() if not target.agent.is_demo
        ]
        results = iter(await asyncio.gather(*asked))
    rows: list[Row] = []
    for name, target in routing.targets.items():
        kind = target.platform.kind
        if target.agent.is_demo:
            rows.append((name, kind, DEMO, "demo", "a simulator inside the gateway"))
            continue
        health = next(results)
        message = health.detail.removeprefix(f"Agent {name!r}: ")
        state: State = "FAILED" if not health.healthy else "warning" if health.doubtful else "ok"
        rows.append((name, kind, target.url, state, f"{message} [{target.way}]"))
    return rows


async def _stores(config: Config) -> list[Row]:
    """Check stores on other machines; a local file or folder is checked at the start."""
    rows = []
    if config.uses_postgresql:
        url = config.database.reveal()
        rows.append(await _row("database", "postgresql", _host(url), _database(config)))
    if config.redis.url:
        url = config.redis.url.reveal()
        rows.append(await _row("redis", config.redis.mode, _host(url), _redis(config)))
    if not config.storage.folder:
        where = config.storage.s3.endpoint or "AWS"
        rows.append(await _row("storage", "bucket", where, _bucket(config)))
    return rows


def _host(url: str) -> str:
    """The host, without user and password."""
    return urlsplit(url).netloc.rpartition("@")[2]


async def _row(name: str, kind: str, where: str, asking: Awaitable[str]) -> Row:
    try:
        async with asyncio.timeout(_PATIENCE_S):
            return name, kind, where, "ok", await asking
    except TimeoutError:
        message = "no answer in time"
    except DatabaseUnavailable as error:
        message = _why(error.__cause__ or error)
    except StorageUnavailable as error:
        cause = f" ({_why(error.__cause__)})" if error.__cause__ else ""
        message = f"{error.message.rstrip('.')}{cause}"
    except GatewayError as error:
        message = error.message
    except (StartError, OSError) as error:
        message = _why(error)
    except Exception as error:  # a driver's own; its message may hold the URL with its password
        message = f"{type(error).__name__}: it is not there, or refuses the login"
    return name, kind, where, "FAILED", f"{message.rstrip('.')}; check {_SETTINGS[name]}"


def _why(fault: BaseException) -> str:
    """Drivers wrap the system's error and report its number where operators need text."""
    seen = fault
    while seen.__cause__ is not None and not isinstance(seen, OSError):
        seen = seen.__cause__
    if isinstance(seen, ConnectionRefusedError):
        return "it refuses connections"
    if isinstance(seen, socket.gaierror):
        return "its host name cannot be resolved"
    return describe_fault(fault)


async def _database(config: Config) -> str:
    database = connect(config.database.reveal())
    try:
        async with database.transaction():
            return "answers"
    finally:
        await database.close()


async def _redis(config: Config) -> str:
    redis = RedisBuckets(config.redis)
    try:
        await redis.ping()
        return "answers"
    finally:
        await redis.close()


async def _bucket(config: Config) -> str:
    bucket, prefix = config.storage.bucket
    store = S3Files(config.storage.s3, bucket, prefix, "", 0.0)
    try:
        await store.open()
        await store.check()
        return f"bucket {bucket!r} is there"
    finally:
        await store.close()


def table(rows: list[Row]) -> str:
    """Rows as indented lines of columns."""
    cells = [
        (name, kind, address[:_WIDEST], state, text) for name, kind, address, state, text in rows
    ]
    return "\n".join(f"  {line}" for line in aligned(cells))
