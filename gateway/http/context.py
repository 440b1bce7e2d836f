"""The typed keys of everything stored on the application or on a request."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from aiohttp import web

from gateway.accounts.credentials import Caller, KeyRing
from gateway.accounts.directory import Directory
from gateway.accounts.passwords import Passwords
from gateway.accounts.store import Accounts
from gateway.accounts.tokens import Signer
from gateway.chat.attachments import Attachments
from gateway.chat.health import HealthCache
from gateway.chat.profiles import Profiles
from gateway.chat.routing import Routing
from gateway.chat.run import Run
from gateway.config.models import Config
from gateway.config.origins import Origins
from gateway.conversations.latest import Latest
from gateway.conversations.register import Register
from gateway.database import Database
from gateway.errors import GatewayError, RateLimited, Stopping, why
from gateway.files.library import Files
from gateway.http.inflight import InFlight
from gateway.limits.buckets import Buckets
from gateway.limits.shares import Part, Shares
from gateway.memory.recall import Memory
from gateway.telemetry.accesslog import AccessLog
from gateway.telemetry.call import Call
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.recorder import Recorder
from gateway.telemetry.store import Calls
from gateway.telemetry.traces import Tracer
from gateway.upstream.client import Upstream


@dataclass(frozen=True)
class State:
    """Everything derived from one configuration. It is built whole and swapped in one step, so a
    request sees the same configuration from beginning to end."""

    config: Config
    keyring: KeyRing
    origins: Origins
    routing: Routing
    health: HealthCache
    profiles: Profiles
    since: int  # seconds since the epoch; the `created` of models
    generation: int = 1  # counts the configurations since the start


class StateHolder:
    """Holds the current state. `requestlog` reads it once per request, for `state_of`."""

    def __init__(self, state: State) -> None:
        self.now = state
        self.problems = 0  # problems in the current file, which is why it was rejected
        self.reloads: Counter[str] = Counter()  # by result: "ok", "failed"


@dataclass(frozen=True)
class Services:
    """The services that need the database; with `database: none` there are none."""

    database: Database
    accounts: Accounts
    directory: Directory
    calls: Calls
    recorder: Recorder
    passwords: Passwords


Reload = Callable[[Config], Awaitable[list[str]]]  # returns the paths that need a restart

RELOAD: web.AppKey[Reload] = web.AppKey("reload")
STATE: web.AppKey[StateHolder] = web.AppKey("state", StateHolder)
UPSTREAM: web.AppKey[Upstream] = web.AppKey("upstream", Upstream)
FILES: web.AppKey[Files] = web.AppKey("files", Files)
ATTACHMENTS: web.AppKey[Attachments] = web.AppKey("attachments", Attachments)
# the main application, for an ops port
MAIN: web.AppKey[web.Application] = web.AppKey("main", web.Application)
SERVICES: web.AppKey[Services] = web.AppKey("services", Services)
BUCKETS: web.AppKey[Buckets] = web.AppKey("buckets", Buckets)
ACCESS_LOG: web.AppKey[AccessLog] = web.AppKey("access_log", AccessLog)
MEMORY: web.AppKey[Memory] = web.AppKey("memory", Memory)
CONVERSATIONS: web.AppKey[Register] = web.AppKey("conversations", Register)
LATEST: web.AppKey[Latest] = web.AppKey("latest", Latest)
METRICS: web.AppKey[Metrics] = web.AppKey("metrics", Metrics)
TRACER: web.AppKey[Tracer] = web.AppKey("tracer")
IN_FLIGHT: web.AppKey[InFlight] = web.AppKey("in_flight", InFlight)
BODIES: web.AppKey[Shares] = web.AppKey("bodies", Shares)  # bytes of large bodies in memory
FORMS: web.AppKey[Shares] = web.AppKey("forms", Shares)  # bytes of forms on disk
PARSING: web.AppKey[asyncio.Lock] = web.AppKey("parsing", asyncio.Lock)  # of large bodies
SIGNER: web.AppKey[Signer] = web.AppKey("signer", Signer)


@dataclass(slots=True)
class Context:
    """The state of one request, from `requestlog` on."""

    request_id: str
    address: str  # the client's, as trusted proxies report it
    state: State | None  # the configuration at its start; None on an ops port
    began: float = field(default_factory=time.monotonic)
    agent: str = ""  # who answered, or was asked last
    attempts: int | None = None  # of a chat
    failures: Sequence[str] = ()  # why each failed attempt failed, if not only the last one did
    error_code: str = ""  # the error's name, if it failed
    reason: str = ""  # and what was said, without keys
    file_bytes: int | None = None  # of an upload or a recording
    account: str = ""  # that has just logged in
    caller: Caller | None = None  # set by `auth` where the route requires an identity
    body: bytes | None = None  # once it has been read
    held: Part | None = None  # of `BODIES`, if the body is large
    limits: dict[str, str] | None = None  # rate limit headers
    over: RateLimited | None = None  # set while a call may pass as a background call only
    call: Call | None = None  # of chats, from `ratelimit` on
    run: Run | None = None  # of a chat, once it begins
    # by its user: whether the platform is asked to stop, too
    stopped_by_user: Literal["", "asked", "not_offered"] = ""
    stopped: Stopping | None = None  # set if the request must end because the process stops
    hidden: tuple[str, ...] = ()  # agents that the caller may ask only as `route`
    route: str = ""

    def hide(self, agents: list[str], route: str) -> str:
        """The name to show the caller in place of the agents that it may not ask by name; "" if it
        may ask all of them."""
        caller = self.caller
        if caller is not None:
            self.hidden = tuple([name for name in agents if not caller.may_ask(name, [name])])
            self.route = route if self.hidden else ""
        return self.route

    def free_body(self) -> None:
        """Free the body's bytes and their share of memory."""
        self.body = None
        if self.held is not None:
            self.held.give_back()

    def failed(self, error: GatewayError) -> GatewayError:
        """Note the error's name and its redacted message for the log line and the record. Returns
        the error to show the caller, without the names of agents hidden from it."""
        self.error_code, self.reason = error.code or error.type, why(error)
        for name in self.hidden:
            error = error.renamed(name, self.route)
        return error


CONTEXT = web.RequestKey("context", Context)


def state_of(request: web.Request) -> State:
    """The configuration at the request's start."""
    state = request[CONTEXT].state
    assert state is not None
    return state


def caller_of(request: web.Request) -> Caller:
    """The caller of a route that requires an identity."""
    caller = request[CONTEXT].caller
    assert caller is not None
    return caller


def call_of(request: web.Request) -> Call:
    """The call record of a chat request."""
    call = request[CONTEXT].call
    assert call is not None
    return call


def header_value(value: str) -> str:
    """A header value that every client reads the same; other characters are percent-encoded."""
    if len(value) <= 256 and value.isascii() and value.isprintable() and " " not in value:
        return value
    return "".join(
        c if " " < c <= "~" else "".join(f"%{byte:02X}" for byte in c.encode("utf-8", "replace"))
        for c in value[:256]
    )


def route_of(request: web.Request) -> str:
    """The declared path of the matched route, not the requested one; "none" if no route matched."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "none"


def is_api(path: str) -> bool:
    """Whether the path belongs to the surface with the `{code, msg, data}` envelope."""
    return path.startswith("/api/")
