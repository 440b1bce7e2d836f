"""The safe fetcher: the only code that fetches a URL chosen by a caller.

A caller must not reach, through the gateway, what only the gateway can reach. So each hop resolves
its host once, checks every address, and connects to exactly these addresses: no second look-up
could answer differently. The check comes before any connection, so a refusal reveals nothing about
internal services. The fetcher follows redirects itself and checks each like the first URL. A proxy,
too, gets an address and has no name to look up.
"""

import asyncio
import re
import ssl
import unicodedata
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import urljoin

from multidict import CIMultiDictProxy
from yarl import URL

from gateway.config.models import Fetch, Outgoing
from gateway.config.outgoing import NoWay, Way
from gateway.errors import BodyTooLarge, GatewayError, InvalidRequest, UpstreamFailed
from gateway.language.sentences import say
from gateway.protocol.exchange import Source
from gateway.upstream.connection import AnswerCut, Connection, NoAnswer, NotHttp
from gateway.upstream.pool import Pool, address_in
from gateway.upstream.resolver import CallersNames, Found, numeric

MAX_URL = 8192  # characters
MAX_REDIRECTS = 3
_REDIRECTS = (301, 302, 303, 307, 308)

# Own lists, since Python's `is_global` differs between its releases. All of IPv4 is public except
# these (IANA's special-purpose registry); 168.63.129.16 is the host of an Azure machine.
_SPECIAL_V4 = [ip_network(network) for network in (
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "168.63.129.16/32",
    "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24",
    "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4",
    "240.0.0.0/4",
)]  # fmt: skip
# Of IPv6 only this is public, without its protocol assignments (Teredo among them) and
# documentation ranges. Two more forms embed an IPv4 address, which is what they reach.
_GLOBAL_V6 = ip_network("2000::/3")
_SPECIAL_V6 = [ip_network(n) for n in ("2001::/23", "2001:db8::/32", "3fff::/20")]
_NAT64 = ip_network("64:ff9b::/96")
_SIX_TO_FOUR = ip_network("2002::/16")

_HEAD = (
    b"GET %b HTTP/1.1\r\nhost: %b\r\nuser-agent: ai-gateway\r\naccept: */*\r\n"
    b"accept-encoding: identity\r\nconnection: close\r\n\r\n"
)
_AUTHORITY = re.compile(r"https?://([^/?#]*)", re.IGNORECASE)
_HOST_AND_PORT = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:]+)(?::([0-9]{0,5}))?", re.IGNORECASE)
_NAME = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
# as a host's last label: no parser takes it for a name
_NUMERIC = re.compile(r"[0-9]+|0x[0-9a-f]*")

Resolve = Callable[[str, int, str], Awaitable[Found]]  # of a host, a port and the URL's owner


