"""What trusted proxies report: the client's address, and the address that it used for the
gateway."""

import ipaddress
import re

from aiohttp import web

from gateway.http.context import state_of

Networks = list[ipaddress.IPv4Network | ipaddress.IPv6Network]

MAX_HOPS = 50  # proxies between a client and the gateway

_HOST = re.compile(r"[A-Za-z0-9.\-_]{1,255}(?::\d{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](?::\d{1,5})?")


def client_origin(request: web.Request) -> str:
    """`http://host:port` as the client addresses the gateway; a trusted proxy in front of it
    reports that."""
    scheme, host = request.scheme, request.host
    trusted = state_of(request).config.server.trusted_proxies
    if _is_in(_unmapped(request.remote or ""), trusted):
        proto = request.headers.get("X-Forwarded-Proto", "").partition(",")[0].strip().lower()
        scheme = proto if proto in ("http", "https") else scheme
        host = request.headers.get("X-Forwarded-Host", "").partition(",")[0].strip() or host
    return f"{scheme}://{host}" if _HOST.fullmatch(host) else ""


def client_address(request: web.Request, trusted: Networks) -> str:
    """The client's address. `X-Forwarded-For` counts only as far as trusted proxies have written
    it: the address is the last one that is not a trusted proxy's."""
    address = _unmapped(request.remote or "")
    if not trusted or not _is_in(address, trusted):
        return address
    hops = ",".join(request.headers.getall("X-Forwarded-For", ())).rsplit(",", MAX_HOPS)
    for hop in reversed(hops[-MAX_HOPS:]):
        if not hop.strip():
            break
        if not _is_address(hop.strip()):
            break
        address = _unmapped(hop.strip())
        if not _is_in(address, trusted):
            break
    return address


def _unmapped(address: str) -> str:
    """An IPv4 address in its own notation, also where a dual-stack socket reports it as IPv6."""
    if address.startswith("::") and _is_address(address):
        mapped = getattr(ipaddress.ip_address(address), "ipv4_mapped", None)
        return str(mapped or address)
    return address


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_in(address: str, networks: Networks) -> bool:
    if not networks or not _is_address(address):
        return False
    return any(ipaddress.ip_address(address) in net for net in networks)
