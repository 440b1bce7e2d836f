"""Zhipu (智谱): the GLM model API, 智谱清言 assistants (`glms`) and the platform's applications.

Source: docs.bigmodel.cn, its SDKs, and public clients for the assistants. The model API is nearly
OpenAI's; the assistants send the whole text again in every frame; applications have their own form.
"""

import hashlib
import re
import time
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Callable
from typing import Any, ClassVar

from gateway.errors import (
    ContentRefused,
    EmptyAnswer,
    GatewayError,
    InternalError,
    InvalidRequest,
    KindNotTaken,
    RateLimited,
    UpstreamCut,
    UpstreamMisconfigured,
    clean,
)
from gateway.filetypes import KINDS, MediaKind
from gateway.platforms.base import (
    BadEvent,
    BasePlatform,
    Carriage,
    Decoder,
    EventDecoder,
    Preliminary,
    Step,
    Token,
    UploadStep,
    as_id,
    as_list,
    as_object,
    as_text,
    base_url,
    carry_inside,
    dump,
    form_headers,
    json_headers,
    parse_object,
)
from gateway.platforms.failures import (
    classify,
    explain_http,
    explain_member,
    explain_words,
    read,
    words_of,
)
from gateway.platforms.openai_compatible import ChunkDecoder, message, raw_messages
from gateway.platforms.zhipu.options import ZhipuOptions
from gateway.protocol import sse
from gateway.protocol.content import files_note, read_content
from gateway.protocol.exchange import UploadRequest, UpstreamReply, UpstreamRequest
from gateway.protocol.messages import Begin, ChatRequest, Delta, Finish, Media, Note, Text, Usage
from gateway.protocol.openai_messages import tidy
from gateway.protocol.passthrough import told_error
from gateway.protocol.prompt import as_prompt, require_question
from gateway.protocol.usage import as_count

_TOKEN_MARGIN_S = 600


