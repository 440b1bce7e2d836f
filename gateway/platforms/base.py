"""What a platform is: two small classes without I/O, one that asks and one that listens.

`Platform` lives as long as the configuration and may remember what it learned (a mode, a token).
`Decoder` lives for one answer. Neither opens a socket: `chat.run` carries out what they describe.
"""

import contextlib
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol
from urllib.parse import urlsplit

import orjson

from gateway.errors import (
    GatewayError,
    InvalidRequest,
    OptionNotFollowed,
    UpstreamCut,
    UpstreamFailed,
    clean,
)
from gateway.filetypes import MediaKind
from gateway.platforms.failures import explain_member
from gateway.protocol import loosejson, ndjson, sse
from gateway.protocol.exchange import UploadRequest, UpstreamReply, UpstreamRequest
from gateway.protocol.messages import (
    CONTENT,
    ChatRequest,
    Delta,
    Failed,
    Media,
    Note,
    Reasoning,
    Text,
    ToolCall,
    Usage,
)
from gateway.protocol.passthrough import as_events, event_error
from gateway.protocol.sse import NONE, SHOWN, Life
from gateway.protocol.template import EventTemplate, find_template
from gateway.secret import Secret


@dataclass(frozen=True, slots=True)
class Preliminary:
    """Something that must be asked before the question itself.

    `learn` takes the reply and returns the next step, or raises a GatewayError. With `shared` its
    result serves every call of this agent (a token, the app's mode): `chat.delivery` lets one call
    ask while the others wait, then calls `prepare` again for each.
    """

    request: UpstreamRequest
    learn: "Callable[[UpstreamReply], Any]"  # a Step, or an UploadStep
    shared: bool = False


class Doubt(str):
    """A verdict that finds nothing wrong, and no proof that a chat will do. Says what to check."""


Step = UpstreamRequest | Preliminary
UploadStep = UploadRequest | Preliminary  # a Preliminary whose end is an UploadRequest
Carriage = Literal["as it is", "data", "upload"]


class Decoder(Protocol):
    """The upstream's bytes in, deltas out."""

    done: bool  # nothing that follows matters
    ending: bool  # the answer is whole; what may still follow is waited for only briefly
    conversation_id: str
    life: Life  # what the last `feed` said of the upstream
    ends_with_connection: bool  # nothing in the answer itself tells that it is whole

    def feed(self, chunk: bytes) -> list[Delta]:
        """The deltas in `chunk`; the last is Failed if the platform reports a failure."""

    def close(self) -> list[Delta]:
        """The deltas left at the end of the body; Failed(UpstreamCut) if the end is missing."""

    def usage_so_far(self) -> Usage | None:
        """What the platform has counted so far: for the record of an answer that breaks off."""

    def pattern(self, chunk: bytes, delta: Delta) -> EventTemplate | None:
        """The pattern of events like the one in `chunk`, just fed, of which `delta` came and
        nothing else; None if one that differs in its text alone might come to something else."""


class Platform(Protocol):
    """One configured agent of one kind of upstream."""

    kind: str
    # The members of OpenAI's body that it follows, beside the turns; None is all of them.
    options: frozenset[str] | None
    keeps_files: bool  # whether it has `upload`, and knows files by ids of its own
    keeps_runs: bool  # whether tools' results go on with a run that waits there
    app_id: str | None  # the one app of several behind its key that a caller may ask; None is any
    passes_through: bool  # whether it is a `PassesThrough`: it speaks the caller's own protocol

    @property
    def models(self) -> Sequence[str] | None:
        """The models that `<agent>/<model>` is listed with; None if no model can be chosen."""

    def sends_turns(self, chat: ChatRequest) -> bool:
        """Whether earlier turns go along, and their files with them."""

    @property
    def kinds(self) -> frozenset[MediaKind]:
        """The kinds of files that a question may bring along, as far as is known."""

    def learn_kinds(self) -> Preliminary | None:
        """What must be asked before `kinds` can be relied upon, if it has not been already."""

    def carry(self, media: Media, chat: ChatRequest) -> Carriage:
        """How a file shall reach the platform: as the link that it is, inside the request as a
        `data:` URL, or by `upload` before the question. Raises KindNotTaken."""

    def upload(self) -> UploadStep:
        """Where the platform takes files. Raises InvalidRequest if it has no such place."""

    def uploaded(self, reply: UpstreamReply) -> str:
        """The id of a file that was sent there, or raise what the platform says instead."""

    @property
    def token(self) -> str:
        """What is sent as the bearer at the moment; masked in errors."""

    def prepare(self, chat: ChatRequest) -> Step:
        """The request that asks the question. Raises InvalidRequest for what it cannot carry."""

    def decoder(self, chat: ChatRequest) -> Decoder:
        """A fresh decoder for the answer to `chat`."""

    def refused(self, reply: UpstreamReply, chat: ChatRequest) -> Step:
        """A reply that is not the answer asked for: another step to try, or raise what it means."""

    def as_stream(self, reply: UpstreamReply) -> bytes:
        """A whole answer that came though a stream was asked for, as the stream that the platform
        would have sent; b"" if it is no answer."""

    def stop(self, chat: ChatRequest, decoder: Decoder) -> UpstreamRequest | None:
        """The call that stops a run whose caller has left, if the platform has one."""

    def probe(self) -> Step:
        """A cheap call that shows whether the address, the key and the app are right."""

    def verdict(self, reply: UpstreamReply) -> str | Step:
        """What the probe's reply says of the bot, or another call whose reply says more. Raises
        what is wrong with it."""


