"""The buckets of `limits`: in this process, or in a Redis that all replicas share.

If Redis is slow or unavailable, one request loses 50 ms; after that this process's own buckets
decide until Redis answers again.
"""

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from math import ceil
from typing import Any, TypeVar

from gateway.limits.redis import RedisBuckets
from gateway.limits.rules import LEASE_S, Decision, Take

log = logging.getLogger("gateway")

T = TypeVar("T")

DEADLINE_S = 0.05  # for one take; rule 6
MAX_BUCKETS = 100_000
_RETRY_S = 1.0  # between two checks whether Redis is back
_RENEW_S = LEASE_S / 3
_PATIENCE_S = 1.0  # for calls that no request waits for
_MAX_BACKGROUND = 10_000
_LATE = 1.3  # times the deadline; past that the event loop itself was too slow
_ROUNDS = 10  # event-loop iterations to let a received reply reach its awaiter
_EPSILON = 1e-6  # fractions that should add up to one may come to 0.999999
_PROBE = Take("rate", "{probe}:rate", 1, 1000.0, 1)


class LocalBuckets:
    """Buckets of this process. Beyond `MAX_BUCKETS` the least recently used are dropped."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, most: int = MAX_BUCKETS
    ) -> None:
        self._clock = clock
        self._most = most
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()  # (level, at ms)
        self._holders: dict[str, set[str]] = {}

    def take(self, asked: list[Take]) -> list[Decision]:
        """Take from all buckets or from none; `take_token.lua` does the same in Redis."""
        now = self._clock() * 1000
        if len(asked) == 1:  # by far the most common case: only a caller's rate
            decision, level = self._look(asked[0], now)
            if decision.allowed:
                self._keep(asked[0], level, now)
            return [decision]
        looks = [self._look(take, now) for take in asked]
        decisions = [decision for decision, _ in looks]
        if all([decision.allowed for decision in decisions]):
            for take, (_, level) in zip(asked, looks, strict=True):
                self._keep(take, level, now)
        return decisions

    def _keep(self, take: Take, level: float, now: float) -> None:
        """Apply a take that `_look` has allowed."""
        if take.kind == "rate":
            self._put(take, level, now)
        elif take.kind == "slots":
            self._holders.setdefault(take.key, set()).add(str(take.c))

    def _look(self, take: Take, now: float) -> tuple[Decision, float]:
        """A bucket's answer, and the level that the take would leave."""
        capacity = int(take.a)
        if take.kind == "slots":
            held = len(self._holders.get(take.key, ()))
            return Decision(held < capacity, max(0, capacity - held - 1), 1000, 0), 0.0
        if take.quota is not None:
            used = take.quota.used
            return Decision(used < capacity, max(0, capacity - used - 1), 0, 0), 0.0
        level, cost = self._level(take, now), float(take.c)
        needed = cost or 1.0
        allowed, wait_ms = level + _EPSILON >= needed, 0
        if allowed:
            level -= cost
        else:
            wait_ms = ceil((needed - level) / take.b)
        remaining = int(level + _EPSILON) if level > 0 else 0
        return Decision(allowed, remaining, wait_ms, ceil((take.a - level) / take.b)), level

    def _level(self, take: Take, now: float) -> float:
        kept = self._levels.get(take.key)
        if kept is None:
            return take.a
        level = kept[0] + (now - kept[1]) * take.b
        return level if level < take.a else take.a

    def _put(self, take: Take, level: float, now: float) -> None:
        self._levels[take.key] = (level, now)
        self._levels.move_to_end(take.key)
        if len(self._levels) > self._most:
            self._levels.popitem(last=False)

    def spend(self, take: Take, number: int) -> None:
        """Take `number` tokens unconditionally; the level may fall below zero."""
        now = self._clock() * 1000
        self._put(take, self._level(take, now) - number, now)

    def release(self, take: Take) -> None:
        holders = self._holders.get(take.key, set())
        holders.discard(str(take.c))
        if not holders:
            self._holders.pop(take.key, None)

    def follow(self, asked: list[Take], decisions: list[Decision]) -> None:
        """Copy Redis's levels, so that no caller gets a fresh bucket when Redis becomes
        unavailable."""
        now = self._clock() * 1000
        taken = all(decision.allowed for decision in decisions)
        for take, decision in zip(asked, decisions, strict=True):
            if take.kind in ("rate", "tokens"):
                self._put(take, float(decision.remaining), now)
            elif take.kind == "slots" and taken:
                self._holders.setdefault(take.key, set()).add(str(take.c))