class Zhipu(BasePlatform):
    kind = "zhipu"

    def __init__(
        self, name: str, agent: ZhipuOptions, url: str, clock: Callable[[], float] = time.time
    ) -> None:
        self._agent = agent
        self.keeps_files = agent.api == "glms"
        key = agent.api_key.reveal()
        self._key = key
        # Of the assistants; the others take the key itself.
        self._token = Token(key, 0.0, _TOKEN_MARGIN_S, clock)
        self._headers = json_headers(key, agent.headers)
        if agent.api == "models":
            url = base_url(url, "/chat/completions")
            # `/api/coding/paas/v4` is the address of the coding plan, with keys of its own.
            self._api = (
                url if url.endswith("/v4") else base_url(url, "/paas", "/api") + "/api/paas/v4"
            )
        elif agent.api == "glms":
            self._api = base_url(
                url, "/stream", "/assistant-api/v1", "/chatglm", then="/chatglm/assistant-api/v1"
            )
        else:
            tails = (
                "/v3/application/invoke",
                "/llm-application/open",
                "/paas/v4",
                "/v3",
                "/v2",
                "/api",
            )
            self._api = base_url(url, *tails, then="/api/llm-application/open")

    @property
    def options(self) -> frozenset[str]:  # type: ignore[override]
        return _OPTIONS if self._agent.api == "models" else frozenset()

    @property
    def token(self) -> str:
        return self._token.value

    def prepare(self, chat: ChatRequest) -> Step:
        if self._agent.api != "models" or chat.question.role == "user":
            require_question(chat)
        if self._agent.api == "models":
            return self._ask_model(chat)
        return self._ask_glms(chat) if self._agent.api == "glms" else self._ask_application(chat)

    @property
    def kinds(self) -> frozenset[MediaKind]:
        kinds: dict[str, frozenset[MediaKind]] = {
            "models": frozenset(KINDS),  # it is the model's to judge
            "glms": frozenset(("image", "file")),
        }
        return kinds.get(self._agent.api, frozenset())

    def sends_turns(self, chat: ChatRequest) -> bool:
        return self._agent.api == "models"

    def carry(self, media: Media, chat: ChatRequest) -> Carriage:
        if self._agent.api == "glms":
            return "upload"
        if media.kind == "file" and (media.is_data or (media.stored and not media.url)):
            raise KindNotTaken(
                "Zhipu's models fetch files by themselves, and cannot reach this one: give an"
                " http(s) URL that they can reach, or have uploads reached by setting"
                " storage.public_base_url (for a bucket S3_PUBLIC_BASE_URL).",
                param="files",
            )
        if media.kind == "audio" and not media.is_data:
            return "data"
        return carry_inside(media)

    # The model API.

    def _ask_model(self, chat: ChatRequest) -> UpstreamRequest:
        given = chat.raw
        body: dict[str, Any] = {
            "model": self._agent.model or "glm-4.6",
            "messages": _turns(chat),
            "stream": True,
            "user_id": _user_id(chat.user),
        }
        body |= _options(given)
        _ask_for_json(body, as_object(given.get("response_format")))
        url = f"{self._api}/chat/completions"
        return UpstreamRequest("POST", url, self._headers, dump(body), stream=True)

    # The assistants of 智谱清言: a key is exchanged for a token that lives ten days.

    def _ask_glms(self, chat: ChatRequest) -> Step:
        if self._token.is_over:
            return Preliminary(
                self._token_request(), lambda r: self._learn_token(r, chat), shared=True
            )
        body: dict[str, Any] = {
            "assistant_id": self._agent.assistant_id or "demo",
            "prompt": as_prompt(chat),
        }
        if chat.conversation_id:
            body["conversation_id"] = chat.conversation_id
        if chat.variables:
            body["meta_data"] = chat.variables
        if chat.question.media:
            body["prompt"] = body["prompt"] or "请看附件。"
            body["file_list"] = [_read_file_id(media.uploaded) for media in chat.question.media]
        headers = json_headers(self.token, self._agent.headers)
        return UpstreamRequest("POST", f"{self._api}/stream", headers, dump(body), stream=True)

    def upload(self) -> UploadStep:
        if self._agent.api != "glms":
            return super().upload()
        if self._token.is_over:
            return Preliminary(self._token_request(), self._learn_token_to_upload, shared=True)
        headers = form_headers(self.token, self._agent.headers)
        return UploadRequest(f"{self._api}/file_upload", headers)

    def _learn_token_to_upload(self, reply: UpstreamReply) -> UploadStep:
        self._keep_token(reply)
        return self.upload()

    def uploaded(self, reply: UpstreamReply) -> str:
        """A question needs all that is told of a file here, so all of it is the file's id."""
        result = as_object(reply.object().get("result"))
        if reply.status != 200 or as_count(reply.object().get("status")) or not result:
            raise _explain_glms(reply)
        return _FILE_ID + urlsafe_b64encode(dump(result)).decode().rstrip("=")

    def _token_request(self) -> UpstreamRequest:
        id_, _, secret = self._key.partition(".")
        body = dump({"api_key": id_, "api_secret": secret})
        headers = json_headers("", self._agent.headers)
        return UpstreamRequest("POST", f"{self._api}/get_token", headers, body)

    def _learn_token(self, reply: UpstreamReply, chat: ChatRequest) -> Step:
        self._keep_token(reply)
        return self.prepare(chat)

    def _keep_token(self, reply: UpstreamReply) -> None:
        result = as_object(reply.object().get("result"))
        token = as_text(result.get("access_token"))
        if not token:
            error = _explain_glms(reply)
            if isinstance(error, RateLimited) or reply.status >= 500:
                raise error
            raise UpstreamMisconfigured(
                "智谱清言 gave no token for the gateway's key: check api_key (id.secret)."
                f" ({clean(read(reply).words) or reply.status})"
            )
        now = self._token.now()
        life = as_count(result.get("expires_in")) or 3600
        ends = float(as_count(result.get("token_expires")) or now + life)
        if ends < now + 2 * _TOKEN_MARGIN_S:  # a very short life, or clocks apart
            ends = now + _TOKEN_MARGIN_S + life / 2
        self._token.value, self._token.until = token, ends

    # The platform's applications: a conversation is made first, then asked in.

    def _ask_application(self, chat: ChatRequest) -> Step:
        if chat.conversation_id:
            return self._invoke(chat, chat.conversation_id)
        app = self._agent.app_id or "demo"
        url = f"{self._api}/v2/application/{app}/conversation"
        request = UpstreamRequest("POST", url, self._headers, b"{}")
        return Preliminary(request, lambda reply: self._learn_conversation(reply, chat))

    def _learn_conversation(self, reply: UpstreamReply, chat: ChatRequest) -> Step:
        body = reply.object()
        conversation = as_id(as_object(body.get("data")).get("conversation_id"))
        if not conversation:
            raise _explain(reply)
        return self._invoke(chat, conversation)

    def _invoke(self, chat: ChatRequest, conversation: str) -> UpstreamRequest:
        content = [{"type": "input", "value": as_prompt(chat)}]
        content += [
            {
                "type": "input",
                "key": key,
                "value": value if isinstance(value, str) else dump(value).decode(),
            }
            for key, value in chat.variables.items()
        ]
        body = {
            "app_id": self._agent.app_id or "demo",
            "conversation_id": conversation,
            "third_request_id": chat.call_id,
            "stream": True,
            "messages": [{"role": "user", "content": content}],
        }
        url = f"{self._api}/v3/application/invoke"
        return UpstreamRequest("POST", url, self._headers, dump(body), stream=True)

    def decoder(self, chat: ChatRequest) -> Decoder:
        if self._agent.api == "glms":
            return GlmsDecoder()
        if self._agent.api == "application":
            return ApplicationDecoder()
        return ModelDecoder(_changed(chat) if chat.options else ())

    def refused(self, reply: UpstreamReply, chat: ChatRequest) -> Step:
        if self._agent.api != "glms":
            raise _explain(reply)
        error = _explain_glms(reply)
        if isinstance(error, UpstreamMisconfigured) and self._token.renew_for(chat.call_id):
            return self.prepare(chat)
        raise error

    def as_stream(self, reply: UpstreamReply) -> bytes:
        body = reply.object()
        if self._agent.api == "models":
            return super().as_stream(reply)
        if self._agent.api == "application":
            return _application_events(body)
        told = as_object(body.get("result"))
        frames = [
            {**told, "message": message, "status": ""}
            for message in map(as_object, as_list(told.get("output")))
        ]
        if not frames:
            return b""
        frames[-1]["status"] = told.get("status") or "finish"
        return b"".join(sse.event(dump(frame)) for frame in frames)

    def stop(self, chat: ChatRequest, decoder: Decoder) -> UpstreamRequest | None:
        return None  # none of the three has such a call

    def probe(self) -> Step:
        if self._agent.api == "glms":
            return self._token_request()
        if self._agent.api == "application":
            url = f"{self._api}/v2/application/{self._agent.app_id or 'demo'}/variables"
            return UpstreamRequest("GET", url, self._headers)
        return UpstreamRequest("GET", f"{self._api}/models", self._headers)

    def verdict(self, reply: UpstreamReply) -> str:
        if self._agent.api == "glms":
            self._keep_token(reply)
            return "the key is accepted"
        if reply.status == 404 and reply.object() and self._agent.api == "models":
            return "reachable; the key shows with the first question"
        if reply.status != 200 or as_count(reply.object().get("code")) not in (0, 200):
            raise _explain(reply)
        return "the key is accepted"