class PassesThrough(Platform, Protocol):
    """A platform whose `/v1/*` a caller may ask as it is, beside chat completions."""

    headers: Mapping[str, str]

    def model(self, asked: str) -> str:
        """The upstream's name for the model that was `asked`."""

    def address(self, path: str, query: str = "") -> str:
        """Where `path` is asked; `query` is the caller's."""

    def failure(self, reply: UpstreamReply) -> GatewayError:
        """What a refusal means."""


class BasePlatform:
    """What a platform has to say of files and options if it takes none; others override it."""

    options: frozenset[str] | None = frozenset()
    keeps_files = False
    keeps_runs = False
    passes_through = False
    app_id: str | None = None

    @property
    def models(self) -> Sequence[str] | None:
        return None

    def sends_turns(self, chat: ChatRequest) -> bool:
        return False

    @property
    def kinds(self) -> frozenset[MediaKind]:
        return frozenset()

    def learn_kinds(self) -> Preliminary | None:
        return None

    def carry(self, media: Media, chat: ChatRequest) -> Carriage:
        return "as it is"

    def upload(self) -> UploadStep:
        raise InvalidRequest("This agent's platform keeps no files.", param="Agent")

    def uploaded(self, reply: UpstreamReply) -> str:
        raise NotImplementedError  # there is no `upload` whose reply this could be

    def as_stream(self, reply: UpstreamReply) -> bytes:
        return as_events(reply)


def ignored_options(
    platform: Platform, chat: ChatRequest, decoder: Decoder | None
) -> tuple[str, ...]:
    """The names of all that the caller asked for and that has no effect there, or another."""
    if platform.options is None:
        return chat.ignored
    known = platform.options
    if isinstance(decoder, EventDecoder):
        known = known.difference(decoder.changed)
    return chat.ignored + tuple([name for name in chat.options if name not in known])


def require_options(platform: Platform, chat: ChatRequest) -> None:
    """Raises OptionNotFollowed for what the caller cannot do without."""
    for name in chat.demands:
        if platform.options is not None and name not in platform.options:
            raise OptionNotFollowed(
                f"This agent cannot follow {name!r}: its bot answers in its own way. Leave it out,"
                " or ask an OpenAI-compatible agent.",
                param=name,
            )


def carry_inside(media: Media) -> Carriage:
    """For platforms that take links and `data:` URLs: ours go inside if nobody could follow
    their link."""
    return "data" if media.stored and not media.url else "as it is"