class Guard:
    """Fetches callers' URLs. `outgoing` returns the proxies of the configuration in effect."""

    def __init__(
        self,
        config: Fetch,
        outgoing: Callable[[], Outgoing] = Outgoing,
        resolve: Resolve | None = None,
    ) -> None:
        self._config = config
        self._outgoing = outgoing
        self._names = CallersNames()
        self._resolve = resolve or self._names.find
        self._pool: Pool | None = None  # from the first fetch on

    async def close(self) -> None:
        await self._names.close()
        if self._pool is not None:
            self._pool.close()

    @asynccontextmanager
    async def open(self, url: str, owner: str = "") -> AsyncIterator[Source]:
        """The file at `url`, which `owner` named. Its `chunks` can be read once, within the block.

        Raises InvalidRequest for a URL that may not or cannot be fetched and BodyTooLarge for a
        file over `max_size` bytes. Reading `chunks` raises these too; a file that ends is complete.
        """
        deadline = asyncio.get_running_loop().time() + self._config.timeout
        first = self.check(url)
        connection = await self._follow(first, deadline, owner)
        try:
            size = _size(connection.status, headers := connection.headers)
            self._check_size(size or 0)
            mime = headers.get("Content-Type", "").partition(";")[0].strip().lower()
            async with aclosing(self._chunks(connection, deadline)) as chunks:
                yield Source(_file_name(first), mime, size, chunks)
        finally:
            connection.close()

    @staticmethod
    def check(url: str) -> URL:
        """`url` parsed; the addresses of its host are not checked here.

        Raises InvalidRequest if it is not http(s), holds a user name, or writes its host in a form
        that different parsers read as different hosts.
        """
        if len(url) > MAX_URL:
            raise InvalidRequest(
                say("The URL is longer than {most} characters; use a shorter one.", most=MAX_URL)
            )
        if not url.isprintable() or " " in url or "\\" in url:
            raise InvalidRequest(
                "The URL contains spaces, control characters or backslashes; percent-encode them."
            )
        match = _AUTHORITY.match(url)
        if match is None:
            raise InvalidRequest("The URL must begin with http:// or https://.")
        if "@" in match[1]:
            raise InvalidRequest("The URL contains a user name or password; leave them out.")
        _check_authority(match[1])
        try:
            parsed = URL(url)
        except ValueError:
            raise _bad_host() from None
        _check_host(parsed.raw_host or "")
        return parsed

    def is_forbidden(self, ip: IPv4Address | IPv6Address) -> bool:
        """Whether `ip` is neither public unicast nor in `fetch.allow`.

        An IPv6 address that embeds an IPv4 address is judged by that one.
        """
        if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        return not _is_public(ip) and not any(ip in network for network in self._config.allow)

    async def _follow(self, url: URL, deadline: float, owner: str) -> Connection:
        """The first answer that is not a redirect. The bodies of redirects are not read."""
        for _ in range(MAX_REDIRECTS + 1):
            connection = await self._get(url, deadline, owner)
            location = connection.headers.get("Location")
            if connection.status not in _REDIRECTS or location is None:
                return connection
            connection.close()
            url = self._target(url, location)
        raise InvalidRequest(
            say(
                "The URL redirects more than {most} times; use the one it leads to.",
                most=MAX_REDIRECTS,
            )
        )

    def _target(self, url: URL, location: str) -> URL:
        """The target of a redirect from `url`; raises InvalidRequest if it may not be followed."""
        try:
            target = self.check(urljoin(str(url), location))
        except ValueError:
            raise _bad_host() from None
        if (url.scheme, target.scheme) == ("https", "http"):
            raise InvalidRequest("The URL redirects from https to http; use one that does not.")
        return target

    async def _get(self, url: URL, deadline: float, owner: str) -> Connection:
        """The answer of one hop, its body unread."""
        async with self._network(deadline):
            addresses = await self._addresses(url, owner)
            address = address_in(url)
            self._pool = self._pool or Pool()
            connection = await self._pool.connect_to(address.origin, addresses, self._way(url))
            try:
                connection.send(_HEAD % (address.target.encode(), address.host.encode()))
                await connection.answered()
            except BaseException:
                connection.close()
                raise
        return connection

    def _way(self, url: URL) -> Way:
        proxy = self._config.proxy
        if proxy is None:
            proxy = self._outgoing().proxy_for(url.scheme, url.raw_host or "", url.port or 0)
        return Way(None if proxy == "none" else proxy)

    async def _addresses(self, url: URL, owner: str) -> Found:
        """The addresses of the host.

        Raises InvalidRequest if any of them is forbidden: a host with a private address is not
        public, and the choice of the address to connect to is arbitrary.
        """
        host, port = url.raw_host or "", url.port or 0
        answer: Found = []
        try:
            answer = numeric(host, port) or await self._resolve(host, port, owner)
            found = [ip_address(address[4][0]) for address in answer]
        except (OSError, ValueError):
            found = []
        if not found:
            raise InvalidRequest(
                say("The URL's host {host} cannot be resolved; check its name.", host=host)
            )
        if any(self.is_forbidden(ip) for ip in found):
            raise InvalidRequest(
                say(
                    "The URL's host {host} is in a private or reserved network; the operator can "
                    "allow it in fetch.allow.",
                    host=host,
                )
            )
        return answer

    async def _chunks(self, connection: Connection, deadline: float) -> AsyncGenerator[bytes, None]:
        """The body, chunk by chunk. The connection raises if the body ends before its length or its
        last chunk."""
        read = 0
        while True:
            async with self._network(deadline):
                chunk = await connection.read()
            if not chunk:
                return
            read += len(chunk)
            self._check_size(read)
            yield chunk

    def _check_size(self, size: int) -> None:
        limit = self._config.max_size
        if size > limit:
            raise BodyTooLarge(
                say("The URL's file is larger than {most} bytes; use a smaller one.", most=limit)
            )

    @asynccontextmanager
    async def _network(self, deadline: float) -> AsyncIterator[None]:
        """Turn network errors and timeouts in this block into InvalidRequest.

        `deadline` is in the loop's time. It interrupts only the fetcher's own waiting, never the
        work that the reader of the file does in between.
        """
        try:
            async with asyncio.timeout_at(deadline):
                if asyncio.get_running_loop().time() >= deadline:
                    raise TimeoutError  # a read from a buffer would never be interrupted
                yield
        except TimeoutError:
            raise InvalidRequest(
                say(
                    "The URL took longer than {seconds:g} s; use a faster server.",
                    seconds=self._config.timeout,
                )
            ) from None
        except NoWay as error:
            raise _explain_proxy(error) from None
        except _NETWORK_ERRORS as error:
            raise InvalidRequest(_explain(error)) from None