_OPTIONS = frozenset(
    (
        "do_sample", "tool_stream", "max_completion_tokens", "max_tokens", "tools", "temperature",
        "top_p", "stop", "thinking", "enable_thinking", "reasoning_effort", "response_format",
    )
)  # fmt: skip
_MAX_TOKENS = 131_072  # more is refused


def _options(given: dict[str, Any]) -> dict[str, Any]:
    """The caller's options in values that Zhipu takes; for what it would refuse its own default
    holds, or the nearest value that it takes."""
    out: dict[str, Any] = {}
    for name in ("do_sample", "tool_stream"):
        if isinstance(given.get(name), bool):
            out[name] = given[name]
    for name in ("max_completion_tokens", "max_tokens"):  # the later one counts
        if (most := _whole(given.get(name))) > 0:  # clients send 0 and -1 for "no limit"
            out["max_tokens"] = min(most, _MAX_TOKENS)
    wants_tools = given.get("tool_choice") != "none"
    if wants_tools and isinstance(given.get("tools"), list) and given["tools"]:
        out["tools"] = given["tools"]
        if given.get("tool_choice") == "auto":  # forcing a tool hangs some models
            out["tool_choice"] = "auto"
    if (temperature := _number(given, "temperature")) is not None:
        out["temperature"] = min(max(temperature, 0.0), 1.0)
    if (top_p := _number(given, "top_p")) is not None:
        out["top_p"] = min(max(top_p, 0.01), 0.99)  # 1 is refused, and clients send just that
    stop = given.get("stop")
    stops = [text for text in (stop if isinstance(stop, list) else [stop]) if text]
    if stops and isinstance(stops[0], str):
        out["stop"] = stops[:1]
    if thinking := _thinking(given):
        out["thinking"] = thinking
    return out