class EventDecoder(ABC):
    """A decoder of server-sent events, or of lines with `framing = ndjson.Parser`. A platform
    overrides `event` and `finish`.

    `text_members` are the names under which its commonest events have new text, if they do; see
    `pattern`.
    """

    __slots__ = ("_half", "_half_of", "_parser", "conversation_id", "done", "ending", "life")

    platform: ClassVar[str] = "The upstream"
    framing: ClassVar[type[sse.Parser] | type[ndjson.Parser]] = sse.Parser
    text_members: ClassVar[tuple[bytes, ...]] = ()
    ends_with_connection = False
    repeats: ClassVar[bool] = False  # each event has all of the text so far
    changed: tuple[str, ...] = ()  # options that the platform got in another value than asked for

    def __init__(self) -> None:
        self.done = False
        self.ending = False
        self.conversation_id = ""
        self.life = NONE
        self._parser = self.framing(skips=self.skips)
        self._half = b""  # of a character, as JSON writes it; the other half may follow
        self._half_of: type[Delta] = Text

    def feed(self, chunk: bytes) -> list[Delta]:
        out: list[Delta] = []
        try:
            events = self._parser.feed(chunk)
            self.life = self._parser.life
            for name, data in events:
                if name and name in sse.ERRORS:
                    raise self.reported(data)
                if self._half or (b"\\u" in data and loosejson.has_halves(data)):
                    shows_life = self._joined(name, data, out)
                else:
                    shows_life = self.event(name, data, out)
                if shows_life is not False:
                    self.life = SHOWN
                if self.done:
                    break
        except GatewayError as error:
            self._fail(error, out)
        return out

    def close(self) -> list[Delta]:
        out: list[Delta] = []
        try:
            for name, data in self._parser.close() if not self.done else ():
                if name in sse.ERRORS:
                    raise self.reported(data)
                with contextlib.suppress(BadEvent):  # cut inside; `finish` says if it matters
                    self._joined(name, data, out)
            if not self.done:
                at = len(out)
                self.finish(out)
                self._replace_half(out, at)
        except GatewayError as error:
            self._fail(error, out)
        self.done = True
        return out

    def _joined(self, name: str, data: bytes, out: list[Delta]) -> bool | None:
        """`event` where halves of characters are, or one has come before. Text that ends with a
        half is said without it; what follows begins with the whole character, or with U+FFFD."""
        before, at = self._half, len(out)
        try:
            data, half, is_joined = loosejson.join_halves(data, before)
        except loosejson.NotJson as error:
            raise BadEvent(f"The upstream sent an event that cannot be read: {error}.") from None
        shows_life = self.event(name, data, out)
        kinds = [type(delta) for delta in out[at:]]
        if is_joined or self.repeats:  # with a half that is left out the text is only shorter
            self._half = b""
        self._replace_half(out, at)
        if half and (Note not in kinds or Text in kinds):  # else it ends something else
            self._half = half
            self._half_of = next((k for k in kinds if k in (Reasoning, ToolCall)), Text)
            if self.done:  # nothing follows that could bring the other half
                self._replace_half(out, len(out) - 1)
        return shows_life

    def _replace_half(self, out: list[Delta], at: int) -> None:
        """More of the answer follows from `at` on, if anything does, but not the other half."""
        said = next((i for i in range(at, len(out)) if isinstance(out[i], CONTENT)), None)
        if self._half and said is not None:
            self._half = b""
            if self._half_of is not ToolCall:
                lost = Reasoning if self._half_of is Reasoning else Text
                out.insert(said, lost(loosejson.REPLACED))

    def usage_so_far(self) -> Usage | None:
        return None

    @property
    def heard(self) -> Callable[[str], object] | None:
        """Is given text that does not come as an event, if the decoder needs to know it. If it
        returns something true, the text comes as an event after all."""
        return None

    def pattern(self, chunk: bytes, delta: Delta) -> EventTemplate | None:
        """For platforms where events of text alone change nothing else, once there was one."""
        if type(delta) is not Text or not self._parser.is_clean:
            return None
        return find_template(chunk, self.text_members, self.heard, delta.text)

    def _fail(self, error: GatewayError, out: list[Delta]) -> None:
        error.retryable = False  # the platform had begun
        error.outage = isinstance(error, UpstreamCut)  # whoever reports a failure is not down
        out.append(Failed(error))
        self.done = True

    def reported(self, data: bytes) -> GatewayError:
        """The error for an event that is called `error`, or whose JSON is one."""
        try:
            value = loosejson.loads(data)
        except loosejson.NotJson:
            value = None
        return self.explain(event_error("error", data, value))

    def explain(self, error: Any) -> GatewayError:
        """The error for what such an event says went wrong: an object, a list or words."""
        return explain_member(self.platform, error)

    @abstractmethod
    def event(self, name: str, data: bytes, out: list[Delta]) -> bool | None:
        """Append the deltas of one event to `out`, or raise what it reports. False: the event is a
        heartbeat, which the platform sends whether its model works or hangs."""

    @staticmethod
    def skips(name: str, head: bytes) -> bool:
        """Whether an event of more than `sse.MAX_EVENT` bytes that begins with `head` may be left
        out: what it holds is neither shown nor counted."""
        return False

    def finish(self, out: list[Delta]) -> None:
        """The body has ended: append what was held back, or raise UpstreamCut."""
        raise UpstreamCut("The upstream's answer ended before it was complete.")


