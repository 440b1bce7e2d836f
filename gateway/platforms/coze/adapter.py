"""Coze (扣子): bots over /v3/chat and chatflows over /v1/workflows/chat, hosted and Coze Studio.

Source: Coze's developer guides, its SDKs and the open-source server. Most failures are HTTP 200
with a `code`, so the code decides and the status rarely does.
"""

import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote, urlsplit

import orjson

from gateway.errors import (
    UpstreamMisconfigured,
    clean,
)
from gateway.filetypes import KINDS, MediaKind
from gateway.language.sentences import say
from gateway.platforms.base import (
    Decoder,
    Delivery,
    Preliminary,
    ProfileStep,
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
)
from gateway.platforms.coze.audio import CozeSpeech, CozeTranscription
from gateway.platforms.coze.conversations import CozeConversations
from gateway.platforms.coze.decoder import CozeDecoder
from gateway.platforms.coze.failures import EXPIRED, REFUSED, explain
from gateway.platforms.coze.options import CozeOptions
from gateway.platforms.coze.profile import bot_profile, workflow_profile
from gateway.protocol import sse
from gateway.protocol.exchange import UploadRequest, UpstreamReply, UpstreamRequest
from gateway.protocol.messages import (
    ChatRequest,
    Media,
    Message,
)
from gateway.protocol.prompt import as_prompt, require_question
from gateway.protocol.usage import as_count

MAX_MESSAGES = 100  # of one /v3/chat call


MAX_WORKFLOW_MESSAGES = 50


_TOKEN_LIFE_S = 3600


_TOKEN_MARGIN_S = 60


