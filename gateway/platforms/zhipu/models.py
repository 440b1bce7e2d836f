"""Zhipu's model API (GLM), which is nearly OpenAI's."""

import hashlib
from typing import Any, ClassVar

from gateway.errors import (
    ContentRefused,
    GatewayError,
    KindNotTaken,
)
from gateway.filetypes import KINDS
from gateway.language.sentences import say
from gateway.platforms.base import (
    Decoder,
    Delivery,
    Step,
    as_id,
    as_list,
    as_object,
    as_text,
    base_url,
    dump,
    link_or_inline,
    parse_object,
)
from gateway.platforms.failures import (
    explain_member,
    message_of,
)
from gateway.platforms.openai_compatible import ChunkDecoder, message, raw_messages
from gateway.platforms.zhipu.audio import ZhipuSpeech, ZhipuTranscription
from gateway.platforms.zhipu.failures import explain_code
from gateway.platforms.zhipu.options import ZhipuOptions
from gateway.platforms.zhipu.product import Product
from gateway.protocol.exchange import UpstreamReply, UpstreamRequest
from gateway.protocol.messages import ChatRequest, Delta, Media, Note
from gateway.protocol.openai_messages import tidy
from gateway.protocol.prompt import require_question
from gateway.protocol.usage import as_count

_OPTIONS = frozenset(
    (
        "do_sample", "tool_stream", "max_completion_tokens", "max_tokens", "tools", "temperature",
        "top_p", "stop", "thinking", "enable_thinking", "reasoning_effort", "response_format",
    )
)  # fmt: skip


class Models(Product):
    """An agent of the model API."""

    options: frozenset[str] | None = _OPTIONS
    kinds = frozenset(KINDS)  # the model decides
    is_model = True

    def __init__(self, agent: ZhipuOptions, url: str) -> None:
        super().__init__(agent)
        url = base_url(url, "/chat/completions")
        # `/api/coding/paas/v4` is the address of the coding plan, which has its own keys.
        self._api = url if url.endswith("/v4") else base_url(url, "/paas", "/api") + "/api/paas/v4"
        self.speech = ZhipuSpeech(agent, self._api, self._headers)
        self.transcription = ZhipuTranscription(agent, self._api, self._headers)

    def prepare(self, chat: ChatRequest) -> Step:
        if chat.question.role == "user":
            require_question(chat)
        asked = chat.raw
        body: dict[str, Any] = {
            "model": self._agent.model or "glm-4.6",
            "messages": _turns(chat),
            "stream": True,
            "user_id": _user_id(chat.user),
        }
        body |= _options(asked)
        _ask_for_json(body, as_object(asked.get("response_format")))
        url = f"{self._api}/chat/completions"
        return UpstreamRequest("POST", url, self._headers, dump(body), stream=True)

    def sends_turns(self, chat: ChatRequest) -> bool:
        return True

    def delivery(self, media: Media, chat: ChatRequest) -> Delivery:
        if media.kind == "file" and (media.is_data or (media.stored and not media.url)):
            raise KindNotTaken(
                "Zhipu's models fetch files by themselves, and cannot reach this one: give an"
                " http(s) URL that they can reach, or have uploads reached by setting"
                " storage.public_base_url (for a bucket S3_PUBLIC_BASE_URL).",
                param="files",
            )
        if media.kind == "audio" and not media.is_data:
            return "inline"
        return link_or_inline(media)

    def decoder(self, chat: ChatRequest) -> Decoder:
        return ModelDecoder(_changed(chat) if chat.options else ())

    def probe(self) -> Step:
        return UpstreamRequest("GET", f"{self._api}/models", self._headers)

    def describe(self, reply: UpstreamReply) -> str:
        if reply.status == 404 and reply.object():
            return say("reachable; the key shows with the first question")
        return super().describe(reply)


_MAX_TOKENS = 131_072  # Zhipu refuses more


def _options(asked: dict[str, Any]) -> dict[str, Any]:
    """The caller's options with values that Zhipu accepts. For a value that it would refuse, its
    own default applies, or the nearest accepted value."""
    out: dict[str, Any] = {}
    for name in ("do_sample", "tool_stream"):
        if isinstance(asked.get(name), bool):
            out[name] = asked[name]
    for name in ("max_completion_tokens", "max_tokens"):  # the last one wins
        if (most := _whole(asked.get(name))) > 0:  # clients send 0 and -1 for "no limit"
            out["max_tokens"] = min(most, _MAX_TOKENS)
    wants_tools = asked.get("tool_choice") != "none"
    if wants_tools and isinstance(asked.get("tools"), list) and asked["tools"]:
        out["tools"] = asked["tools"]
        if asked.get("tool_choice") == "auto":  # forcing a tool hangs some models
            out["tool_choice"] = "auto"
    if (temperature := _number(asked, "temperature")) is not None:
        out["temperature"] = min(max(temperature, 0.0), 1.0)
    if (top_p := _number(asked, "top_p")) is not None:
        out["top_p"] = min(max(top_p, 0.01), 0.99)  # Zhipu refuses 1, a usual value of clients
    stop = asked.get("stop")
    stops = [text for text in (stop if isinstance(stop, list) else [stop]) if text]
    if stops and isinstance(stops[0], str):
        out["stop"] = stops[:1]
    if thinking := _thinking(asked):
        out["thinking"] = thinking
    return out