def _check_authority(text: str) -> None:
    """Raises InvalidRequest unless `text` is a host, perhaps with a port, in one plain form.

    Full-width and other look-alike digits and dots would turn into plain ones in the parsed URL.
    """
    match = _HOST_AND_PORT.fullmatch(text)
    is_plain = "%" not in text and "。" not in text and unicodedata.is_normalized("NFKC", text)
    if match is None or not is_plain:
        raise _bad_host()
    if match[2] and not 1 <= int(match[2]) <= 65_535:
        raise InvalidRequest("The URL's port must be between 1 and 65535.")


def _check_host(host: str) -> None:
    """Raises InvalidRequest unless `host` is a canonical address or cannot be one."""
    if _literal(host) is not None:
        return
    if not _NAME.fullmatch(host) or _NUMERIC.fullmatch(host.rpartition(".")[2]):
        raise _bad_host()
    if host == "localhost" or host.endswith(".localhost"):
        raise InvalidRequest("The URL's host is the gateway's own machine; use another host.")


def _bad_host() -> InvalidRequest:
    return InvalidRequest(
        "The URL's host is not valid; write it plainly, such as example.com or 8.8.8.8."
    )


def _literal(host: str) -> IPv4Address | IPv6Address | None:
    """The address that `host` is; None for a name and for an address in another form."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def _is_public(ip: IPv4Address | IPv6Address) -> bool:
    if isinstance(ip, IPv4Address):
        return not any(ip in network for network in _SPECIAL_V4)
    if ip in _NAT64:
        return _is_public(IPv4Address(int(ip) & 0xFFFF_FFFF))
    if ip in _SIX_TO_FOUR:
        return _is_public(IPv4Address(int(ip) >> 80 & 0xFFFF_FFFF))
    return ip in _GLOBAL_V6 and not any(ip in network for network in _SPECIAL_V6)


def _size(status: int, headers: CIMultiDictProxy[str]) -> int | None:
    """The size of the file in bytes; None if it is sent in HTTP chunks.

    Raises InvalidRequest for an answer that is not a file, is compressed (it may be a bomb), or
    ends with its connection: then nothing shows whether it is complete.
    """
    if status != 200:
        raise InvalidRequest(
            say("The URL's server answers {status}, not 200; check the URL.", status=status)
        )
    coding = ",".join(headers.getall("Content-Encoding", [])).strip().lower()
    framing = ",".join(headers.getall("Transfer-Encoding", [])).strip().lower()
    if coding not in ("", "identity") or framing not in ("", "chunked"):
        raise InvalidRequest("The URL's file comes compressed; use one that is sent as it is.")
    if framing:
        return None
    length = headers.get("Content-Length", "").strip()
    if not length.isdecimal():
        raise InvalidRequest("The URL's server does not tell the file's length; use another one.")
    return int(length)


def _file_name(url: URL) -> str:
    """The name after the path's last slash, an encoded slash included; "" if it is not a name."""
    name = "".join(c for c in url.name if c.isprintable())
    name = name.replace("\\", "/").rpartition("/")[2]
    return name if name.strip(". ") else ""


# uvloop raises RuntimeError for a transport that has just closed.
_NETWORK_ERRORS = (NotHttp, OSError, RuntimeError, ValueError)


def _explain(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return say("The TLS certificate of the URL's server is not accepted; use another server.")
    if isinstance(error, NotHttp):
        return say("The URL's server does not answer in valid HTTP; check the URL.")
    if isinstance(error, OSError) and not isinstance(error, NoAnswer | AnswerCut):
        return say("No connection to the URL's server; check the URL.")
    return say("The URL's server broke off the connection; try again.")


def _explain_proxy(error: NoWay) -> GatewayError:
    """The error to report: a caller can only change the URL."""
    if error.is_refusal:
        return InvalidRequest(
            say("No connection to the URL's server. {reason}", reason=error.message)
        )
    return UpstreamFailed(say("The URL cannot be fetched. {reason}", reason=error.message))
