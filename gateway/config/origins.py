"""Which web pages may call: compares the origins that browsers send with server.cors_origins."""

import re
from collections.abc import Iterable
from functools import lru_cache
from urllib.parse import urlsplit

ANY, OPAQUE, FROM_DISK = "*", "null", "file://"

# Schemes of local programs whose windows are web pages. No page from a network has such an origin.
_APPS = frozenset(
    (
        "app", "tauri", "capacitor", "capacitor-electron", "electron", "ionic", "neutralino",
        "wails", "vscode-file", "vscode-webview",
    )
)  # fmt: skip
_HOST = r"\*|(?:\*\.)?(?:\[[0-9a-f:.]+\]|[^*:/?#@\\\[\]\s]+)(?::(?:\d{1,5}|\*))?"
_ENTRY = re.compile(rf"(?:([a-z][a-z0-9+.\-]*)://)?({_HOST})")
_WEB = ("http", "https")


def origin_entry(value: str) -> str:
    """An entry of server.cors_origins in the form that `Origins` reads. Raises ValueError for an
    entry that cannot be the origin of any page."""
    value = value.strip().lower()
    if value in (ANY, OPAQUE, FROM_DISK):
        return value
    value = value.rstrip("/") if not value.endswith("://") else value
    found = _ENTRY.fullmatch(value)
    if not found:
        raise ValueError(
            "is no origin: write scheme://host:port as in https://chat.example.com, without a path;"
            " a * may stand for the first part of the host (https://*.example.com), for the port"
            " (http://localhost:*), or behind an app's scheme (vscode-webview://*)"
        )
    scheme, rest = found[1], found[2]
    if rest == ANY and (scheme is None or scheme in _WEB):
        raise ValueError("names no host; the entry * alone is any page")
    if scheme == "file":
        raise ValueError("pages from disk have the origin file://, without a path")
    return value if scheme is None else _without_default_port(value)


def _without_default_port(value: str) -> str:
    """Remove the scheme's default port, as browsers do."""
    for scheme, port in (("https", ":443"), ("http", ":80")):
        if value.startswith(f"{scheme}://"):
            return value.removesuffix(port)
    return value


class Origins:
    """The listed origins. `any_page` means the entry `*`: it opens CORS to every page, and gives
    none of them anonymous access."""

    def __init__(self, listed: Iterable[str]) -> None:
        entries = set(listed)
        self.any_page = ANY in entries
        self._exact = {entry for entry in entries if ANY not in entry and "://" in entry}
        self._takes_opaque = OPAQUE in entries
        rest = entries - self._exact - {ANY, OPAQUE}
        self._patterns = re.compile("|".join(map(_pattern, sorted(rest))) or "(?!)")

    def lists(self, origin: str) -> bool:
        """Whether an entry matches the origin, exactly or by a pattern."""
        if origin == OPAQUE:
            return self._takes_opaque
        return origin in self._exact or self._patterns.fullmatch(origin) is not None

    def may_borrow(self, origin: str) -> bool:
        """Whether a page may use this machine's anonymous access. The origin `null` may not: a page
        of any site can get it in a frame."""
        return origin != OPAQUE and (self.lists(origin) or is_local(origin))


def _pattern(entry: str) -> str:
    """A regular expression for an entry; an entry without a scheme matches http and https."""
    scheme, mark, rest = entry.rpartition("://")
    rest = re.escape(rest).replace(r"\*", r"[a-z0-9._\-]+")
    return (re.escape(scheme) + mark if mark else "https?://") + rest


@lru_cache(maxsize=256)
def is_local(origin: str) -> bool:
    """Whether this machine served the page, or the page is the window of a local program."""
    try:
        parts = urlsplit(origin)
        host = parts.hostname or ""
    except ValueError:
        return False
    if host in ("localhost", "127.0.0.1", "::1") or host.endswith(".localhost"):
        return True
    return parts.scheme in _APPS and bool(host)
