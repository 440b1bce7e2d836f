"""One exchange with an upstream: send, yield bytes, and translate every network error."""

import asyncio
import re
import secrets
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping
from contextlib import aclosing, asynccontextmanager
from functools import lru_cache
from typing import Any

from gateway.config.outgoing import NoWay, Way, tls_reason
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
from gateway.language.sentences import say
from gateway.protocol.exchange import Source, UploadRequest, UpstreamReply, UpstreamRequest
from gateway.protocol.sse import is_stream, without_blank
from gateway.upstream.connection import AnswerCut, Connection, NoAnswer, NotHttp
from gateway.upstream.pool import Address, Pool, address_of
from gateway.upstream.timers import Timers

MAX_REPLY = 4 << 20  # bytes of an answer that is read whole
MAX_BLANK = 64 << 10  # bytes of white space before an answer
MAX_BACKGROUND = 10_000
_DRAIN_S = 1.0
_MIME = re.compile(r"[A-Za-z0-9.+\-]{1,60}/[A-Za-z0-9.+\-]{1,100}")


class Exchange:
    """An answer whose headers have arrived. Read it to b"", or close it early."""

    __slots__ = ("_is_closed", "connection", "first", "status")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection  # may serve another exchange once this one is closed
        self._is_closed = False
        self.first = b""  # bytes read ahead to detect the format; `read` returns them again
        self.status = connection.status

    @property
    def headers(self) -> Mapping[str, str]:
        return self.connection.headers

    @property
    def is_json(self) -> bool:
        kind = _media_type(self.connection.kind)
        return kind == "application/json" or kind.endswith("+json")

    @property
    def is_page(self) -> bool:
        return _media_type(self.connection.kind) in ("text/html", "application/xhtml+xml")

    async def peek(self) -> bytes:
        """The first bytes of the body, which `read` will return again; b"" if there are none."""
        self.first = await self.read()
        return self.first

    async def peek_text(self) -> bytes:
        """Like `peek`, but without leading white space, and with enough bytes to recognise an event
        stream: servers send line ends while they work."""
        first, left = b"", MAX_BLANK
        while left > 0 and (more := await self.read()):
            left -= len(more)
            first = without_blank(first + more)
            if is_stream(first) is not None:
                break
        self.first = first
        return first

    async def read(self) -> bytes:
        """The next bytes from the network; b"" at the end."""
        if self.first:
            first, self.first = self.first, b""
            return first
        try:
            return await self.connection.read()
        except Exception as error:
            raise translate(error) from None

    async def reply(self, most: int = MAX_REPLY) -> UpstreamReply:
        """The whole answer. Raises UpstreamFailed if it is longer than `most` bytes."""
        body = bytearray()
        while chunk := await self.read():
            body += chunk
            if len(body) > most:
                raise UpstreamFailed(
                    say("The upstream's answer is longer than {most} bytes.", most=most)
                )
        return UpstreamReply(self.status, self.headers, bytes(body))

    def close(self) -> None:
        """Release the connection. An unfinished answer closes it, which every platform takes as a
        disconnect. May be called more than once."""
        if not self._is_closed:
            self._is_closed = True
            self.connection.release()

    def let_end(self) -> None:
        """The answer is complete: wait briefly, in the background, for the rest of the body, so
        that the connection can be reused."""
        if not self._is_closed:
            self._is_closed = True
            self.connection.finish(_DRAIN_S)


