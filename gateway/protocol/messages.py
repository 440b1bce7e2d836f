"""The neutral form between surfaces and platforms: a question in, deltas out.

A surface (`/api/v1/chat`, `/v1/chat/completions`) makes a `ChatRequest`. A platform turns it into
an upstream request and turns the upstream's bytes into deltas. `render` turns deltas into frames.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from gateway.errors import GatewayError
from gateway.filetypes import MediaKind
from gateway.ids import new_id
from gateway.protocol.audio import Recording, Speech
from gateway.protocol.exchange import UpstreamRequest
from gateway.protocol.seals import Seal

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Media:
    """A file attached to the text. `url` is http(s) or `data:`; `name` may be empty.

    `stored` is its name in the gateway's file store; `url` is then a link that others can open, or
    "" if they cannot. `uploaded` is its id at the platform, which needs nothing else. `owner` is
    the caller that named the URL: look-ups are limited per owner.
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
    """One turn, its text parts already joined. Only `tool` turns have a `tool_call_id`. Treat it as
    immutable, like `ChatRequest`."""

    role: Role
    text: str
    media: tuple[Media, ...] = ()
    tool_call_id: str = ""


_NOTHING: dict[str, Any] = {}

# From a URL, an agent's headers and its model to a request; it may be called for several agents.
DescribeRequest = Callable[[str, Mapping[str, str], str], UpstreamRequest]


@dataclass(frozen=True, slots=True)
class PassedOn:
    """A request to another endpoint of an OpenAI-compatible agent, which passes through. `path` is
    below /v1, `query` is raw."""

    path: str
    query: str
    describe: DescribeRequest


@dataclass(frozen=True, slots=True)
class Resume:
    """A person's reply to a bot that waits in the middle of a run. `state` is what its decoder has
    left in `pause`; `action` names a button, `inputs` are the values of fields."""

    state: Mapping[str, Any]
    action: str = ""
    inputs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class ChatRequest:
    """One question to one agent. Only its own methods change it; `replace` makes a changed copy.
    (Freezing it would cost as much as all its parsing.)

    The last of `messages` is the question. `user` is the end user as the platform
    sees it. `conversation_id` continues a platform's own conversation. `app_id` chooses among the
    apps of a key that opens several. `is_routed`: several agents share the requested name, so the
    conversation's id names its agent. `seal`: the caller acts only for `user`, so ids of data that
    a platform keeps for that user are sealed; None for callers that may act for any user.
    `count_tokens`: the usage must be known, since tokens are limited. `raw` is the caller's body,
    kept for upstreams that speak the caller's protocol; `verbatim` allows returning their answer
    unchanged. `options` are the names of its members that only some platforms support, `demands`
    those of them without which an answer is useless, `ignored` the members that the surface does
    not know. `scope` is that of the caller's memory; "" if its history is not looked up. `home` is
    the only agent that knows the conversation, and gets the first `resent` messages again, which
    its platform does not keep.
    `own_conversation` is the gateway's own conversation at those of the agents that keep none,
    `own_agents`, and `own_message` the id of an answer that the gateway keeps, if the platform
    gives it none.
    `task` is the kind of background call; `asked` is then the name that the caller asked
    if `model` answers in its place, and `answer` the text if the gateway answers by itself.

    `call_id` is random and identifies this call in all attempts.
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
    run_seal: Seal | None = None  # of every caller, for the ids of runs that wait
    variables: dict[str, Any] = field(default_factory=dict)
    include_usage: bool = False
    count_tokens: bool = False
    raw: dict[str, Any] = field(default_factory=dict)
    verbatim: bool = False
    options: tuple[str, ...] = ()
    demands: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    task: str = ""
    asked: str = ""
    answer: str | None = None
    route: str = ""  # shown in the agent's place, if the caller may not see its name
    scope: str = ""
    home: str = ""
    resent: int = 0
    own_conversation: str = ""
    own_agents: tuple[str, ...] = ()
    own_message: str = ""
    resume: Resume | None = None  # the question is the same in words
    audio: Speech | Recording | None = None  # in place of a question: there are no messages then
    passed: PassedOn | None = None  # the same, for platforms that pass through
    call_id: str = field(default_factory=partial(new_id, 32))

    @property
    def question(self) -> Message:
        return self.messages[-1]

    def continue_at(self, agent: str, conversation: str, resent: int) -> None:
        """Ask in a conversation that the gateway has recalled, before anything is sent."""
        self.home, self.conversation_id, self.resent = agent, conversation, resent

    def reply_with(self, reply: Resume) -> None:
        """The question is a reply to a bot that waits."""
        self.resume = reply

    def own_at(self, agent: str) -> str:
        """The gateway's own conversation at that agent, or ""."""
        return self.own_conversation if agent in self.own_agents else ""

    def continue_own(
        self, conversation: str, agents: tuple[str, ...], earlier: tuple[Message, ...] = ()
    ) -> None:
        """Ask in a conversation that the gateway itself keeps for those agents, after its earlier
        turns."""
        self.own_conversation, self.own_agents = conversation, agents
        self.conversation_id = None
        self.messages = (*earlier, *self.messages)

    def at(self, agent: str) -> "ChatRequest":
        """The question to that agent: one that does not know the conversation gets all turns."""
        if self.home in ("", agent):
            return self
        return replace(self, conversation_id=None, home="", resent=0)

    def free_question(self) -> None:
        """Free the question once its answer has begun: a stream lasts for minutes, and a
        conversation may be long."""
        self.messages, self.raw, self.variables, self.passed = (), _NOTHING, _NOTHING, None


def has_media(messages: tuple[Message, ...]) -> bool:
    """Whether any of the turns has files."""
    for message in messages:  # noqa: SIM110 - a generator costs more than the loop
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
    """New characters of the thinking, which comes before or between parts of the answer."""

    text: str


@dataclass(slots=True)
class Replace:
    """The platform withdraws its text so far and replaces it by `text` (moderation).

    If the text already sent is a prefix of `text`, `rest` is the remainder, else None.
    """

    text: str
    rest: str | None


@dataclass(slots=True)
class ToolCall:
    """A piece of a tool call for the client to run. `id` and `name` come with the first piece.
    `is_kept`: the run waits at the platform, and the id suffices to continue it."""

    index: int
    arguments: str = ""
    id: str = ""
    name: str = ""
    is_kept: bool = False


@dataclass(slots=True)
class Note:
    """Information besides the answer: `name` is one of NOTES, `data` is JSON-ready.

    Lists are joined under their name in the `gateway` member; other values replace each other.
    `text` is the same as plain text, for surfaces whose clients show only text.
    """

    name: str
    data: Any
    text: str = ""


@dataclass(slots=True)
class Finish:
    """The answer is complete. `reason` is one of OpenAI's finish reasons."""

    reason: str = "stop"
    usage: Usage | None = None


@dataclass(slots=True)
class Raw:
    """Bytes to forward unchanged: whole SSE events, or a whole JSON body."""

    data: bytes


@dataclass(slots=True)
class Failed:
    """The answer cannot be completed. Always the last delta; earlier ones remain valid."""

    error: GatewayError


Delta = Begin | Text | Reasoning | Replace | ToolCall | Note | Finish | Raw | Failed

# Deltas that begin the answer: a failure after one of them cannot be tried on another target.
CONTENT = (Text, Reasoning, Replace, ToolCall, Finish, Raw)

# Members of the `gateway` member, and named events under `/api/v1/chat` with `detail`.
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
