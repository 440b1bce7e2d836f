"""The shape of config.yaml: frozen models with defaults. `load` reads the file.

These models are the schema; `config/config.schema.json` is generated from them for editors.
"""

import re
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from gateway.background.tasks import Kind
from gateway.config.origins import origin_entry
from gateway.config.proxy import Proxy, is_excepted
from gateway.config.values import (
    Age,
    AnyProxy,
    AnyRate,
    Duration,
    HeaderValue,
    Network,
    OptionalText,
    Port,
    PublicAddress,
    Rate,
    Size,
    empty_is_none,
    public_address,
    times,
    with_a_port,
)
from gateway.filetypes import DEFAULT_EXTENSIONS, MediaKind
from gateway.language.sentences import Language, say
from gateway.secret import Secret

DEMO = "demo:"
SHORTEST_SECRET = 32  # characters of a secret that signs tokens


def _web_address(value: str) -> str:
    if value == DEMO:
        return value
    try:
        parts = urlsplit(value)
        port_is_fine = parts.port is None or parts.port > 0
    except ValueError:
        raise ValueError("is not a web address: check its host and port") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_fine:
        raise ValueError("must begin with http:// or https:// and name a host, or be demo:")
    if parts.username or parts.password:
        raise ValueError("must not contain a user name or password; use api_key")
    return value.rstrip("/")


def _a_day_or_more(value: float) -> float:
    if value < 86_400:
        raise ValueError("must be a day or more (1d): files are deleted by whole days")
    return value


def _kind_name(value: Any) -> Any:
    """Accept the name `document`, which chat APIs also use."""
    return "file" if value == "document" else value


def _lower(value: Any) -> Any:
    return value.lower().removeprefix(".") if isinstance(value, str) else value


BaseUrl = Annotated[str, AfterValidator(_web_address)]


class Model(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        coerce_numbers_to_str=True,  # ids are often digits, which YAML reads as numbers
    )


class Tls(Model):
    """PEM files; `cert` contains the whole chain. A reload reads them again."""

    cert: Annotated[str, Field(min_length=1)]
    key: Annotated[str, Field(min_length=1)]


KeepAliveForm = Literal["auto", "comment", "line"]


class Server(Model):
    """`ops_port` is a second port for probes and metrics, on `ops_host` or else on `host`;
    `metrics: false` removes metrics from the main port. `drain_timeout` limits how long answers in
    flight may take after the process is asked to stop. `max_bodies` limits the bytes of large
    bodies in memory, `max_forms` the bytes of forms in the temporary folder; one caller may use
    half of them. `keepalive_form` decides whether a blank line follows the comments that keep a
    stream alive; `keepalive_whole` keeps whole answers alive too. A client that reads next to
    nothing of an answer for `send_timeout` is disconnected. `language: zh` makes all errors
    Chinese; with `en` a caller gets Chinese by asking for it in `Accept-Language`."""

    host: str = "127.0.0.1"
    port: Port = 3000
    reuse_port: bool = False
    ops_host: OptionalText = None
    ops_port: Annotated[Port | None, BeforeValidator(empty_is_none)] = None
    metrics: bool = True
    tls: Tls | None = None
    max_connections: Annotated[int, Field(ge=10, le=1_000_000)] = 10_000
    max_body: Size = 10 * 1024 * 1024
    max_bodies: Size = 512 * 1024 * 1024
    max_forms: Size = 256 * 1024 * 1024
    drain_timeout: Duration = 120.0
    keepalive: Duration = 15.0
    keepalive_form: KeepAliveForm = "auto"
    keepalive_whole: bool = False
    send_timeout: Duration = 60.0
    language: Language = "en"
    cors_origins: list[Annotated[str, AfterValidator(origin_entry)]] = []
    trusted_proxies: list[Network] = []


Permission = Literal["chat", "upload", "admin"]