class Upstream:
    """The client side of the gateway: one pool, and background calls that outlive their request."""

    def __init__(self) -> None:
        self._pool = Pool()
        self.timers = Timers(asyncio.get_running_loop())  # of all calls
        self._background: set[asyncio.Task[None]] = set()

    async def send(
        self, request: UpstreamRequest, way: Way, extra: Mapping[str, str] | None = None
    ) -> Exchange:
        """Send the request, with the `extra` headers, and wait for the answer's headers. Redirects
        are not followed: the request would take the key along."""
        address = _address(request.url)
        size = len(request.body) + request.rest_size
        head = _head(request.method, address, request.headers, extra or {}, size, way)
        connection = self._pool.kept(address.origin, way) or await self._connect(address, way)
        try:
            connection.send(head + request.body)
            if request.rest is not None:
                await _send_rest(connection, request.rest)
            await connection.answered()
        except BaseException as error:
            connection.close()
            raise _translated(error) from None
        exchange = Exchange(connection)
        if way.forwards(address.origin.is_tls):
            _check_forwarded(exchange, way)
        return exchange

    async def _connect(self, address: Address, way: Way) -> Connection:
        try:
            async with asyncio.timeout(way.connect_s):
                return await self._pool.connect(address.origin, way)
        except TimeoutError:
            by = say(" by way of the proxy {proxy}", proxy=way.proxy) if way.proxy else ""
            raise UpstreamConnectTimeout(
                say("No connection to the upstream in time{way}; is it up?", way=by)
            ) from None
        except NoWay as error:
            kind = UpstreamMisconfigured if error.is_setup else UpstreamUnreachable
            raise kind(error.message) from None
        except (OSError, UnicodeError) as error:  # UnicodeError: the host cannot be a name
            raise _no_connection(error) from None

    async def fetch(self, request: UpstreamRequest, way: Way, total_s: float) -> UpstreamReply:
        """A whole answer within `total_s`."""
        try:
            async with asyncio.timeout(total_s):
                exchange = await self.send(request, way)
                try:
                    return await exchange.reply(request.max_reply or MAX_REPLY)
                finally:
                    exchange.close()
        except TimeoutError:
            raise UpstreamTimeout(
                say("The upstream did not answer within {seconds:g} s.", seconds=total_s)
            ) from None

    async def send_file(
        self,
        request: UploadRequest,
        source: Source,
        user: Callable[[], str],
        way: Way,
        total_s: float,
    ) -> UpstreamReply:
        """Send a file as it is received; `user` is called when all of it has been sent.

        Raises the exceptions of `source` or `user`; the upstream then never receives a complete
        form.
        """
        form = _FileForm(request, source, user)
        try:
            async with asyncio.timeout(total_s):
                reply = await self._send_form(request.url, form, way)
        except TimeoutError:
            raise UpstreamTimeout(
                say("The upstream did not take the file within {seconds:g} s.", seconds=total_s),
                outage=form.is_read,  # else the sender may be the slow one
            ) from None
        if reply.status < 300 and not form.is_read:
            raise UpstreamFailed("The upstream answered before it had the whole file.")
        return reply

    async def _send_form(self, url: str, form: "_FileForm", way: Way) -> UpstreamReply:
        address = _address(url)
        size = form.size
        head = _head("POST", address, form.headers, form.extra, size, way)
        connection = self._pool.kept(address.origin, way) or await self._connect(address, way)
        is_sent = is_over = False
        try:
            connection.send(head)
            async with aclosing(form.body()) as pieces:
                async for piece in pieces:
                    if connection.has_answered:  # as with 413: the upstream does not want the rest
                        break
                    if size is None and piece:  # an empty chunk would end the body
                        piece = b"%x\r\n%b\r\n" % (len(piece), piece)
                    connection.send(piece)
                    await connection.drain()
                else:
                    if size is None:
                        connection.send(b"0\r\n\r\n")
                    is_sent = True
            await connection.answered()
            exchange = Exchange(connection)
            if way.forwards(address.origin.is_tls):
                _check_forwarded(exchange, way)
            reply = await exchange.reply()
            is_over = is_sent
            return reply
        except Exception as error:
            if form.failure is not None:
                raise form.failure from None
            raise translate(error) from None
        finally:
            if is_over:
                connection.release()
            else:
                connection.close()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None] | None:
        """Run `work` in the background. Beyond MAX_BACKGROUND it is dropped, which is None."""
        if len(self._background) >= MAX_BACKGROUND:
            work.close()
            return None
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def close(self) -> None:
        """Wait briefly for background calls; called once, at the end."""
        if self._background:
            await asyncio.wait(self._background, timeout=2)
        for task in list(self._background):
            task.cancel()
        self._pool.close()


