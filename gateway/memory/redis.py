"""Threads in Redis, for all replicas.

All keys of a scope are in one slot of a cluster, and each call is one script:

    <prefix>:memory:{<scope>}:t:<id>     a thread, after the scope's generation
    <prefix>:memory:{<scope>}:k:<key>    a sorted set of ids, by time
    <prefix>:memory:{<scope>}:c:<id>     the call that continues the thread
    <prefix>:memory:{<scope>}:g          the generation: another one makes all threads uncertain

A turn that could not be written may be missed later, and another person's equal thread would then
seem to be the only one. So the next call of that scope begins a new generation.
"""

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from gateway.memory.judgement import Found
from gateway.memory.local import MAX_LISTED
from gateway.memory.thread import Thread, load

_MAX_MISSED = 100_000  # scopes
_LONGEST_S = 30 * 86400.0  # that a generation is kept after its last use

Evaluate = Callable[[str, Sequence[str], Sequence[Any]], Awaitable[Any]]  # script, keys, arguments

# KEYS: the generation, then keys. ARGV: how many ids at most, whether to begin a new generation.
_FIND = """
local at = KEYS[1]:sub(1, -2)
if ARGV[2] == '1' then redis.call('INCR', KEYS[1]) redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
local now, out = (redis.call('GET', KEYS[1]) or '0') .. ':', {}
for i = 2, #KEYS do
  local ids, found, lost = redis.call('ZREVRANGE', KEYS[i], 0, ARGV[1]), {}, 0
  for n, id in ipairs(ids) do
    local kept = n <= tonumber(ARGV[1]) and redis.call('GET', at .. 't:' .. id)
    if kept and kept:sub(1, #now) == now then found[#found + 1] = kept:sub(#now + 1)
    else lost = lost + 1 end
  end
  out[#out + 1] = {lost, found}
end
return out
"""
# KEYS: generation, thread, claim. ARGV: the thread as it was read, holder, lease in ms.
_CLAIM = """
local now = (redis.call('GET', KEYS[1]) or '0') .. ':'
if redis.call('GET', KEYS[2]) ~= now .. ARGV[1] then return 0 end
return redis.call('SET', KEYS[3], ARGV[2], 'NX', 'PX', ARGV[3]) and 1 or 0
"""
# KEYS: generation, thread, claim, then keys. ARGV: thread, id, now, ms to keep, holder, most ids,
# ms to keep keys: longer than any thread, so that a forgotten one leaves a doubt.
_SAVE = """
local now = (redis.call('GET', KEYS[1]) or '0') .. ':'
redis.call('SET', KEYS[2], now .. ARGV[1], 'PX', ARGV[4])
for i = 4, #KEYS do
  redis.call('ZADD', KEYS[i], ARGV[3], ARGV[2])
  redis.call('ZREMRANGEBYRANK', KEYS[i], 0, -1 - ARGV[6])
  redis.call('PEXPIRE', KEYS[i], ARGV[7])
end
if redis.call('GET', KEYS[3]) == ARGV[5] then redis.call('DEL', KEYS[3]) end
return 1
"""
# KEYS: claim. ARGV: holder.
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end return 1"


class RedisStore:
    """Every method raises what `evaluate` raises."""

    def __init__(self, evaluate: Evaluate, clock: Callable[[], float] = time.time) -> None:
        self._evaluate = evaluate
        self._clock = clock
        self._missed: OrderedDict[str, None] = OrderedDict()  # scopes with a turn not written

    async def find(self, scope: str, keys: Sequence[str]) -> list[Found]:
        missed = scope in self._missed
        longest_ms = int(_LONGEST_S * 1000)
        names = [_name(scope, "g"), *[_name(scope, "k", key) for key in keys]]
        found = await self._evaluate(_FIND, names, [MAX_LISTED, int(missed), longest_ms])
        self._missed.pop(scope, None)
        return [Found([load(data) for data in threads], not lost) for lost, threads in found]

    async def claim(self, scope: str, thread: Thread, holder: str, lease_s: float) -> bool:
        names = [_name(scope, "g"), _name(scope, "t", thread.id), _name(scope, "c", thread.id)]
        lease_ms = int(lease_s * 1000)
        return bool(await self._evaluate(_CLAIM, names, [thread.dump(), holder, lease_ms]))

    async def release(self, scope: str, id_: str, holder: str) -> None:
        await self._evaluate(_RELEASE, [_name(scope, "c", id_)], [holder])

    async def save(
        self, scope: str, thread: Thread, keys: Sequence[str], keep_s: float, holder: str
    ) -> None:
        names = [_name(scope, "g"), _name(scope, "t", thread.id), _name(scope, "c", thread.id)]
        names += [_name(scope, "k", key) for key in keys]
        now_ms, keep_ms = int(self._clock() * 1000), int(keep_s * 1000)
        args = [thread.dump(), thread.id, now_ms, keep_ms, holder, MAX_LISTED + 1]
        args.append(int(_LONGEST_S * 1000))
        await self._evaluate(_SAVE, names, args)

    def missed(self, scope: str) -> None:
        """A turn of that scope could not be written."""
        self._missed[scope] = None
        if len(self._missed) > _MAX_MISSED:
            self._missed.popitem(last=False)

    async def close(self) -> None: ...


def _name(scope: str, kind: str, id_: str = "") -> str:
    return f"memory:{{{scope}}}:{kind}{':' + id_ if id_ else ''}"
