"""Coze (扣子): bots over /v3/chat and chatflows over /v1/workflows/chat, hosted and Coze Studio.

Source: Coze's developer guides, its SDKs and the open-source server. Failures mostly come as
HTTP 200 with a `code`, so the code decides and the status seldom does.
"""

import re
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar
from urllib.parse import quote, urlsplit

import orjson

from gateway.errors import (
    BodyTooLarge,
    ContentRefused,
    ContextTooLong,
    ConversationBusy,
    ConversationNotFound,
    GatewayError,
    InvalidRequest,
    QuotaExhausted,
    RateLimited,
    UnsupportedMediaType,
    UpstreamCut,
    UpstreamFailed,
    UpstreamMisconfigured,
    UpstreamUnavailable,
    clean,
)
from gateway.filetypes import KINDS, MediaKind
from gateway.platforms.base import (
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
    dump,
    form_headers,
    json_headers,
    parse_object,
)
from gateway.platforms.coze.options import CozeOptions
from gateway.platforms.failures import RETRY_AFTER_S, explain_http, explain_words, words_of
from gateway.platforms.pauses import WAITS
from gateway.protocol import loosejson, sse
from gateway.protocol.content import plain_text, read_content
from gateway.protocol.exchange import UploadRequest, UpstreamReply, UpstreamRequest
from gateway.protocol.messages import (
    Begin,
    ChatRequest,
    Delta,
    Finish,
    Media,
    Message,
    Note,
    Reasoning,
    Text,
    ToolCall,
    Usage,
)
from gateway.protocol.passthrough import told_error
from gateway.protocol.prompt import as_prompt, require_question
from gateway.protocol.usage import as_count

MAX_MESSAGES = 100  # of one /v3/chat call
MAX_WORKFLOW_MESSAGES = 50
_TOKEN_LIFE_S = 3600
_TOKEN_MARGIN_S = 60
_EXPIRED = {4100, 700012006}


