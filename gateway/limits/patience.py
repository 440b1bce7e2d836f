"""Wait for a reply for a limited time, which counts only while the event loop can read replies."""

import asyncio
from typing import Any

_ROUNDS = 10


async def is_done_within(seconds: float, task: asyncio.Task[Any]) -> bool:
    """Whether `task` ends within `seconds`; it runs on in any case.

    The time is waited for in ten rounds, and in each of them the loop reads its sockets. So a loop
    that is blocked, or busy in many small steps, uses up a round and not the time: Redis's reply
    may have arrived, but the loop has not read it yet.
    """
    for _ in range(_ROUNDS):
        await asyncio.wait({task}, timeout=seconds / _ROUNDS)
        if task.done():
            return True
    return False
