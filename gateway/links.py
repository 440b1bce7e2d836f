"""Connections to upstreams, kept open from one question to the next."""

import asyncio
import ssl
from functools import lru_cache
from socket import SOCK_STREAM
from typing import Any, NamedTuple

import aiohappyeyeballs
from yarl import URL

from gateway.link import Link, NoAnswer

# Less than common servers keep an idle connection (uvicorn and Node 5 s, nginx 75 s): a question
# sent into one that is just being closed is lost, and is not ours to repeat.
IDLE_S = 4.0
_DNS_S = 10.0  # how long an address is relied upon
_NEXT_S = 0.25  # when the next address of a host is tried as well (RFC 8305)


class Origin(NamedTuple):
    """Where a connection leads."""

    host: str
    port: int
    is_tls: bool


class Address(NamedTuple):
    """A URL as a request needs it: `host` is the header's value, `target` what stands behind the
    method."""

    origin: Origin
    host: str
    target: str


@lru_cache(maxsize=1024)
def address_of(url: str) -> Address:
    """Raises ValueError for what is no http(s) URL with a host."""
    parsed = URL(url)
    host, port = parsed.raw_host, parsed.port
    if parsed.scheme not in ("http", "https") or not host or port is None:
        raise ValueError(f"no http(s) URL: {url[:100]}")
    origin = Origin(host, port, parsed.scheme == "https")
    return Address(origin, parsed.host_port_subcomponent or host, parsed.raw_path_qs)


class Links:
    """The connections of the process. Agents limit their calls; there is no limit here."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._open: dict[Link, Origin] = {}
        self._on_free = self._freed  # bound once, not for each of thousands
        self._idle: dict[Origin, dict[Link, None]] = {}  # the most recently used last
        self._known: dict[tuple[str, int], tuple[float, list[Any]]] = {}
        self._sweep: asyncio.TimerHandle | None = None
        self._tls: ssl.SSLContext | None = None

    def kept(self, origin: Origin) -> Link | None:
        """One that is open and idle, if there is one."""
        idle = self._idle.get(origin)
        while idle:
            link, _ = idle.popitem()
            if link.transport is not None and not link.transport.is_closing():
                return link
        return None

    async def connect(self, origin: Origin) -> Link:
        """A new one. Raises gaierror, ssl.SSLError and OSError."""
        sock = await aiohappyeyeballs.start_connection(
            await self._resolve(origin.host, origin.port),
            happy_eyeballs_delay=_NEXT_S,
            interleave=1,
        )
        link = Link(self._on_free)
        self._open[link] = origin
        try:
            await self._loop.create_connection(
                lambda: link,
                sock=sock,
                ssl=await self._tls_context() if origin.is_tls else None,
                server_hostname=origin.host if origin.is_tls else None,
            )
        except BaseException:
            self._open.pop(link, None)
            sock.close()
            raise
        if link.transport is None:
            raise NoAnswer
        return link

    async def _resolve(self, host: str, port: int) -> list[Any]:
        known = self._known.get((host, port))
        if known is None or known[0] < self._loop.time():
            found = await self._loop.getaddrinfo(host, port, type=SOCK_STREAM)
            known = self._known[host, port] = self._loop.time() + _DNS_S, found
        return known[1]

    async def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:  # reading the system's certificates takes tens of milliseconds
            context = await asyncio.to_thread(ssl.create_default_context)
            context.set_alpn_protocols(["http/1.1"])
            self._tls = context
        return self._tls

    def _freed(self, link: Link) -> None:
        """It has ended an exchange, or its connection is gone."""
        origin = self._open.get(link)
        if origin is None:
            return
        if link.transport is None:
            del self._open[link]
            self._idle.get(origin, {}).pop(link, None)
            return
        link.idle_since = self._loop.time()
        self._idle.setdefault(origin, {})[link] = None
        if self._sweep is None:
            self._sweep = self._loop.call_later(IDLE_S, self._close_idle)

    def _close_idle(self) -> None:
        self._sweep = None
        until = self._loop.time() - IDLE_S
        for origin, idle in list(self._idle.items()):
            for link in [link for link in idle if link.idle_since <= until]:
                del idle[link]
                link.close()
            if not idle:
                del self._idle[origin]
        if self._idle:
            first = min(link.idle_since for idle in self._idle.values() for link in idle)
            self._sweep = self._loop.call_at(first + IDLE_S, self._close_idle)

    def close(self) -> None:
        if self._sweep is not None:
            self._sweep.cancel()
        for link in list(self._open):
            link.close()