class Coze(BasePlatform):
    kind = "coze"
    keeps_files = True
    keeps_runs = True

    def __init__(
        self, name: str, agent: CozeOptions, url: str, clock: Callable[[], float] = time.time
    ) -> None:
        self._agent = agent
        tails = ("/v3/chat", "/v3", "/workflows/chat", "/workflow/stream_run", "/v1")
        self._api = base_url(url, *tails, "/open_api/v2/chat", "/open_api/v2")
        if agent.oauth:
            import jwt  # noqa: F401 - now, so that no question has to wait until it is loaded
        until = 0.0 if agent.oauth else float("inf")
        self._token = Token(agent.api_key.reveal(), until, _TOKEN_MARGIN_S, clock)

    @property
    def token(self) -> str:
        return self._token.value

    def _headers(self) -> dict[str, str]:
        return json_headers(self.token, self._agent.headers)

    def prepare(self, chat: ChatRequest) -> Step:
        results = _tool_results(chat.messages)
        if not results:
            require_question(chat)
        if self._token.is_over:
            return self._renew(lambda: self.prepare(chat))
        if results:
            return self._submit(*results)
        return self._workflow(chat) if self._agent.mode == "workflow" else self._chat(chat)

    def _chat(self, chat: ChatRequest) -> UpstreamRequest:
        url = f"{self._api}/v3/chat"
        if chat.conversation_id:  # a query parameter here; in the body it is silently ignored
            url += f"?conversation_id={quote(chat.conversation_id, safe='')}"
        body: dict[str, Any] = {
            "bot_id": self._agent.bot_id or "demo",
            "user_id": chat.user,
            "additional_messages": _additional(chat, MAX_MESSAGES),
            "stream": True,
            "auto_save_history": True,
        }
        if chat.variables:
            body["custom_variables"] = {key: _as_string(v) for key, v in chat.variables.items()}
        return UpstreamRequest("POST", url, self._headers(), dump(body), stream=True)

    def _workflow(self, chat: ChatRequest) -> UpstreamRequest:
        body: dict[str, Any] = {
            "workflow_id": self._agent.workflow_id,
            "additional_messages": _additional(chat, MAX_WORKFLOW_MESSAGES),
            "parameters": chat.variables,
            "ext": {"user_id": chat.user},
        }
        if self._agent.bot_id:
            body["bot_id"] = self._agent.bot_id
        if chat.conversation_id:  # in the body here, unlike /v3/chat
            body["conversation_id"] = chat.conversation_id
        url = f"{self._api}/v1/workflows/chat"
        return UpstreamRequest("POST", url, self._headers(), dump(body), stream=True)

    def _submit(self, chat_id: str, conversation: str, outputs: list[dict[str, str]]) -> Step:
        """Results of the tools that an earlier answer asked the client to run."""
        query = f"conversation_id={quote(conversation, safe='')}&chat_id={quote(chat_id, safe='')}"
        url = f"{self._api}/v3/chat/submit_tool_outputs?{query}"
        body = dump({"tool_outputs": outputs, "stream": True})
        return UpstreamRequest("POST", url, self._headers(), body, stream=True)

    # Files.

    @property
    def kinds(self) -> frozenset[MediaKind]:
        """Messages to a chatflow are text."""
        return frozenset(KINDS if self._agent.mode == "chat" else ())

    def sends_turns(self, chat: ChatRequest) -> bool:
        return not chat.conversation_id

    def carry(self, media: Media, chat: ChatRequest) -> Carriage:
        """Coze fetches links; what it could not reach is uploaded."""
        return "upload" if media.is_data or (media.stored and not media.url) else "as it is"

    def upload(self) -> UploadStep:
        if self._token.is_over:
            return self._renew(self.upload)
        headers = form_headers(self.token, self._agent.headers)
        return UploadRequest(f"{self._api}/v1/files/upload", headers)

    def uploaded(self, reply: UpstreamReply) -> str:
        body = reply.object()
        id_ = as_id(as_object(body.get("data")).get("id"))
        if reply.status != 200 or body.get("code") != 0 or not id_:
            raise _explain(reply)
        return id_

    # OAuth of the JWT kind: a signed claim is exchanged for a token, again and again.

    def _renew(self, then: Callable[[], Any]) -> Preliminary:
        """Fetch a token, then go on with `then`."""

        def learn(reply: UpstreamReply) -> Any:
            self._keep_token(reply)
            return then()

        return Preliminary(self._token_request(), learn, shared=True)

    def _token_request(self) -> UpstreamRequest:
        oauth = self._agent.oauth
        assert oauth is not None  # without it the token never expires
        now = int(self._token.now())
        claims = {
            "iss": oauth.app_id,
            "aud": urlsplit(self._api).hostname,
            "iat": now,
            "exp": now + 600,
            "jti": secrets.token_hex(16),
        }
        import jwt

        try:
            signed = jwt.encode(
                claims, oauth.private_key.reveal(), "RS256", headers={"kid": oauth.key_id}
            )
        except Exception:  # PyJWT lets many kinds through for a key it cannot read
            raise UpstreamMisconfigured(
                "Coze: oauth.private_key is not a private key in PEM form."
            ) from None
        body = {
            "grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer",
            "duration_seconds": _TOKEN_LIFE_S,
        }
        url = f"{self._api}/api/permission/oauth2/token"
        return UpstreamRequest("POST", url, json_headers(signed, self._agent.headers), dump(body))

    def _keep_token(self, reply: UpstreamReply) -> None:
        body = reply.object()
        token, until = as_text(body.get("access_token")), as_count(body.get("expires_in"))
        if not token:
            words = clean(as_text(body.get("error_message")) or as_text(body.get("msg")))
            raise UpstreamMisconfigured(
                f"Coze refused the OAuth app's signature: {words or reply.status}."
                " Check oauth.app_id, key_id and private_key."
            )
        # `expires_in` is a point in time; a short value can only be meant as a duration.
        now = self._token.now()
        ends = float(until) if until > now else now + until
        if ends < now + _TOKEN_MARGIN_S:
            ends = now + 2 * _TOKEN_MARGIN_S
        self._token.value, self._token.until = token, ends

    def decoder(self, chat: ChatRequest) -> Decoder:
        return CozeDecoder()

    def refused(self, reply: UpstreamReply, chat: ChatRequest) -> Step:
        code = as_count(reply.object().get("code"))
        if self._agent.oauth and code in _EXPIRED and self._token.renew_for(chat.call_id):
            return self.prepare(chat)
        raise _explain(reply)

    def as_stream(self, reply: UpstreamReply) -> bytes:
        """From a list of messages, or from the output of a workflow's run."""
        body = reply.object()
        told, asked = body.get("data"), as_object(body.get("interrupt_data"))
        if as_count(body.get("code")):
            return b""
        if isinstance(told, str) or asked:
            message = [("Message", {"content": told, "usage": body.get("usage")})] if told else []
            last = [("Interrupt", {"interrupt_data": asked})] if asked else [("Done", {})]
            return _events([*message, *last])
        messages = [as_object(m) for m in as_list(told) or as_list(body.get("messages"))]
        answers = [m for m in messages if m.get("type") not in (None, "question")]
        if not any(m.get("type") == "answer" for m in answers):
            return b""
        ids = {k: answers[0].get(k) for k in ("conversation_id",)}
        end = {**ids, "id": answers[0].get("chat_id"), "usage": body.get("usage")}
        events = [("conversation.message.completed", message) for message in answers]
        return _events([*events, ("conversation.chat.completed", end), ("done", {})])

    def stop(self, chat: ChatRequest, decoder: Decoder) -> UpstreamRequest | None:
        if not isinstance(decoder, CozeDecoder) or not decoder.chat_id:
            return None
        body = {"conversation_id": decoder.conversation_id, "chat_id": decoder.chat_id}
        return UpstreamRequest("POST", f"{self._api}/v3/chat/cancel", self._headers(), dump(body))

    def probe(self) -> Step:
        if self._token.is_over:
            return self._renew(self.probe)
        bot = quote(self._agent.bot_id or "0", safe="")
        url = f"{self._api}/v1/bots/{bot}?is_published=true"
        return UpstreamRequest("GET", url, self._headers())

    def verdict(self, reply: UpstreamReply) -> str:
        body = reply.object()
        data = as_object(body.get("data"))
        if reply.status == 200 and body.get("code") == 0:
            return f"bot {as_text(data.get('name')) or 'found'!r}"
        error = _explain(reply)
        if not self._agent.bot_id and body and as_count(body.get("code")) not in _REFUSED:
            return "reachable; a workflow cannot be looked up by itself"
        raise error


