"""Asks a platform for its bot's profile, remembers the answer for some minutes, and checks the
variables of questions against it."""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from weakref import WeakKeyDictionary

from gateway.chat.routing import Target
from gateway.chat.steps import resolve
from gateway.errors import GatewayError, InvalidVariable
from gateway.protocol.inputs import check_variables
from gateway.protocol.messages import ChatRequest
from gateway.protocol.redaction import masked_in
from gateway.upstream.client import Upstream

log = logging.getLogger("gateway")

FRESH_S = 300.0
RETRY_S = 10.0  # after a failure
RECENT_S = 10.0  # how old a profile may be that a question is refused for
PATIENCE_S = 2.0  # how long questions wait for one look-up
_FETCH_S = 10.0
_OURS = frozenset(("uid",))  # variables that the gateway adds


@dataclass(frozen=True, slots=True)
class Known:
    """A bot's profile as JSON. `refreshed` is ISO 8601 UTC, of the platform's last answer, and
    `at` the same by the cache's clock; `problem` is why there is none since."""

    data: dict[str, Any]
    refreshed: str
    at: float
    problem: GatewayError | None = None


@dataclass(slots=True)
class _Entry:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    known: Known | None = None
    problem: GatewayError | None = None
    until: float = float("-inf")  # when to ask again, by the cache's clock
    learning: asyncio.Task[None] | None = None  # a look-up that questions have started
    patience: float = 0.0  # loop time until which they wait for it


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

    def doubts(self, target: Target, chat: ChatRequest) -> bool:
        """Whether `require_fit` has to look at the question's variables: they do not fit what is
        known of the agent's form, or nothing is known yet."""
        entry = self._entries.get(target)
        if entry is None or entry.known is None:
            return bool(chat.variables and chat.variables.keys() - _OURS)
        return _misfit(entry.known, target, chat) is not None

    async def require_fit(self, upstream: Upstream, target: Target, chat: ChatRequest) -> None:
        """Raises InvalidVariable if the question's variables do not fit the agent's form as the
        platform tells it now. If it tells none in time, the platform judges them itself."""
        known = await self._recent(upstream, target)
        if known is not None and (problem := _misfit(known, target, chat)):
            raise problem

    async def _recent(self, upstream: Upstream, target: Target) -> Known | None:
        """The agent's profile if it is recent; else what one look-up for all questions brings. None
        if that takes too long, or if the last look-up failed: then nothing waits for the next."""
        entry = self._entries.setdefault(target, _Entry())
        if known := self._known_recently(entry):
            return known
        now = asyncio.get_running_loop().time()
        if entry.learning is None or entry.learning.done():
            if entry.problem is None:
                entry.until = float("-inf")
            elif self.now() < entry.until + FRESH_S - RETRY_S:
                return None  # many keys may ask a bot, but not look it up
            entry.learning = upstream.spawn(self._learn(upstream, target))
            entry.patience = now + PATIENCE_S
        if entry.learning is not None and entry.problem is None and now < entry.patience:
            await asyncio.wait({entry.learning}, timeout=entry.patience - now)
        return self._known_recently(entry)

    def _known_recently(self, entry: _Entry) -> Known | None:
        known = entry.known
        is_recent = known is not None and self.now() - known.at <= RECENT_S
        return known if is_recent else None

    async def _learn(self, upstream: Upstream, target: Target) -> None:
        with suppress(GatewayError):
            await self.of(upstream, target)

    async def _refresh(self, upstream: Upstream, target: Target, entry: _Entry) -> None:
        try:
            profile = await resolve(upstream, target, target.platform.profile(), fetch_s=_FETCH_S)
        except GatewayError as error:
            problem = target.redacted(error)
            if entry.problem is None:
                log.warning("no profile: %s", problem.message)
            entry.problem, entry.until = problem, self.now() + RETRY_S
            if entry.known is not None:
                entry.known = replace(entry.known, problem=problem)
            return
        asked = datetime.now(UTC).isoformat(timespec="seconds")
        data = masked_in(profile.data(), target.secrets) | target.agent.profile.shown
        entry.known = Known(data, asked, self.now())
        entry.problem, entry.until = None, self.now() + FRESH_S


def _misfit(known: Known, target: Target, chat: ChatRequest) -> InvalidVariable | None:
    """The first problem of the question's variables.

    A required one is missing only in the first question of a conversation, because platforms keep
    them. Unless the platform itself insists, a caller that sends no variables does without.
    """
    inputs, variables = known.data["inputs"], chat.variables
    if not inputs["properties"]:
        return None
    insists = target.platform.checks_inputs
    is_first = not chat.conversation_id and chat.resume is None  # a workflow's run may have none
    needs_all = is_first and (insists or bool(variables.keys() - _OURS))
    return check_variables(inputs, variables, needs_all=needs_all, is_strict=insists)