class _Rates(Model):
    chat: AnyRate | None = None
    tasks: AnyRate | None = None

    @model_validator(mode="after")
    def _fill_in_tasks(self) -> "_Rates":
        if "tasks" not in self.model_fields_set:
            object.__setattr__(self, "tasks", times(self.chat, 4))  # the model is frozen
        return self


class KeyLimits(_Rates):
    """A key's own limits; `rate_limits` applies to the members left out, but for `tasks`, which is
    four times as much as `chat`."""

    upload: AnyRate | None = None
    agents: AnyRate | None = None
    accounts: AnyRate | None = None
    tokens: AnyRate | None = None
    concurrency: Annotated[int, Field(ge=1, le=100_000)] | None = None


def _long_enough(secret: Secret) -> Secret:
    if len(secret) < SHORTEST_SECRET:
        raise ValueError(say("must have 32 characters or more; make one with openssl rand -hex 32"))
    return secret


HeadersSecret = Annotated[Secret, AfterValidator(_long_enough)]


class StaticKey(Model):
    """With `trust_client_headers` the key's holder is a server such as Open WebUI, whose headers
    `X-OpenWebUI-User-Id` and `X-OpenWebUI-Chat-Id` name the end user and the chat. With
    `client_headers_secret` only the signed header `X-OpenWebUI-User-Jwt` names the user, and every
    call must have it."""

    name: Annotated[str, Field(min_length=1, max_length=64, pattern="^[^/]*$")]
    key: Secret
    permissions: list[Permission] = ["chat"]
    agents: list[str] | None = None
    rate_limits: KeyLimits = KeyLimits()
    trust_client_headers: bool = False
    client_headers_secret: HeadersSecret | None = None

    @field_validator("key")
    @classmethod
    def _long_enough(cls, key: Secret) -> Secret:
        if len(key) < 8:
            raise ValueError("must have 8 characters or more")
        return key

    @field_validator("client_headers_secret")
    @classmethod
    def _of_trusted_headers(cls, secret: Secret | None, info: ValidationInfo) -> Secret | None:
        if secret is not None and not info.data.get("trust_client_headers"):
            raise ValueError("needs trust_client_headers: true")
        return secret


def _host_name(value: str) -> str:
    name = value.strip().lower().removesuffix(".")
    if not re.fullmatch(r"[a-z0-9_\-]+(\.[a-z0-9_\-]+)*|\[[0-9a-f:.]+\]", name):
        raise ValueError("must be a host's name alone, such as ai-gateway: no scheme, port or path")
    return name


class Auth(Model):
    """`anonymous` allows calls without a key: `auto` does while `server.host` is a loopback address
    and nothing in the file says that the gateway is deployed. `anonymous_hosts` are names that
    their `Host` header may contain in addition to the names of this machine."""

    anonymous: Literal["auto"] | bool = "auto"
    anonymous_anywhere: bool = False
    anonymous_hosts: list[Annotated[str, AfterValidator(_host_name)]] = []
    jwt_secret: Secret = Secret("")
    admin_password: Secret = Secret("")
    token_ttl: Duration = 1800.0
    session_ttl: Duration = 12 * 3600.0  # how long a login can be refreshed
    registration: bool = False
    keys: list[StaticKey] = []

    @field_validator("jwt_secret")
    @classmethod
    def _hard_to_guess(cls, secret: Secret) -> Secret:
        return _long_enough(secret) if secret else secret


Extension = Annotated[str, BeforeValidator(_lower), Field(pattern=r"^[a-z0-9]{1,10}$")]


class S3(Model):
    """A bucket and how to access it. Without keys the machine's own credentials apply (AWS_*,
    roles). `addressing: auto` means `path` (endpoint/bucket/key) if an endpoint is given, as MinIO
    requires; OSS and COS require `virtual`."""

    endpoint: Annotated[PublicAddress | None, BeforeValidator(empty_is_none)] = None
    access_key: Secret = Secret("")
    secret_key: Secret = Secret("")
    bucket: str = ""
    region: str = ""
    key_prefix: str = ""
    acl: OptionalText = None
    addressing: Literal["auto", "path", "virtual"] = "auto"