def _additional(chat: ChatRequest, most: int) -> list[dict[str, str]]:
    """The messages to send: only the question if Coze knows the conversation, else all of them.

    Coze has no system role, so that text leads the first message.
    """
    if chat.conversation_id or len(chat.messages) == 1:
        return _entries(chat.question.text, chat.question.media)
    if any(m.role == "tool" for m in chat.messages):
        return _entries(as_prompt(chat), chat.question.media)
    system = "\n\n".join(m.text for m in chat.messages if m.role == "system" and m.text)
    out: list[dict[str, str]] = []
    for turn in chat.messages:
        text = turn.text
        if turn.role == "system" or not (text or turn.media):
            continue
        if turn.role == "assistant":
            out.append({**_text_entry(text), "role": "assistant", "type": "answer"})
            continue
        out += _entries(text, turn.media)
    out = out[-(most - 1 if system else most) :]
    if system:
        first = out[0]
        if first["role"] == "user" and first["content_type"] == "text":
            out[0] = _text_entry(f"{system}\n\n{first['content']}")
        else:
            out.insert(0, _text_entry(system))
    return out


def _text_entry(text: str) -> dict[str, str]:
    return {"role": "user", "type": "question", "content_type": "text", "content": text}


def _entries(text: str, media: tuple[Media, ...]) -> list[dict[str, str]]:
    if not media:
        return [_text_entry(text)]
    items: list[dict[str, str]] = [{"type": "text", "text": text}] if text else []
    for item in media:
        kind = item.kind if item.kind in ("image", "audio") else "file"
        where = {"file_id": item.uploaded} if item.uploaded else {"file_url": item.url}
        items.append({"type": kind, **where})
    content = orjson.dumps(items).decode()
    entry = {**_text_entry(content), "content_type": "object_string"}
    # Media without words needs a plain text message beside it.
    return [entry] if text else [entry, _text_entry("请看附件。/ See the attachment.")]


