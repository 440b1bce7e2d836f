"""The applications of Zhipu's platform."""

from typing import Any
from urllib.parse import quote

from gateway.errors import (
    EmptyAnswer,
    GatewayError,
    UpstreamCut,
)
from gateway.platforms.base import (
    Decoder,
    EventDecoder,
    Preliminary,
    ProfileStep,
    Step,
    as_id,
    as_list,
    as_object,
    as_text,
    base_url,
    dump,
    parse_object,
)
from gateway.platforms.zhipu.failures import explain, explain_reported
from gateway.platforms.zhipu.models import ModelDecoder
from gateway.platforms.zhipu.options import ZhipuOptions
from gateway.platforms.zhipu.product import Product
from gateway.platforms.zhipu.profile import application_profile, item_types
from gateway.protocol import sse
from gateway.protocol.content import files_note, read_content
from gateway.protocol.exchange import UpstreamReply, UpstreamRequest
from gateway.protocol.history import next_questions
from gateway.protocol.messages import Begin, ChatRequest, Delta, Finish, Note, Text, Usage
from gateway.protocol.profile import Profile
from gateway.protocol.prompt import as_prompt, require_question
from gateway.protocol.reported_errors import reported_error
from gateway.protocol.usage import as_count


class Application(Product):
    """The platform's applications: a request creates a conversation, the next one asks in it."""

    def __init__(self, agent: ZhipuOptions, url: str) -> None:
        super().__init__(agent)
        tails = (
            "/v3/application/invoke",
            "/llm-application/open",
            "/paas/v4",
            "/v3",
            "/v2",
            "/api",
        )
        self._api = base_url(url, *tails, then="/api/llm-application/open")
        self._item_types: dict[str, str] = {}  # of variables, once the form is known

    @property
    def remembers(self) -> bool:
        return True

    def prepare(self, chat: ChatRequest) -> Step:
        require_question(chat)
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
            raise explain(reply)
        return self._invoke(chat, conversation)

    def _invoke(self, chat: ChatRequest, conversation: str) -> UpstreamRequest:
        content = [{"type": "input", "value": as_prompt(chat)}]
        content += [
            {
                "type": self._item_types.get(key, "input"),
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
        return ApplicationDecoder()

    def as_stream(self, reply: UpstreamReply) -> bytes:
        return _application_events(reply.object())

    def probe(self) -> Step:
        return self._variables()

    def profile(self) -> ProfileStep:
        return Preliminary(self._variables(), self._read)

    def _read(self, reply: UpstreamReply) -> Profile:
        data = reply.object().get("data")
        self.describe(reply)  # raises the error in a refusal
        if not isinstance(data, list):
            raise explain(reply)
        self._item_types = item_types(data)
        return application_profile(data, self.file_needs)

    def _variables(self) -> UpstreamRequest:
        url = f"{self._api}/v2/application/{self._agent.app_id or 'demo'}/variables"
        return UpstreamRequest("GET", url, self._headers)

    def suggest(self, conversation: str, user: str, message_id: str) -> Preliminary:
        """Zhipu has questions for the latest answer only, and knows no messages."""
        app, conversation = self._agent.app_id or "demo", quote(conversation, safe="")
        url = f"{self._api}/history_session_record/{app}/{conversation}"
        return Preliminary(UpstreamRequest("GET", url, self._headers), _problems)


def _problems(reply: UpstreamReply) -> tuple[str, ...]:
    body = reply.object()
    if reply.status != 200 or as_count(body.get("code")) != 200:
        raise explain(reply)
    return next_questions(as_object(body.get("data")).get("problems"))


def _application_events(body: dict[str, Any]) -> bytes:
    """A whole answer of an application, converted to its stream; b"" if it is not an answer."""
    data = as_object(body.get("data"))
    if text := as_text(data.get("content")):  # the older API's format
        choice = {"delta": {"content": {"type": "text", "msg": text}}, "finish_reason": "stop"}
        body = {"choices": [choice], "usage": data.get("usage")}
    return sse.event(dump(body)) + sse.DONE if as_list(body.get("choices")) else b""


class ApplicationDecoder(EventDecoder):
    """Text increments are in `delta.content.msg`; the answer ends with a finish reason, sometimes
    followed by `[DONE]`."""

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
        if error := frame.get("error") if frame.get("choices") else reported_error(frame):
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
        return explain_reported(error) if isinstance(error, dict) else super().explain(error)

    def _choice(self, choice: dict[str, Any], out: list[Delta]) -> None:
        whole = choice.get("messages")
        whole = as_list(whole)[-1] if as_list(whole) else whole
        delta = as_object(choice.get("delta")) or as_object(whole)
        content = delta.get("content")
        text = as_text(content) or as_text(as_object(content).get("msg"))
        if isinstance(content, list) or (not text and "text" in as_object(content)):
            out += read_content(content)
        kind = as_text(as_object(content).get("type"))
        if text and kind in ("", "text", "all_tools"):
            out.append(Text(text))
        elif kind in ("image", "video"):
            url = text or as_text(as_object(content).get("url"))
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
            raise explain_reported({"error": choice.get("error_msg") or choice.get("error")})
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
    """The usage, summed over nodes; the older format is one object with OpenAI's names."""
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