class Storage(Model):
    """Where uploads are stored, which ones are accepted and how long they are kept (null: without
    limit). An empty `url` means the bucket in `s3` if it names one, else a folder.
    `public_base_url` is the address at which others reach the files; without it links to a bucket
    are signed and valid for `link_ttl`."""

    url: str = ""
    public_base_url: Annotated[PublicAddress | None, BeforeValidator(empty_is_none)] = None
    max_size: Size = 100 * 1000 * 1000
    extensions: list[Extension] = list(DEFAULT_EXTENSIONS)
    keep: Annotated[Age, AfterValidator(_a_day_or_more)] | None = None
    link_ttl: Duration = 7 * 86_400.0  # the longest validity that S3 signs
    s3: S3 = S3()

    @field_validator("url")
    @classmethod
    def _known_scheme(cls, url: str) -> str:
        if url and (not url.startswith(("file:", "s3://")) or url in ("file:", "s3://")):
            raise ValueError("must begin with file: or s3:// and name a folder or a bucket")
        return url

    @property
    def folder(self) -> str:
        """The path of the folder, or "" if the store is a bucket."""
        if self.url.startswith("file:"):
            return re.sub("^//(?=/)", "", self.url.removeprefix("file:"))
        return "" if self.url or self.s3.bucket else "data/uploads"

    @property
    def bucket(self) -> tuple[str, str]:
        """(bucket, key prefix)."""
        bucket, _, prefix = self.url.removeprefix("s3://").partition("/")
        return bucket or self.s3.bucket, prefix or self.s3.key_prefix


class Outgoing(Model):
    """The proxies for connections to platforms and to the hosts of callers' URLs, unless an agent
    or `fetch` names its own. The defaults are HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY of
    the environment."""

    http_proxy: AnyProxy = None
    https_proxy: AnyProxy = None
    no_proxy: str = ""

    def proxy_for(self, scheme: str, host: str, port: int) -> Proxy | None:
        proxy = self.https_proxy if scheme == "https" else self.http_proxy
        if proxy is None or proxy == "none" or is_excepted(self.no_proxy, host, port):
            return None
        return proxy


class Fetch(Model):
    """Limits for files that the gateway fetches from a caller's URL: never from private networks
    except those in `allow`. `timeout` covers the whole fetch."""

    proxy: AnyProxy = None
    allow: list[Network] = []
    max_size: Size = 100 * 1000 * 1000
    timeout: Duration = 60.0


class RateLimits(_Rates):
    """Limits per caller and class; null means no limit. `tasks` covers background calls that no
    agent answers; the default is four times `chat`. `accounts` covers the routes of accounts,
    keys, pages' tokens and the record. `tokens` counts the usage of answers, `concurrency` counts
    calls in flight. `account` covers all keys and logins of one account together, except
    administrators'; members left out there default to one caller's limits, so that more keys do
    not raise them."""

    chat: AnyRate | None = Rate(60, 1.0)
    upload: AnyRate | None = Rate(10, 10 / 60)
    agents: AnyRate | None = Rate(30, 0.5)
    login: AnyRate | None = Rate(10, 10 / 60)
    accounts: AnyRate | None = Rate(300, 5.0)
    tokens: AnyRate | None = None
    concurrency: Annotated[int, Field(ge=1, le=100_000)] | None = None
    account: KeyLimits = KeyLimits()


class Redis(Model):
    """`url` has redis-py's format: redis://, rediss:// or unix://. With `mode: sentinel` it names
    the sentinels (`redis://user:password@one:26379,two:26379/0`), and `master` names the
    service."""

    url: Secret = Secret("")
    mode: Literal["single", "sentinel", "cluster"] = "single"
    master: str = "mymaster"
    sentinel_password: Secret = Secret("")
    prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\-]{1,64}$")] = "gw"

    @field_validator("url")
    @classmethod
    def _known_scheme(cls, url: Secret) -> Secret:
        if url and not url.reveal().startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("must begin with redis://, rediss:// or unix://")
        return with_a_port(url)


