"""Decide whether a request comes from a program on this machine: the rule for callers without a
key.

A loopback address alone proves nothing: a proxy on the same machine has one too, and so has a local
browser that shows a page from elsewhere. So any sign of either refuses the call.
"""

import ipaddress
import logging
import math
import re
import time
from collections.abc import Callable, Container, Iterable, Mapping
from functools import lru_cache

from aiohttp import HttpVersion
from multidict import CIMultiDictProxy

from gateway.config.invocation import program
from gateway.config.origins import Origins
from gateway.errors import Forbidden, Unauthorized, clean
from gateway.language.sentences import say

log = logging.getLogger("gateway")

_HINT_EVERY_S = 600.0

# Headers that proxies, tunnels and CDNs add to what they forward, with `-` for `_`.
_FORWARDING = frozenset(
    (
        "forwarded", "via", "x-real-ip", "x-client-ip", "client-ip", "x-cluster-client-ip",
        "x-original-forwarded-for", "x-original-host", "x-originating-ip", "x-remote-ip",
        "x-remote-addr", "x-envoy-external-address", "x-envoy-original-path", "x-scheme",
        "x-url-scheme", "front-end-https", "true-client-ip", "cf-connecting-ip",
        "cf-connecting-ipv6", "cf-ray", "cf-visitor", "cdn-loop", "fastly-client-ip",
        "x-azure-clientip", "x-azure-socketip", "x-appengine-user-ip", "fly-client-ip",
        "do-connecting-ip", "proxy-client-ip", "wl-proxy-client-ip", "ali-cdn-real-ip",
        "cdn-src-ip", "eo-client-ip", "eo-connecting-ip", "tailscale-user-login",
        "x-proxyuser-ip", "forwarded-for", "proxy-connection", "x-ms-proxy", "x-nginx-proxy",
    )
)  # fmt: skip
_FORWARDING_BEGINS = ("x-forward", "x-vercel-", "ngrok-")
_FORWARDING_ENDS = "-forwarded-for"
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._\-]+)(?::\d{1,5})?")
_ONCE = ("Origin", "Sec-Fetch-Site")  # of two values, another program may have judged the other one


class NotFromHere(Unauthorized):
    """A call without a key that does not look like one of a program on this machine."""

    def __init__(self, why: str) -> None:
        super().__init__(
            say(
                "Calls without a key are only for programs on this machine: {reason} Send an "
                "API key as 'Authorization: Bearer <key>'; the operator makes one with "
                "`{command} keys create`, in the gateway's folder, or in auth.keys.",
                reason=why,
                command=program(),
            )
        )
        self.why = why


