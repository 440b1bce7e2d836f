"""One connection to an upstream: HTTP/1.1 on an asyncio transport, parsed by llhttp.

aiohttp's client is half of what bare aiohttp costs for a call, and it wakes a task for every read.
Here bytes go from the transport to whoever listens in one call; a reader that prefers to wait can
do that as well.
"""

import asyncio
import ssl
import zlib
from collections.abc import Callable
from typing import cast

import httptools
from multidict import CIMultiDict, CIMultiDictProxy

from gateway.upstream.fairness import OneATurn

MAX_HEAD = 64 << 10  # bytes of an answer's status line and headers
MAX_INFLATED = 16 << 20  # bytes that one read may inflate to
BULK = 64 << 10  # bytes in one read; other upstreams' come before the next one
_HIGH_WATER = 256 << 10  # bytes that wait for a reader, before the upstream has to wait

Listener = Callable[[bytes], None]


class NoAnswer(ConnectionError):
    """The connection ended before an answer had begun."""


class AnswerCut(ConnectionError):
    """The connection ended in the middle of an answer."""


class NotHttp(Exception):
    """What came is no HTTP/1.1 answer, or none that was asked for."""


class Connection(asyncio.Protocol):
    """One connection, used for one exchange at a time: `send`, wait for `answered`, then read to
    b"" or `listen`.

    `idle_since` is loop time. `on_free` is called when an exchange has ended and the connection can
    be used again, and when it is gone (`transport` is None then).
    """

    __slots__ = (
        "_between",
        "_bulk",
        "_decodes",
        "_error",
        "_fields",
        "_fresh",
        "_head",
        "_head_size",
        "_inflate",
        "_is_asked",
        "_is_whole",
        "_keeps",
        "_listener",
        "_loop",
        "_on_free",
        "_parser",
        "_paused",
        "_pieces",
        "_rests",
        "_size",
        "_until_close",
        "_waiter",
        "_writable",
        "fast_path",
        "idle_since",
        "kind",
        "status",
        "transport",
    )  # fmt: skip

    def __init__(
        self, on_free: Callable[["Connection"], None], bulk: OneATurn, decodes: bool = True
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._bulk = bulk
        self._rests = False  # until its turn comes, after much in one read
        self._on_free = on_free
        self._decodes = decodes  # else a body is given as it comes, whatever its encoding
        self._parser = httptools.HttpResponseParser(self)
        # What servers in the world send and every client reads.
        self._parser.set_dangerous_leniencies(
            lenient_headers=True,
            lenient_optional_cr_before_lf=True,
            lenient_spaces_after_chunk_size=True,
        )
        self.transport: asyncio.Transport | None = None
        self._writable: asyncio.Future[None] | None = None  # while the transport's buffer is full
        self.idle_since = 0.0
        self._is_asked = False  # an exchange is under way
        self._begin()

    def _begin(self) -> None:
        """Everything that belongs to one answer."""
        self.status = 0
        self.kind = ""  # Content-Type, like `headers`
        # Offered each read while the parser stands between two chunks; says whether it has dealt
        # with all of it, one whole chunk, after which the parser would stand there again.
        self.fast_path: Callable[[bytes], bool] | None = None
        self._head: asyncio.Future[None] | None = None
        self._head_size = 0
        self._fields: list[tuple[bytes, bytes]] = []
        # Pieces of the body; None for none, since thousands of links hold none.
        self._fresh: list[bytes] | None = None  # of the read that is being parsed
        self._pieces: list[bytes] | None = None  # that nobody has read yet
        self._size = 0  # bytes of them
        self._waiter: asyncio.Future[None] | None = None
        self._listener: Listener | None = None
        self._inflate: zlib._Decompress | None = None
        self._between = self._is_whole = self._keeps = self._until_close = self._paused = False
        self._error: Exception | None = None

    # Asking.

    def send(self, data: bytes) -> None:
        """Send a request, or the next part of one. Raises NoAnswer on a closed connection."""
        if self.transport is None or self.transport.is_closing():
            raise NoAnswer
        if not self._is_asked:
            self._begin()
            self._is_asked = True
            self._head = self._loop.create_future()
        self.transport.write(data)

    async def drain(self) -> None:
        """Wait until what was sent is on its way, or until it is not worth sending any more."""
        if self._writable is not None and not self.has_answered:
            assert self._head is not None
            await asyncio.wait({self._writable, self._head}, return_when="FIRST_COMPLETED")

    @property
    def has_answered(self) -> bool:
        """Whether an answer has begun, or none will come."""
        return self._head is None or self._head.done()

    def answered(self) -> asyncio.Future[None]:
        """To be awaited: the answer's status and headers are there. Raises NoAnswer or NotHttp."""
        assert self._head is not None
        return self._head

    @property
    def headers(self) -> CIMultiDictProxy[str]:
        """Those of the answer, until its body is listened to."""
        return CIMultiDictProxy(
            CIMultiDict(
                (name.decode("latin-1"), value.decode("utf-8", "surrogateescape"))
                for name, value in self._fields
            )
        )

    # Reading.

    @property
    def is_whole(self) -> bool:
        """Whether the end of the answer has come, if perhaps it has not been read."""
        return self._is_whole

    @property
    def is_gone(self) -> bool:
        """Whether the connection broke before the answer's end."""
        return self._error is not None

    async def read(self) -> bytes:
        """What has come since the last read, as soon as there is anything; b"" at the end.

        Raises AnswerCut or NotHttp.
        """
        while (chunk := self.read_at_once()) is None:
            if self._error is not None:
                raise self._error.with_traceback(None)
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return chunk

    def read_at_once(self) -> bytes | None:
        """What `read` gives if nothing has to be waited for, else None."""
        if self._pieces:
            return self._take()
        return b"" if self._is_whole else None

    def _take(self) -> bytes:
        pieces, self._pieces, self._size = self._pieces, None, 0
        self.resume()
        return _joined(pieces)

    def listen(self, listener: Listener | None) -> None:
        """Call `listener` with each piece of the body as it comes, and with b"" when no more will;
        `failure` then tells whether that was the end. None: reads wait for them again."""
        self._listener, self.fast_path = listener, None
        # Thousands of streams would keep theirs to their end.
        self.kind, self._fields, self._head = "", _NO_FIELDS, None
        if listener is not None and self._pieces:
            listener(self._take())
        if self._listener is not None and (self._is_whole or self._error is not None):
            self._listener(b"")

    @property
    def failure(self) -> Exception | None:
        """Why the answer has no end."""
        return self._error

    def pause(self) -> None:
        """Let the upstream wait."""
        if not self._paused and self.transport is not None and not self.transport.is_closing():
            self._paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            self._read_on()

    def _rest(self) -> None:
        """A read of a thousand events costs milliseconds, and all upstreams may bring one."""
        if self.transport is not None and not self.transport.is_closing():
            self._rests = True
            self.transport.pause_reading()
            self._bulk.add(self._rested)

    def _rested(self) -> None:
        self._rests = False
        self._read_on()

    def _read_on(self) -> None:
        if self._paused or self._rests:
            return
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    # Ending.

    def leave(self) -> None:
        """Done with the answer: if it is whole the connection is free for another, else closed.
        Only for whose exchange it is: afterwards it may be another's."""
        if self._is_whole and self._keeps and self._error is None and self.transport is not None:
            self.resume()
            self._listener, self.fast_path, self._head = None, None, None
            self._pieces, self._is_asked = None, False
            self._on_free(self)
        else:
            self.close()

    def finish(self, patience_s: float) -> None:
        """Done with the answer, whose end may not have come yet: so long it is waited for."""
        if self._is_whole or self.is_gone or self.transport is None:
            self.leave()
            return
        timer = self._loop.call_later(patience_s, self.close)

        def ended(chunk: bytes) -> None:
            if not chunk:
                timer.cancel()
                self.leave()

        self.listen(ended)

    def close(self) -> None:
        """End the connection, now: graceful ends of TLS may take their time."""
        self._listener, self.fast_path = None, None
        if self.transport is not None:
            self.transport.abort()

    # What the transport tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's own is one but for its name

    def data_received(self, data: bytes) -> None:
        if self._between and (fast_path := self.fast_path) is not None and fast_path(data):
            return
        error: Exception | None = None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as wrapped:
            error = NotHttp(str(wrapped.__context__))
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as found:
            error = NotHttp(str(found))
        if not self.status:
            self._head_size += len(data)
            if self._head_size > MAX_HEAD:
                error = NotHttp(f"headers of more than {MAX_HEAD} bytes")
        # Else a part of the next chunk's first line has come, and only the parser knows of it.
        self._between = self._between and data.endswith(b"\r\n")
        if len(data) > BULK:
            self._rest()
        self._deliver()
        if error is not None:
            self._fail(error)
            self.close()

    def _deliver(self) -> None:
        fresh, self._fresh = self._fresh, None
        chunk = _joined(fresh)
        if self._listener is not None:
            if chunk:
                self._listener(chunk)
            if self._is_whole and self._listener is not None:
                self._listener(b"")
            return
        if chunk:
            if self._pieces is None:
                self._pieces = []
            self._pieces.append(chunk)
            self._size += len(chunk)
            if self._size > _HIGH_WATER:
                self.pause()
        if chunk or self._is_whole:
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def pause_writing(self) -> None:
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._writable is not None:
            self._writable.set_result(None)
            self._writable = None

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self.resume_writing()
        if self._until_close and exc is None and self._error is None:
            self._is_whole = True
            self._deliver()
        elif self._is_asked:
            # With TLS 1.3 a client's certificate is refused only here.
            refusal = exc if isinstance(exc, ssl.SSLError) and not self.status else None
            self._fail(refusal or (AnswerCut() if self.status else NoAnswer()))
        self._on_free(self)

    def _fail(self, error: Exception) -> None:
        if self._error is not None or self._is_whole:  # what follows the end takes nothing back
            return
        self._error = error
        if self._head is not None and not self._head.done():
            self._head.set_exception(error)
            self._head.exception()  # whoever asked may have left
        self._wake()
        if self._listener is not None:
            self._listener(b"")

    # What the parser tells.

    def on_message_begin(self) -> None:
        if not self._is_asked or self._is_whole:  # an answer to nothing: it would be the next one's
            raise NotHttp("an answer that nobody has asked for")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.status:  # else a trailer
            self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:  # an interim answer, such as 103; the real one follows
            self._fields = []
            return
        self.status = status
        # Of a header that comes twice the first counts.
        fields = {name.lower(): value for name, value in reversed(self._fields)}
        has_length = b"content-length" in fields or b"transfer-encoding" in fields
        self._until_close = not has_length and status not in (204, 304)
        self._keeps = self._parser.should_keep_alive() and not self._until_close
        self.kind = fields.get(b"content-type", b"").decode("latin-1")
        encoding = fields.get(b"content-encoding", b"").lower() if self._decodes else b""
        if encoding in (b"gzip", b"x-gzip", b"deflate"):
            self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)
        elif encoding not in (b"identity", b""):
            shown = encoding[:20].decode("ascii", "replace")
            raise NotHttp(f"encoded as {shown}, which was not asked for")
        if self._head is not None and not self._head.done():
            self._head.set_result(None)

    def on_body(self, data: bytes) -> None:
        if self._inflate is not None:
            data = self._inflate.decompress(data, MAX_INFLATED)
            if self._inflate.unconsumed_tail:
                raise NotHttp("an answer that is compressed beyond measure")
        if not data:
            return
        if self._fresh is None:
            self._fresh = [data]
        else:
            self._fresh.append(data)

    def on_chunk_header(self) -> None:
        self._between = False

    def on_chunk_complete(self) -> None:
        self._between = self._inflate is None

    def on_message_complete(self) -> None:
        if self.status:  # else an interim answer's end
            self._is_whole, self._between = True, False


_NO_FIELDS: list[tuple[bytes, bytes]] = []  # nothing is added once an answer has begun


def _joined(pieces: list[bytes] | None) -> bytes:
    if pieces is None:
        return b""
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