def _redis_url(value: Any) -> Any:
    return {"url": value} if isinstance(value, str | Secret) else value


AnyRedis = Annotated[Redis, BeforeValidator(_redis_url, json_schema_input_type=str | Redis)]


class Memory(Model):
    """Memory for clients that send their history with every question. `strict` finds a conversation
    only by its whole history, `auto` also by its end. A conversation is forgotten `keep` after its
    last question, or after a day if it had only one. `window: client` gives the bot no more than
    the client shows. With `system: strict` another system text begins another conversation."""

    mode: Literal["auto", "off", "strict"] = "auto"
    keep: Annotated[Duration, Field(le=30 * 86_400)] = 7 * 86_400.0
    window: Literal["platform", "client"] = "platform"
    system: Literal["ignore", "strict"] = "ignore"


def _mode_alone(value: Any) -> Any:
    """Accept the mode alone; YAML reads `off` as false."""
    if value is False:
        return {"mode": "off"}
    return {"mode": value} if isinstance(value, str) else value


AnyMemory = Annotated[
    Memory, BeforeValidator(_mode_alone, json_schema_input_type=str | bool | Memory)
]


ConversationMode = Literal["platform", "gateway", "off"]


class Conversations(Model):
    """Who keeps the turns of conversations: the platform where it can and the gateway elsewhere,
    or the `gateway` for every agent. With `off` no words are kept here, and agents whose platform
    keeps none have no conversations. They are forgotten `keep` after their last question."""

    mode: ConversationMode = "platform"
    keep: Age = 90 * 86_400.0


AnyConversations = Annotated[
    Conversations, BeforeValidator(_mode_alone, json_schema_input_type=str | bool | Conversations)
]


class Record(Model):
    """How long call records are kept, and where they wait while the database is unavailable."""

    keep: Age = 400 * 86_400.0
    keep_bodies: Age = 30 * 86_400.0
    max_body: Size = 64 * 1024
    spool: str = "data/spool"
    max_spool: Size = 256 * 1024 * 1024


class Traces(Model):
    """`endpoint` receives OTLP over HTTP, such as http://collector:4318; if it is empty, nothing is
    exported. `sample` is the share of calls that are traced if the caller's trace does not
    decide."""

    endpoint: str = ""
    sample: Annotated[float, Field(ge=0, le=1)] = 1.0

    @field_validator("endpoint")
    @classmethod
    def _web_address(cls, url: str) -> str:
        return public_address(url) if url else url


BackgroundMode = Literal["divert", "run", "refuse"]


class Background(Model):
    """What becomes of background calls of chat clients: titles, tags, suggested questions and so
    on. `divert` answers them without the agent, `run` lets it answer them like chats, `refuse` is
    400. `model` is the agent or route that answers them; without one the gateway does, and the
    agent only where a model must. A rule that is false recognises no call of its kind."""

    mode: BackgroundMode = "divert"
    model: OptionalText = None
    rules: dict[Kind, bool] = {}


class Timeouts(Model):
    """`connect`: until the TCP connection is there. `first_delta`: the longest wait for the answer
    to begin, all attempts together; each step that a workflow reports restarts it. `idle`: the
    longest silence afterwards. `total`: the whole call, including all agents of a route. `queue`:
    the longest wait for a slot if `concurrency` calls are in flight."""

    connect: Duration = 5.0
    first_delta: Duration = 60.0
    idle: Duration = 120.0
    total: Duration = 600.0
    queue: Duration = 5.0


class BreakerSettings(Model):
    """After `failures` consecutive outages the gateway sends nothing to the upstream for
    `cooldown`; then one call tests whether it has recovered."""

    failures: Annotated[int, Field(ge=1, le=1_000_000)] = 5
    cooldown: Duration = 10.0


