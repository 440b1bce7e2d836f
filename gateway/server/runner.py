"""Serve an application: on connections with bounds, on sockets that accept quickly."""

import asyncio
import logging
import socket
import ssl
from functools import partial

import aiohttp
from aiohttp import web

from gateway.http.context import IN_FLIGHT
from gateway.http.language import configured
from gateway.server.aiohttp_internals import BoundedConnection, obstacle
from gateway.server.connections import SEND_S, Connection, Server
from gateway.system import CAN_LISTEN_TWICE

log = logging.getLogger("gateway")

AT_ONCE = 16  # connections accepted per loop iteration


class Runner(web.AppRunner):
    """AppRunner that cancels handlers when their caller disconnects, accepts at most `most`
    connections, and closes those whose client takes nothing for `send_s`. On a stop connections
    have `patience_s` to end.

    aiohttp's runner makes a server for the application; this one serves the same with a `Server` of
    its own, which sites find as `server`.
    """

    def __init__(
        self,
        app: web.Application,
        most: int = 10_000,
        send_s: float = SEND_S,
        patience_s: float = 60.0,
    ) -> None:
        super().__init__(app)
        self.most, self.send_s, self.patience_s = most, send_s, patience_s
        self.bounded: Server | None = None

    @property
    def server(self) -> web.Server | None:
        return self.bounded

    async def setup(self) -> None:
        logging.getLogger("aiohttp.server").addFilter(_is_worth_a_line)
        await super().setup()
        served = super().server
        assert served is not None
        in_flight = self.app.get(IN_FLIGHT)
        language = partial(configured, self.app)
        self.bounded = Server(served, _kind(), self.most, self.send_s, in_flight, language)

    async def shutdown(self) -> None:
        if self.bounded is not None:
            self.bounded.pre_shutdown()
        await super().shutdown()
        if self.bounded is not None:
            await self.bounded.shutdown(self.patience_s)
            self.bounded = None


def _kind() -> type[Connection]:
    """The class of connections that this aiohttp can serve."""
    if not (reason := obstacle()):
        return BoundedConnection
    log.warning(
        "aiohttp %s parses and writes by itself, which is slower and less bounded: %s",
        aiohttp.__version__,
        reason,
    )
    return Connection


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """Whether to log the record: bad input was answered with a 400, and aiohttp would add a
    traceback."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, web.RequestPayloadError)


async def bind(host: str, port: int, *, reuse_port: bool = False) -> asyncio.Server:
    """Take the address without listening to it. Raises OSError."""
    return await asyncio.get_running_loop().create_server(
        asyncio.Protocol, host, port, reuse_port=reuse_port or None, start_serving=False
    )


async def listen(
    runner: Runner,
    bound: asyncio.Server,
    backlog: int = 128,
    tls: ssl.SSLContext | None = None,
) -> None:
    """Listen so that up to AT_ONCE connections are accepted per loop iteration. uvloop accepts one
    per listening socket and iteration, so a client that opens many would delay others by as many
    iterations. So each socket is listened to through AT_ONCE descriptors. Raises OSError.
    """
    try:
        times = AT_ONCE if CAN_LISTEN_TWICE else 1
        for number in [one.fileno() for one in bound.sockets for _ in range(times)]:
            again = socket.socket(fileno=socket.dup(number))
            await web.SockSite(runner, again, backlog=backlog, ssl_context=tls).start()
    finally:
        bound.close()
