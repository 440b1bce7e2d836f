"""Look-ups of host names, kept apart by who chose the name.

Names of upstreams are the operator's: the system looks them up, one at a time each, in threads of
their own. Names that callers chose never get a thread: one that is never answered would hold it far
past any deadline, and the system has few. c-ares asks for those, as many at once as it takes.
"""

import asyncio
import contextlib
import socket
from collections import Counter
from threading import Thread
from typing import Any

import aiohttp

from gateway.errors import RateLimited

Found = list[Any]  # as `getaddrinfo` gives it

_KEPT_S = 10.0  # how long an address is relied upon
_STALE_S = 600.0  # how long after that it is better than none
_PATIENCE_S = 1.0  # with name servers, while there is such an address

MAX_OF_ONE = 8  # look-ups at once for one caller
MAX_OF_ALL = 200
# An abandoned look-up ends within seconds as well.
_TRY_S = 2.0
_TRIES = 2


class Resolver:
    """Addresses of upstreams and proxies, remembered for seconds."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._known: dict[tuple[str, int], tuple[float, Found]] = {}  # until when, in loop time
        self._asked: dict[tuple[str, int], asyncio.Future[Found]] = {}

    async def find(self, host: str, port: int) -> Found:
        """Raises gaierror, and UnicodeError for what can be no name."""
        if (address := numeric(host, port)) is not None:
            return address
        key, now = (host, port), self._loop.time()
        until, kept = self._known.get(key, (0.0, None))
        if now < until and kept is not None:
            return kept
        if now > until + _STALE_S:
            kept = None
        asked = self._asked.get(key) or self._ask(key)
        await asyncio.wait({asked}, timeout=_PATIENCE_S if kept else None)
        if kept is not None and (not asked.done() or asked.exception()):
            return kept
        return asked.result()

    def _ask(self, key: tuple[str, int]) -> asyncio.Future[Found]:
        """However many wait for a name, one thread asks for it."""
        host, port = key
        future: asyncio.Future[Found] = self._loop.create_future()
        self._asked[key] = future

        def done(found: Found | None, error: Exception | None) -> None:
            del self._asked[key]
            if found is not None:
                self._known[key] = self._loop.time() + _KEPT_S, found
                future.set_result(found)
            elif error is not None:
                future.set_exception(error)
                future.exception()  # marks it as seen: the caller may have left

        def ask() -> None:
            found, error = None, None
            try:
                found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            except Exception as caught:
                error = caught
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(done, found, error)

        # A daemon, since a name server that does not answer must not hold up the process's end.
        Thread(target=ask, name=f"look-up of {host}", daemon=True).start()
        return future


class CallersNames:
    """Addresses of the hosts in callers' URLs. Nothing of them is remembered: a judgement is for
    one connection."""

    def __init__(self) -> None:
        self._resolver: aiohttp.AsyncResolver | None = None  # which few need
        self._running: Counter[str] = Counter()  # by who named them

    async def find(self, host: str, port: int, owner: str) -> Found:
        """Raises OSError, and RateLimited where `owner`, or all together, ask for too many."""
        if self._running[owner] >= MAX_OF_ONE or self._running.total() >= MAX_OF_ALL:
            raise RateLimited(
                "Too many hosts of files are being looked up; ask again shortly.", retry_after_s=1.0
            )
        self._resolver = self._resolver or aiohttp.AsyncResolver(timeout=_TRY_S, tries=_TRIES)
        self._running[owner] += 1
        try:
            found = await self._resolver.resolve(host, port, socket.AF_UNSPEC)
        finally:
            self._running[owner] -= 1
            if not self._running[owner]:
                del self._running[owner]
        return [
            (one["family"], socket.SOCK_STREAM, one["proto"], "", (one["host"], one["port"]))
            for one in found
        ]

    async def close(self) -> None:
        if self._resolver is not None:
            await self._resolver.close()


def numeric(host: str, port: int) -> Found | None:
    """For a host that is an address: nothing has to be asked for it."""
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except OSError:
        return None
