"""DNS look-ups, separated by who chose the name.

The operator chooses the names of upstreams: the system resolves them, one look-up per name, in
threads. Names that callers chose never get a thread: a look-up without an answer would hold it far
past any deadline, and the system has few. c-ares resolves those, without threads.
"""

import asyncio
import contextlib
import socket
from collections import Counter
from threading import Thread
from typing import Any

import aiohttp

from gateway.errors import RateLimited

Found = list[Any]  # as `getaddrinfo` returns it

_KEPT_S = 10.0  # how long an address is trusted
_STALE_S = 600.0  # how long after that it is still better than none
_PATIENCE_S = 1.0  # with name servers, while a stale address is known

MAX_OF_ONE = 8  # look-ups in flight for one caller
MAX_OF_ALL = 200
# So an abandoned look-up ends within seconds as well.
_TRY_S = 2.0
_TRIES = 2


class Resolver:
    """Addresses of upstreams and proxies, cached for seconds."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._known: dict[tuple[str, int], tuple[float, Found]] = {}  # until when, in loop time
        self._asked: dict[tuple[str, int], asyncio.Future[Found]] = {}

    async def find(self, host: str, port: int) -> Found:
        """Raises gaierror, and UnicodeError for a string that cannot be a name."""
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
        """Start a look-up: one thread per name, however many calls wait for it."""
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
                future.exception()  # mark it as retrieved: the caller may be gone

        def ask() -> None:
            found, error = None, None
            try:
                found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            except Exception as caught:
                error = caught
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(done, found, error)

        # A daemon, since an unresponsive name server must not delay the end of the process.
        Thread(target=ask, name=f"look-up of {host}", daemon=True).start()
        return future


class CallersNames:
    """Addresses of the hosts in callers' URLs. They are not cached: a check is valid for one
    connection."""

    def __init__(self) -> None:
        self._resolver: aiohttp.AsyncResolver | None = None  # created at first use
        self._running: Counter[str] = Counter()  # by the caller that named them

    async def find(self, host: str, port: int, owner: str) -> Found:
        """Raises OSError, and RateLimited if `owner`, or all callers together, have too many in
        flight."""
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
    """The address if the host is numeric; no look-up is needed."""
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except OSError:
        return None