def _changed(chat: ChatRequest) -> tuple[str, ...]:
    """The options that reach Zhipu in another value than asked for, or not at all."""
    sent = _options(chat.raw)
    return tuple([name for name in chat.options if not _is_followed(name, chat.raw, sent)])


def _is_followed(name: str, given: dict[str, Any], sent: dict[str, Any]) -> bool:
    value = given.get(name)
    if name in ("max_tokens", "max_completion_tokens"):
        return value in (0, -1) or _whole(value) == sent.get("max_tokens")
    if name in ("thinking", "enable_thinking", "reasoning_effort"):
        return "thinking" in sent
    if name == "stop":
        return sent.get(name) in (value, [value])
    return name == "response_format" or sent.get(name) == value


def _whole(value: Any) -> int:
    """A count that may also come as a float such as 100.0; else 0."""
    return as_count(int(value) if isinstance(value, float) and value.is_integer() else value)


def _number(given: dict[str, Any], name: str) -> float | None:
    value = given.get(name)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


_MODES = {"enabled": True, "disabled": False, "adaptive": True, "auto": True}


def _thinking(given: dict[str, Any]) -> dict[str, Any] | None:
    """`thinking` in any of the forms that clients have for it."""
    wanted, effort = given.get("thinking"), given.get("reasoning_effort")
    if isinstance(wanted, dict):
        if wanted.get("type") in ("enabled", "disabled"):
            return {k: v for k, v in wanted.items() if k in ("type", "clear_thinking")}
        wanted = wanted.get("type")
    if isinstance(wanted, str):
        wanted = _MODES.get(wanted)
    if wanted is None:
        wanted = given.get("enable_thinking")
    if wanted is None and isinstance(effort, str) and effort:
        wanted = effort not in ("none", "minimal")
    if not isinstance(wanted, bool):
        return None
    return {"type": "enabled" if wanted else "disabled"}


def _application_events(body: dict[str, Any]) -> bytes:
    """A whole answer of an application as its stream; b"" if it is none."""
    told = as_object(body.get("data"))
    if words := as_text(told.get("content")):  # of the older call
        choice = {"delta": {"content": {"type": "text", "msg": words}}, "finish_reason": "stop"}
        body = {"choices": [choice], "usage": told.get("usage")}
    return sse.event(dump(body)) + sse.DONE if as_list(body.get("choices")) else b""


_FILE_ID = "glms-"


def _read_file_id(id_: str) -> dict[str, Any]:
    """What `uploaded` made an id of."""
    text = id_.removeprefix(_FILE_ID)
    try:
        told = parse_object(b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True))
    except (ValueError, BadEvent):
        told = {}
    if not told:
        raise InvalidRequest(
            f"{id_[:40]!r} is no id of a file that was uploaded for this agent.", param="files"
        )
    return told