def _events(events: list[tuple[str, dict[str, Any]]]) -> bytes:
    return b"".join(sse.event(dump(event), name) for name, event in events)


def _as_string(value: Any) -> str:
    return value if isinstance(value, str) else dump(value).decode()


# A tool call's id carries what is needed to answer it, so that nothing has to be kept between the
# two requests: `coze-<chat>-<conversation>-<Coze's own id>`.


def _tool_call_id(chat_id: str, conversation_id: str, own: str) -> str:
    return f"coze-{chat_id}-{conversation_id}-{own}"


def _tool_results(
    messages: tuple[Message, ...],
) -> tuple[str, str, list[dict[str, str]]] | None:
    """(chat id, conversation id, outputs) if the caller brings the results of Coze's tool calls."""
    outputs: list[dict[str, str]] = []
    place: tuple[str, str] | None = None
    for message in reversed(messages):
        if message.role != "tool":
            break
        mark, _, rest = message.tool_call_id.partition("-")
        chat_id, _, rest = rest.partition("-")
        conversation, _, own = rest.partition("-")
        if mark != "coze" or not own:
            return None
        place = (chat_id, conversation)
        outputs.append({"tool_call_id": own, "output": message.text})
    return (*place, outputs[::-1]) if place else None


_TYPE = re.compile(rb'"type":\s*"(\w+)"')


