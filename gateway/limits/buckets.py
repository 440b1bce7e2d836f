"""Where the buckets of `limits` are: in this process, or in a Redis that all replicas share.

Redis that is slow or gone costs one request 50 ms; from then on this process's own buckets decide,
until Redis answers again.
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
from gateway.limits.rules import LEASE_S, Given, Take

log = logging.getLogger("gateway")

T = TypeVar("T")

DEADLINE_S = 0.05  # for one take; rule 6
MAX_BUCKETS = 100_000
_RETRY_S = 1.0  # how often Redis is asked whether it is back
_RENEW_S = LEASE_S / 3
_PATIENCE_S = 1.0  # for what nobody waits for
_MAX_BACKGROUND = 10_000
_LATE = 1.3  # times the deadline: when the loop notices it so late, it was itself too slow
_ROUNDS = 10  # of the loop, that an answer may need from the socket to whom it is for
_HAIR = 1e-6  # fractions that add up to one may come to 0.999999
_PROBE = Take("rate", "{probe}:rate", 1, 1000.0, 1)


class LocalBuckets:
    """Buckets of this process. The least recently used are forgotten beyond `MAX_BUCKETS`."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, most: int = MAX_BUCKETS
    ) -> None:
        self._clock = clock
        self._most = most
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()  # (level, at ms)
        self._holders: dict[str, set[str]] = {}

    def take(self, asked: list[Take]) -> list[Given]:
        """From all or from none; see `take_token.lua`, which does the same in Redis."""
        now = self._clock() * 1000
        if len(asked) == 1:  # the commonest case by far: a caller's rate and nothing more
            said, level = self._look(asked[0], now)
            if said.gives:
                self._keep(asked[0], level, now)
            return [said]
        looks = [self._look(take, now) for take in asked]
        given = [said for said, _ in looks]
        if all([said.gives for said in given]):
            for take, (_, level) in zip(asked, looks, strict=True):
                self._keep(take, level, now)
        return given

    def _keep(self, take: Take, level: float, now: float) -> None:
        """What was looked at is taken."""
        if take.kind == "rate":
            self._put(take, level, now)
        elif take.kind == "slots":
            self._holders.setdefault(take.key, set()).add(str(take.c))

    def _look(self, take: Take, now: float) -> tuple[Given, float]:
        """What a bucket says, and the level at which it would be left."""
        capacity = int(take.a)
        if take.kind == "slots":
            held = len(self._holders.get(take.key, ()))
            return Given(held < capacity, max(0, capacity - held - 1), 1000, 0), 0.0
        if take.quota is not None:
            used = take.quota.used
            return Given(used < capacity, max(0, capacity - used - 1), 0, 0), 0.0
        level, cost = self._level(take, now), float(take.c)
        needed = cost or 1.0
        gives, wait_ms = level + _HAIR >= needed, 0
        if gives:
            level -= cost
        else:
            wait_ms = ceil((needed - level) / take.b)
        remains = int(level + _HAIR) if level > 0 else 0
        return Given(gives, remains, wait_ms, ceil((take.a - level) / take.b)), level

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
        """Take `number` tokens without asking; the level may fall below zero."""
        now = self._clock() * 1000
        self._put(take, self._level(take, now) - number, now)

    def release(self, take: Take) -> None:
        holders = self._holders.get(take.key, set())
        holders.discard(str(take.c))
        if not holders:
            self._holders.pop(take.key, None)

    def follow(self, asked: list[Take], given: list[Given]) -> None:
        """Keep up with what Redis said, so that its going away gives nobody a fresh bucket."""
        now = self._clock() * 1000
        taken = all(said.gives for said in given)
        for take, said in zip(asked, given, strict=True):
            if take.kind in ("rate", "tokens"):
                self._put(take, float(said.remains), now)
            elif take.kind == "slots" and taken:
                self._holders.setdefault(take.key, set()).add(str(take.c))