def _ask_for_json(body: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Zhipu knows JSON but no schema, which is therefore put into words."""
    if not as_text(wanted.get("type")).startswith("json"):
        return
    body["response_format"] = {"type": "json_object"}
    if schema := as_object(wanted.get("json_schema")).get("schema"):
        words = f"Answer with JSON that follows this JSON Schema: {dump(schema).decode()}"
        body["messages"] = [{"role": "system", "content": words}, *body["messages"]]


def _user_id(user: str) -> str:
    """Zhipu wants 6 to 128 characters."""
    if 6 <= len(user) <= 128:
        return user
    return hashlib.sha256(user.encode()).hexdigest()[:32]


def _turns(chat: ChatRequest) -> list[dict[str, Any]]:
    """The caller's own messages where they are OpenAI's, with what Zhipu refuses put right."""
    given = raw_messages(chat).get("messages")
    if not isinstance(given, list):
        given = [message(turn) for turn in chat.messages]
    out = []
    for turn in tidy(given):
        is_call = turn.get("tool_calls")
        if turn["role"] != "tool" and not (turn.get("content") or is_call):
            continue  # refused, such as an answer that was stopped at once
        if is_call and not turn.get("content"):
            turn["content"] = None  # an empty string beside tool calls is refused
        parts = turn.get("content")
        if isinstance(parts, list):
            turn["content"] = [_part(as_object(part)) for part in parts]
            if not any(part.get("type") == "text" for part in turn["content"]):
                turn["content"].append({"type": "text", "text": "请看附件。"})  # nor without words
        out.append(turn)
    return out


def _part(part: dict[str, Any]) -> dict[str, Any]:
    """A part of OpenAI's as Zhipu writes it: files are links here."""
    url = as_text(as_object(part.get("file")).get("file_data"))
    if part.get("type") == "file" and url.startswith("http"):
        return {"type": "file_url", "file_url": {"url": url}}
    return part


class ModelDecoder(ChunkDecoder):
    """OpenAI's chunks with other finish reasons, and sources of a web search.

    `changed`: the options whose values were put right for it."""

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
        told = as_object(error)
        if code := as_id(told.get("code")):
            return _explain_code(code, words_of(told))
        return explain_member("Zhipu", error)


_SOURCE = re.compile(r"【\d{0,4}†[^【】]{0,50}】")


class GlmsDecoder(EventDecoder):
    """Every frame repeats the text so far. Text keeps growing over tool parts in between."""

    platform = "Zhipu"
    repeats = True

    def __init__(self) -> None:
        super().__init__()
        self._begun = False
        self._seen = ""
        self._held = ""  # the text as it came, if its end was held back
        self._images: set[str] = set()
        self._failure = ""
        self._has_text = False

    def event(self, name: str, data: bytes, out: list[Delta]) -> None:
        if not data.strip() or data.strip() == b"[DONE]":
            return
        frame = parse_object(data)
        is_frame = isinstance(frame.get("message"), dict)
        if not is_frame and as_count(frame.get("status")):
            raise _explain_glms(UpstreamReply(200, {}, data))
        error = frame.get("error") if is_frame else told_error(frame)
        if error:
            raise self.explain(error)
        if not self._begun:
            self._begun = True
            self.conversation_id = as_id(frame.get("conversation_id"))
            out.append(Begin(self.conversation_id, as_id(frame.get("history_id"))))
        message = as_object(frame.get("message"))
        is_last = frame.get("status") in ("finish", "intervene")
        parts = message.get("content")
        for part in parts if isinstance(parts, list) else [parts]:
            self._part(as_object(part), message, is_last, out)
        if is_last:
            self._end(frame, out)

    def explain(self, error: Any) -> GatewayError:
        return _explain_told(error) if isinstance(error, dict) else super().explain(error)

    def _part(
        self, part: dict[str, Any], message: dict[str, Any], is_last: bool, out: list[Delta]
    ) -> None:
        kind = part.get("type")
        if kind == "text":
            before = self._seen
            self._grow(as_text(part.get("text")), is_last, out)
            if self._seen != before:  # a tool failed, and the answer went on
                self._failure = ""
        elif kind == "image" and message.get("status") == "finish":
            images = {as_text(as_object(i).get("image_url")) for i in as_list(part.get("image"))}
            new = sorted(images - self._images - {""})
            self._images |= images
            out.append(files_note([{"type": "image", "url": url, "name": ""} for url in new]))
        elif kind == "quote_result":
            sources = as_list(as_object(message.get("meta_data")).get("metadata_list"))
            cited = [
                {"title": as_text(s.get("title")), "url": as_text(s.get("url"))}
                for s in map(as_object, sources)
            ]
            out.append(Note("citations", cited))
        elif kind == "system_error":
            self._failure = as_text(part.get("content")) or "system_error"
        elif kind:
            out.append(Note("tools", []))  # code, its output, a browser: a sign of life

    def _grow(self, text: str, is_last: bool, out: list[Delta]) -> None:
        """Send what is new, without marks of sources; a mark not yet closed is held back."""
        text = _SOURCE.sub("", text)
        self._held = text
        start = text.rfind("【")
        if not is_last and start >= 0 and "】" not in text[start:] and len(text) - start < 64:
            text = text[:start]
        if self._seen.startswith(text):
            return
        new = text[len(self._seen) :] if text.startswith(self._seen) else f"\n{text}"
        self._seen, self._has_text = text, True
        out.append(Text(new))

    def _end(self, frame: dict[str, Any], out: list[Delta]) -> None:
        self._grow(self._held, True, out)
        if frame.get("status") == "intervene":
            words = as_text(as_object(frame.get("last_error")).get("intervene_text"))
            if not self._has_text:
                raise ContentRefused(clean(words) or "Zhipu's moderation refused the question.")
            out.append(Finish("content_filter"))
        elif self._failure:
            raise explain_words("Zhipu", self._failure)
        else:
            out.append(Finish("stop"))
        self.done = True

    def finish(self, out: list[Delta]) -> None:
        raise UpstreamCut("Zhipu's answer ended before it was complete.")


class ApplicationDecoder(EventDecoder):
    """Increments under `delta.content.msg`; the end is a finish reason, perhaps `[DONE]` too."""

    platform = "Zhipu"
    text_members = (b"msg", b"content")

    def __init__(self) -> None:
        super().__init__()
        self._begun = False
        self._has_said = False
        self._reason = ""
        self._usage: Usage | None = None

    def usage_so_far(self) -> Usage | None:
        return self._usage

    def event(self, name: str, data: bytes, out: list[Delta]) -> None:
        if not data.strip():
            return
        if data.strip() == b"[DONE]":
            self._end(out)
            return
        frame = parse_object(data)
        if error := frame.get("error") if frame.get("choices") else told_error(frame):
            raise self.explain(error)
        if not self._begun:
            self._begun = True
            self.conversation_id = as_id(frame.get("conversation_id"))
            out.append(Begin(self.conversation_id, as_id(frame.get("request_id"))))
        self._usage = _application_usage(frame.get("usage")) or self._usage
        before = len(out)
        for choice in map(as_object, as_list(frame.get("choices"))[:1]):
            self._choice(choice, out)
        self._has_said = self._has_said or len(out) > before
        self.ending = bool(self._reason)

    def explain(self, error: Any) -> GatewayError:
        return _explain_told(error) if isinstance(error, dict) else super().explain(error)

    def _choice(self, choice: dict[str, Any], out: list[Delta]) -> None:
        whole = choice.get("messages")
        whole = as_list(whole)[-1] if as_list(whole) else whole
        delta = as_object(choice.get("delta")) or as_object(whole)
        content = delta.get("content")
        words = as_text(content) or as_text(as_object(content).get("msg"))
        if isinstance(content, list) or (not words and "text" in as_object(content)):
            out += read_content(content)
        kind = as_text(as_object(content).get("type"))
        if words and kind in ("", "text", "all_tools"):
            out.append(Text(words))
        elif kind in ("image", "video"):
            url = words or as_text(as_object(content).get("url"))
            if url:
                out.append(files_note([{"type": kind, "url": url, "name": ""}]))
        event = as_object(delta.get("event"))
        if event:
            step = {
                "node": as_text(event.get("node_name")),
                "status": "finished"
                if as_text(event.get("type")).endswith("finish")
                else "running",
            }
            out.append(Note("progress", [step]))
        reason = as_text(choice.get("finish_reason"))
        if reason == "error":
            raise _explain_told({"error": choice.get("error_msg") or choice.get("error")})
        self._reason = reason or self._reason

    def finish(self, out: list[Delta]) -> None:
        if not self._reason:
            raise UpstreamCut("Zhipu's answer ended before it was complete.")
        self._end(out)

    def _end(self, out: list[Delta]) -> None:
        if not (self._reason or self._has_said):
            raise EmptyAnswer("Zhipu")
        self.done = True
        out.append(
            Finish(ModelDecoder.reasons.get(self._reason, self._reason) or "stop", self._usage)
        )


def _application_usage(value: Any) -> Usage | None:
    """Summed over nodes; the older form is one object with OpenAI's names."""
    usage = Usage()
    for entry in map(as_object, value if isinstance(value, list) else [value]):
        prompt = as_count(entry.get("inputTokenCount")) or as_count(entry.get("prompt_tokens"))
        completion = as_count(entry.get("outputTokenCount")) or as_count(
            entry.get("completion_tokens")
        )
        usage.prompt += prompt
        usage.completion += completion
        usage.total += (
            as_count(entry.get("totalTokenCount"))
            or as_count(entry.get("total_tokens"))
            or prompt + completion
        )
    return usage if usage.total else None


def _explain(reply: UpstreamReply) -> GatewayError:
    body = reply.object()
    error = as_object(body.get("error")) or body
    code = as_id(error.get("code"))
    words = words_of(error)
    if not _is_good(code):
        return _explain_code(code, words, reply)
    return explain_http("Zhipu", reply, words)


def _explain_glms(reply: UpstreamReply) -> GatewayError:
    body = reply.object()
    words = words_of(body)
    low = words.lower()
    if reply.status not in (200, 400) or not body or classify(words, ()) not in (None, "key"):
        return explain_http("智谱清言", reply, words)
    if body.get("validation_error"):
        return UpstreamMisconfigured(
            f"智谱清言 does not accept the assistant: check assistant_id. {clean(words)}"
        )
    if any(mark in low for mark in ("assistant", "token", "api_key", "apikey", "auth", "密钥")):
        return UpstreamMisconfigured(
            f"智谱清言 refused the call: {clean(words)}."
            " Check api_key (id.secret) and assistant_id."
        )
    return explain_words("智谱清言", words)


def _is_good(code: str) -> bool:
    return code in ("", "0", "200")


def _explain_told(told: dict[str, Any]) -> GatewayError:
    """The error for an event that reports a failure, with its words wherever they stand."""
    code = as_id((as_object(told.get("error")) or told).get("code"))
    if _is_good(code):
        return explain_member("Zhipu", told)
    return _explain_code(code, words_of(told))


_CALLER = {"1210", "1213", "1214", "1215"}


def _explain_code(code: str, words: str, reply: UpstreamReply | None = None) -> GatewayError:
    """The error for Zhipu's code, digits in a string; most are rows of the table of failures."""
    said = f" (Zhipu {code}: {clean(words) or 'no message'})"
    if code == "1231":
        return InternalError("The gateway repeated a request id." + said)
    if code in _CALLER:
        return InvalidRequest("Zhipu does not accept the request." + said)
    if code.startswith("11") and len(code) == 4 and code != "1113":
        return UpstreamMisconfigured("Zhipu does not give this model or app to the account." + said)
    if reply is None or reply.status < 300:
        body = dump({"error": {"code": code, "message": words}})
        reply = UpstreamReply(200, {} if reply is None else reply.headers, body)
    return explain_http("Zhipu", reply, f"{words} (Zhipu {code})")
