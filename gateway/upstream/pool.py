"""Connections to upstreams, kept open from one question to the next."""

import asyncio
import socket
import ssl
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple
from weakref import WeakKeyDictionary

import aiohappyeyeballs
from yarl import URL

from gateway.config.outgoing import DIRECT, Trust, Way, tls_context
from gateway.config.proxy import Proxy
from gateway.upstream.connection import Link, NoAnswer
from gateway.upstream.fairness import OneATurn
from gateway.upstream.resolver import Found, Lookups
from gateway.upstream.tunnel import Stream, negotiate, no_proxy_there

# Less than common servers keep an idle connection (uvicorn and Node 5 s, nginx 75 s): a question
# sent into one that is just being closed is lost, and is not ours to repeat.
IDLE_S = 4.0
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
    """Raises ValueError for what is no http(s) URL with a host. For the operator's URLs: callers'
    would fill the cache."""
    return address_in(URL(url))


def address_in(url: URL) -> Address:
    """The same, not remembered."""
    host, port = url.raw_host, url.port
    if url.scheme not in ("http", "https") or not host or port is None:
        raise ValueError("no http(s) URL with a host")
    origin = Origin(host, port, url.scheme == "https")
    return Address(origin, url.host_port_subcomponent or host, url.raw_path_qs)


_Pool = tuple[Origin, Way | None]  # connections that any call of it may use


class Links:
    """The connections of the process. Agents limit their calls; there is no limit here."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._open: dict[Link, _Pool] = {}
        self._bulk = OneATurn(self._loop)
        self._on_free = self._freed  # bound once, not for each of thousands
        self._idle: dict[_Pool, dict[Link, None]] = {}  # the most recently used last
        self._lookups = Lookups()
        self._sweep: asyncio.TimerHandle | None = None
        self._tls: WeakKeyDictionary[Trust, ssl.SSLContext] = WeakKeyDictionary()

    def kept(self, origin: Origin, way: Way) -> Link | None:
        """One that is open and idle, if there is one."""
        idle = self._idle.get((origin, way.pool))
        while idle:
            link, _ = idle.popitem()
            if link.transport is not None and not link.transport.is_closing():
                return link
        return None

    async def connect(self, origin: Origin, way: Way = DIRECT) -> Link:
        """A new one. Raises NoWay, gaierror, ssl.SSLError and OSError."""
        link = Link(self._on_free, self._bulk)
        self._open[link] = origin, way.pool
        try:
            if way.proxy is None:
                await self._connect(link, origin, way)
            elif way.forwards(origin.is_tls):
                await self._connect_to_proxy(way.proxy, way, lambda: link)
            else:
                await self._tunnel(link, origin, origin.host, way.proxy, way)
        except BaseException:
            self._open.pop(link, None)
            link.close()
            raise
        if link.transport is None:
            raise NoAnswer
        return link

    async def connect_to(self, origin: Origin, addresses: Found, way: Way) -> Link:
        """One to exactly these addresses of the host, for one exchange whose body is given as it
        comes, still encoded. A proxy gets an address, too: a name might lead it elsewhere.

        Raises like `connect`.
        """
        link = Link(_never_free, self._bulk, decodes=False)
        try:
            if way.proxy is None:
                await self._connect(link, origin, way, addresses)
            else:
                await self._tunnel(link, origin, _first(addresses), way.proxy, way)
        except BaseException:
            link.close()
            raise
        if link.transport is None:
            raise NoAnswer
        return link

    async def _connect(
        self, link: Link, origin: Origin, way: Way, addresses: Found | None = None
    ) -> None:
        addresses = addresses or await self._lookups.find(origin.host, origin.port)
        context = await self._tls_context(way.trust) if origin.is_tls else None
        await self._open_transport(addresses, lambda: link, context, origin.host)

    async def _tunnel(self, link: Link, origin: Origin, host: str, proxy: Proxy, way: Way) -> None:
        """Through `proxy` to `host`, the origin's name or an address of it."""
        if proxy.scheme == "socks5":  # which is not asked to look up names
            host = _first(await self._lookups.find(host, origin.port))
        context = await self._tls_context(way.trust) if origin.is_tls else None
        stream = Stream()
        try:
            await self._connect_to_proxy(proxy, way, lambda: stream)
            await negotiate(proxy, stream, host, origin.port)
            # Nothing may be awaited from here until the stream has been handed on.
            transport: asyncio.Transport | None = stream.transport
            if context is not None:
                transport = await self._loop.start_tls(
                    stream.transport, link, context, server_hostname=origin.host
                )
            else:
                stream.transport.set_protocol(link)
            if transport is None:
                raise NoAnswer
            link.connection_made(transport)
        except BaseException:
            await stream.close()
            raise

    async def _connect_to_proxy(
        self, proxy: Proxy, way: Way, protocol: Callable[[], asyncio.Protocol]
    ) -> None:
        try:
            addresses = await self._lookups.find(proxy.host, proxy.port)
            context = None
            if proxy.scheme == "https":
                context = await self._tls_context(way.proxy_trust)
            await self._open_transport(addresses, protocol, context, proxy.host)
        except (OSError, UnicodeError) as error:
            raise no_proxy_there(proxy, error) from None

    async def _open_transport(
        self,
        addresses: Found,
        protocol: Callable[[], asyncio.Protocol],
        context: ssl.SSLContext | None,
        host: str,
    ) -> None:
        sock = await aiohappyeyeballs.start_connection(
            addresses, happy_eyeballs_delay=_NEXT_S, interleave=1
        )
        try:
            await self._loop.create_connection(
                protocol, sock=sock, ssl=context, server_hostname=host if context else None
            )
        except BaseException:
            sock.close()
            raise

    async def _tls_context(self, trust: Trust) -> ssl.SSLContext:
        context = self._tls.get(trust)
        if context is None:
            context = self._tls[trust] = await asyncio.to_thread(tls_context, trust)
        return context

    def _freed(self, link: Link) -> None:
        """It has ended an exchange, or its connection is gone."""
        pool = self._open.get(link)
        if pool is None:
            return
        if link.transport is None:
            del self._open[link]
            self._idle.get(pool, {}).pop(link, None)
            return
        link.idle_since = self._loop.time()
        self._idle.setdefault(pool, {})[link] = None
        if self._sweep is None:
            self._sweep = self._loop.call_later(IDLE_S, self._close_idle)

    def _close_idle(self) -> None:
        self._sweep = None
        until = self._loop.time() - IDLE_S
        for pool, idle in list(self._idle.items()):
            for link in [link for link in idle if link.idle_since <= until]:
                del idle[link]
                link.close()
            if not idle:
                del self._idle[pool]
        if self._idle:
            first = min(link.idle_since for idle in self._idle.values() for link in idle)
            self._sweep = self._loop.call_at(first + IDLE_S, self._close_idle)

    def close(self) -> None:
        if self._sweep is not None:
            self._sweep.cancel()
        for link in list(self._open):
            link.close()


def _first(addresses: Found) -> str:
    """The one that a proxy is asked for: of both kinds it more surely reaches IPv4."""
    return str(min(addresses, key=lambda found: found[0] != socket.AF_INET)[4][0])


def _never_free(link: Link) -> None:
    """Its one exchange is all that it is for."""