class Coze(CozeConversations):
    kind = "coze"
    drops_stopped = True
    keeps_files = True
    keeps_runs = True

    def __init__(
        self, name: str, agent: CozeOptions, url: str, clock: Callable[[], float] = time.time
    ) -> None:
        self._agent = agent
        tails = ("/v3/chat", "/v3", "/workflows/chat", "/workflow/stream_run", "/v1")
        self._api = base_url(url, *tails, "/open_api/v2/chat", "/open_api/v2")
        if agent.oauth:
            import jwt  # noqa: F401 - load it now, so that no question waits for it
        until = 0.0 if agent.oauth else float("inf")
        self._token = Token(agent.api_key.reveal(), until, _TOKEN_MARGIN_S, clock)
        self.speech = CozeSpeech(agent, self._api, self._headers, self._authorized, self._retried)
        self.transcription = CozeTranscription(
            self._api, self._headers, self._authorized, self._retried
        )

    @property
    def token(self) -> str:
        return self._token.value

    def _headers(self) -> dict[str, str]:
        return json_headers(self.token, self._agent.headers)

    def _authorized(self, then: Callable[[], Step]) -> Step:
        """The step `then`, with a token that has not expired."""
        return self._renew(then) if self._token.is_over else then()

    def prepare(self, chat: ChatRequest) -> Step:
        results = _tool_results(chat.messages)
        if not results:
            require_question(chat)
        if self._token.is_over:
            return self._renew(lambda: self.prepare(chat))
        if results:
            return self._submit(*results)
        if chat.resume is not None and chat.resume.state:
            return self._resume(chat.resume.state, chat.question.text)
        return self._workflow(chat) if self._agent.mode == "workflow" else self._chat(chat)

    def _chat(self, chat: ChatRequest) -> UpstreamRequest:
        url = f"{self._api}/v3/chat"
        if chat.conversation_id:  # a query parameter; Coze silently ignores it in the body
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

    def _resume(self, state: Mapping[str, Any], reply: str) -> UpstreamRequest:
        """Continue a workflow's run that waits for a reply."""
        body = {
            "workflow_id": self._agent.workflow_id,
            "event_id": state["event_id"],
            "interrupt_type": state["type"],
            "resume_data": reply,
        }
        url = f"{self._api}/v1/workflow/stream_resume"
        return UpstreamRequest("POST", url, self._headers(), dump(body), stream=True)

    def _submit(self, chat_id: str, conversation: str, outputs: list[dict[str, str]]) -> Step:
        """Submit the results of tools that an earlier answer asked the client to run."""
        query = f"conversation_id={quote(conversation, safe='')}&chat_id={quote(chat_id, safe='')}"
        url = f"{self._api}/v3/chat/submit_tool_outputs?{query}"
        body = dump({"tool_outputs": outputs, "stream": True})
        return UpstreamRequest("POST", url, self._headers(), body, stream=True)

    @property
    def remembers(self) -> bool:
        return self._agent.mode == "chat"

    # Files.

    @property
    def kinds(self) -> frozenset[MediaKind]:
        """All kinds for a chat; none for a chatflow, whose messages are text."""
        return frozenset(KINDS if self._agent.mode == "chat" else ())

    def sends_turns(self, chat: ChatRequest) -> bool:
        return not chat.conversation_id

    def delivery(self, media: Media, chat: ChatRequest) -> Delivery:
        """Coze fetches links; files that it could not reach are uploaded."""
        return "upload" if media.is_data or (media.stored and not media.url) else "url"

    def upload(self) -> UploadStep:
        if self._token.is_over:
            return self._renew(self.upload)
        headers = form_headers(self.token, self._agent.headers)
        return UploadRequest(f"{self._api}/v1/files/upload", headers)

    def uploaded(self, reply: UpstreamReply) -> str:
        body = reply.object()
        id_ = as_id(as_object(body.get("data")).get("id"))
        if reply.status != 200 or body.get("code") != 0 or not id_:
            raise explain(reply)
        return id_

    # OAuth with JWT: each time the token expires, a signed claim is exchanged for a new one.

    def _renew(self, then: Callable[[], Any]) -> Preliminary:
        """Fetch a token, then continue with `then`."""

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
        except Exception:  # PyJWT raises many types for an unreadable key
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
            message = clean(as_text(body.get("error_message")) or as_text(body.get("msg")))
            raise UpstreamMisconfigured(
                say(
                    "Coze refused the OAuth app's signature: {message}. Check oauth.app_id, key_id "
                    "and private_key.",
                    message=message or reply.status,
                )
            )
        # `expires_in` is a point in time; a small value can only be a duration.
        now = self._token.now()
        ends = float(until) if until > now else now + until
        if ends < now + _TOKEN_MARGIN_S:
            ends = now + 2 * _TOKEN_MARGIN_S
        self._token.value, self._token.until = token, ends

    def decoder(self, chat: ChatRequest) -> Decoder:
        return CozeDecoder()

    def recover(self, reply: UpstreamReply, chat: ChatRequest) -> Step:
        return self._retried(reply, chat, self.prepare)

    def _retried(
        self, reply: UpstreamReply, chat: ChatRequest, prepare: Callable[[ChatRequest], Step]
    ) -> Step:
        """`prepare` with a new token if the old one was revoked. Raises any other error."""
        code = as_count(reply.object().get("code"))
        if self._agent.oauth and code in EXPIRED and self._token.renew_for(chat.call_id):
            return prepare(chat)
        raise explain(reply)

    def as_stream(self, reply: UpstreamReply) -> bytes:
        """The events for a list of messages, or for the output of a workflow's run."""
        body = reply.object()
        data, asked = body.get("data"), as_object(body.get("interrupt_data"))
        if as_count(body.get("code")):
            return b""
        if isinstance(data, str) or asked:
            message = [("Message", {"content": data, "usage": body.get("usage")})] if data else []
            last = [("Interrupt", {"interrupt_data": asked})] if asked else [("Done", {})]
            return _events([*message, *last])
        messages = [as_object(m) for m in as_list(data) or as_list(body.get("messages"))]
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

    def describe(self, reply: UpstreamReply) -> str:
        body = reply.object()
        data = as_object(body.get("data"))
        if reply.status == 200 and body.get("code") == 0:
            return say("bot {name!r}", name=as_text(data.get("name")) or "found")
        error = explain(reply)
        if not self._agent.bot_id and body and as_count(body.get("code")) not in REFUSED:
            return say("reachable; a workflow cannot be looked up by itself")
        raise error

    def profile(self) -> ProfileStep:
        if self._token.is_over:
            return self._renew(self.profile)
        read = bot_profile
        path = f"/v1/bots/{quote(self._agent.bot_id or 'demo', safe='')}?is_published=true"
        if self._agent.mode == "workflow":
            read = workflow_profile
            workflow = quote(self._agent.workflow_id or "", safe="")
            path = f"/v1/workflows/{workflow}?include_input_output=true"

        def learn(reply: UpstreamReply) -> ProfileStep:
            body = reply.object()
            data = as_object(body.get("data"))
            if reply.status != 200 or body.get("code") != 0 or not data:
                raise explain(reply)
            return read(data, self.file_needs)

        return Preliminary(UpstreamRequest("GET", self._api + path, self._headers()), learn)


def _additional(chat: ChatRequest, most: int) -> list[dict[str, str]]:
    """The messages to send: only the question if Coze knows the conversation, else all of them.

    Coze has no system role, so the system text is put in front of the first message.
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
    # Media without text requires an additional plain text message.
    return [entry] if text else [entry, _text_entry("请看附件。/ See the attachment.")]


def _events(events: list[tuple[str, dict[str, Any]]]) -> bytes:
    return b"".join(sse.event(dump(event), name) for name, event in events)


def _as_string(value: Any) -> str:
    return value if isinstance(value, str) else dump(value).decode()


def _tool_results(
    messages: tuple[Message, ...],
) -> tuple[str, str, list[dict[str, str]]] | None:
    """(chat id, conversation id, outputs) if the messages end with results of Coze's tool calls."""
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
