"""Any upstream with OpenAI's chat completions: passed through, or decoded for the gateway's API.

Clients of `/v1/*` get the upstream's stream byte for byte, in whole events; the gateway inspects it
only for usage, errors and the end. Clients of `/api/v1/chat` get decoded deltas.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

from pydantic import Field

from gateway.config.models import Agent
from gateway.config.values import OptionalText
from gateway.errors import (
    EmptyAnswer,
    GatewayError,
    InvalidRequest,
    NotFound,
    UpstreamCut,
    UpstreamFailed,
)
from gateway.filetypes import KINDS
from gateway.language.sentences import say
from gateway.platforms.base import (
    BasePlatform,
    Decoder,
    Delivery,
    Doubt,
    EventDecoder,
    Step,
    as_id,
    as_list,
    as_object,
    as_text,
    base_url,
    dump,
    json_headers,
    json_text,
    link_or_inline,
    parse_json,
    parse_object,
)
from gateway.platforms.failures import explain_http, explain_member
from gateway.platforms.openai_audio import OpenAITranscription
from gateway.protocol.content import message_of, read_message, read_pictures
from gateway.protocol.exchange import UpstreamReply, UpstreamRequest
from gateway.protocol.messages import (
    Begin,
    ChatRequest,
    Delta,
    Finish,
    Media,
    Message,
    Note,
    PassedOn,
    Reasoning,
    Text,
    ToolCall,
    Usage,
    has_media,
)
from gateway.protocol.openai_messages import media_part, put_back
from gateway.protocol.passthrough import PassThrough
from gateway.protocol.reported_errors import reported_error
from gateway.protocol.usage import read_usage
from gateway.protocol.verbatim import Verbatim
from gateway.protocol.whole_body import WholeBody


def _hides_usage(chat: ChatRequest) -> bool:
    """Whether the gateway requests the usage for itself, and hides it from a caller who did not."""
    return chat.count_tokens and chat.stream and not chat.include_usage


# The members that a caller acting for one user may send: OpenAI's own, without those that make a
# server store something or look it up. Other members of servers select a conversation or a user
# without a check of its owner.
_OWN = frozenset(
    (
        "audio", "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs",
        "max_completion_tokens", "max_tokens", "messages", "modalities", "model", "n",
        "parallel_tool_calls", "prediction", "presence_penalty", "reasoning_effort",
        "response_format", "seed", "stop", "stream", "stream_options", "temperature",
        "tool_choice", "tools", "top_logprobs", "top_p", "verbosity", "web_search_options",
    )
)  # fmt: skip
_OWN_TOOLS = ("function", "custom")  # others search an upstream's stored data


def _own(body: dict[str, Any], user: str) -> dict[str, Any]:
    out = {name: value for name, value in body.items() if name in _OWN}
    if "tools" in out:
        tools = map(as_object, as_list(out["tools"]))
        out["tools"] = [tool for tool in tools if tool.get("type") in _OWN_TOOLS]
    return {**out, "user": user}


class OpenAIOptions(Agent):
    platform: Literal["openai"]
    model: OptionalText = None
    models: list[str] = Field([])
    credentials: ClassVar[tuple[str, ...]] = ()  # a self-hosted server may have no keys

    def warnings(self) -> Iterator[str]:
        if not self.model and not self.models:
            yield "model: is not set, so every call must name one: <agent>/<model>"


class OpenAICompatible(BasePlatform):
    kind = "openai"
    options: frozenset[str] | None = None
    passes_through = True
    is_model = True
    kinds = frozenset(KINDS)  # the upstream decides

    def __init__(self, name: str, agent: OpenAIOptions, url: str) -> None:
        self._name = name
        self._agent = agent
        self.token = agent.api_key.reveal()
        url, _, self._query = url.partition("?")  # Azure's api-version
        self.api = _api(url)
        self.headers = json_headers(self.token, agent.headers)
        self.speech = self  # which passes the call on
        self.transcription = OpenAITranscription(self.address, self.headers, self.model)

    def prepare(self, chat: ChatRequest) -> Step:
        if chat.passed is not None:
            return self._pass_on(chat.passed, self.model(chat.model))
        body = self.body(chat)
        stream = chat.stream or not chat.verbatim
        return UpstreamRequest(
            "POST", self.address("chat/completions"), self.headers, dump(body), stream=stream
        )

    def _pass_on(self, passed: PassedOn, model: str) -> UpstreamRequest:
        request = passed.describe(self.address(passed.path, passed.query), self.headers, model)
        request.takes_pages = True
        return request

    def address(self, path: str, query: str = "") -> str:
        """The URL of `path`; `query` is the caller's."""
        if not (query or self._query):
            return f"{self.api}/{path}"
        queries = "&".join(filter(None, (self._query, query)))
        return f"{self.api}/{path}" + (f"?{queries}" if queries else "")

    @property
    def models(self) -> Sequence[str]:
        return self._agent.models

    def sends_turns(self, chat: ChatRequest) -> bool:
        return True

    def delivery(self, media: Media, chat: ChatRequest) -> Delivery:
        """Clients of `/v1` know what their upstream accepts. Documents and audio of other clients,
        and those that the gateway stores, are embedded: OpenAI itself follows links to pictures
        only."""
        is_ours_to_read = media.stored or not chat.verbatim
        if media.kind in ("file", "audio") and is_ours_to_read and not media.is_data:
            return "inline"
        return link_or_inline(media)

    def body(self, chat: ChatRequest) -> dict[str, Any]:
        """The request's JSON: the caller's own body with another model, or a new body built from
        the turns."""
        if chat.verbatim:
            body = {**chat.raw, "model": self.model(chat.model), **raw_messages(chat)}
            if chat.seal is not None:
                body = _own(body, chat.user)
            if _hides_usage(chat):
                body["stream_options"] = {
                    **as_object(chat.raw.get("stream_options")),
                    "include_usage": True,
                }
            return body
        return {
            "model": self.model(chat.model),
            "messages": [message(turn) for turn in chat.messages],
            "stream": True,
            "stream_options": {"include_usage": True},
            "user": chat.user,
        }

    def model(self, asked: str) -> str:
        """The upstream's name for the model: `agent/model`, else the configured one."""
        prefix, slash, own = asked.partition("/")
        if slash and own and prefix.lower() == self._name.lower():
            return own
        if self._agent.model:
            return self._agent.model
        if self._agent.models:
            return self._agent.models[0]
        if asked.strip().lower() != self._name.lower():
            return asked  # a route's name, probably also a model's name
        raise InvalidRequest(
            say(
                "Say which model of {agent!r} to use: put {agent}/<model> in place of "
                "{agent}, or <model> in 'model'.",
                agent=self._name,
            ),
            param="model",
        )

    def decoder(self, chat: ChatRequest) -> Decoder:
        if not chat.verbatim:
            return ChunkDecoder() if chat.passed is None else Verbatim()
        if not chat.stream:
            return WholeBody(_explain_member, ChunkDecoder)
        return PassThrough(_explain_member, hides_usage=_hides_usage(chat))

    def recover(self, reply: UpstreamReply, chat: ChatRequest) -> Step:
        own_model = "/" in chat.model
        if chat.passed is not None:
            if reply.status in (404, 405) and not reply.object().get("error"):
                path = chat.passed.path[:100]
                raise NotFound(say("The upstream has no endpoint {path!r}.", path=path))
            own_model = True
        raise explain(say("The upstream"), reply, own_model)

    def stop(self, chat: ChatRequest, decoder: Decoder) -> UpstreamRequest | None:
        return None  # closing the connection stops a run

    def probe(self) -> Step:
        return UpstreamRequest("GET", self.address("models"), self.headers)

    def describe(self, reply: UpstreamReply) -> str:
        if reply.status == 200 and reply.object():
            models = [as_text(as_object(m).get("id")) for m in as_list(reply.object().get("data"))]
            named = (self._agent.model, *self._agent.models)
            missing = [name for name in named if name and name not in models]
            if missing:
                return Doubt(
                    say(
                        "{count} models offered, but not {model!r}; check model or models",
                        count=len(models),
                        model=missing[0],
                    )
                )
            return say("{count} models offered", count=len(models))
        if reply.status == 404 and reply.object():
            return Doubt(
                say(
                    "answers, but there is nothing at {address}; check base_url",
                    address=self.address("models"),
                )
            )
        raise explain(say("The upstream"), reply)