class CozeDecoder(EventDecoder):
    """Deltas are the answer; `completed` repeats them and carries what is not the answer."""

    platform = "Coze"
    __slots__ = (
        "_answer", "_answers", "_begun", "_finish", "_has_reasoning", "_has_text", "_last_said",
        "_meta_usage", "_node", "_run_usage", "_title", "chat_id",
    )  # fmt: skip

    text_members = (b"content",)

    def __init__(self) -> None:
        super().__init__()
        self.chat_id = ""
        self._begun = False
        self._answers: set[str] = set()  # ids of answers that came as deltas
        self._answer = ""
        self._has_text = False
        # Of a plain workflow: who speaks, under which title, and what it has said.
        self._node = self._title = self._last_said = ""
        self._has_reasoning = False
        self._meta_usage: Usage | None = None
        self._finish: Finish | None = None
        self._run_usage: Usage | None = None

    def usage_so_far(self) -> Usage | None:
        return (self._finish and self._finish.usage) or self._run_usage or self._meta_usage

    @staticmethod
    def skips(name: str, head: bytes) -> bool:
        """What tools and look-ups have found, and events that are ignored."""
        found = _TYPE.search(head, 0, 4096)
        if name == "conversation.message.completed":
            return found is not None and found[1] not in (b"answer", b"follow_up", b"function_call")
        return bool(name) and name not in CozeDecoder._HANDLERS

    def event(self, name: str, data: bytes, out: list[Delta]) -> None:
        if name in ("done", "conversation.stream.done", "Done"):
            if name == "Done" and self._finish is None:
                self._finish = Finish("stop", self._run_usage)
            self._close(out)
            return
        handle = self._HANDLERS.get(name)
        if handle is None and name:
            return
        event = parse_object(data) if data.strip() else {}
        if handle is None:  # no name: hosted Coze always sends one, so this is its error envelope
            if error := told_error(event):
                raise self.explain(error)
            return
        handle(self, event, out)

    def _on_chat(self, event: dict[str, Any], out: list[Delta]) -> None:
        if not self._begun:
            self._begun = True
            self.chat_id = as_id(event.get("id"))
            self.conversation_id = as_id(event.get("conversation_id"))
            out.append(Begin(self.conversation_id, self.chat_id))

    def _on_delta(self, event: dict[str, Any], out: list[Delta]) -> None:
        if event.get("type") not in ("answer", None):
            return
        if not self._begun:
            self._on_chat({**event, "id": event.get("chat_id")}, out)
        answer = as_id(event.get("id"))
        if reasoning := as_text(event.get("reasoning_content")):
            self._has_reasoning = True
            out.append(Reasoning(reasoning))
        if event.get("content_type") == "object_string":
            return  # parts in one string, which `completed` has whole
        if text := as_text(event.get("content")):
            self._answers.add(answer)
            self._say(answer, text, out)

    def _say_parts(self, answer: str, content: str, out: list[Delta]) -> None:
        """Text and files of an answer that is a list of parts, written as a string."""
        try:
            parts = read_content(loosejson.loads(content.encode()))
        except loosejson.NotJson:
            parts = read_content(content)
        for part in parts:
            if isinstance(part, Text):
                self._say(answer, part.text, out)
            else:
                out.append(part)

    def _say(self, answer: str, text: str, out: list[Delta]) -> None:
        """Coze shows several answers as several bubbles; here a blank line is between them."""
        if answer != self._answer and self._has_text:
            out.append(Text("\n\n"))
        self._answer, self._has_text = answer, True
        out.append(Text(text))

    def _on_completed(self, event: dict[str, Any], out: list[Delta]) -> None:
        if not self._begun:
            self._on_chat({**event, "id": event.get("chat_id")}, out)
        kind, content = event.get("type"), as_text(event.get("content"))
        if kind == "answer":
            answer = as_id(event.get("id"))
            reasoning = as_text(event.get("reasoning_content"))
            if reasoning and not (self._has_reasoning or self._has_text):
                self._has_reasoning = True
                out.append(Reasoning(reasoning))
            if answer not in self._answers and content:
                self._answers.add(answer)
                if event.get("content_type") == "object_string":
                    self._say_parts(answer, content, out)
                else:
                    self._say(answer, content, out)
            self._read_meta_usage(as_object(event.get("meta_data")))
        elif kind == "follow_up" and content:
            out.append(Note("suggestions", [content]))
        elif kind == "function_call":
            name = as_text(_embedded(content).get("name"))
            out.append(Note("tools", [{"name": name, "status": "running"}] if name else []))
        else:
            out.append(Note("progress", []))  # verbose, knowledge, tool_response: a sign of life

    def _read_meta_usage(self, meta: dict[str, Any]) -> None:
        """Coze Studio has no usage at the end, but counts in the answer's meta data."""
        total = as_count(meta.get("token"))
        if total:
            prompt, completion = (
                as_count(meta.get("input_tokens")),
                as_count(meta.get("output_tokens")),
            )
            self._meta_usage = Usage(prompt, completion, total)

    def _on_chat_completed(self, event: dict[str, Any], out: list[Delta]) -> None:
        if not self._begun:
            self._on_chat(event, out)
        usage = _usage(as_object(event.get("usage"))) or self._meta_usage
        self._finish = Finish("stop", usage)
        self.ending = True  # voice may still follow, then `done`

    def _on_failed(self, event: dict[str, Any], out: list[Delta]) -> None:
        raise self.explain(event)

    def explain(self, error: Any) -> GatewayError:
        told = as_object(error)
        inner = (as_object(told.get("last_error")), as_object(told.get("error")))
        coded = next((part for part in inner if as_count(part.get("code"))), told)
        return _explain_code(coded or {"message": error})

    def _on_canceled(self, event: dict[str, Any], out: list[Delta]) -> None:
        raise UpstreamFailed("The answer was cancelled in Coze.")

    def _on_requires_action(self, event: dict[str, Any], out: list[Delta]) -> None:
        if not self._begun:
            self._on_chat(event, out)
        asked = as_object(as_object(event.get("required_action")).get("submit_tool_outputs"))
        calls = [
            as_object(call)
            for call in as_list(asked.get("tool_calls"))
            if as_object(call).get("type") in ("function", None)
        ]
        for index, call in enumerate(calls):
            function = as_object(call.get("function"))
            id_ = _tool_call_id(self.chat_id, self.conversation_id, as_id(call.get("id")))
            out.append(
                ToolCall(
                    index,
                    as_text(function.get("arguments")),
                    id_,
                    as_text(function.get("name")),
                    is_kept=True,
                )
            )
        usage = _usage(as_object(event.get("usage")))
        self._finish = Finish("tool_calls" if calls else "stop", usage)
        self.ending = True

    # Events of a plain workflow (`stream_run`), for servers that answer a chatflow call with them.

    def _on_message(self, event: dict[str, Any], out: list[Delta]) -> None:
        self._run_usage = _usage(as_object(event.get("usage"))) or self._run_usage
        content = as_text(event.get("content"))
        if as_text(event.get("node_title")):
            if content:
                self._has_text = True
                seq = as_id(event.get("node_id")) or as_text(event.get("node_title"))
                self._last_said = content if seq != self._node else self._last_said + content
                self._node, self._title = seq, as_text(event.get("node_title"))
                out.append(Text(content))
        elif not self._has_text:  # the end node repeats in JSON what output nodes have streamed
            output = _embedded(content)
            words = [v for v in output.values() if isinstance(v, str)]
            self._has_text = True
            out.append(Text(words[0] if len(words) == 1 else content))

    def _on_interrupt(self, event: dict[str, Any], out: list[Delta]) -> None:
        asked = as_object(event.get("interrupt_data"))
        out.append(Note("interaction", asked))
        words = _question(asked)
        asks = as_text(event.get("node_title")) or self._title
        if not words and not (asks and asks == self._title):
            words = WAITS
        if words and words != self._last_said:  # a question node may have said it as a message
            out.append(Text(f"\n\n{words}" if self._has_text else words))
            self._has_text = True
        self._finish = Finish("stop", self._run_usage)
        self._close(out)

    _HANDLERS: ClassVar[dict[str, Callable[["CozeDecoder", dict[str, Any], list[Delta]], None]]] = {
        "conversation.chat.created": _on_chat,
        "conversation.chat.in_progress": _on_chat,
        "conversation.message.delta": _on_delta,
        "conversation.message.completed": _on_completed,
        "conversation.chat.completed": _on_chat_completed,
        "conversation.chat.failed": _on_failed,
        "conversation.chat.requires_action": _on_requires_action,
        "conversation.chat.required_action": _on_requires_action,
        "conversation.chat.canceled": _on_canceled,
        "conversation.chat.cancelled": _on_canceled,
        "Message": _on_message,
        "Interrupt": _on_interrupt,
    }

    def _close(self, out: list[Delta]) -> None:
        """`done`, or the end of the body, which only together with a final event is a good end."""
        if self._finish is None:
            raise UpstreamCut("Coze's answer ended before it was complete.")
        out.append(self._finish)
        self.done = True

    def finish(self, out: list[Delta]) -> None:
        self._close(out)


