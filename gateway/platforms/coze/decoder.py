"""Decodes Coze's event streams: chats and workflows."""

import re
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from gateway.errors import (
    GatewayError,
    UpstreamCut,
    UpstreamFailed,
)
from gateway.platforms.base import (
    EventDecoder,
    as_id,
    as_list,
    as_object,
    as_text,
    parse_object,
)
from gateway.platforms.coze.failures import explain_code
from gateway.platforms.pauses import WAITS
from gateway.protocol import loosejson
from gateway.protocol.content import plain_text, read_content
from gateway.protocol.messages import (
    Begin,
    Delta,
    Finish,
    Note,
    Reasoning,
    Text,
    ToolCall,
    Usage,
)
from gateway.protocol.reported_errors import reported_error
from gateway.protocol.usage import as_count


def _tool_call_id(chat_id: str, conversation_id: str, own: str) -> str:
    return f"coze-{chat_id}-{conversation_id}-{own}"


_TYPE = re.compile(rb'"type":\s*"(\w+)"')


class CozeDecoder(EventDecoder):
    """Delta events contain the answer; `completed` events repeat it and contain everything else."""

    platform = "Coze"
    __slots__ = (
        "_answer", "_answers", "_begun", "_finish", "_has_reasoning", "_has_text", "_last_said",
        "_meta_usage", "_node", "_run_usage", "_title", "chat_id", "pause",
    )  # fmt: skip

    text_members = (b"content",)

    def __init__(self) -> None:
        super().__init__()
        self.pause: dict[str, Any] | None = None
        self.chat_id = ""
        self._begun = False
        self._answers: set[str] = set()  # ids of answers already emitted
        self._answer = ""
        self._has_text = False
        # For a plain workflow: the current node, its title and its text.
        self._node = self._title = self._last_said = ""
        self._has_reasoning = False
        self._meta_usage: Usage | None = None
        self._finish: Finish | None = None
        self._run_usage: Usage | None = None

    def usage_so_far(self) -> Usage | None:
        return (self._finish and self._finish.usage) or self._run_usage or self._meta_usage

    @staticmethod
    def skips(name: str, head: bytes) -> bool:
        """Skip results of tools and retrieval, and ignored events."""
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
        if handle is None:  # no name: an error envelope, as hosted Coze names all events
            if error := reported_error(event):
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
            return  # parts as a string, which `completed` repeats in full
        if text := as_text(event.get("content")):
            self._answers.add(answer)
            self._say(answer, text, out)

    def _say_parts(self, answer: str, content: str, out: list[Delta]) -> None:
        """Add text and files of an answer that is a list of parts, serialised to a string."""
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
        """Add text. Coze shows several answers as several bubbles; here a blank line separates
        them."""
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
            self._meta_usage = answer_usage(as_object(event.get("meta_data"))) or self._meta_usage
        elif kind == "follow_up" and content:
            out.append(Note("suggestions", [content]))
        elif kind == "function_call":
            name = as_text(_embedded(content).get("name"))
            out.append(Note("tools", [{"name": name, "status": "running"}] if name else []))
        else:
            out.append(Note("progress", []))  # verbose, knowledge, tool_response: signs of life

    def _on_chat_completed(self, event: dict[str, Any], out: list[Delta]) -> None:
        if not self._begun:
            self._on_chat(event, out)
        usage = _usage(as_object(event.get("usage"))) or self._meta_usage
        self._finish = Finish("stop", usage)
        self.ending = True  # voice may still follow, then `done`

    def _on_failed(self, event: dict[str, Any], out: list[Delta]) -> None:
        raise self.explain(event)

    def explain(self, error: Any) -> GatewayError:
        members = as_object(error)
        inner = (as_object(members.get("last_error")), as_object(members.get("error")))
        coded = next((part for part in inner if as_count(part.get("code"))), members)
        return explain_code(coded or {"message": error})

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

    # Events of a plain workflow (`stream_run`), which some servers send for a chatflow call.

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
        elif not self._has_text:  # the end node repeats as JSON what output nodes streamed
            output = _embedded(content)
            texts = [v for v in output.values() if isinstance(v, str)]
            self._has_text = True
            out.append(Text(texts[0] if len(texts) == 1 else content))

    def _on_interrupt(self, event: dict[str, Any], out: list[Delta]) -> None:
        asked = as_object(event.get("interrupt_data"))
        event_id = as_id(asked.get("event_id"))
        if event_id and not self.conversation_id:  # in one, the next message is the answer
            self.pause = {"event_id": event_id, "type": as_count(asked.get("type"))}
        out.append(Note("interaction", asked))
        question = _question(asked)
        asks = as_text(event.get("node_title")) or self._title
        if not question and not (asks and asks == self._title):
            question = WAITS
        if question and question != self._last_said:  # a question node may have sent the same text
            out.append(Text(f"\n\n{question}" if self._has_text else question))
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
        """Handle `done` or the end of the body. Without a final event before it, the answer is
        cut."""
        if self._finish is None:
            raise UpstreamCut("Coze's answer ended before it was complete.")
        out.append(self._finish)
        self.done = True

    def finish(self, out: list[Delta]) -> None:
        self._close(out)


def _embedded(content: str) -> dict[str, Any]:
    """The JSON object in a string; {} if there is none."""
    try:
        return as_object(loosejson.loads(content.encode()))
    except loosejson.NotJson:
        return {}


def _question(asked: dict[str, Any]) -> str:
    """The question of an interrupted workflow, with the answers or inputs that it accepts. Coze
    sends it as plain text, or as JSON in a string, which may contain further JSON strings."""
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
    """The JSON object, list or string if `text` is entirely one, else None."""
    if text.lstrip()[:1] not in ("{", "[", '"'):
        return None
    try:
        return loosejson.loads(text.encode())
    except loosejson.NotJson:
        return None


def _field(data: dict[str, Any]) -> list[str]:
    """The line for a requested input."""
    name, about = as_text(data.get("name")), as_text(data.get("description"))
    return [f"- {name}: {about}" if about else f"- {name}"] if name else [about] if about else []


def _named(option: Any) -> Any:
    return as_object(option).get("name") or as_object(option).get("content") or option


def answer_usage(meta: dict[str, Any]) -> Usage | None:
    """The usage that Coze Studio sends in an answer's `meta_data`."""
    prompt, completion = as_count(meta.get("input_tokens")), as_count(meta.get("output_tokens"))
    total = as_count(meta.get("token"))
    return Usage(prompt, completion, total) if total else None


def _usage(usage: dict[str, Any]) -> Usage | None:
    prompt = as_count(usage.get("input_count")) or as_count(usage.get("input_tokens"))
    completion = as_count(usage.get("output_count")) or as_count(usage.get("output_tokens"))
    # Coze Studio's chatflows send twice the output as the total.
    total = max(as_count(usage.get("token_count")), prompt + completion)
    return Usage(prompt, completion, total) if total else None
