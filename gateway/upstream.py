"""One exchange with an upstream: send, yield bytes, and translate every aiohttp error."""

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import aiohttp.http_exceptions

from gateway.errors import (
    GatewayError,
    InternalError,
    UpstreamConnectTimeout,
    UpstreamCut,
    UpstreamFailed,
    UpstreamMisconfigured,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from gateway.exchange import Source, UploadRequest, UpstreamReply, UpstreamRequest

MAX_REPLY = 4 << 20  # bytes of an answer that is read whole
MAX_BACKGROUND = 10_000
_DRAIN_S = 1.0
_MIME = re.compile(r"[A-Za-z0-9.+\-]{1,60}/[A-Za-z0-9.+\-]{1,100}")


class Exchange:
    """An answer whose headers have come. Read it to b"", or close it early."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self._first: bytes | None = None  # read ahead, to see what it is
        self.read_some = response.content.readany  # as `read`, but with aiohttp's own errors
        self.status = response.status
        self.headers = response.headers

    @property
    def is_json(self) -> bool:
        kind = self._response.content_type
        return kind == "application/json" or kind.endswith("+json")

    @property
    def is_page(self) -> bool:
        return self._response.content_type in ("text/html", "application/xhtml+xml")

    async def peek(self) -> bytes:
        """The first bytes of the body, which `read` will give again; b"" if there are none."""
        self._first = await self.read()
        return self._first

    @property
    def is_gone(self) -> bool:
        """Whether the connection broke before the answer's end."""
        connection = self._response.connection
        if connection is None or connection.transport is None:
            return not self._response.content.is_eof()
        return connection.transport.is_closing()

    async def read(self) -> bytes:
        """The next bytes as they come from the network; b"" at the end."""
        if self._first is not None:
            first, self._first = self._first, None
            return first
        try:
            return await self.read_some()
        except Exception as error:
            raise translate(error) from None

    async def reply(self) -> UpstreamReply:
        """The whole answer. Raises UpstreamFailed if it is longer than an API's answer can be."""
        body = bytearray()
        while chunk := await self.read():
            body += chunk
            if len(body) > MAX_REPLY:
                raise UpstreamFailed(f"The upstream's answer is longer than {MAX_REPLY} bytes.")
        return UpstreamReply(self.status, self.headers, bytes(body))

    def close(self) -> None:
        """End the connection: the way every platform understands that nobody listens any more."""
        self._response.close()

    async def drain(self) -> None:
        """Read what may follow a complete answer, so that the connection can be used again."""
        try:
            async with asyncio.timeout(_DRAIN_S):
                while await self.read_some():
                    pass
        except (TimeoutError, aiohttp.ClientError, OSError):
            pass
        finally:
            self._response.close()

    @property
    def is_drained(self) -> bool:
        return self._response.content.is_eof()


class Upstream:
    """The client side of the gateway: one connection pool, and calls that outlive their request."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self._background: set[asyncio.Task[None]] = set()

    async def send(
        self, request: UpstreamRequest, connect_s: float, beside: Mapping[str, str] | None = None
    ) -> Exchange:
        """Send, with `beside` among the headers, and wait for the answer's headers. Redirects are
        not followed: they would carry the key."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_s)
        try:
            response = await self._session.request(
                request.method,
                request.url,
                data=request.body or None,
                headers={**beside, **request.headers} if beside else request.headers,
                timeout=timeout,
                allow_redirects=False,
            )
        except Exception as error:
            raise translate(error) from None
        return Exchange(response)

    async def fetch(
        self, request: UpstreamRequest, connect_s: float, total_s: float
    ) -> UpstreamReply:
        """A whole answer within `total_s`."""
        try:
            async with asyncio.timeout(total_s):
                exchange = await self.send(request, connect_s)
                try:
                    return await exchange.reply()
                finally:
                    exchange.close()
        except TimeoutError:
            raise UpstreamTimeout(f"The upstream did not answer within {total_s:g} s.") from None

    async def send_file(
        self,
        request: UploadRequest,
        source: Source,
        user: Callable[[], str],
        connect_s: float,
        total_s: float,
    ) -> UpstreamReply:
        """Send a file as it comes; `user` is asked when all of it has been sent.

        Raises what `source` or `user` raise, and then the upstream never has the whole form.
        """
        form = _FileForm(request, source, user)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_s)
        try:
            async with asyncio.timeout(total_s):
                response = await self._session.post(
                    request.url,
                    data=form.body(),
                    headers=form.headers(),
                    timeout=timeout,
                    allow_redirects=False,
                )
                exchange = Exchange(response)
                try:
                    reply = await exchange.reply()
                finally:
                    exchange.close()
            if reply.status < 300 and not form.is_read:
                raise UpstreamFailed("The upstream answered before it had the whole file.")
            return reply
        except TimeoutError:
            error = UpstreamTimeout(f"The upstream did not take the file within {total_s:g} s.")
            error.outage = form.is_read  # else it may as well be the sender who is slow
            raise error from None
        except Exception as error:
            if form.failure is not None:
                raise form.failure from None
            raise translate(error) from None

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Do `work` beside the requests. Bounded: past the limit it is dropped."""
        if len(self._background) >= MAX_BACKGROUND:
            work.close()
            return
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def finish_background(self) -> None:
        """Wait briefly for what is under way; called once, at the end."""
        if self._background:
            await asyncio.wait(self._background, timeout=2)
        for task in list(self._background):
            task.cancel()


class _FileForm:
    """The multipart body of an upload. `failure` is what its source raised."""

    def __init__(self, request: UploadRequest, source: Source, user: Callable[[], str]) -> None:
        self._request = request
        self._source = source
        self._user = user
        # Not to be guessed: who sends the file could close the form and add fields of their own.
        self._boundary = f"gateway-{secrets.token_hex(16)}"
        name = source.name.replace('"', "%22").replace("\r", "").replace("\n", "")
        mime = source.mime if _MIME.fullmatch(source.mime) else "application/octet-stream"
        self._head = (
            f'--{self._boundary}\r\nContent-Disposition: form-data; name="file";'
            f' filename="{name}"\r\nContent-Type: {mime}\r\n\r\n'
        ).encode("utf-8", "replace")
        self.failure: Exception | None = None
        self.is_read = False  # all of the source

    def _tail(self) -> bytes:
        fields = ""
        if self._request.user_field:
            fields = (
                f"\r\n--{self._boundary}\r\nContent-Disposition: form-data;"
                f' name="{self._request.user_field}"\r\n\r\n{self._user()}'
            )
        return f"{fields}\r\n--{self._boundary}--\r\n".encode("utf-8", "replace")

    def headers(self) -> dict[str, str]:
        """Without a size the body goes in chunks, which not all servers like."""
        out = dict(self._request.headers)
        out["Content-Type"] = f"multipart/form-data; boundary={self._boundary}"
        if self._source.size is not None:
            out["Content-Length"] = str(len(self._head) + self._source.size + len(self._tail()))
        return out

    async def body(self) -> AsyncIterator[bytes]:
        sent = 0
        try:
            yield self._head
            async for chunk in self._source.chunks:
                sent += len(chunk)
                yield chunk
            if self._source.size not in (None, sent):
                raise InternalError("A file is not as long as it was said to be.")
            tail = self._tail()
            self.is_read = True
        except Exception as error:
            self.failure = error
            raise
        yield tail


@asynccontextmanager
async def open_upstream() -> AsyncIterator[Upstream]:
    """The pool, without cookies and without a limit of its own: agents have theirs.

    An idle connection is kept for less than common servers keep it (uvicorn and Node 5 s, nginx
    75 s): a question sent into one that is just being closed is lost, and is not ours to
    repeat.
    """
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=4)
    async with aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": "ai-gateway", "Accept-Encoding": "identity"},
    ) as session:
        upstream = Upstream(session)
        try:
            yield upstream
        finally:
            await upstream.finish_background()


# From special to general: the first row that fits is taken.
_FOREIGN: list[tuple[tuple[type[Exception], ...], type[GatewayError], str]] = [
    (
        (aiohttp.ConnectionTimeoutError,),
        UpstreamConnectTimeout,
        "No connection to the upstream in time; is it up?",
    ),
    (
        (aiohttp.ClientConnectorCertificateError, aiohttp.ClientSSLError),
        UpstreamMisconfigured,
        "The upstream's TLS certificate is not accepted.",
    ),
    (
        (aiohttp.ClientConnectorDNSError,),
        UpstreamUnreachable,
        "The upstream's host name cannot be resolved; check base_url.",
    ),
    (
        (aiohttp.ClientConnectorError, ConnectionRefusedError),
        UpstreamUnreachable,
        "The upstream refuses connections; is it up, and base_url right?",
    ),
    (
        (aiohttp.InvalidURL,),
        UpstreamMisconfigured,
        "The upstream's address cannot be used; check base_url.",
    ),
    (
        (aiohttp.ServerTimeoutError, TimeoutError),
        UpstreamTimeout,
        "The upstream did not answer in time.",
    ),
    (
        # RuntimeError is what uvloop raises for a transport that has just closed.
        (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, ConnectionError, RuntimeError),
        UpstreamCut,
        "The upstream closed the connection without an answer.",
    ),
    (
        (aiohttp.ClientPayloadError,),
        UpstreamCut,
        "The upstream's answer ended before it was complete.",
    ),
    (
        (aiohttp.ClientResponseError, aiohttp.http_exceptions.HttpProcessingError),
        UpstreamFailed,
        "The upstream's answer is not valid HTTP.",
    ),
    (
        (aiohttp.ClientError, OSError, ValueError),
        UpstreamFailed,
        "The call to the upstream failed.",
    ),
]


def translate(error: Exception) -> Exception:
    """The gateway's error for what aiohttp raised; what is no network's fault comes back as is."""
    if isinstance(error, GatewayError):
        return error
    for foreign, ours, message in _FOREIGN:
        if isinstance(error, foreign):
            return ours(message)
    return error
