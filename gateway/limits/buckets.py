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

from gateway.limits.charges import (
    LEASE_S,
    Charge,
    QuotaCharge,
    RateCharge,
    SlotCharge,
    TokenCharge,
)
from gateway.limits.patience import is_done_within
from gateway.limits.redis import RedisBuckets
from gateway.limits.rules import Decision

log = logging.getLogger("gateway")

T = TypeVar("T")

DEADLINE_S = 0.05  # for the charges of one request; rule 6
MAX_BUCKETS = 100_000
_RETRY_S = 1.0  # between two checks whether Redis is back
_RENEW_S = LEASE_S / 3
_PATIENCE_S = 1.0  # for calls that no request waits for
_MAX_BACKGROUND = 10_000
_EPSILON = 1e-6  # fractions that should add up to one may come to 0.999999
_PROBE = RateCharge("{probe}:rate", 1, 1000.0)


class LocalBuckets:
    """Buckets of this process. Beyond `MAX_BUCKETS` the least recently used are dropped."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, most: int = MAX_BUCKETS
    ) -> None:
        self._clock = clock
        self._most = most
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()  # (level, at ms)
        self._holders: dict[str, set[str]] = {}

    def charge(self, charges: list[Charge]) -> list[Decision]:
        """Charge all buckets or none; `take_token.lua` does the same in Redis."""
        now = self._clock() * 1000
        if len(charges) == 1:  # by far the most common case: only a caller's rate
            decision, level = self._look(charges[0], now)
            if decision.allowed:
                self._apply(charges[0], level, now)
            return [decision]
        looks = [self._look(charge, now) for charge in charges]
        decisions = [decision for decision, _ in looks]
        if all([decision.allowed for decision in decisions]):
            for charge, (_, level) in zip(charges, looks, strict=True):
                self._apply(charge, level, now)
        return decisions

    def _apply(self, charge: Charge, level: float, now: float) -> None:
        """Apply a charge that `_look` has allowed."""
        if isinstance(charge, RateCharge):
            self._put(charge.key, level, now)
        elif isinstance(charge, SlotCharge):
            self._holders.setdefault(charge.key, set()).add(charge.holder)

    def _look(self, charge: Charge, now: float) -> tuple[Decision, float]:
        """A bucket's answer, and the level that the charge would leave."""
        if isinstance(charge, RateCharge):
            cost = charge.cost
        elif isinstance(charge, TokenCharge):
            cost = 0
        else:
            return self._count(charge), 0.0
        level = self._level(charge, now)
        needed = cost or 1
        allowed, wait_ms = level + _EPSILON >= needed, 0
        if allowed:
            level -= cost
        else:
            wait_ms = ceil((needed - level) / charge.per_ms)
        remaining = int(level + _EPSILON) if level > 0 else 0
        full_ms = ceil((charge.capacity - level) / charge.per_ms)
        return Decision(allowed, remaining, wait_ms, full_ms), level

    def _count(self, charge: SlotCharge | QuotaCharge) -> Decision:
        if isinstance(charge, SlotCharge):
            used, most, wait_ms = len(self._holders.get(charge.key, ())), charge.most, 1000
        else:
            used, most, wait_ms = charge.quota.used, charge.quota.limit, 0
        return Decision(used < most, max(0, most - used - 1), wait_ms, 0)

    def _level(self, charge: RateCharge | TokenCharge, now: float) -> float:
        kept = self._levels.get(charge.key)
        if kept is None:
            return charge.capacity
        level = kept[0] + (now - kept[1]) * charge.per_ms
        return level if level < charge.capacity else charge.capacity

    def _put(self, key: str, level: float, now: float) -> None:
        self._levels[key] = (level, now)
        self._levels.move_to_end(key)
        if len(self._levels) > self._most:
            self._levels.popitem(last=False)

    def spend(self, charge: TokenCharge, tokens: int) -> None:
        """Take `tokens` unconditionally; the level may fall below zero."""
        now = self._clock() * 1000
        self._put(charge.key, self._level(charge, now) - tokens, now)

    def release(self, slot: SlotCharge) -> None:
        holders = self._holders.get(slot.key, set())
        holders.discard(slot.holder)
        if not holders:
            self._holders.pop(slot.key, None)

    def follow(self, charges: list[Charge], decisions: list[Decision]) -> None:
        """Copy Redis's levels, so that no caller gets a fresh bucket when Redis becomes
        unavailable."""
        now = self._clock() * 1000
        charged = all(decision.allowed for decision in decisions)
        for charge, decision in zip(charges, decisions, strict=True):
            if isinstance(charge, RateCharge | TokenCharge):
                self._put(charge.key, float(decision.remaining), now)
            elif isinstance(charge, SlotCharge) and charged:
                self._holders.setdefault(charge.key, set()).add(charge.holder)


