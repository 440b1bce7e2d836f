"""A tunnel through a proxy: CONNECT for http and https proxies, SOCKS5 for the others.

python-socks speaks both protocols over this module's stream. So the connection to the proxy is made
like every other one, and becomes the upstream's without a copy in between.
"""

import asyncio
import socket
import ssl
from typing import cast

from python_socks import ProxyError, ProxyType
from python_socks.async_.asyncio.v2 import Proxy as Negotiation

from gateway.config.outgoing import NoWay, tls_reason
from gateway.config.proxy import Proxy
from gateway.language.sentences import say

_MAX_REPLY = 64 << 10  # bytes that a proxy may send before the tunnel exists
# SOCKS5's codes (RFC 1928); CONNECT's are HTTP statuses.
_SOCKS_NOT_ALLOWED = 2


class Stream(asyncio.Protocol):
    """The connection to the proxy while the tunnel is being negotiated."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._arrived = asyncio.Event()
        self._is_closed = False
        self.transport: asyncio.Transport  # set once it is connected

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._arrived.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_closed = True
        self._arrived.set()

    @property
    def is_ready(self) -> bool:
        """Whether it can become the tunnel: open, and without any early bytes."""
        return not self._is_closed and not self._buffer

    # Called by python-socks.

    async def write(self, data: bytes) -> None:
        self.transport.write(data)

    async def read(self, max_bytes: int = _MAX_REPLY) -> bytes:
        """The head of an HTTP answer, the only thing that CONNECT reads this way."""
        while b"\r\n\r\n" not in self._buffer:
            await self._more()
        return self._take(self._buffer.index(b"\r\n\r\n") + 4)

    async def read_exactly(self, n: int) -> bytes:
        while len(self._buffer) < n:
            await self._more()
        return self._take(n)

    async def close(self) -> None:
        if hasattr(self, "transport"):
            self.transport.abort()

    async def _more(self) -> None:
        if self._is_closed or len(self._buffer) > _MAX_REPLY:
            raise ProxyError("It ended the connection.")
        self._arrived.clear()
        await self._arrived.wait()

    def _take(self, n: int) -> bytes:
        taken = bytes(self._buffer[:n])
        del self._buffer[:n]
        return taken


async def negotiate(proxy: Proxy, stream: Stream, host: str, port: int) -> None:
    """Connect `stream` to `host`, a name or an address. Raises NoWay after closing it."""
    kind = ProxyType.HTTP if proxy.speaks_http else ProxyType.SOCKS5
    user, password = proxy.user, proxy.password.reveal()
    if proxy.speaks_http:  # python-socks encodes Latin-1; RFC 7617 prefers UTF-8
        user, password = (text.encode().decode("latin-1") for text in (user, password))
    negotiation = Negotiation(kind, proxy.host, proxy.port, user, password, forward=_Opened(stream))
    try:
        await negotiation.connect(host, port, timeout=3600)  # the caller sets the time limit
    except ProxyError as error:
        raise _failed(proxy, error) from None
    except (UnicodeError, ValueError) as error:
        raise NoWay(
            say(
                "The proxy {proxy} cannot be given the upstream's name: {reason}.",
                proxy=proxy,
                reason=str(error),
            ),
            is_setup=True,
        ) from None
    if not stream.is_ready:
        await stream.close()
        raise NoWay(
            say("The proxy {proxy} closed the connection, or sends what it must not.", proxy=proxy)
        )


class _Opened(Negotiation):
    """Takes the place of another proxy, through which python-socks would connect to this one."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    async def connect(self, *_: object, **__: object) -> Stream:  # type: ignore[override]
        return self._stream


def _failed(proxy: Proxy, error: ProxyError) -> NoWay:
    code = error.error_code
    # python-socks describes SOCKS codes; for HTTP only the proxy would.
    shown = f" ({code if proxy.speaks_http else error})" if code is not None else ""
    if code in (401, 407) or "uthentication" in str(error):
        return NoWay(
            say(
                "The proxy {proxy} does not accept the gateway's user and password{code}; "
                "put them into its URL: scheme://user:password@host:port.",
                proxy=proxy,
                code=shown,
            ),
            is_setup=True,
        )
    if code is None:
        return NoWay(
            say(
                "What listens at {proxy} does not answer as such a proxy; check its scheme "
                "and port.",
                proxy=proxy,
            ),
            is_setup=True,
        )
    is_down = code >= 500 if proxy.speaks_http else code != _SOCKS_NOT_ALLOWED
    if is_down:
        return NoWay(
            say("The proxy {proxy} cannot reach the upstream{code}.", proxy=proxy, code=shown),
            is_refusal=True,
        )
    return NoWay(
        say(
            "The proxy {proxy} does not let the gateway reach the upstream{code}; allow "
            "it there, or go direct with proxy: none or NO_PROXY.",
            proxy=proxy,
            code=shown,
        ),
        is_setup=True,
        is_refusal=True,
    )


def no_proxy_there(proxy: Proxy, error: OSError | UnicodeError) -> NoWay:
    """The error for a failed connection to the proxy itself."""
    if isinstance(error, ssl.SSLError):
        return NoWay(
            say(
                "No TLS connection to the proxy {proxy}: {reason}; if its certificate is one "
                "of your own, trust its authority with ca.",
                proxy=proxy,
                reason=tls_reason(error),
            ),
            is_setup=True,
        )
    if isinstance(error, socket.gaierror | UnicodeError):
        return NoWay(
            say(
                "The host name of the proxy {proxy} cannot be resolved; check its URL.", proxy=proxy
            )
        )
    return NoWay(
        say("The proxy {proxy} refuses connections; is it up, and its URL right?", proxy=proxy)
    )
