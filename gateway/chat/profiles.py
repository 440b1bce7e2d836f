"""Asks a platform for its bot's profile, and remembers the answer for some minutes."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from weakref import WeakKeyDictionary

from gateway.chat.routing import Target
from gateway.chat.steps import resolve
from gateway.errors import GatewayError
from gateway.protocol.redaction import masked_in
from gateway.upstream.client import Upstream

log = logging.getLogger("gateway")

FRESH_S = 300.0
RETRY_S = 10.0  # after a failure
_FETCH_S = 10.0


@dataclass(frozen=True, slots=True)
class Known:
    """A bot's profile as JSON. `refreshed` is ISO 8601 UTC, of the platform's last answer;
    `problem` is why there is none since."""

    data: dict[str, Any]
    refreshed: str
    problem: GatewayError | None = None


@dataclass(slots=True)
class _Entry:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    known: Known | None = None
    problem: GatewayError | None = None
    until: float = float("-inf")  # when to ask again, by the cache's clock


class Profiles:
    """At most one look-up per agent in FRESH_S, or in RETRY_S after a failure, also for concurrent
    requests. A reload keeps what is known of unchanged agents."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.now = clock
        self._entries: WeakKeyDictionary[Target, _Entry] = WeakKeyDictionary()

    async def of(self, upstream: Upstream, target: Target) -> Known:
        """The agent's profile; the last known one if the platform fails now. Raises the platform's
        error if none is known."""
        entry = self._entries.setdefault(target, _Entry())
        async with entry.lock:
            if self.now() >= entry.until:
                await self._refresh(upstream, target, entry)
        if entry.known is None:
            assert entry.problem is not None  # `_refresh` sets one or the other
            raise entry.problem.replace()
        return entry.known

    async def _refresh(self, upstream: Upstream, target: Target, entry: _Entry) -> None:
        try:
            profile = await resolve(upstream, target, target.platform.profile(), fetch_s=_FETCH_S)
        except GatewayError as error:
            problem = target.redacted(error)
            if entry.problem is None:
                log.warning("no profile: %s", problem.message)
            entry.problem, entry.until = problem, self.now() + RETRY_S
            if entry.known is not None:
                entry.known = Known(entry.known.data, entry.known.refreshed, problem)
            return
        asked = datetime.now(UTC).isoformat(timespec="seconds")
        entry.known = Known(masked_in(profile.data(), target.secrets), asked)
        entry.problem, entry.until = None, self.now() + FRESH_S
