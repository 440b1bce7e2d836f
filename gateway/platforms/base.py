"""The interface of a platform: two classes without I/O, one for requests and one for answers.

A `Platform` lives as long as the configuration and may remember learned state (a mode, a token).
A `Decoder` lives for one answer. Neither opens a socket: `chat.run` sends what they describe.
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

from gateway.config.kinds import find
from gateway.errors import (
    GatewayError,
    InvalidRequest,
    NotOffered,
    OptionNotFollowed,
    UpstreamCut,
    UpstreamFailed,
    clean,
)
from gateway.filetypes import MediaKind
from gateway.language.sentences import Sentence, say
from gateway.platforms.failures import explain_member
from gateway.protocol import loosejson, ndjson, sse
from gateway.protocol.audio import Speech
from gateway.protocol.completions import as_events
from gateway.protocol.exchange import UploadRequest, UpstreamReply, UpstreamRequest
from gateway.protocol.history import Feedback
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
from gateway.protocol.profile import FileNeeds, Profile, kinds_in_order
from gateway.protocol.reported_errors import event_error
from gateway.protocol.sse import NONE, SHOWN, Life
from gateway.protocol.template import EventTemplate, find_template
from gateway.secret import Secret


@dataclass(frozen=True, slots=True)
class Preliminary:
    """A request that must precede the question.

    `learn` takes the reply and returns the next step, or raises a GatewayError. With `shared` the
    result serves every call of this agent (a token, the app's mode): `chat.steps` lets one call
    send the request while the others wait, then asks the platform again for each of them.
    """

    request: UpstreamRequest
    learn: "Callable[[UpstreamReply], Any]"  # a Step, or an UploadStep
    shared: bool = False


class Doubt(Sentence):
    """A description that finds no error, but no proof that chats work. It says what to check."""


Step = UpstreamRequest | Preliminary
ProfileStep = Profile | Preliminary  # a Preliminary that leads to a Profile
UploadStep = UploadRequest | Preliminary  # a Preliminary that leads to an UploadRequest
Delivery = Literal["url", "inline", "upload"]


class Decoder(Protocol):
    """Decodes the upstream's bytes to deltas."""

    done: bool  # later bytes do not matter
    ending: bool  # the answer is complete; the wait for later bytes is brief
    conversation_id: str
    life: Life  # the sign of life in the last `feed`
    ends_with_connection: bool  # the answer itself has no mark of its end
    # What a reply needs to continue the run, as JSON: set if the bot waits for a person, and the
    # platform needs more than the conversation's id.
    pause: dict[str, Any] | None
    changed: tuple[str, ...]  # options that were sent with another value than requested

    def feed(self, chunk: bytes) -> list[Delta]:
        """The deltas in `chunk`; the last one is Failed if the platform reports a failure."""

    def close(self) -> list[Delta]:
        """The remaining deltas at the end of the body; Failed(UpstreamCut) if its end is
        missing."""

    def usage_so_far(self) -> Usage | None:
        """The platform's counts so far, for the record of an answer that breaks off."""

    def pattern(self, chunk: bytes, delta: Delta) -> EventTemplate | None:
        """The template of events like the one in `chunk`, which was just fed and gave `delta` only.
        None if an event that differs only in its text might decode to something else."""


class Endpoint(Protocol):
    """One endpoint of an upstream: describes its requests and decodes its answers."""

    # The members of OpenAI's body that it follows, apart from the question; None means all.
    options: frozenset[str] | None
    restarts: bool  # whether a lost conversation begins again if the request has its turns

    def prepare(self, chat: ChatRequest) -> Step:
        """The request that asks the question. Raises InvalidRequest if the platform cannot express
        the question."""

    def decoder(self, chat: ChatRequest) -> Decoder:
        """A new decoder for the answer to `chat`."""

    def recover(self, reply: UpstreamReply, chat: ChatRequest) -> Step:
        """Handle a reply that is not the answer: return another step to try, or raise the error
        that the reply means."""

    def as_stream(self, reply: UpstreamReply) -> bytes:
        """A whole answer in place of the one that was asked for, converted to what the decoder
        expects; b"" if it is not an answer."""

    def stop(self, chat: ChatRequest, decoder: Decoder) -> UpstreamRequest | None:
        """The call that stops a run whose client has disconnected, if the platform has one."""


class Platform(Endpoint, Protocol):
    """Adapts one configured agent to its kind of upstream. It is the endpoint for chats itself."""

    kind: str
    keeps_files: bool  # whether it has `upload`, and gives files its own ids
    keeps_runs: bool  # whether tool results continue a run that waits at the platform
    keeps_forms: bool  # whether a form can be answered after other questions
    app_id: str | None  # the only app that callers may ask if its key opens several; None: any
    passes_through: bool  # whether it speaks the client's own protocol: it takes `chat.passed`
    is_model: bool  # whether it is a plain model, which keeps no conversation and runs no bot
    checks_inputs: bool  # whether its server refuses missing variables, and texts of another type

    drops_stopped: bool  # whether a conversation forgets a question whose answer was stopped
    speech: Endpoint | None  # speaks texts; None if the platform cannot
    transcription: Endpoint | None  # transcribes recordings; likewise
    no_speech: str  # why it cannot, if not for want of an API; no full stop
    no_transcription: str

    @property
    def title(self) -> str:
        """The platform's name in sentences."""

    @property
    def remembers(self) -> bool:
        """Whether a conversation can be continued by its id, with the question alone."""

    @property
    def models(self) -> Sequence[str] | None:
        """The models listed as `<agent>/<model>`; None if callers cannot choose a model."""

    def sends_turns(self, chat: ChatRequest) -> bool:
        """Whether the request contains earlier turns, with their files."""

    @property
    def kinds(self) -> frozenset[MediaKind]:
        """The kinds of files that a question may have, as far as is known."""

    def learn_kinds(self) -> Preliminary | None:
        """The request needed before `kinds` is reliable; None if it is."""

    def delivery(self, media: Media, chat: ChatRequest) -> Delivery:
        """How to deliver a file to the platform: as its link, embedded in the request as a `data:`
        URL, or by `upload` before the question. Raises KindNotTaken."""

    def upload(self) -> UploadStep:
        """The request that uploads a file. Raises InvalidRequest if the platform keeps no files."""

    def uploaded(self, reply: UpstreamReply) -> str:
        """The id of the uploaded file. Raises the error in the platform's reply."""

    @property
    def token(self) -> str:
        """The current bearer token; errors redact it."""

    def probe(self) -> Step:
        """A cheap call that verifies the address, the key and the app."""

    def describe(self, reply: UpstreamReply) -> str | Step:
        """A description of the bot from the probe's reply, or another call that tells more. Raises
        the error that the reply means."""

    def profile(self) -> ProfileStep:
        """What the bot shows before the first question, or the request that asks for it. A platform
        that cannot be asked has a profile, too: what its configuration says."""

    # What can be done with a conversation that the platform keeps. Each method gives a request that
    # leads to the result, or raises NotOffered. `user` is the end user of its questions. An unknown
    # conversation is ConversationNotFound, an unknown message MessageNotFound.

    @property
    def shows_turns(self) -> bool:
        """Whether `past_turns` is offered. If not, the gateway keeps them itself."""

    def past_turns(self, conversation: str, user: str, before: str, limit: int) -> Preliminary:
        """Leads to a Page of at most `limit` turns: the latest, or those before the page whose
        `before` is given."""

    def rename(self, conversation: str, user: str, title: str) -> Preliminary:
        """Leads to None. A title that is too long for the platform is shortened."""

    def make_title(self, conversation: str, user: str) -> Preliminary:
        """Leads to the title that the platform has made and given to the conversation."""

    def delete(self, conversation: str, user: str) -> Preliminary:
        """Leads to None, also if the platform does not know the conversation."""

    def clear(self, conversation: str, user: str) -> Preliminary:
        """Leads to None: later questions have no context; the past turns may remain readable."""

    def give_feedback(
        self, conversation: str, user: str, message_id: str, feedback: Feedback
    ) -> Preliminary:
        """Leads to None. `message_id` is the `id` of a PastTurn."""

    def suggest(self, conversation: str, user: str, message_id: str) -> Preliminary:
        """Leads to a tuple of next questions: () if the bot's author has switched them off."""


class BasePlatform:
    """Defaults for a platform without files and options; other platforms override them."""

    kind = ""
    options: frozenset[str] | None = frozenset()
    keeps_files = False
    keeps_runs = False
    keeps_forms = False
    restarts = False
    passes_through = False
    drops_stopped = False
    is_model = False
    checks_inputs = False
    app_id: str | None = None
    speech: Endpoint | None = None
    transcription: Endpoint | None = None
    no_speech: str = ""
    no_transcription: str = ""

    @property
    def remembers(self) -> bool:
        return False

    @property
    def shows_turns(self) -> bool:
        return False

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

    def delivery(self, media: Media, chat: ChatRequest) -> Delivery:
        return "url"

    def upload(self) -> UploadStep:
        raise InvalidRequest("This agent's platform keeps no files.", param="Agent")

    def uploaded(self, reply: UpstreamReply) -> str:
        raise NotImplementedError  # `upload` raises, so there is no reply

    def as_stream(self, reply: UpstreamReply) -> bytes:
        return as_events(reply)

    def profile(self) -> ProfileStep:
        return Profile(files=self.file_needs)

    @property
    def file_needs(self) -> FileNeeds:
        """The rules for files of a bot that tells none."""
        kinds = kinds_in_order(self.kinds)
        return FileNeeds(kinds, transfer=("url", "upload") if kinds else ())

    @property
    def title(self) -> str:
        """The platform's name in sentences."""
        kind = find(self.kind) if self.kind else None
        return kind.title if kind else say("This agent's platform")

    def past_turns(self, conversation: str, user: str, before: str, limit: int) -> Preliminary:
        raise NotOffered(
            say("{platform} does not show the turns of a conversation.", platform=self.title)
        )

    def rename(self, conversation: str, user: str, title: str) -> Preliminary:
        raise NotOffered(say("{platform} cannot rename a conversation.", platform=self.title))

    def make_title(self, conversation: str, user: str) -> Preliminary:
        raise NotOffered(
            say("{platform} cannot make a title for a conversation.", platform=self.title)
        )

    def delete(self, conversation: str, user: str) -> Preliminary:
        raise NotOffered(say("{platform} cannot delete a conversation.", platform=self.title))

    def clear(self, conversation: str, user: str) -> Preliminary:
        raise NotOffered(
            say("{platform} cannot clear the context of a conversation.", platform=self.title)
        )

    def give_feedback(
        self, conversation: str, user: str, message_id: str, feedback: Feedback
    ) -> Preliminary:
        raise NotOffered(say("{platform} takes no feedback.", platform=self.title))

    def suggest(self, conversation: str, user: str, message_id: str) -> Preliminary:
        raise NotOffered(say("{platform} suggests no questions.", platform=self.title))


def endpoint_of(platform: Platform, chat: ChatRequest) -> Endpoint:
    """The platform's endpoint for the request. It has one: others are not asked."""
    if chat.audio is None or (chat.passed is not None and platform.passes_through):
        return platform
    endpoint = platform.speech if isinstance(chat.audio, Speech) else platform.transcription
    assert endpoint is not None
    return endpoint


def ignored_options(
    endpoint: Endpoint, chat: ChatRequest, decoder: Decoder | None
) -> tuple[str, ...]:
    """The names of the caller's options that have no effect at the endpoint, or another effect."""
    if endpoint.options is None:
        return chat.ignored
    known = endpoint.options
    if decoder is not None:
        known = known.difference(decoder.changed)
    return chat.ignored + tuple([name for name in chat.options if name not in known])


def require_options(endpoint: Endpoint, chat: ChatRequest) -> None:
    """Raises OptionNotFollowed if the endpoint does not follow an option that the caller needs."""
    for name in chat.demands:
        if endpoint.options is not None and name not in endpoint.options:
            raise OptionNotFollowed(
                say(
                    "This agent cannot follow {name!r}: its bot answers in its own way. Leave it "
                    "out, or ask an OpenAI-compatible agent.",
                    name=name,
                ),
                param=name,
            )


def link_or_inline(media: Media) -> Delivery:
    """The delivery for platforms that accept links and `data:` URLs: the gateway's own files are
    embedded if they have no public link."""
    return "inline" if media.stored and not media.url else "url"


class EventDecoder(ABC):
    """A decoder of server-sent events, or of lines with `framing = ndjson.Parser`. A platform
    overrides `event` and `finish`.

    `text_members` are the members that hold new text in its most frequent events; see `pattern`.
    """

    __slots__ = ("_half", "_half_of", "_parser", "conversation_id", "done", "ending", "life")

    platform: ClassVar[str] = say("The upstream")
    framing: ClassVar[type[sse.Parser] | type[ndjson.Parser]] = sse.Parser
    text_members: ClassVar[tuple[bytes, ...]] = ()
    ends_with_connection = False
    pause: dict[str, Any] | None = None
    repeats: ClassVar[bool] = False  # each event repeats the whole text so far
    changed: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.done = False
        self.ending = False
        self.conversation_id = ""
        self.life = NONE
        self._parser = self.framing(skips=self.skips)
        self._half = b""  # half of a surrogate pair as JSON writes it; the other may follow
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
                with contextlib.suppress(BadEvent):  # a cut event; `finish` decides if it matters
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
        """`event` for data with halves of surrogate pairs, or after a half. Text that ends with a
        half is emitted without it; the next text begins with the whole character, or U+FFFD."""
        before, at = self._half, len(out)
        try:
            data, half, is_joined = loosejson.join_halves(data, before)
        except loosejson.NotJson as error:
            raise BadEvent(
                say("The upstream sent an event that cannot be read: {reason}.", reason=str(error))
            ) from None
        shows_life = self.event(name, data, out)
        kinds = [type(delta) for delta in out[at:]]
        if is_joined or self.repeats:  # an omitted half only shortens repeated text
            self._half = b""
        self._replace_half(out, at)
        if half and (Note not in kinds or Text in kinds):  # else the half is not the answer's
            self._half = half
            self._half_of = next((k for k in kinds if k in (Reasoning, ToolCall)), Text)
            if self.done:  # the other half cannot follow
                self._replace_half(out, len(out) - 1)
        return shows_life

    def _replace_half(self, out: list[Delta], at: int) -> None:
        """Put U+FFFD for a pending half before the first content in `out` from `at` on, or drop the
        half if it is a tool call's. Does nothing if there is no content."""
        first = next((i for i in range(at, len(out)) if isinstance(out[i], CONTENT)), None)
        if self._half and first is not None:
            self._half = b""
            if self._half_of is not ToolCall:
                lost = Reasoning if self._half_of is Reasoning else Text
                out.insert(first, lost(loosejson.REPLACED))

    def usage_so_far(self) -> Usage | None:
        return None

    @property
    def on_text(self) -> Callable[[str], object] | None:
        """A callback for text that bypasses `event`, if the decoder needs it. If the callback
        returns a true value, the text goes through `event` after all."""
        return None

    def pattern(self, chunk: bytes, delta: Delta) -> EventTemplate | None:
        """The template, for platforms whose text events change no other state after the first."""
        if type(delta) is not Text or not self._parser.is_clean:
            return None
        return find_template(chunk, self.text_members, self.on_text, delta.text)

    def _fail(self, error: GatewayError, out: list[Delta]) -> None:
        # A platform that reports a failure is up.
        out.append(Failed(error.replace(outage=isinstance(error, UpstreamCut))))
        self.done = True

    def reported(self, data: bytes) -> GatewayError:
        """The error for an event named `error`, or whose JSON is an error."""
        try:
            value = loosejson.loads(data)
        except loosejson.NotJson:
            value = None
        return self.explain(event_error("error", data, value))

    def explain(self, error: Any) -> GatewayError:
        """The error for the content of such an event: an object, a list or text."""
        return explain_member(self.platform, error)

    @abstractmethod
    def event(self, name: str, data: bytes, out: list[Delta]) -> bool | None:
        """Append the deltas of one event to `out`, or raise the error it reports. Return False for
        a heartbeat, which the platform sends whether its model works or hangs."""

    @staticmethod
    def skips(name: str, head: bytes) -> bool:
        """Whether to skip an event of more than `sse.MAX_EVENT` bytes that begins with `head`,
        because its content is neither shown nor counted."""
        return False

    def finish(self, out: list[Delta]) -> None:
        """Handle the end of the body: append deltas held back, or raise UpstreamCut."""
        raise UpstreamCut("The upstream's answer ended before it was complete.")


class Token:
    """A bearer token that a platform issues for a credential, and that expires.

    `until` is in seconds since the epoch. The token counts as expired `margin_s` before it.
    """

    def __init__(
        self, value: str, until: float, margin_s: float, clock: Callable[[], float] = time.time
    ) -> None:
        self.value = value
        self.until = until
        self.now = clock
        self._margin_s = margin_s
        self._renewed: deque[str] = deque(maxlen=1000)  # calls that already got a new token

    @property
    def is_over(self) -> bool:
        return self.now() > self.until - self._margin_s

    def renew_for(self, call_id: str) -> bool:
        """Expire the token, which was revoked early. False if this call already got a new one."""
        if call_id in self._renewed:
            return False
        self._renewed.append(call_id)
        self.until = 0.0
        return True


MAX_VALUES = 300_000  # of one event; parsing them blocks the loop for about 50 ms


class BadEvent(UpstreamFailed):
    """An event that violates the platform's protocol."""


def parse_object(data: bytes) -> dict[str, Any]:
    """The JSON object in an event; {} for other JSON. Raises BadEvent if it is not JSON."""
    return as_object(parse_json(data))


def parse_json(data: bytes) -> Any:
    """The JSON in an event. Raises BadEvent if it is invalid, or has too many values to parse
    without blocking the loop."""
    if len(data) > sse.MAX_EVENT and data.count(b",") > MAX_VALUES:
        raise BadEvent(
            say("The upstream sent an event of more than {most} values.", most=MAX_VALUES)
        )
    try:
        return loosejson.loads(data)
    except loosejson.NotJson:
        quoted = "" if data.lstrip()[:1] == b"{" else clean(data[:300].decode("utf-8", "replace"))
        raise BadEvent(
            say(
                "The upstream sent an event that is not JSON; is base_url the address of its API?"
                "{quote}",
                quote=say(" It says: {message}", message=quoted) if quoted else "",
            )
        ) from None


# Upstreams change types between versions; these functions read a member of any type.


def as_object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def as_id(value: Any) -> str:
    """An id as text, from a string or a number."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return as_text(value)


def dump(value: Any) -> bytes:
    """JSON of a request body. Raises InvalidRequest for values that JSON cannot express (huge
    integers)."""
    try:
        return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS)
    except orjson.JSONEncodeError as error:
        raise InvalidRequest(
            say("The request cannot be passed on as JSON: {reason}.", reason=str(error))
        ) from None


def json_text(value: Any) -> str:
    """JSON of a value from an upstream; "" if it is nested too deep to serialise."""
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError:
        return ""


def json_headers(bearer: str, extra: Mapping[str, Secret]) -> dict[str, str]:
    """Headers of a JSON call. The agent's own `headers` take precedence; the caller's are never
    forwarded."""
    out = {"Content-Type": "application/json", "Accept": "text/event-stream, application/json"}
    if bearer:
        out["Authorization"] = f"Bearer {bearer}"
    return out | {name: value.reveal() for name, value in extra.items()}


def form_headers(bearer: str, extra: Mapping[str, Secret]) -> dict[str, str]:
    """Headers of an upload; the form sets its own content type."""
    out = json_headers(bearer, extra)
    del out["Content-Type"]
    return out | {"Accept": "application/json"}


def base_url(url: str, *tails: str, then: str = "") -> str:
    """`url` without trailing slashes and any of `tails`, however often, with `then` appended.

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
