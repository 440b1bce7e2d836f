"""A proxy for connections to upstreams: its URL, and the hosts that NO_PROXY excludes.

`tunnel` speaks the proxy's protocol; `outgoing` decides which connection uses which proxy.
"""

import base64
import re
from ipaddress import ip_address, ip_network
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from gateway.secret import Secret

# Default port of each scheme. Desktop settings write `socks` for socks5h.
_PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080, "socks": 1080}
_HOST = re.compile(r"[A-Za-z0-9._\-]{1,253}|[0-9A-Fa-f:.]{2,45}")


class Proxy(NamedTuple):
    """A proxy. With `socks5` the gateway resolves names itself; other schemes receive names."""

    scheme: str
    host: str
    port: int
    user: str = ""
    password: Secret = Secret("")

    def __str__(self) -> str:
        """The URL without user and password, for messages and logs."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    @property
    def speaks_http(self) -> bool:
        return self.scheme in ("http", "https")

    @property
    def token(self) -> str:
        """User and password encoded for HTTP Basic authentication; "" without a user."""
        pair = f"{self.user}:{self.password.reveal()}".encode()
        return base64.b64encode(pair).decode() if self.user else ""

    @property
    def headers(self) -> dict[str, str]:
        """The headers that authenticate the gateway at an HTTP proxy."""
        return {"proxy-authorization": f"Basic {self.token}"} if self.user else {}


def read_proxy(url: str) -> Proxy:
    """The proxy at `url`, which may lack its scheme (http) and its port.

    Raises ValueError; its message contains no part of the URL, which may hold a password.
    """
    url = url.strip()
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        scheme, host, port = parts.scheme, parts.hostname or "", parts.port
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
    except ValueError:
        raise ValueError(
            "is not the URL of a proxy: check its host and port, and write / : @ # ? of a password"
            " as %2F %3A %40 %23 %3F"
        ) from None
    if scheme not in _PORTS or not _HOST.fullmatch(host) or port == 0:
        raise ValueError(
            "must be the URL of a proxy, such as http://proxy:3128, https://proxy:3129,"
            " socks5://proxy:1080 or socks5h://proxy:1080, or be none"
        )
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError("must end with the proxy's port: no path, ? or #")
    _check_credentials(scheme, user, password)
    scheme = "socks5h" if scheme == "socks" else scheme
    return Proxy(scheme, host, port or _PORTS[scheme], user, Secret(password))


def _check_credentials(scheme: str, user: str, password: str) -> None:
    if ":" in user:
        raise ValueError("has a user name with a colon in it, which no proxy can be sent")
    if scheme.startswith("socks") and not (user + password).isascii():
        raise ValueError("has a user name or password that is not ASCII, as SOCKS wants them")
    if scheme.startswith("socks") and (bool(user) != bool(password) or len(user) > 255):
        raise ValueError("needs a user name and a password, as SOCKS takes both or neither")


def is_excepted(no_proxy: str, host: str, port: int) -> bool:
    """Whether to connect to `host` directly: NO_PROXY has an entry for it, or it is this machine.

    An entry is `*`, a domain (which includes its subdomains, with or without a leading dot or
    `*.`), an address or a network, each optionally with a port.
    """
    host = host.strip("[]").rstrip(".").lower()
    if _is_this_machine(host):
        return True
    return any(_fits(entry, host, port) for entry in re.split(r"[\s,]+", no_proxy.lower()))


def _is_this_machine(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _fits(entry: str, host: str, port: int) -> bool:
    if entry == "*":
        return True
    match = re.fullmatch(r"\[?([^\[\]]*?)\]?(?::(\d{1,5}))?", entry)
    if match is not None and not _is_address(entry):
        entry, wanted = match[1], match[2]
        if wanted and int(wanted) != port:
            return False
    if _is_address(host):
        return _is_in_network(host, entry)
    domain = entry.removeprefix("*").strip(".")
    return bool(domain) and (host == domain or host.endswith(f".{domain}"))


def _is_address(text: str) -> bool:
    try:
        ip_network(text, strict=False)
    except ValueError:
        return False
    return True


def _is_in_network(address: str, entry: str) -> bool:
    return _is_address(entry) and ip_address(address) in ip_network(entry, strict=False)