async def _send_rest(connection: Connection, clear: AsyncGenerator[bytes, None]) -> None:
    async with aclosing(clear) as pieces:
        async for piece in pieces:
            if connection.has_answered:  # as with 413: the upstream does not want the rest
                connection.is_cut_short = True
                return
            connection.send(piece)
            await connection.drain()


@lru_cache(maxsize=256)
def _media_type(kind: str) -> str:
    """A `Content-Type` without its parameters."""
    return kind.partition(";")[0].strip().lower()


# The gateway's own headers, unless an agent's `headers` override them.
_DEFAULTS = {"user-agent": "ai-gateway", "accept-encoding": "identity"}
_OURS = frozenset(("host", "content-length", "transfer-encoding", "connection"))


def _address(url: str) -> Address:
    try:
        return address_of(url)
    except ValueError:
        raise UpstreamMisconfigured(
            "The upstream's address cannot be used; check base_url."
        ) from None


def _head(
    method: str,
    address: Address,
    headers: Mapping[str, str],
    extra: Mapping[str, str],
    size: int | None,
    way: Way,
) -> bytes:
    """The request line and headers: the agent's, and `extra` (in lower case) for this request.
    `size` is the body's, in bytes; None means a chunked body."""
    if way.proxy is not None and way.forwards(address.origin.is_tls):
        address = address._replace(target=f"http://{address.host}{address.target}")
        extra = {**extra, **way.proxy.headers}
    head = _fixed_head(method, address, tuple(headers.items()))
    if extra:
        own = {name.lower() for name in headers}
        head += _encoded([f"{name}: {value}" for name, value in extra.items() if name not in own])
    # In their usual capitalisation: some proxies add a second length if they do not recognise it.
    if size is None:
        return head + b"Transfer-Encoding: chunked\r\n\r\n"
    if size or method != "GET":
        return b"%bContent-Length: %d\r\n\r\n" % (head, size)
    return head + b"\r\n"


@lru_cache(maxsize=256)
def _fixed_head(method: str, address: Address, headers: tuple[tuple[str, str], ...]) -> bytes:
    """The part of the head that all requests of an agent share."""
    own = {name.lower(): value for name, value in headers}
    lines = [f"{method} {address.target} HTTP/1.1", f"host: {own.get('host', address.host)}"]
    for name, value in {**_DEFAULTS, **own}.items():
        if name not in _OURS:
            lines.append(f"{name}: {value}")
    return _encoded(lines)


def _encoded(lines: list[str]) -> bytes:
    head = "\r\n".join((*lines, ""))
    if head.count("\n") != len(lines) or head.count("\r") != len(lines) or "\0" in head:
        raise UpstreamMisconfigured("A header for the upstream holds a line end; check api_key.")
    return head.encode("utf-8", "surrogateescape")


class _FileForm:
    """The multipart body of an upload. `failure` is the exception of its source."""

    def __init__(self, request: UploadRequest, source: Source, user: Callable[[], str]) -> None:
        self._request = request
        self._source = source
        self._user = user
        # Unguessable: the sender of the file could else close the form and add fields.
        self._boundary = f"gateway-{secrets.token_hex(16)}"
        name = source.name.replace('"', "%22").replace("\r", "").replace("\n", "")
        mime = source.mime if _MIME.fullmatch(source.mime) else "application/octet-stream"
        self._head = (
            f'--{self._boundary}\r\nContent-Disposition: form-data; name="file";'
            f' filename="{name}"\r\nContent-Type: {mime}\r\n\r\n'
        ).encode("utf-8", "replace")
        self.failure: Exception | None = None
        self.is_read = False  # whether all of the source was read

    def _tail(self) -> bytes:
        fields = ""
        if self._request.user_field:
            fields = (
                f"\r\n--{self._boundary}\r\nContent-Disposition: form-data;"
                f' name="{self._request.user_field}"\r\n\r\n{self._user()}'
            )
        return f"{fields}\r\n--{self._boundary}--\r\n".encode("utf-8", "replace")

    @property
    def headers(self) -> Mapping[str, str]:
        own = self._request.headers
        return {name: own[name] for name in own if name.lower() != "content-type"}

    @property
    def extra(self) -> Mapping[str, str]:
        return {"content-type": f"multipart/form-data; boundary={self._boundary}"}

    @property
    def size(self) -> int | None:
        """Size in bytes; None means a chunked body, which not all servers accept."""
        if self._source.size is None:
            return None
        return len(self._head) + self._source.size + len(self._tail())

    async def body(self) -> AsyncGenerator[bytes, None]:
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
    upstream = Upstream()
    try:
        yield upstream
    finally:
        await upstream.close()


