"""A proxy that speaks CONNECT, connects every name to one server, and misbehaves on demand."""

import asyncio
from contextlib import suppress

from conftest import Scripted


class Doorway(Scripted):
    """`heads` are the requests that it received; `answer` is its reply to one, byte for byte. It
    then connects to the port `target`, or without one ends the connection."""

    def __init__(self, target: int = 0, answer: bytes = b"HTTP/1.1 200 OK\r\n\r\n") -> None:
        super().__init__()
        self.target = target
        self.answer = answer
        self.heads: list[str] = []

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        for at in range(0, len(self.answer), 7):  # in pieces: a head may arrive in several reads
            writer.write(self.answer[at : at + 7])
            await asyncio.sleep(0)
        if not self.target:
            await writer.drain()
            return
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        await asyncio.gather(_pipe(reader, far_writer), _pipe(far_reader, writer))


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        with suppress(ConnectionError):
            while piece := await reader.read(65536):
                writer.write(piece)
                await writer.drain()
    finally:
        writer.close()
