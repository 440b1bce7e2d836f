"""Connections to upstreams, kept open between questions."""

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
from gateway.upstream.connection import Connection, NoAnswer
from gateway.upstream.fairness import OneATurn
from gateway.upstream.resolver import Found, Resolver
from gateway.upstream.tunnel import Stream, negotiate, no_proxy_there

# Less than common servers keep an idle connection (uvicorn and Node 5 s, nginx 75 s): a question
# sent into a closing connection is lost, and the gateway may not repeat it.
IDLE_S = 4.0
_NEXT_S = 0.25  # before the next address of a host is tried as well (RFC 8305)


class Origin(NamedTuple):
    """The server that a connection leads to."""

    host: str
    port: int
    is_tls: bool


class Address(NamedTuple):
    """A URL as a request needs it: `host` is the header's value, `target` the request target."""

    origin: Origin
    host: str
    target: str


@lru_cache(maxsize=1024)
def address_of(url: str) -> Address:
    """Raises ValueError unless it is an http(s) URL with a host. Only for the operator's URLs:
    callers' would fill the cache."""
    return address_in(URL(url))


def address_in(url: URL) -> Address:
    """Like `address_of`, without the cache."""
    host, port = url.raw_host, url.port
    if url.scheme not in ("http", "https") or not host or port is None:
        raise ValueError("no http(s) URL with a host")
    origin = Origin(host, port, url.scheme == "https")
    return Address(origin, url.host_port_subcomponent or host, url.raw_path_qs)


_PoolKey = tuple[Origin, Way | None]  # connections that any call with this key may use


class Pool:
    """The connections of the process. Agents limit their calls; there is no limit here."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._open: dict[Connection, _PoolKey] = {}
        self._bulk = OneATurn(self._loop)
        self._on_free = self._freed  # bound once, not for each of thousands
        self._idle: dict[_PoolKey, dict[Connection, None]] = {}  # the most recently used last
        self._resolver = Resolver()
        self._sweep: asyncio.TimerHandle | None = None
        self._tls: WeakKeyDictionary[Trust, ssl.SSLContext] = WeakKeyDictionary()

    def kept(self, origin: Origin, way: Way) -> Connection | None:
        """An open idle connection, or None."""
        idle = self._idle.get((origin, way.pool))
        while idle:
            connection, _ = idle.popitem()
            if connection.transport is not None and not connection.transport.is_closing():
                return connection
        return None

    async def connect(self, origin: Origin, way: Way = DIRECT) -> Connection:
        """A new connection. Raises NoWay, gaierror, ssl.SSLError and OSError."""
        connection = Connection(self._on_free, self._bulk)
        self._open[connection] = origin, way.pool
        try:
            if way.proxy is None:
                await self._connect(connection, origin, way)
            elif way.forwards(origin.is_tls):
                await self._connect_to_proxy(way.proxy, way, lambda: connection)
            else:
                await self._tunnel(connection, origin, origin.host, way.proxy, way)
        except BaseException:
            self._open.pop(connection, None)
            connection.close()
            raise
        if connection.transport is None:
            raise NoAnswer
        return connection

    async def connect_to(self, origin: Origin, addresses: Found, way: Way) -> Connection:
        """A connection to exactly these addresses of the host, for one exchange whose body keeps
        its encoding. A proxy gets an address, too: it might resolve the name differently.

        Raises like `connect`.
        """
        connection = Connection(_never_free, self._bulk, decodes=False)
        try:
            if way.proxy is None:
                await self._connect(connection, origin, way, addresses)
            else:
                await self._tunnel(connection, origin, _first(addresses), way.proxy, way)
        except BaseException:
            connection.close()
            raise
        if connection.transport is None:
            raise NoAnswer
        return connection

    async def _connect(
        self, connection: Connection, origin: Origin, way: Way, addresses: Found | None = None
    ) -> None:
        addresses = addresses or await self._resolver.find(origin.host, origin.port)
        context = await self._tls_context(way.trust) if origin.is_tls else None
        await self._open_transport(addresses, lambda: connection, context, origin.host)

    async def _tunnel(
        self, connection: Connection, origin: Origin, host: str, proxy: Proxy, way: Way
    ) -> None:
        """Connect through `proxy` to `host`, the origin's name or one of its addresses."""
        if proxy.scheme == "socks5":  # the proxy is not asked to resolve names
            host = _first(await self._resolver.find(host, origin.port))
        context = await self._tls_context(way.trust) if origin.is_tls else None
        stream = Stream()
        try:
            await self._connect_to_proxy(proxy, way, lambda: stream)
            await negotiate(proxy, stream, host, origin.port)
            # No await from here until the transport has its new protocol.
            transport: asyncio.Transport | None = stream.transport
            if context is not None:
                transport = await self._loop.start_tls(
                    stream.transport, connection, context, server_hostname=origin.host
                )
            else:
                stream.transport.set_protocol(connection)
            if transport is None:
                raise NoAnswer
            connection.connection_made(transport)
        except BaseException:
            await stream.close()
            raise

    async def _connect_to_proxy(
        self, proxy: Proxy, way: Way, protocol: Callable[[], asyncio.Protocol]
    ) -> None:
        try:
            addresses = await self._resolver.find(proxy.host, proxy.port)
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

    def _freed(self, connection: Connection) -> None:
        """Handle a connection that has ended an exchange or is closed."""
        pool = self._open.get(connection)
        if pool is None:
            return
        if connection.transport is None:
            del self._open[connection]
            self._idle.get(pool, {}).pop(connection, None)
            return
        connection.idle_since = self._loop.time()
        self._idle.setdefault(pool, {})[connection] = None
        if self._sweep is None:
            self._sweep = self._loop.call_later(IDLE_S, self._close_idle)

    def _close_idle(self) -> None:
        self._sweep = None
        until = self._loop.time() - IDLE_S
        for pool, idle in list(self._idle.items()):
            for connection in [connection for connection in idle if connection.idle_since <= until]:
                del idle[connection]
                connection.close()
            if not idle:
                del self._idle[pool]
        if self._idle:
            first = min(
                connection.idle_since for idle in self._idle.values() for connection in idle
            )
            self._sweep = self._loop.call_at(first + IDLE_S, self._close_idle)

    def close(self) -> None:
        if self._sweep is not None:
            self._sweep.cancel()
        for connection in list(self._open):
            connection.close()


def _first(addresses: Found) -> str:
    """The address to request from a proxy; IPv4 if there is one, since proxies reach it more
    reliably."""
    return str(min(addresses, key=lambda found: found[0] != socket.AF_INET)[4][0])


def _never_free(connection: Connection) -> None:
    """A connection for a single exchange is not reused."""
