"""The neutral form between surfaces and platforms: a question in, deltas out.

A surface (`/api/v1/chat`, `/v1/chat/completions`) makes a `ChatRequest`. A platform turns it into
an upstream request and turns the upstream's bytes into deltas. `render` turns deltas into frames.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from gateway.errors import GatewayError
from gateway.filetypes import MediaKind
from gateway.ids import new_id
from gateway.protocol.seals import Seal

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Media:
    """A file beside the text. `url` is http(s) or `data:`; `name` may be empty.

    `stored` names it in the gateway's own store; `url` is then a link that others can follow, or
    "" if they cannot. `uploaded` is its id with the platform itself, which is all that one needs.
    `owner` is the caller that named the URL: look-ups are limited per owner.
    """

    kind: MediaKind
    url: str
    name: str = ""
    stored: str = ""
    uploaded: str = ""
    owner: str = ""

    @property
    def is_data(self) -> bool:
        return self.url[:5].lower() == "data:"


@dataclass(slots=True)
class Message:
    """One turn, its text parts already joined. `tool_call_id` stands on `tool` turns only. Like
    `ChatRequest` it is not changed, though it could be."""

    role: Role
    text: str
    media: tuple[Media, ...] = ()
    tool_call_id: str = ""


_NOTHING: dict[str, Any] = {}


@dataclass(slots=True)
class ChatRequest:
    """One question to one agent. Nothing changes it but `let_go`; `replace` makes another one.
    (To be frozen would cost as much as all its parsing.)

    `messages` is never empty; the last one is the question. `user` is the end user as the platform
    shall see it. `conversation_id` continues a platform's own conversation. `app_id` chooses
    among the apps of a key that opens several. `is_routed`: several agents share the name that was
    asked for, so the conversation's id tells the caller whose it is. `seal`: the caller speaks for
    `user` alone, and what is kept for that user has sealed ids; None for callers that may speak for
    any user. `count_tokens`: the usage must be known, since tokens are limited. `raw` is the
    caller's body, kept for upstreams that speak the same protocol as the caller; `verbatim` says
    that their answer may go back as it came. `options` are the names of its members that only some
    platforms follow, `demands` those of them without which an answer would be of no use, `ignored`
    those that mean nothing to the surface.
    `call_id` is random and names this call through all attempts.
    """

    model: str
    messages: tuple[Message, ...]
    user: str
    stream: bool = False
    detail: bool = False
    conversation_id: str | None = None
    app_id: str | None = None
    is_routed: bool = False
    seal: Seal | None = None
    variables: dict[str, Any] = field(default_factory=dict)
    include_usage: bool = False
    count_tokens: bool = False
    raw: dict[str, Any] = field(default_factory=dict)
    verbatim: bool = False
    options: tuple[str, ...] = ()
    demands: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    route: str = ""  # to be told in the agent's place, if its name is not for the caller
    call_id: str = field(default_factory=lambda: new_id(32))

    @property
    def question(self) -> Message:
        return self.messages[-1]

    def let_go(self) -> None:
        """Forget what was asked, once an answer to it has begun: a stream lasts for minutes, and
        a conversation may be long."""
        self.messages, self.raw, self.variables = (), _NOTHING, _NOTHING


def has_media(messages: tuple[Message, ...]) -> bool:
    """Whether files come with any of the turns."""
    for message in messages:  # noqa: SIM110 - a generator costs more than all it looks at
        if message.media:
            return True
    return False


@dataclass(slots=True)
class Usage:
    """Tokens as the platform counted them. `total` may be known where the split is not."""

    prompt: int = 0
    completion: int = 0
    total: int = 0
    cached: int = 0
    reasoning: int = 0


@dataclass(slots=True)
class Begin:
    """The platform has accepted the call. Either id may be empty."""

    conversation_id: str = ""
    message_id: str = ""


@dataclass(slots=True)
class Text:
    """New characters of the answer."""

    text: str


@dataclass(slots=True)
class Reasoning:
    """New characters of the thinking that comes before or between the answer."""

    text: str


@dataclass(slots=True)
class Replace:
    """The platform takes back its text so far and puts `text` in its place (moderation).

    `rest` is what is missing from the text already sent if that was its beginning, else None.
    """

    text: str
    rest: str | None


@dataclass(slots=True)
class ToolCall:
    """A piece of a call that the client shall run. `id` and `name` come with the first piece.
    `is_kept`: the run waits at the platform, and the id is all that is needed to go on with it."""

    index: int
    arguments: str = ""
    id: str = ""
    name: str = ""
    is_kept: bool = False


@dataclass(slots=True)
class Note:
    """Something beside the answer: `name` is one of NOTES, `data` is JSON-ready.

    Lists are joined under their name in the `gateway` member; other values replace each other.
    `text` is the same in words, for callers of a surface whose clients show nothing but text.
    """

    name: str
    data: Any
    text: str = ""


@dataclass(slots=True)
class Finish:
    """The whole answer has come. `reason` is one of OpenAI's finish reasons."""

    reason: str = "stop"
    usage: Usage | None = None


@dataclass(slots=True)
class Raw:
    """Bytes for the caller as the upstream sent them: whole SSE events, or a whole JSON body."""

    data: bytes


@dataclass(slots=True)
class Failed:
    """The answer cannot be completed. Always the last delta; what came before it still counts."""

    error: GatewayError


Delta = Begin | Text | Reasoning | Replace | ToolCall | Note | Finish | Raw | Failed

# With one of these in hand the answer has begun: what fails afterwards cannot be tried elsewhere.
CONTENT = (Text, Reasoning, Replace, ToolCall, Finish, Raw)

# What may stand in the `gateway` member, and as named events under `/api/v1/chat` with `detail`.
NOTES = {
    "citations": "list of {title, text?, url?, score?}: what the answer is based on",
    "suggestions": "list of strings: questions the user may want to ask next",
    "files": "list of {type, url, name}: files made by the bot",
    "progress": "list of {node, status, title?}: steps of a workflow",
    "tools": "list of {name, status}: tools the bot ran by itself",
    "interaction": "object: the bot waits for a choice or a form",
    "outputs": "object: what a workflow returned beside its text",
    "title": "string: a title the platform made for the conversation",
}
