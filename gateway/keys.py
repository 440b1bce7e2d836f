"""Every typed key under which something hangs on the application or on a request."""

from dataclasses import dataclass

from aiohttp import web

from gateway.config import Config
from gateway.credentials import Caller, KeyRing
from gateway.health import HealthCache
from gateway.routing import Routing
from gateway.upstream import Upstream


@dataclass(frozen=True)
class State:
    """All that follows from one configuration. Built whole, then put in place at once, so that a
    request sees one configuration from beginning to end."""

    config: Config
    keyring: KeyRing
    routing: Routing
    health: HealthCache
    since: int  # seconds since the epoch; the `created` of models


class StateHolder:
    """Where the present state is; `app[STATE].now` is read once per request."""

    def __init__(self, state: State) -> None:
        self.now = state


STATE: web.AppKey[StateHolder] = web.AppKey("state", StateHolder)
UPSTREAM: web.AppKey[Upstream] = web.AppKey("upstream", Upstream)

REQUEST_ID = web.RequestKey("request_id", str)
CALLER = web.RequestKey("caller", Caller)
NOTED = web.RequestKey("noted", dict[str, object])  # members of the request's log line


def header_value(value: str) -> str:
    """A header value that every client reads the same; other characters are percent-encoded."""
    return "".join(
        c if " " < c <= "~" else "".join(f"%{byte:02X}" for byte in c.encode("utf-8", "replace"))
        for c in value[:256]
    )