def _embedded(content: str) -> dict[str, Any]:
    """JSON inside a string; {} if it is none."""
    try:
        return as_object(loosejson.loads(content.encode()))
    except loosejson.NotJson:
        return {}


def _question(asked: dict[str, Any]) -> str:
    """What an interrupted workflow asks, with the answers or inputs that it takes; it comes as
    plain text, or as JSON in a string, perhaps with more of it inside."""
    lines = list(_lines(asked.get("data"), _MAX_DEPTH))
    inputs = asked.get("required_parameters")
    if isinstance(inputs, dict):
        inputs = [{"name": name} for name in inputs]
    lines += _lines(as_list(inputs), 2)
    return "\n".join(lines)


_MAX_DEPTH = 6
_QUESTION = ("question", "content", "text", "title", "message", "prompt")
_OPTIONS = ("options", "option", "choices")


def _lines(data: Any, depth: int) -> Iterator[str]:
    if depth < 0:
        return
    if isinstance(data, str):
        inner = _inside(data)
        if inner is not None:
            yield from _lines(inner, depth - 1)
        elif data.strip():
            yield data
    elif isinstance(data, list):
        for item in data[:100]:
            yield from _lines(item, depth - 1)
    elif isinstance(data, dict):
        questions = (list(_lines(data.get(name), depth - 1)) for name in _QUESTION)
        yield from next(filter(None, questions), _field(data))
        options = next(filter(None, map(as_list, map(data.get, _OPTIONS))), [])
        for i, option in enumerate(options[:100], 1):
            yield f"{i}. {plain_text(_named(option))}"


def _inside(text: str) -> Any:
    """The JSON object, list or string that is all of `text`, or None."""
    if text.lstrip()[:1] not in ("{", "[", '"'):
        return None
    try:
        return loosejson.loads(text.encode())
    except loosejson.NotJson:
        return None