def _api(url: str) -> str:
    """`https://host` becomes `https://host/v1`; other paths, such as `/api/paas/v4`, are kept."""
    url = base_url(url, "/chat/completions", "/models")
    while url.endswith("/v1/v1"):
        url = url[:-3]
    return url if "/" in url.partition("://")[2] else f"{url}/v1"


def raw_messages(chat: ChatRequest) -> dict[str, Any]:
    """`messages` as the caller wrote them, with their files as `Delivery` prepared them."""
    messages = chat.raw.get("messages")
    if not (isinstance(messages, list) and has_media(chat.messages)):
        return {"messages": messages} if "messages" in chat.raw else {}
    return {"messages": put_back(messages, chat.messages)}


def message(turn: Message) -> dict[str, Any]:
    """One turn in OpenAI's format."""
    out: dict[str, Any] = {"role": turn.role, "content": turn.text}
    if turn.tool_call_id:
        out["tool_call_id"] = turn.tool_call_id
    if turn.media:
        text = [{"type": "text", "text": turn.text}] if turn.text else []
        out["content"] = [*text, *map(media_part, turn.media)]
    return out


class ChunkDecoder(EventDecoder):
    """Decodes the chunks of a chat completion. Zhipu's model API differs in a few values only."""

    text_members = (b"content",)
    reasons: ClassVar[dict[str, str]] = {}

    def __init__(self) -> None:
        super().__init__()
        self._begun = False
        self._reason = ""
        self._usage: Usage | None = None
        self._calls: list[str] = []  # the id of each tool call
        self._marks: dict[str, int] = {}  # index of a call by the upstream's mark of it
        self.has_text = False
        self.has_more = False  # reasoning, or pictures
        self._shown: set[int] | None = None  # pictures already emitted

    def usage_so_far(self) -> Usage | None:
        return self._usage

    def event(self, name: str, data: bytes, out: list[Delta]) -> None:
        if not data.strip():
            return
        if data.strip() == b"[DONE]":
            self._end(out)
            return
        chunk = parse_object(data)
        choices = as_list(chunk.get("choices"))[:1]
        is_plain = choices and "error" not in chunk and "errors" not in chunk
        if not is_plain and (error := reported_error(parse_json(data))):
            raise self.explain(error)
        if not self._begun:
            self._begun = True
            out.append(Begin(message_id=as_id(chunk.get("id"))))
        if found := read_usage(chunk.get("usage")):
            self._usage = found
        for choice in map(as_object, choices):
            self._choice(choice, out)

    def explain(self, error: Any) -> GatewayError:
        return explain_error(self.platform, error)

    def _choice(self, choice: dict[str, Any], out: list[Delta]) -> None:
        delta = message_of(choice)
        if reasoning := as_text(delta.get("reasoning_content")) or as_text(delta.get("reasoning")):
            self.has_more = True
            out.append(Reasoning(reasoning))
        content = delta.get("content")
        if type(content) is str and content:  # the common case
            self.has_text = True
            out.append(Text(content))
        else:
            self._parts(read_message(choice), out)
        if "images" in delta:
            self._parts(read_pictures(delta["images"]), out)
        for call in map(as_object, as_list(delta.get("tool_calls"))):
            self._tool_call(call, out)
        if "function_call" in delta and (call := as_object(delta["function_call"])):
            self._tool_call({"index": 0, "function": call}, out)  # the older form of tools
        if reason := as_text(choice.get("finish_reason")):
            self._reason = self.reasons.get(reason, reason)
        if "error" in choice or self._reason == "error":
            self._fail_choice(choice, reason)

    def _fail_choice(self, choice: dict[str, Any], reason: str) -> None:
        if error := choice.get("error"):
            raise self.explain(error)
        if self._reason == "error":
            raise UpstreamFailed(
                say(
                    "{platform} ended the answer with {reason!r}.",
                    platform=self.platform,
                    reason=reason,
                )
            )

    def _parts(self, parts: list[Delta], out: list[Delta]) -> None:
        """Add content in other forms; a last message may repeat pictures already emitted."""
        for part in parts:
            if isinstance(part, Note):
                mark = hash(part.data[0]["url"])  # the URL may be megabytes
                if self._shown is None:
                    self._shown = set()
                if mark in self._shown:
                    continue
                self._shown.add(mark)
            self.has_text = self.has_text or isinstance(part, Text)
            self.has_more = True
            out.append(part)

    def _tool_call(self, call: dict[str, Any], out: list[Delta]) -> None:
        """Add one piece of a tool call. The index is the decoder's own count, since some upstreams
        send -1 or none."""
        function = as_object(call.get("function"))
        id_, name = as_id(call.get("id")), as_text(function.get("name"))
        index_sent = call.get("index")
        mark = str(index_sent) if isinstance(index_sent, int) and index_sent >= 0 else id_
        index = self._marks.get(mark)
        if index is None and not name and self._calls:
            index = len(self._calls) - 1  # an unmarked piece continues the last call
        if index is None or (name and (not mark or id_ != self._calls[index])):
            index = len(self._calls)
            self._calls.append(id_)
            self._marks.setdefault(mark, index)
        else:
            id_ = name = ""
        arguments = function.get("arguments")
        text = as_text(arguments) if isinstance(arguments, str | None) else json_text(arguments)
        out.append(ToolCall(index, text, id_, name))

    def finish(self, out: list[Delta]) -> None:
        if not self._reason:
            raise UpstreamCut(
                say("{platform}'s answer ended before it was complete.", platform=self.platform)
            )
        self._end(out)

    def _end(self, out: list[Delta]) -> None:
        if not (self._reason or self.has_text or self.has_more or self._calls):
            raise EmptyAnswer(self.platform)
        reason = self._reason or "stop"
        if reason in ("stop", "function_call") and self._calls:  # `stop` would end an agent's loop
            reason = "tool_calls"
        out.append(Finish(reason, self._usage))
        self.done = True


def explain(platform: str, reply: UpstreamReply, own_model: bool = False) -> GatewayError:
    """The error for an HTTP reply that is not a completion.

    `own_model` means that the caller chose the upstream's model, so an unknown model is the
    caller's error.
    """
    return explain_http(platform, reply, own_request=True, own_model=own_model)


def explain_error(platform: str, error: Any) -> GatewayError:
    """The error for the `error` member of a 200 reply, or for the whole reply."""
    return explain_member(platform, error, own_request=True)


_explain_member = partial(explain_error, say("The upstream"))