def _changed(chat: ChatRequest) -> tuple[str, ...]:
    """The options that are sent to Zhipu with another value than requested, or not at all."""
    sent = _options(chat.raw)
    return tuple([name for name in chat.options if not _is_followed(name, chat.raw, sent)])


def _is_followed(name: str, asked: dict[str, Any], sent: dict[str, Any]) -> bool:
    value = asked.get(name)
    if name in ("max_tokens", "max_completion_tokens"):
        return value in (0, -1) or _whole(value) == sent.get("max_tokens")
    if name in ("thinking", "enable_thinking", "reasoning_effort"):
        return "thinking" in sent
    if name == "stop":
        return sent.get(name) in (value, [value])
    return name == "response_format" or sent.get(name) == value


def _whole(value: Any) -> int:
    """A count, which may be a float such as 100.0; 0 for other values."""
    return as_count(int(value) if isinstance(value, float) and value.is_integer() else value)


def _number(asked: dict[str, Any], name: str) -> float | None:
    value = asked.get(name)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


_MODES = {"enabled": True, "disabled": False, "adaptive": True, "auto": True}


def _thinking(asked: dict[str, Any]) -> dict[str, Any] | None:
    """Zhipu's `thinking`, from any format that clients use for it."""
    wanted, effort = asked.get("thinking"), asked.get("reasoning_effort")
    if isinstance(wanted, dict):
        if wanted.get("type") in ("enabled", "disabled"):
            return {k: v for k, v in wanted.items() if k in ("type", "clear_thinking")}
        wanted = wanted.get("type")
    if isinstance(wanted, str):
        wanted = _MODES.get(wanted)
    if wanted is None:
        wanted = asked.get("enable_thinking")
    if wanted is None and isinstance(effort, str) and effort:
        wanted = effort not in ("none", "minimal")
    if not isinstance(wanted, bool):
        return None
    return {"type": "enabled" if wanted else "disabled"}


def _ask_for_json(body: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Ask for JSON. Zhipu does not support schemas, so an instruction contains the schema."""
    if not as_text(wanted.get("type")).startswith("json"):
        return
    body["response_format"] = {"type": "json_object"}
    if schema := as_object(wanted.get("json_schema")).get("schema"):
        instruction = f"Answer with JSON that follows this JSON Schema: {dump(schema).decode()}"
        body["messages"] = [{"role": "system", "content": instruction}, *body["messages"]]


def _user_id(user: str) -> str:
    """A user id with the 6 to 128 characters that Zhipu requires."""
    if 6 <= len(user) <= 128:
        return user
    return hashlib.sha256(user.encode()).hexdigest()[:32]


def _turns(chat: ChatRequest) -> list[dict[str, Any]]:
    """The messages, the caller's own if they have OpenAI's format, without forms that Zhipu
    refuses."""
    messages = raw_messages(chat).get("messages")
    if not isinstance(messages, list):
        messages = [message(turn) for turn in chat.messages]
    out = []
    for turn in tidy(messages):
        is_call = turn.get("tool_calls")
        if turn["role"] != "tool" and not (turn.get("content") or is_call):
            continue  # Zhipu refuses empty turns, such as an answer stopped early
        if is_call and not turn.get("content"):
            turn["content"] = None  # Zhipu refuses an empty string with tool calls
        parts = turn.get("content")
        if isinstance(parts, list):
            turn["content"] = [_part(as_object(part)) for part in parts]
            if not any(part.get("type") == "text" for part in turn["content"]):
                turn["content"].append({"type": "text", "text": "请看附件。"})  # text is required
        out.append(turn)
    return out


def _part(part: dict[str, Any]) -> dict[str, Any]:
    """An OpenAI part in Zhipu's format, in which files are links."""
    url = as_text(as_object(part.get("file")).get("file_data"))
    if part.get("type") == "file" and url.startswith("http"):
        return {"type": "file_url", "file_url": {"url": url}}
    return part


class ModelDecoder(ChunkDecoder):
    """Decodes OpenAI's chunks with other finish reasons, and sources of a web search.

    `changed` are the options that were sent with other values than requested."""

    platform = "Zhipu"
    reasons: ClassVar[dict[str, str]] = {
        "sensitive": "content_filter",
        "model_context_window_exceeded": "length",
        "network_error": "error",
    }

    def __init__(self, changed: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.changed = changed

    def _end(self, out: list[Delta]) -> None:
        if self._reason == "content_filter" and not self.has_text:
            raise ContentRefused("Zhipu's moderation refused the question.")
        super()._end(out)

    def event(self, name: str, data: bytes, out: list[Delta]) -> None:
        super().event(name, data, out)
        if b'"web_search"' in data and not self.done:
            found = [as_object(item) for item in as_list(parse_object(data).get("web_search"))]
            cited = [
                {
                    "title": as_text(item.get("title")),
                    "url": as_text(item.get("link")),
                    "text": as_text(item.get("content")),
                }
                for item in found
            ]
            out.append(Note("citations", cited))

    def explain(self, error: Any) -> GatewayError:
        members = as_object(error)
        if code := as_id(members.get("code")):
            return explain_code(code, message_of(members))
        return explain_member("Zhipu", error)