class Token:
    """A bearer that a platform gives for a credential, and that runs out.

    `until` is seconds since the epoch. `margin_s` before it the token counts as over already.
    """

    def __init__(
        self, value: str, until: float, margin_s: float, clock: Callable[[], float] = time.time
    ) -> None:
        self.value = value
        self.until = until
        self.now = clock
        self._margin_s = margin_s
        self._renewed: deque[str] = deque(maxlen=1000)  # calls that had a new token already

    @property
    def is_over(self) -> bool:
        return self.now() > self.until - self._margin_s

    def renew_for(self, call_id: str) -> bool:
        """Count as over: it was revoked early. False if this call had a new one already."""
        if call_id in self._renewed:
            return False
        self._renewed.append(call_id)
        self.until = 0.0
        return True


MAX_VALUES = 300_000  # of one event; to read them takes some 50 ms, in which all others wait


class BadEvent(UpstreamFailed):
    """An event that is not what the platform's protocol allows."""


def parse_object(data: bytes) -> dict[str, Any]:
    """The JSON object in an event; {} for other JSON. Raises BadEvent if it is not JSON."""
    return as_object(parse_json(data))


def parse_json(data: bytes) -> Any:
    """The JSON in an event. Raises BadEvent if it is none, or more than can be read in passing."""
    if len(data) > sse.MAX_EVENT and data.count(b",") > MAX_VALUES:
        raise BadEvent(f"The upstream sent an event of more than {MAX_VALUES} values.")
    try:
        return loosejson.loads(data)
    except loosejson.NotJson:
        said = "" if data.lstrip()[:1] == b"{" else clean(data[:300].decode("utf-8", "replace"))
        raise BadEvent(
            "The upstream sent an event that is not JSON; is base_url the address of its API?"
            + (f" It says: {said}" if said else "")
        ) from None


# Upstreams change types between versions; these read a member without trusting its type.


def as_object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def as_id(value: Any) -> str:
    """An id as text, whether it came as a string or as a number."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return as_text(value)


def dump(value: Any) -> bytes:
    """JSON of a request body. Raises InvalidRequest for what JSON cannot carry (huge integers)."""
    try:
        return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS)
    except orjson.JSONEncodeError as error:
        raise InvalidRequest(f"The request cannot be passed on as JSON: {error}.") from None


def json_text(value: Any) -> str:
    """JSON of what came from an upstream; "" for what is nested too deep to be written again."""
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError:
        return ""


def json_headers(bearer: str, extra: Mapping[str, Secret]) -> dict[str, str]:
    """Headers of a JSON call. The agent's own `headers` win; nothing of the caller's goes along."""
    out = {"Content-Type": "application/json", "Accept": "text/event-stream, application/json"}
    if bearer:
        out["Authorization"] = f"Bearer {bearer}"
    return out | {name: value.reveal() for name, value in extra.items()}


def form_headers(bearer: str, extra: Mapping[str, Secret]) -> dict[str, str]:
    """Headers of an upload; the form names its own content type."""
    out = json_headers(bearer, extra)
    del out["Content-Type"]
    return out | {"Accept": "application/json"}


def base_url(url: str, *tails: str, then: str = "") -> str:
    """`url` without a trailing slash or any of `tails`, however often, and with `then` behind it.

    People paste addresses with and without `/v1`, `/api` or a whole endpoint.
    """
    url = url.rstrip("/")
    cut = True
    while cut:
        cut = False
        for tail in tails:
            if url.endswith(tail) and urlsplit(url[: -len(tail)]).hostname:
                url, cut = url[: -len(tail)].rstrip("/"), True
    return url + then