class Buckets:
    """The buckets in use: Redis's while it answers, else the process's own."""

    def __init__(self, redis: RedisBuckets | None = None) -> None:
        self._local = LocalBuckets()
        self._redis = redis
        self._background: set[asyncio.Task[Any]] = set()
        self._held: dict[str, Take] = {}  # slots of calls under way, by holder
        self._owed: dict[str, Take] = {}  # slots that Redis may still hold for nobody
        self.away = False  # Redis is configured but does not answer
        self.failures = 0

    @property
    def is_configured(self) -> bool:
        return self._redis is not None

    @property
    def is_shared(self) -> bool:
        return self._redis is not None and not self.away

    async def open(self) -> None:
        """Begin with Redis if it answers, and go on asking if it does not."""
        if self._redis is None:
            return
        try:
            await self._within(_PATIENCE_S, self._redis.ping())
        except Exception as error:
            self._lost(error)
        self._spawn(self._look_after_slots())

    async def close(self) -> None:
        """Slots that are given back at the end are given back in Redis too."""
        if self._redis is not None and self._owed and not self.away:
            with contextlib.suppress(Exception):
                await self._within(_PATIENCE_S, self._give_back_owed())
        for task in self._background:
            task.cancel()
        if self._background:
            await asyncio.wait(self._background)
        if self._redis is not None:
            await self._redis.close()

    async def take(self, asked: list[Take]) -> list[Given]:
        """What each bucket says; nothing is taken unless all of them give."""
        redis = self._redis
        if redis is None or self.away or not asked:
            given = self._local.take(asked)
        else:
            try:
                given = await self._within(
                    DEADLINE_S, redis.take(asked), lambda late: self._too_late(asked, late)
                )
            except Exception as error:
                self._lost(error)
                given = self._local.take(asked)
            else:
                self._local.follow(asked, given)
        if all([said.gives for said in given]):
            for take in asked:
                if take.quota is not None:
                    take.quota.pending += 1
                elif take.kind == "slots" and redis is not None:
                    self._held[str(take.c)] = take
                    self._owed.pop(str(take.c), None)
        return given

    def release(self, asked: Sequence[Take]) -> None:
        """Give back the slots; nothing waits for it."""
        for take in asked:
            if take.kind == "slots":
                self._local.release(take)
                if self._held.pop(str(take.c), None) is not None:
                    self._owe(take)

    def uncount(self, asked: Sequence[Take]) -> None:
        """Give back a call of each quota; nothing waits for it."""
        for take in asked:
            if take.quota is not None:
                take.quota.pending = max(0, take.quota.pending - 1)
                if self._redis is not None and not self.away:
                    self._spawn(self._quietly(self._redis.uncount(take)))

    def spend(self, asked: Sequence[Take], tokens: int) -> None:
        """Take what an answer used from the buckets of tokens; nothing waits for it."""
        for take in asked:
            if take.kind == "tokens" and tokens:
                self._local.spend(take, tokens)
                if self._redis is not None and not self.away:
                    self._spawn(self._quietly(self._redis.spend(take, tokens)))

    # Takes that nobody waits for any more, and slots.

    def _too_late(self, asked: list[Take], given: list[Given] | None) -> None:
        """A take whose caller has left, or went on without it, has ended: undo it.

        `given` is None if nobody knows what Redis did with it.
        """
        for take in asked:
            if take.kind == "slots" and str(take.c) not in self._held:
                self._owe(take)
        if given and all([said.gives for said in given]) and self._redis is not None:
            for take in asked:
                if take.kind == "quota":
                    self._spawn(self._quietly(self._redis.uncount(take)))

    def _owe(self, take: Take) -> None:
        if len(self._owed) < _MAX_BACKGROUND:  # beyond that their leases end them
            self._owed[str(take.c)] = take
        if not self.away and len(self._owed) == 1:
            self._spawn(self._quietly(self._give_back_owed()))

    async def _give_back_owed(self) -> None:
        """Until nothing is owed; what could not be given back stays owed."""
        assert self._redis is not None
        while self._owed:
            slots = list(self._owed.values())
            await self._redis.release(slots)
            for take in slots:
                self._owed.pop(str(take.c), None)

    async def _look_after_slots(self) -> None:
        """Say that the slots held here are held still, and give back what is owed."""
        assert self._redis is not None
        renewed = 0.0
        while True:
            await asyncio.sleep(_RETRY_S)
            if self.away:
                continue
            if self._owed:
                await self._quietly(self._give_back_owed())
            if self._held and time.monotonic() - renewed > _RENEW_S:
                await self._quietly(self._redis.hold(list(self._held.values())))
                renewed = time.monotonic()

    # Redis that goes away and comes back.

    def _lost(self, error: Exception) -> None:
        self.failures += 1
        if not self.away:
            self.away = True
            why = "too slow" if isinstance(error, TimeoutError) else type(error).__name__
            log.warning("Redis: %s; each process limits by itself until it is back", why)
            self._spawn(self._come_back())

    async def _come_back(self) -> None:
        """Redis is back when it does the script's work in time; to answer a ping is not enough."""
        assert self._redis is not None
        while True:
            await asyncio.sleep(_RETRY_S)
            with contextlib.suppress(Exception):
                await self._within(_PATIENCE_S, self._redis.ping())  # which may have to connect
                await self._within(DEADLINE_S, self._redis.take([_PROBE]))
                if self._held:  # it may have lost them, or never had them
                    await self._within(_PATIENCE_S, self._redis.hold(list(self._held.values())))
                self.away = False
                log.info("Redis answers again; limits are shared")
                return

    async def _quietly(self, call: Coroutine[Any, Any, None]) -> None:
        try:
            await self._within(_PATIENCE_S, call)
        except Exception as error:
            self._lost(error)

    async def _within(
        self,
        seconds: float,
        call: Coroutine[Any, Any, T],
        too_late: Callable[[T | None], None] = lambda late: None,
    ) -> T:
        """What `call` gives, or TimeoutError after so long, whatever becomes of it: a redis-py
        that is connecting may swallow a cancellation and go on for seconds.

        So it is left to run, and if nobody waits any longer `too_late` gets what it gave.
        """
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
                # The loop was busy with other things for longer than Redis had: the answer may
                # have come and only not been read.
                await asyncio.wait({task}, timeout=seconds)
            for _ in range(_ROUNDS):  # or it was busy all the time, in many small steps
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