def _check_forwarded(exchange: Exchange, way: Way) -> None:
    """Raise for an answer that the proxy sent in the upstream's place. APIs answer in JSON; so a
    403 or 50x in another format is most likely a proxy's page, and the error says that it is one of
    the two."""
    status = exchange.status
    if status == 407:
        error: GatewayError = UpstreamMisconfigured(
            say(
                "The proxy {proxy} does not accept the gateway's user and password (407); "
                "put them into its URL: scheme://user:password@host:port.",
                proxy=way.proxy,
            )
        )
    elif status not in (403, 502, 503, 504) or exchange.is_json:
        return
    elif status == 403:
        error = UpstreamMisconfigured(
            say(
                "The proxy {proxy}, or the upstream behind it, refuses the call (403); allow "
                "it there, or go direct with proxy: none or NO_PROXY.",
                proxy=way.proxy,
            )
        )
    else:
        error = UpstreamUnreachable(
            say(
                "The proxy {proxy}, or the upstream behind it, cannot reach who should "
                "answer ({status}).",
                proxy=way.proxy,
                status=status,
            )
        )
    exchange.close()
    raise error


def _no_connection(error: OSError | UnicodeError) -> GatewayError:
    """The error for a failed connection. No request has been sent yet."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return UpstreamMisconfigured(
            say(
                "The upstream's TLS certificate is not accepted: {reason}. Set the agent's "
                "ca to a PEM file with the authority that signed it (or verify: false).",
                reason=tls_reason(error),
            )
        )
    if isinstance(error, ssl.SSLError):
        return _no_tls(error)
    if isinstance(error, socket.gaierror | UnicodeError):
        return UpstreamUnreachable("The upstream's host name cannot be resolved; check base_url.")
    return UpstreamUnreachable("The upstream refuses connections; is it up, and base_url right?")


def _no_tls(error: ssl.SSLError) -> GatewayError:
    reason = tls_reason(error)
    if "certificate" in reason or "handshake failure" in reason:
        return UpstreamMisconfigured(
            say(
                "The upstream does not accept the gateway's TLS certificate, or misses one: "
                "{reason}. Set the agent's cert and key to PEM files.",
                reason=reason,
            )
        )
    return UpstreamMisconfigured(
        say(
            "No TLS connection with the upstream: {reason}. Is base_url right with https?",
            reason=reason,
        )
    )


# From special to general: the first matching row applies.
_FOREIGN: list[tuple[tuple[type[Exception], ...], type[GatewayError], str]] = [
    (
        (AnswerCut,),
        UpstreamCut,
        say("The upstream's answer ended before it was complete."),
    ),
    (
        # uvloop raises RuntimeError for a transport that has just closed.
        (NoAnswer, ConnectionError, RuntimeError),
        UpstreamCut,
        say("The upstream closed the connection without an answer."),
    ),
    (
        (TimeoutError,),
        UpstreamTimeout,
        say("The upstream did not answer in time."),
    ),
    (
        (NotHttp,),
        UpstreamFailed,
        say("The upstream's answer is not valid HTTP."),
    ),
    (
        (OSError, ValueError),
        UpstreamFailed,
        say("The call to the upstream failed."),
    ),
]


def translate(error: Exception) -> Exception:
    """The gateway's error for a network error; other exceptions are returned unchanged."""
    if isinstance(error, GatewayError):
        return error
    if isinstance(error, ssl.SSLError):
        return _no_tls(error)
    for foreign, ours, message in _FOREIGN:
        if isinstance(error, foreign):
            return ours(message)
    return error


def _translated(error: BaseException) -> BaseException:
    return translate(error) if isinstance(error, Exception) else error
