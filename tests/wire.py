"""A bad line between the gateway and a server: TCP that is cut, hangs, is slow or half-open."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from email import message_from_bytes, policy
from typing import Any

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(serve: Serve, **options: Any) -> AsyncIterator[int]:
    """Answer each connection to a port, which is given, by `serve`. At the end all are closed.

    A connection left open is closed when it is collected, with a warning that fails whatever test
    runs at that moment.
    """
    tasks: set[asyncio.Task[Any]] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await serve(reader, writer)
        finally:
            writer.transport.abort() if writer.transport.is_closing() else writer.close()
            with suppress(OSError):
                await writer.wait_closed()
            tasks.discard(task)

    server = await asyncio.start_server(answer, "127.0.0.1", 0, **options)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await asyncio.sleep(0)  # a connection that was just accepted has its task now
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(set(tasks))


class Wire:
    """Forwards bytes to `port` of this machine, in one of these states:

    `up` · `down`: the port is closed and open connections end · `hangs`: connections are accepted
    but no bytes come back · `slow`: every piece arrives `slow_s` later · `resets`: connections are
    reset at the first byte · `half-open`: open connections are dead unnoticed, new ones work.
    """

    slow_s = 0.2

    def __init__(self, target: int) -> None:
        self._target = target
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._dead: set[asyncio.StreamWriter] = set()  # bytes for these are dropped
        self.state = "up"
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def become(self, state: str) -> None:
        was_down, self.state = self.state == "down", state
        if state == "down":
            await self.close()
        elif was_down:
            await self.start()
        if state in ("hangs", "half-open"):
            self._dead |= self._writers
        if state in ("resets", "up"):  # lost bytes will not arrive any more
            for writer in self._dead if state == "up" else self._writers:
                writer.transport.abort()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._server is None:  # accepted during `close`
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        if self.state == "hangs":
            self._dead.add(writer)
        try:
            with suppress(OSError, asyncio.CancelledError):
                await self._join(reader, writer)
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            self._dead.discard(writer)
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.state == "hangs":
            await asyncio.sleep(3600)
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        ways = [
            asyncio.ensure_future(self._pump(reader, far_writer, writer)),
            asyncio.ensure_future(self._pump(far_reader, writer, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            far_writer.close()  # first: `close` may cancel the waiting
            for way in ways:
                way.cancel()
            await asyncio.wait(ways)
            with suppress(OSError):
                await far_writer.wait_closed()

    async def _pump(
        self, source: asyncio.StreamReader, to: asyncio.StreamWriter, near: asyncio.StreamWriter
    ) -> None:
        while data := await source.read(65536):
            if self.state == "resets":
                linger = struct.pack("ii", 1, 0)
                near.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, linger
                )
                near.transport.abort()
                return
            if near in self._dead:
                continue
            if self.state == "slow":
                await asyncio.sleep(self.slow_s)
            to.write(data)
            await to.drain()
        if near in self._dead:
            await asyncio.sleep(3600)


def parts_of(headers: dict[str, str], body: bytes) -> list[tuple[Any, Any, Any]]:
    """(name, filename, bytes) of each part of a form."""
    whole = b"Content-Type: " + headers["content-type"].encode() + b"\r\n\r\n" + body
    parts = message_from_bytes(whole, policy=policy.HTTP).iter_parts()
    return [
        (
            part.get_param("name", header="content-disposition"),
            part.get_filename(),
            part.get_payload(decode=True),
        )
        for part in parts
    ]
