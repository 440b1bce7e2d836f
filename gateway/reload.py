"""Puts a changed config.yaml into effect: builds the new state completely, then swaps it in.

Requests in flight keep the state they began with. Settings that are bound at the start (sockets,
the database, Redis, storage) keep their values until a restart, and the log names them.
"""

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Set
from typing import Any

from gateway.accounts.credentials import KeyRing
from gateway.chat.health import HealthCache
from gateway.chat.profiles import Profiles
from gateway.chat.routing import Routing
from gateway.config.conflicts import check_together
from gateway.config.load import ConfigError
from gateway.config.models import Config
from gateway.config.origins import Origins
from gateway.http.context import State, StateHolder

# Settings that a running process cannot change. An empty tuple means the whole section.
_FIXED: dict[str, tuple[str, ...]] = {
    "server": (
        "host", "port", "reuse_port", "ops_host", "ops_port", "tls", "max_connections", "max_body",
        "max_bodies", "max_forms", "send_timeout",
    ),
    "auth": ("jwt_secret", "admin_password", "token_ttl"),
    "database": (), "redis": (), "storage": (), "fetch": (), "record": (), "traces": (),
}  # fmt: skip

_MOST_NAMED = 20  # in a log line

DemoUrls = Callable[[Config], Awaitable[Mapping[str, str]]]


def make_state(config: Config, demo_urls: Mapping[str, str], before: State | None = None) -> State:
    """The state for `config`. Unchanged agents continue from `before`."""
    return State(
        config=config,
        keyring=KeyRing(config),
        origins=Origins(config.server.cors_origins),
        routing=Routing(config, demo_urls, before=before.routing if before else None),
        health=HealthCache(),
        profiles=before.profiles if before else Profiles(),
        since=before.since if before else int(time.time()),
        generation=before.generation + 1 if before else 1,
    )


async def take_over(holder: StateHolder, config: Config, demo_urls: DemoUrls) -> list[str]:
    """Put `config` into effect. Returns the paths of changes that need a restart."""
    fixed = list(_changed(holder.now.config, config))
    config = _keep(holder.now.config, config, fixed)
    if problems := list(check_together(config)):  # values that fit the new address may not
        raise ConfigError(problems)  # fit the one that stays
    urls = await demo_urls(config)
    holder.now = make_state(config, urls, holder.now)
    return fixed


def differences(old: Config, new: Config) -> Iterator[str]:
    """The changes of a reload, as text for the log. It contains no values: they may be secrets."""
    for section in ("agents", "routes"):
        before, after = getattr(old, section), getattr(new, section)
        kept = before.keys() & after.keys()
        for what, names in (
            ("added", after.keys() - before.keys()),
            ("removed", before.keys() - after.keys()),
            ("changed", {name for name in kept if before[name] != after[name]}),
        ):
            if names:
                yield f"{section} {what}: {_listed(names)}"
    rest = [name for name in Config.model_fields if name not in ("agents", "routes")]
    if others := [name for name in rest if getattr(old, name) != getattr(new, name)]:
        yield f"sections changed: {', '.join(others)}"


def _listed(names: Set[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(sorted(names)[:_MOST_NAMED]) + more


def _changed(old: Config, new: Config) -> Iterator[str]:
    for section, members in _FIXED.items():
        before, after = getattr(old, section), getattr(new, section)
        if not members and before != after:
            yield section
        for member in members:
            if getattr(before, member) != getattr(after, member):
                yield f"{section}.{member}"


def _keep(old: Config, new: Config, paths: list[str]) -> Config:
    """`new`, with the old values at `paths`."""
    for path in paths:
        section, _, member = path.partition(".")
        value: Any = getattr(old, section)
        if member:
            value = getattr(new, section).model_copy(update={member: getattr(value, member)})
        new = new.model_copy(update={section: value})
    return new