class Hint:
    """Logs from time to time how the operator can allow such calls: the sender sees the answer, but
    the operator may not."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next_s = -math.inf

    def __call__(self, error: NotFromHere) -> None:
        now_s = self._clock()
        if now_s < self._next_s:
            return
        self._next_s = now_s + _HINT_EVERY_S
        log.warning(
            "A call without a key was refused: %s If a proxy or a tunnel leads here, set"
            " ANONYMOUS=false (auth.anonymous), name the proxy's address in server.trusted_proxies,"
            " and give callers keys.",
            error.why,
        )


def refusal(
    headers: CIMultiDictProxy[str],
    version: HttpVersion,
    address: str,
    origins: Origins,
    hosts: Container[str],
    *,
    anywhere: bool,
    target: str = "/",
) -> Forbidden | NotFromHere | None:
    """The error that refuses a caller without a key, or None if the call is allowed.

    `address` is the client's, as trusted proxies report it. `hosts` are further names that `Host`
    may have (auth.anonymous_hosts). `anywhere` (auth.anonymous_anywhere) also lets programs on
    other machines call, through proxies too, but still no pages of other origins; `Host` then
    counts only if `hosts` are listed. `target` is the request target as received, perhaps with a
    host of its own.
    """
    if twice := next((name for name in _ONCE if len(headers.getall(name, ())) > 1), ""):
        return Forbidden(say("The header {header!r} is there twice; send it once.", header=twice))
    if page := _foreign_page(headers, origins):
        return Forbidden(
            say(
                "{page} Anonymous access is for programs on this machine, not for web pages "
                "from elsewhere: give the page a token (POST /api/v1/tokens), or add "
                "its origin to server.cors_origins.",
                page=page,
            )
        )
    why = "" if anywhere else _not_from_here(headers, version, address)
    if not why and (hosts or not anywhere):
        named = headers.getall("Host", ("",))
        why = say("this one names two hosts.") if len(named) > 1 else ""
        why = why or _not_to_here([*named, *_authority(target)], hosts)
    return NotFromHere(why) if why else None


def _not_from_here(headers: Mapping[str, str], version: HttpVersion, address: str) -> str:
    if not is_loopback(address):
        return say("this one comes from {address}.", address=clean(address, 60))
    for name in headers:
        lower = name.lower().replace("_", "-")
        if (
            lower in _FORWARDING
            or lower.startswith(_FORWARDING_BEGINS)
            or lower.endswith(_FORWARDING_ENDS)
        ):
            return say(
                "this one came through a proxy, which the header {header!r} tells.",
                header=lower[:40],
            )
    # nginx's `proxy_pass` adds no header by default and sends its upstream's name as `Host`, but up
    # to 1.29.6 it speaks HTTP/1.0. Programs have not done so for decades.
    if version < (1, 1):
        return say("this one came by HTTP/1.0, as from a proxy with nginx's default settings.")
    if version > (1, 1):
        return say(
            "this one says HTTP/{major}.{minor}, which is not spoken here.",
            major=version.major,
            minor=version.minor,
        )
    return ""


def _authority(target: str) -> list[str]:
    """The host of a target in absolute form, as clients send it to proxies."""
    if target.startswith("/") or target == "*":
        return []
    return [re.split("[/?#]", target.rpartition("://")[2], maxsplit=1)[0]]


def _not_to_here(asked: Iterable[str], hosts: Container[str]) -> str:
    """Why `Host` names another machine, or "". After DNS rebinding a page sends its own name in
    `Host`, and a proxy may forward the client's `Host` unchanged."""
    for host in asked:
        name = host_name(host)
        if not (is_loopback(name) or name in hosts):
            shown = clean(name or host, 100)
            return say(
                "this one asks for the host {host!r}, which is none of this machine's own "
                "names (localhost, 127.0.0.1); if only programs here use that name, the "
                "operator can add it to auth.anonymous_hosts.",
                host=shown,
            )
    return ""


def _foreign_page(headers: Mapping[str, str], origins: Origins) -> str:
    """A sentence about the web page of another origin that sent the request, or ""."""
    if origin := headers.get("Origin", ""):
        if origins.may_borrow(origin):
            return ""
        return say("The page {origin!r} is not listed.", origin=clean(origin, 100))
    site = headers.get("Sec-Fetch-Site", "").lower()
    if site == "cross-site":
        return say("A page of another site sent this request.")
    # Only browsers send both. The browser's page has the origin that the browser asked for, which a
    # proxy in between may have changed.
    page = headers.get("Referer", "") if site else ""
    if page and not origins.may_borrow(_origin_of(page)):
        return say("A page of another site sent this request.")
    return ""


def _origin_of(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{re.split('[/?#]', rest, maxsplit=1)[0]}"


@lru_cache(maxsize=256)
def host_name(host: str) -> str:
    """The name in a `Host` header, in lower case and without its port; "" if it is not valid."""
    found = _HOST.fullmatch(host.strip().lower())
    return found[1].removesuffix(".") if found else ""


@lru_cache(maxsize=256)
def is_loopback(host: str) -> bool:
    """Whether an address or a name can only mean this machine. Browsers, too, never resolve
    `localhost` or names that end with it through DNS."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