class Buckets:
    """The buckets in use: Redis's while it answers, else the process's own."""

    def __init__(self, redis: RedisBuckets | None = None) -> None:
        self._local = LocalBuckets()
        self._redis = redis
        self._background: set[asyncio.Task[Any]] = set()
        self._held: dict[str, Take] = {}  # slots of calls in flight, by holder
        self._owed: dict[str, Take] = {}  # slots that Redis may still count for ended calls
        self.unavailable = False  # Redis is configured but does not answer
        self.failures = 0

    @property
    def is_configured(self) -> bool:
        return self._redis is not None

    @property
    def is_shared(self) -> bool:
        return self._redis is not None and not self.unavailable

    async def open(self) -> None:
        """Start with Redis if it answers, else keep trying."""
        if self._redis is None:
            return
        try:
            await self._within(_PATIENCE_S, self._redis.ping())
        except Exception as error:
            self._mark_unavailable(error)
        self._spawn(self._renew_slots())

    async def close(self) -> None:
        """Stop. Slots that calls released at the end are also released in Redis."""
        if self._redis is not None and self._owed and not self.unavailable:
            with contextlib.suppress(Exception):
                await self._within(_PATIENCE_S, self._give_back_owed())
        for task in self._background:
            task.cancel()
        if self._background:
            await asyncio.wait(self._background)
        if self._redis is not None:
            await self._redis.close()

    async def take(self, asked: list[Take]) -> list[Decision]:
        """Each bucket's answer; nothing is taken unless all of them allow it."""
        redis = self._redis
        if redis is None or self.unavailable or not asked:
            decisions = self._local.take(asked)
        else:
            try:
                decisions = await self._within(
                    DEADLINE_S, redis.take(asked), lambda late: self._too_late(asked, late)
                )
            except Exception as error:
                self._mark_unavailable(error)
                decisions = self._local.take(asked)
            else:
                self._local.follow(asked, decisions)
        if all([decision.allowed for decision in decisions]):
            for take in asked:
                if take.quota is not None:
                    take.quota.pending += 1
                elif take.kind == "slots" and redis is not None:
                    self._held[str(take.c)] = take
                    self._owed.pop(str(take.c), None)
        return decisions

    def release(self, asked: Sequence[Take]) -> None:
        """Release the slots, in the background."""
        for take in asked:
            if take.kind == "slots":
                self._local.release(take)
                if self._held.pop(str(take.c), None) is not None:
                    self._owe(take)

    def uncount(self, asked: Sequence[Take]) -> None:
        """Return one call to each quota, in the background."""
        for take in asked:
            if take.quota is not None:
                take.quota.pending = max(0, take.quota.pending - 1)
                if self._redis is not None and not self.unavailable:
                    self._spawn(self._without_errors(self._redis.uncount(take)))

    def spend(self, asked: Sequence[Take], tokens: int) -> None:
        """Take an answer's usage from the token buckets, in the background."""
        for take in asked:
            if take.kind == "tokens" and tokens:
                self._local.spend(take, tokens)
                if self._redis is not None and not self.unavailable:
                    self._spawn(self._without_errors(self._redis.spend(take, tokens)))

    # Takes whose request has gone on or ended, and slots.

    def _too_late(self, asked: list[Take], decisions: list[Decision] | None) -> None:
        """Undo a take that ended after its request had left or gone on without it.

        `decisions` is None if it is unknown what Redis did.
        """
        for take in asked:
            if take.kind == "slots" and str(take.c) not in self._held:
                self._owe(take)
        if (
            decisions
            and all([decision.allowed for decision in decisions])
            and self._redis is not None
        ):
            for take in asked:
                if take.kind == "quota":
                    self._spawn(self._without_errors(self._redis.uncount(take)))

    def _owe(self, take: Take) -> None:
        if len(self._owed) < _MAX_BACKGROUND:  # beyond that their leases end them
            self._owed[str(take.c)] = take
        if not self.unavailable and len(self._owed) == 1:
            self._spawn(self._without_errors(self._give_back_owed()))

    async def _give_back_owed(self) -> None:
        """Release owed slots until none is left; a slot that could not be released stays owed."""
        assert self._redis is not None
        while self._owed:
            slots = list(self._owed.values())
            await self._redis.release(slots)
            for take in slots:
                self._owed.pop(str(take.c), None)

    async def _renew_slots(self) -> None:
        """Renew the leases of the slots held here, and release what is owed."""
        assert self._redis is not None
        renewed = 0.0
        while True:
            await asyncio.sleep(_RETRY_S)
            if self.unavailable:
                continue
            if self._owed:
                await self._without_errors(self._give_back_owed())
            if self._held and time.monotonic() - renewed > _RENEW_S:
                await self._without_errors(self._redis.hold(list(self._held.values())))
                renewed = time.monotonic()

    # Failure and recovery of Redis.

    def _mark_unavailable(self, error: Exception) -> None:
        self.failures += 1
        if not self.unavailable:
            self.unavailable = True
            why = "too slow" if isinstance(error, TimeoutError) else type(error).__name__
            log.warning("Redis: %s; each process limits by itself until it is back", why)
            self._spawn(self._recover())

    async def _recover(self) -> None:
        """Wait until Redis runs the script within the deadline; answering a ping is not enough."""
        assert self._redis is not None
        while True:
            await asyncio.sleep(_RETRY_S)
            with contextlib.suppress(Exception):
                await self._within(_PATIENCE_S, self._redis.ping())  # this may have to connect
                await self._within(DEADLINE_S, self._redis.take([_PROBE]))
                if self._held:  # Redis may have lost them, or never had them
                    await self._within(_PATIENCE_S, self._redis.hold(list(self._held.values())))
                self.unavailable = False
                log.info("Redis answers again; limits are shared")
                return

    async def _without_errors(self, call: Coroutine[Any, Any, None]) -> None:
        try:
            await self._within(_PATIENCE_S, call)
        except Exception as error:
            self._mark_unavailable(error)

    async def _within(
        self,
        seconds: float,
        call: Coroutine[Any, Any, T],
        too_late: Callable[[T | None], None] = lambda late: None,
    ) -> T:
        """The result of `call`, or TimeoutError after `seconds` in any case: a redis-py that is
        connecting may swallow a cancellation and go on for seconds. So the call runs on, and if no
        request waits for it any longer, `too_late` receives its result."""
        task = asyncio.ensure_future(call)
        self._background.add(task)
        is_waited_for = True

        def ended(task: asyncio.Task[T]) -> None:
            self._background.discard(task)
            failed = task.cancelled() or task.exception() is not None
            if not is_waited_for or failed:
                too_late(None if failed else task.result())

        task.add_done_callback(ended)
        try:
            began = time.monotonic()
            await asyncio.wait({task}, timeout=seconds)
            if not task.done() and time.monotonic() - began > seconds * _LATE:
                # The event loop was busy for longer than Redis's deadline: the answer may have
                # arrived without being read.
                await asyncio.wait({task}, timeout=seconds)
            for _ in range(_ROUNDS):  # or the loop was busy throughout, in many small steps
                if task.done():
                    break
                await asyncio.sleep(0)
        except BaseException:
            is_waited_for = False
            raise
        if not task.done():
            is_waited_for = False
            raise TimeoutError
        return task.result()

    def _spawn(self, call: Coroutine[Any, Any, None]) -> None:
        if len(self._background) >= _MAX_BACKGROUND:
            call.close()
            return
        task = asyncio.ensure_future(call)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
