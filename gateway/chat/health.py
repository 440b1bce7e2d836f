"""Checks whether a platform's bot is available, and caches the result for some seconds."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from gateway.chat.routing import Target
from gateway.chat.steps import MAX_STEPS, keeps_asking, resolve
from gateway.errors import GatewayError
from gateway.platforms.base import Doubt, Step
from gateway.protocol.exchange import UpstreamRequest
from gateway.upstream.client import Upstream

log = logging.getLogger("gateway")

CACHE_S = 10.0
_FETCH_S = 10.0


@dataclass(frozen=True, slots=True)
class Health:
    """The result of a check. `detail` describes the bot or the problem; `checked` is ISO 8601 UTC.

    `doubtful` means that the platform answers, but `detail` names something to verify.
    """

    healthy: bool
    detail: str
    checked: str
    doubtful: bool = False


class HealthCache:
    """At most one check per agent in `CACHE_S`, also for concurrent requests."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[str, tuple[float, Health]] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def check(self, upstream: Upstream, target: Target) -> Health:
        """The agent's health. An unhealthy agent is a result, not an exception."""
        async with self._locks.setdefault(target.name, asyncio.Lock()):
            checked_at, health = self._known.get(target.name, (0.0, None))
            if health is None or self._clock() - checked_at > CACHE_S:
                was_healthy = health is None or health.healthy
                health = await ask(upstream, target)
                if was_healthy and not health.healthy:
                    log.warning("unhealthy: %s", health.detail)
                self._known[target.name] = (self._clock(), health)
            return health


async def _verdict(upstream: Upstream, target: Target) -> str:
    step: Step | str = target.platform.probe()
    for _ in range(MAX_STEPS):
        asked: UpstreamRequest | str = await resolve(upstream, target, step, fetch_s=_FETCH_S)
        if isinstance(asked, str):
            return asked
        step = target.platform.describe(await upstream.fetch(asked, target.way, _FETCH_S))
    raise keeps_asking()


async def ask(upstream: Upstream, target: Target) -> Health:
    """Check the platform without the cache."""
    try:
        detail, healthy = await _verdict(upstream, target), True
    except GatewayError as error:
        detail, healthy = target.redacted(error).message, False
    checked = datetime.now(UTC).isoformat(timespec="seconds")
    return Health(healthy, detail, checked, isinstance(detail, Doubt))