class OnDisconnect(Model):
    """What happens to an answer whose client has disconnected: `cancel` stops it at the platform,
    `drain` reads it to its end to learn its usage, for at most `max_time` and in at most
    `max_calls` calls concurrently."""

    policy: Literal["cancel", "drain"] = "cancel"
    max_time: Duration = 120.0
    max_calls: Annotated[int, Field(ge=1, le=100_000)] = 20


def _policy(value: Any) -> Any:
    return {"policy": value} if isinstance(value, str) else value


AnyOnDisconnect = Annotated[
    OnDisconnect,
    BeforeValidator(_policy, json_schema_input_type=Literal["cancel", "drain"] | OnDisconnect),
]


class Icon(Model):
    """A bot's icon: the link to a picture, or an emoji on a background such as `#FFEAD5`."""

    url: Annotated[str, Field(max_length=2000, pattern=r"^https?://[^\s/@]+(/\S*)?$")] | None = None
    emoji: Annotated[str, Field(min_length=1, max_length=20)] | None = None
    background: Annotated[str, Field(min_length=1, max_length=20)] | None = None

    @model_validator(mode="after")
    def _one_picture(self) -> "Icon":
        if (self.url is None) == (self.emoji is None):
            raise ValueError("give url or emoji, one of them")
        return self


def _icon(value: Any) -> Any:
    """Accept the link or the emoji alone."""
    if not isinstance(value, str):
        return value
    return {"url": value} if "://" in value else {"emoji": value}


AnyIcon = Annotated[Icon, BeforeValidator(_icon, json_schema_input_type=str | Icon)]


class BotProfile(Model):
    """What a front end shows of the bot, in place of what its platform tells."""

    title: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    description: Annotated[str, Field(max_length=8000)] | None = None
    icon: AnyIcon | None = None
    opening: Annotated[str, Field(max_length=8000)] | None = None
    suggestions: (
        Annotated[list[Annotated[str, Field(min_length=1, max_length=500)]], Field(max_length=50)]
        | None
    ) = None

    @property
    def shown(self) -> dict[str, Any]:
        """The members that the file sets, as JSON."""
        return self.model_dump(exclude_none=True)


class Agent(Model):
    """Options of every agent, whatever its platform. `proxy` defaults to the proxy in `outgoing`.
    `ca`, `cert` and `key` are PEM files: authorities to trust in addition to the system's, and the
    certificate that the gateway presents. A reload reads them again. `share` is the fraction of
    `concurrency` and of `queue` that one caller may hold. `memory` and `conversations`
    replace the general settings.
    `system` says whether system texts reach the bot: `auto` drops those that a client has made
    up. `background` replaces the general mode of background calls,
    which does not apply to plain models."""

    platform: str
    base_url: BaseUrl = DEMO
    api_key: Secret = Secret("")
    proxy: AnyProxy = None
    ca: OptionalText = None
    cert: OptionalText = None
    key: OptionalText = None
    verify: bool = True
    timeouts: Timeouts = Timeouts()
    retries: Annotated[int, Field(ge=0, le=10)] = 2
    concurrency: Annotated[int, Field(ge=1, le=100_000)] = 100
    queue: Annotated[int, Field(ge=0, le=100_000)] = 100
    share: Annotated[float, Field(gt=0, le=1)] = 0.75
    breaker: BreakerSettings = BreakerSettings()
    max_answer: Size = 64 * 1024 * 1024
    on_disconnect: AnyOnDisconnect = OnDisconnect()
    capture: Literal["off", "errors", "all"] = "off"
    memory: AnyMemory | None = None
    conversations: AnyConversations | None = None
    system: Literal["forward", "drop", "auto"] = "auto"
    background: BackgroundMode | None = None
    profile: BotProfile = BotProfile()
    upload: Literal["gateway", "platform"] = "gateway"
    accepts: list[Annotated[MediaKind, BeforeValidator(_kind_name)]] | None = (
        None  # kinds of files; null means the platform's usual kinds
    )
    headers: dict[str, HeaderValue] = {}

    # One of these members must be set; an empty tuple requires none.
    credentials: ClassVar[tuple[str, ...]] = ("api_key",)

    @property
    def is_demo(self) -> bool:
        return self.base_url == DEMO

    @property
    def keeps_files(self) -> bool:
        """Whether the platform accepts uploads and gives them its own ids."""
        return False

    def warnings(self) -> Iterator[str]:
        """Lines `member: what is odd` about usable options."""
        return iter(())


