"""The way to an upstream: direct or by a proxy, and how TLS certificates are verified."""

import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from yarl import URL

from gateway.config.invocation import program
from gateway.config.models import Agent, Config, Outgoing
from gateway.config.proxy import Proxy
from gateway.language.sentences import say


class NoWay(Exception):
    """No connection, because of the way itself. `is_setup`: the configuration of the gateway or of
    the proxy must change. `is_refusal`: the proxy has answered and refuses this upstream only."""

    def __init__(self, message: str, *, is_setup: bool = False, is_refusal: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.is_setup = is_setup
        self.is_refusal = is_refusal


@dataclass(frozen=True, eq=False)
class Trust:
    """Which certificates the gateway accepts, and which one it presents. Paths of PEM files, or "".

    Instances compare by identity: the pool keeps a TLS context for each, so a new instance reads
    the files again.
    """

    ca: str = ""
    cert: str = ""
    key: str = ""
    verify: bool = True

    def __str__(self) -> str:
        parts = [f"ca {self.ca}"] if self.ca else []
        parts += [f"cert {self.cert}"] if self.cert else []
        parts += [] if self.verify else ["verify off"]
        return ", ".join(parts)


SYSTEM = Trust()


@dataclass(frozen=True, eq=False)
class Way:
    """How the gateway connects for one agent, in at most `connect_s` seconds per connection."""

    proxy: Proxy | None = None
    trust: Trust = SYSTEM
    proxy_trust: Trust = SYSTEM  # for TLS to the proxy itself
    connect_s: float = 5.0
    # Connections are reused within one pool. All direct ways that trust the system's authorities
    # share the pool None, so agents on one server share connections.
    pool: "Way | None" = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.proxy is not None or self.trust is not SYSTEM:
            object.__setattr__(self, "pool", self)

    def __str__(self) -> str:
        way = f"by proxy {self.proxy}" if self.proxy else "direct"
        return f"{way}, {self.trust}" if str(self.trust) else way

    @property
    def secrets(self) -> set[str]:
        return {self.proxy.password.reveal(), self.proxy.token} if self.proxy else set()

    def forwards(self, is_tls: bool) -> bool:
        """Whether the proxy itself gets the requests: an HTTP proxy, an upstream without TLS."""
        return self.proxy is not None and self.proxy.speaks_http and not is_tls


DIRECT = Way()


def way_of(agent: Agent, url: str, outgoing: Outgoing) -> Way:
    """The way for an agent whose platform is at `url`. Its own proxy takes precedence over
    `outgoing`; a simulator runs in this process and needs none."""
    connect_s = agent.timeouts.connect
    if agent.is_demo:
        return Way(connect_s=connect_s)
    proxy = agent.proxy
    if proxy is None:
        at = URL(url)
        proxy = outgoing.proxy_for(at.scheme, at.raw_host or "", at.port or 0)
    elif proxy == "none":
        proxy = None
    # `verify: false` is for the upstream; the proxy's certificate is always verified.
    proxy_trust = Trust(ca=agent.ca) if agent.ca else SYSTEM
    return Way(proxy, _trust_of(agent), proxy_trust, connect_s)


def warnings(config: Config) -> Iterator[str]:
    """Sentences for the operator about dangers of the ways to upstreams."""
    for name, agent in config.agents.items():
        if not agent.verify and not agent.is_demo:
            yield (
                f"agents.{name}.verify is false: any machine between the gateway and"
                f" {agent.base_url} can pose as it and read key and chats; use ca instead"
            )


def _trust_of(agent: Agent) -> Trust:
    if not (agent.ca or agent.cert) and agent.verify:
        return SYSTEM
    return Trust(agent.ca or "", agent.cert or "", agent.key or "", agent.verify)


def tls_context(trust: Trust) -> ssl.SSLContext:
    """A TLS context for `trust`. Loading the system's certificates takes tens of milliseconds.
    Raises NoWay."""
    context = ssl.create_default_context()
    try:
        _load(context, trust)
    except OSError:
        raise NoWay(
            say(
                "The agent's ca, cert or key cannot be read any more; `{command} check` says why.",
                command=program(),
            ),
            is_setup=True,
        ) from None
    if not trust.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    return context


def _load(context: ssl.SSLContext, trust: Trust) -> None:
    if trust.ca:
        context.load_verify_locations(cafile=trust.ca)
        # The file may hold a server's own certificate, and company authorities often lack the
        # extensions that Python 3.13 requires.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if trust.cert:
        # Without a password OpenSSL prompts for one on the terminal.
        context.load_cert_chain(trust.cert, trust.key or None, password=lambda: b"")


def pem_files(config: Config) -> list[str]:
    """The paths of PEM files that the agents name."""
    agents = config.agents.values()
    return [path for agent in agents for path in (agent.ca, agent.cert, agent.key) if path]


def tls_reason(error: ssl.SSLError) -> str:
    """OpenSSL's reason, as short lower-case text."""
    reason = getattr(error, "verify_message", "") or getattr(error, "reason", "")
    return str(reason or "no TLS there").replace("_", " ").lower()


def file_problems(agent: Agent) -> Iterator[tuple[str, str]]:
    """(member, what is wrong) for each unusable PEM file."""
    if agent.key and not agent.cert:
        yield "cert", "is missing; key is the key of that certificate"
    missing = False
    for member in ("ca", "cert", "key"):
        path = getattr(agent, member)
        try:
            if path:
                Path(path).read_bytes()
        except OSError as error:
            missing = True
            yield member, f"{path}: {error.strerror or error}"
    if not missing:
        yield from _content_problems(agent)


def _content_problems(agent: Agent) -> Iterator[tuple[str, str]]:
    trust = _trust_of(agent)
    for member, part in (("ca", Trust(ca=trust.ca)), ("cert", Trust("", trust.cert, trust.key))):
        try:
            _load(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), part)
        except OSError as error:  # includes SSLError
            reason = error.strerror or str(error) or type(error).__name__
            files = " and ".join(filter(None, (part.ca, part.cert, part.key)))
            yield member, f"{files} cannot be used: {reason}; it must be PEM, its key not encrypted"