def _field(data: dict[str, Any]) -> list[str]:
    """The line of an input that is asked for."""
    name, about = as_text(data.get("name")), as_text(data.get("description"))
    return [f"- {name}: {about}" if about else f"- {name}"] if name else [about] if about else []


def _named(option: Any) -> Any:
    return as_object(option).get("name") or as_object(option).get("content") or option


def _usage(usage: dict[str, Any]) -> Usage | None:
    prompt = as_count(usage.get("input_count")) or as_count(usage.get("input_tokens"))
    completion = as_count(usage.get("output_count")) or as_count(usage.get("output_tokens"))
    # Coze Studio's chatflows count only twice the output as the total.
    total = max(as_count(usage.get("token_count")), prompt + completion)
    return Usage(prompt, completion, total) if total else None


def _explain(reply: UpstreamReply) -> GatewayError:
    body = reply.object()
    if as_count(body.get("code")) or as_count(body.get("error_code")):
        return _explain_code(body, reply.status)
    return explain_http("Coze", reply)


_REFUSED = {4100, 4101, 700012006}
_OPERATOR = {
    4006: "Coze does not know the bot: check bot_id.",
    4200: "Coze does not know the bot or workflow: check bot_id, and that it is published.",
    4015: "The Coze bot is not published to the API channel: publish it there in Coze.",
    4021: "The Coze bot has no workflow configured.",
    4100: "Coze refused the token: it is wrong or expired. Check api_key.",
    700012006: "Coze refused the token: it is wrong or expired. Check api_key.",
    4101: (
        "Coze does not let this token do this: check api_key, its scopes and workspace, and that"
        " base_url is of the same world (api.coze.cn or api.coze.com)."
    ),
    6003: "Coze asks for a paid plan for this.",
}
_QUOTA = {4008, 4011, 4019, 4022, 4028}
_NOT_ACCEPTED = (InvalidRequest, "Coze does not accept the request.")
_MODERATED = (ContentRefused, "Coze's moderation refused the question.")
_CALLER: dict[int, tuple[type[GatewayError], str]] = {
    **dict.fromkeys((4000, 4003, 4004, 4005, 4300, 4301, 4304), _NOT_ACCEPTED),
    **dict.fromkeys((4014, 4102, 4105), _MODERATED),
    4010: (ContextTooLong, "The conversation is too long for the bot's model."),
    4302: (BodyTooLarge, "The file is too large for Coze."),
    4303: (UnsupportedMediaType, "Coze does not take a file of this type."),
}


def _explain_code(event: dict[str, Any], status: int = 200) -> GatewayError:
    """The error for Coze's own code, which may come as a number or as digits."""
    code = as_count(event.get("code")) or as_count(event.get("error_code"))
    words = words_of(event)
    said = f" (Coze {code or status}: {clean(words) or 'no message'})"
    if code == 4000 and status == 404:
        return UpstreamMisconfigured("Coze has no such path: check base_url." + said)
    if code in _OPERATOR:
        return UpstreamMisconfigured(_OPERATOR[code] + said)
    if code in _QUOTA:
        return QuotaExhausted("The Coze account has no credit or calls left." + said)
    if code == 4020:
        return RateLimited(
            "Coze is limiting the model's calls." + said, retry_after_s=RETRY_AFTER_S
        )
    if code == 4009:
        return UpstreamUnavailable("Coze is busy." + said, retry_after_s=RETRY_AFTER_S)
    if code in (4016, 4315):
        return ConversationBusy("Coze is still answering in this conversation; wait for it." + said)
    if code in (4001, 4002, 4314):
        return ConversationNotFound(
            "Coze does not know this conversation; leave conversation_id out to begin one." + said
        )
    if code == 4010:
        return ContextTooLong("The conversation is too long for the bot's model." + said)
    if code in (4014, 4102, 4105):
        return ContentRefused("Coze's moderation refused the question." + said)
    if code in _CALLER or code == 4000:
        return InvalidRequest("Coze does not accept the request." + said)
    if status in (401, 402, 403, 413, 415, 429):
        return explain_http("Coze", UpstreamReply(status, {}, b""), f"{words} (Coze {code})")
    return explain_words("Coze", f"{words or 'no message'} (Coze {code or status})")