class RouteTarget(Model):
    """One agent of a route. Weights set each agent's share of the calls; without them agents are
    tried in order."""

    agent: str
    weight: Annotated[float, Field(gt=0, le=1_000_000)] | None = None


def _agent_name(value: Any) -> Any:
    return {"agent": str(value)} if isinstance(value, str | int) else value


AnyTarget = Annotated[
    RouteTarget, BeforeValidator(_agent_name, json_schema_input_type=str | RouteTarget)
]


# max_length is separate: in the pattern it would make an automaton of half a megabyte.
Name = Annotated[str, Field(pattern=r"^[^\s/\x00-\x1f][^\x00-\x1f]*$", max_length=128)]


class Config(Model):
    """config.yaml, validated, with its defaults filled in."""

    server: Server = Server()
    auth: Auth = Auth()
    database: Secret = Secret("sqlite:///data/gateway.db")
    redis: AnyRedis = Redis()
    storage: Storage = Storage()
    fetch: Fetch = Fetch()
    outgoing: Outgoing = Outgoing()
    rate_limits: RateLimits = RateLimits()
    record: Record = Record()
    memory: AnyMemory = Memory()
    conversations: AnyConversations = Conversations()
    background: Background = Background()
    traces: Traces = Traces()
    demo: bool = True  # whether simulators may answer for agents
    agents: Annotated[dict[Name, Agent], Field(min_length=1)]  # see `kinds.config_model`
    routes: dict[Name, Annotated[list[AnyTarget], Field(min_length=1)]] = {}

    @field_validator("database")
    @classmethod
    def _known_database(cls, url: Secret) -> Secret:
        known = ("sqlite:///", "postgresql://", "postgres://")
        if url.reveal() in ("", "none"):
            return Secret("")
        if not url.reveal().startswith(known) or url.reveal() == known[0]:
            raise ValueError(
                "must begin with sqlite:/// or postgresql://, or be none: no accounts, no record"
            )
        return with_a_port(url)

    @property
    def uses_postgresql(self) -> bool:
        return self.database.reveal().startswith("postgres")

    @property
    def sqlite_file(self) -> str:
        """The path in `sqlite:///path`, or "" for another database."""
        url = self.database.reveal()
        return url.removeprefix("sqlite:///") if url.startswith("sqlite:") else ""

    @property
    def demos(self) -> list[str]:
        """The agents that a simulator answers for."""
        return [name for name, agent in self.agents.items() if agent.is_demo]

    @property
    def exposed_demos(self) -> list[str]:
        """`demos` if other machines can reach the gateway, else none."""
        server = self.server
        is_behind_proxy = server.trusted_proxies or self.storage.public_base_url or server.tls
        return self.demos if is_behind_proxy or not self.binds_loopback else []

    @property
    def anonymous(self) -> bool:
        """Whether calls without a key are accepted."""
        if self.auth.anonymous == "auto":
            return self.binds_loopback and not self.deployed_by
        return self.auth.anonymous

    @property
    def deployed_by(self) -> str:
        """The first setting that only a deployed gateway needs, or ""."""
        signs = {
            "server.trusted_proxies": self.server.trusted_proxies,
            "server.tls": self.server.tls,
            "server.ops_port": self.server.ops_port,
            "storage.public_base_url": self.storage.public_base_url,
            "database (PostgreSQL)": self.uses_postgresql,
        }
        return next((path for path, value in signs.items() if value), "")

    @property
    def binds_loopback(self) -> bool:
        host = self.server.host.strip("[]").lower()
        return host in ("localhost", "::1") or bool(re.fullmatch(r"127(\.\d{1,3}){3}", host))