class Buckets:
    """The buckets in use: Redis's while it answers, else the process's own."""

    def __init__(self, redis: RedisBuckets | None = None) -> None:
        self._local = LocalBuckets()
        self.redis = redis
        self._background: set[asyncio.Task[Any]] = set()
        self._held: dict[str, SlotCharge] = {}  # slots of calls in flight, by holder
        self._owed: dict[str, SlotCharge] = {}  # slots that Redis may still count for ended calls
        self.unavailable = False  # Redis is configured but does not answer
        self.failures = 0

    @property
    def is_configured(self) -> bool:
        return self.redis is not None

    @property
    def is_shared(self) -> bool:
        return self.redis is not None and not self.unavailable

    async def open(self) -> None:
        """Start with Redis if it answers, else keep trying."""
        if self.redis is None:
            return
        try:
            await self._within(_PATIENCE_S, self.redis.ping())
        except Exception as error:
            self._mark_unavailable(error)
        self._spawn(self._renew_slots())

    async def close(self) -> None:
        """Stop. Slots that calls released at the end are also released in Redis."""
        if self.redis is not None and self._owed and not self.unavailable:
            with contextlib.suppress(Exception):
                await self._within(_PATIENCE_S, self._give_back_owed())
        for task in self._background:
            task.cancel()
        if self._background:
            await asyncio.wait(self._background)
        if self.redis is not None:
            await self.redis.close()

    async def charge(self, charges: list[Charge]) -> list[Decision]:
        """Each bucket's answer; nothing is charged unless all of them allow it."""
        redis = self.redis
        if redis is None or self.unavailable or not charges:
            decisions = self._local.charge(charges)
        else:
            try:
                decisions = await self._within(
                    DEADLINE_S, redis.charge(charges), lambda late: self._too_late(charges, late)
                )
            except Exception as error:
                self._mark_unavailable(error)
                decisions = self._local.charge(charges)
            else:
                self._local.follow(charges, decisions)
        if all([decision.allowed for decision in decisions]):
            for charge in charges:
                if isinstance(charge, QuotaCharge):
                    charge.quota.pending += 1
                elif isinstance(charge, SlotCharge) and redis is not None:
                    self._held[charge.holder] = charge
                    self._owed.pop(charge.holder, None)
        return decisions

    async def evaluate(self, script: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """The result of a script in Redis, within the time limit. Raises if there is none: what
        others keep in Redis must not take it from the limits, so that does not mark it
        unavailable."""
        if self.redis is None or self.unavailable:
            raise ConnectionError("Redis does not answer")
        return await self._within(DEADLINE_S, self.redis.evaluate(script, keys, args))

    def release(self, charges: Sequence[Charge]) -> None:
        """Release the slots, in the background."""
        for charge in charges:
            if isinstance(charge, SlotCharge):
                self._local.release(charge)
                if self._held.pop(charge.holder, None) is not None:
                    self._owe(charge)

    def uncount(self, charges: Sequence[Charge]) -> None:
        """Return one call to each quota, in the background."""
        for charge in charges:
            if isinstance(charge, QuotaCharge):
                charge.quota.pending = max(0, charge.quota.pending - 1)
                if self.redis is not None and not self.unavailable:
                    self._spawn(self._without_errors(self.redis.uncount(charge)))

    def spend(self, charges: Sequence[Charge], tokens: int) -> None:
        """Take an answer's usage from the token buckets, in the background."""
        for charge in charges:
            if isinstance(charge, TokenCharge) and tokens:
                self._take(charge, tokens)

    def give_back(self, charges: Sequence[Charge]) -> None:
        """Return the calls that were charged to the rates, in the background."""
        for charge in charges:
            if isinstance(charge, RateCharge):
                self._take(TokenCharge(charge.key, charge.capacity, charge.per_ms), -charge.cost)

    def _take(self, charge: TokenCharge, amount: int) -> None:
        self._local.spend(charge, amount)
        if self.redis is not None and not self.unavailable:
            self._spawn(self._without_errors(self.redis.spend(charge, amount)))

    # Charges whose request has gone on or ended, and slots.

    def _too_late(self, charges: list[Charge], decisions: list[Decision] | None) -> None:
        """Undo charges that Redis made after their request had ended or gone on without it.

        `decisions` is None if it is unknown what Redis did.
        """
        for charge in charges:
            if isinstance(charge, SlotCharge) and charge.holder not in self._held:
                self._owe(charge)
        if (
            decisions
            and all([decision.allowed for decision in decisions])
            and self.redis is not None
        ):
            for charge in charges:
                if isinstance(charge, QuotaCharge):
                    self._spawn(self._without_errors(self.redis.uncount(charge)))

    def _owe(self, slot: SlotCharge) -> None:
        if len(self._owed) < _MAX_BACKGROUND:  # beyond that their leases end them
            self._owed[slot.holder] = slot
        if not self.unavailable and len(self._owed) == 1:
            self._spawn(self._without_errors(self._give_back_owed()))

    async def _give_back_owed(self) -> None:
        """Release owed slots until none is left; a slot that could not be released stays owed."""
        assert self.redis is not None
        while self._owed:
            slots = list(self._owed.values())
            await self.redis.release(slots)
            for slot in slots:
                self._owed.pop(slot.holder, None)

    async def _renew_slots(self) -> None:
        """Renew the leases of the slots held here, and release what is owed."""
        assert self.redis is not None
        renewed = 0.0
        while True:
            await asyncio.sleep(_RETRY_S)
            if self.unavailable:
                continue
            if self._owed:
                await self._without_errors(self._give_back_owed())
            if self._held and time.monotonic() - renewed > _RENEW_S:
                await self._without_errors(self.redis.hold(list(self._held.values())))
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
        assert self.redis is not None
        while True:
            await asyncio.sleep(_RETRY_S)
            with contextlib.suppress(Exception):
                await self._within(_PATIENCE_S, self.redis.ping())  # this may have to connect
                await self._within(DEADLINE_S, self.redis.charge([_PROBE]))
                if self._held:  # Redis may have lost them, or never had them
                    await self._within(_PATIENCE_S, self.redis.hold(list(self._held.values())))
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
            in_time = await is_done_within(seconds, task)
        except BaseException:
            is_waited_for = False
            raise
        if not in_time:
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
