"""One connection to an upstream: HTTP/1.1 on an asyncio transport, parsed by llhttp.

aiohttp's client causes half of bare aiohttp's cost per call, and it wakes a task for every read.
Here bytes go from the transport to a listener in one call; a reader can also wait for them.
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
BULK = 64 << 10  # bytes in one read; after it other upstreams have their turn
_HIGH_WATER = 256 << 10  # bytes queued for a reader before the upstream has to wait

Listener = Callable[[bytes], None]


class NoAnswer(ConnectionError):
    """The connection ended before an answer had begun."""


class AnswerCut(ConnectionError):
    """The connection ended in the middle of an answer."""


class NotHttp(Exception):
    """The bytes received are not an HTTP/1.1 answer, or answer no request."""


class Connection(asyncio.Protocol):
    """One connection, used for one exchange at a time: `send`, wait for `answered`, then read to
    b"" or `listen`.

    `idle_since` is loop time. `on_free` is called when an exchange has ended and the connection can
    be reused, and when it is closed (`transport` is None then).
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
        "is_cut_short",
        "kind",
        "status",
        "transport",
    )  # fmt: skip

    def __init__(
        self, on_free: Callable[["Connection"], None], bulk: OneATurn, decodes: bool = True
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._bulk = bulk
        self._rests = False  # reading is paused until its turn, after a large read
        self._on_free = on_free
        self._decodes = decodes  # else the body keeps its encoding
        self._parser = httptools.HttpResponseParser(self)
        # Deviations that real servers send and every client accepts.
        self._parser.set_dangerous_leniencies(
            lenient_headers=True,
            lenient_optional_cr_before_lf=True,
            lenient_spaces_after_chunk_size=True,
        )
        self.transport: asyncio.Transport | None = None
        # set while the transport's buffer is full
        self._writable: asyncio.Future[None] | None = None
        self.idle_since = 0.0
        self._is_asked = False  # an exchange is in flight
        self._begin()

    def _begin(self) -> None:
        """Reset everything that belongs to one answer."""
        self.status = 0
        self.is_cut_short = False  # part of the request was not sent: nothing else may follow it
        self.kind = ""  # Content-Type; lives as long as `headers`
        # Receives each read while the parser is between two chunks; returns whether it has handled
        # all of it as one whole chunk, so that the parser is still between chunks.
        self.fast_path: Callable[[bytes], bool] | None = None
        self._head: asyncio.Future[None] | None = None
        self._head_size = 0
        self._fields: list[tuple[bytes, bytes]] = []
        # Pieces of the body; None if empty, since thousands of connections hold none.
        self._fresh: list[bytes] | None = None  # of the read that is being parsed
        self._pieces: list[bytes] | None = None  # not read yet
        self._size = 0  # bytes of `_pieces`
        self._waiter: asyncio.Future[None] | None = None
        self._listener: Listener | None = None
        self._inflate: zlib._Decompress | None = None
        self._between = self._is_whole = self._keeps = self._until_close = self._paused = False
        self._error: Exception | None = None

    # Sending.

    def send(self, data: bytes) -> None:
        """Send a request, or its next part. Raises NoAnswer on a closed connection."""
        if self.transport is None or self.transport.is_closing():
            raise NoAnswer
        if not self._is_asked:
            self._begin()
            self._is_asked = True
            self._head = self._loop.create_future()
        self.transport.write(data)

    async def drain(self) -> None:
        """Wait until the buffer has room, or until an answer makes further sending pointless."""
        if self._writable is not None and not self.has_answered:
            assert self._head is not None
            await asyncio.wait({self._writable, self._head}, return_when="FIRST_COMPLETED")

    @property
    def has_answered(self) -> bool:
        """Whether an answer has begun, or none will come."""
        return self._head is None or self._head.done()

    def answered(self) -> asyncio.Future[None]:
        """Await it: the answer's status and headers have arrived. Raises NoAnswer or NotHttp."""
        assert self._head is not None
        return self._head

    @property
    def headers(self) -> CIMultiDictProxy[str]:
        """The answer's headers; empty once `listen` is called."""
        return CIMultiDictProxy(
            CIMultiDict(
                (name.decode("latin-1"), value.decode("utf-8", "surrogateescape"))
                for name, value in self._fields
            )
        )

    # Reading.

    @property
    def is_whole(self) -> bool:
        """Whether the end of the answer has arrived, even if it has not been read."""
        return self._is_whole

    @property
    def is_gone(self) -> bool:
        """Whether the connection broke before the answer's end."""
        return self._error is not None

    async def read(self) -> bytes:
        """The bytes received since the last read, as soon as there are any; b"" at the end.

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
        """The result of `read` if it is available without waiting, else None."""
        if self._pieces:
            return self._take()
        return b"" if self._is_whole else None

    def _take(self) -> bytes:
        pieces, self._pieces, self._size = self._pieces, None, 0
        self.resume()
        return _joined(pieces)

    def listen(self, listener: Listener | None) -> None:
        """Call `listener` with each piece of the body as it arrives, and with b"" after the last
        one; `failure` then shows whether the answer is complete. None: bytes are queued for `read`
        again."""
        self._listener, self.fast_path = listener, None
        # Free them: thousands of streams would keep theirs to their end.
        self.kind, self._fields, self._head = "", _NO_FIELDS, None
        if listener is not None and self._pieces:
            listener(self._take())
        if self._listener is not None and (self._is_whole or self._error is not None):
            self._listener(b"")

    @property
    def failure(self) -> Exception | None:
        """Why the answer broke off, or None."""
        return self._error

    def pause(self) -> None:
        """Stop reading from the upstream."""
        if not self._paused and self.transport is not None and not self.transport.is_closing():
            self._paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            self._read_on()

    def _rest(self) -> None:
        """Pause after a large read: parsing a thousand events takes milliseconds, and all upstreams
        may send as many."""
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

    def release(self) -> None:
        """End the exchange: a complete answer to a complete request frees the connection for
        another, else it is closed.
        Call it only for one's own exchange: afterwards the connection may serve another."""
        is_reusable = self._is_whole and self._keeps and not self.is_cut_short
        if is_reusable and self._error is None and self.transport is not None:
            self.resume()
            self._listener, self.fast_path, self._head = None, None, None
            self._pieces, self._is_asked = None, False
            self._on_free(self)
        else:
            self.close()

    def finish(self, patience_s: float) -> None:
        """Release the connection, waiting up to `patience_s` for the rest of the body."""
        if self._is_whole or self.is_gone or self.transport is None:
            self.release()
            return
        timer = self._loop.call_later(patience_s, self.close)

        def ended(chunk: bytes) -> None:
            if not chunk:
                timer.cancel()
                self.release()

        self.listen(ended)

    def close(self) -> None:
        """Close the connection immediately: a graceful end of TLS may take long."""
        self._listener, self.fast_path = None, None
        if self.transport is not None:
            self.transport.abort()

    # Callbacks of the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transport has the interface, not the base class
        self.transport = cast(asyncio.Transport, transport)

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
        # Else part of the next chunk's first line has arrived, and only the parser has it.
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
            # With TLS 1.3 a server refuses a client's certificate only here.
            refusal = exc if isinstance(exc, ssl.SSLError) and not self.status else None
            self._fail(refusal or (AnswerCut() if self.status else NoAnswer()))
        self._on_free(self)

    def _fail(self, error: Exception) -> None:
        # an error after the end does not undo the answer
        if self._error is not None or self._is_whole:
            return
        self._error = error
        if self._head is not None and not self._head.done():
            self._head.set_exception(error)
            self._head.exception()  # the awaiting task may be gone
        self._wake()
        if self._listener is not None:
            self._listener(b"")

    # Callbacks of the parser.

    def on_message_begin(self) -> None:
        # an unrequested answer would be taken for the next one
        if not self._is_asked or self._is_whole:
            raise NotHttp("an answer without a request")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.status:  # else a trailer
            self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:  # an interim answer, such as 103; the final one follows
            self._fields = []
            return
        self.status = status
        # The first of repeated headers counts.
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


_NO_FIELDS: list[tuple[bytes, bytes]] = []  # shared: headers are not added once an answer has begun


def _joined(pieces: list[bytes] | None) -> bytes:
    if pieces is None:
        return b""
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
