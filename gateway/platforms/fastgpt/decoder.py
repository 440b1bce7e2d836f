"""FastGPT's answers: OpenAI's chunks, and named events for everything else."""

import re
from collections.abc import Callable
from typing import Any, ClassVar

from gateway.errors import (
    EmptyAnswer,
    GatewayError,
    InvalidRequest,
    UpstreamCut,
    clean,
)
from gateway.language.sentences import say
from gateway.platforms.base import (
    EventDecoder,
    as_list,
    as_object,
    as_text,
    parse_json,
    parse_object,
)
from gateway.platforms.fastgpt.citations import CiteMarks, may_hold_mark
from gateway.platforms.fastgpt.failures import explain_value
from gateway.platforms.fastgpt.interactive import innermost, interactive_text, pause_in
from gateway.platforms.fastgpt.nodes import (
    any_failure,
    choice_made,
    last_failure,
    model_finish,
    quotes,
    tokens,
    what_plugin_gave,
)
from gateway.platforms.pauses import WAITS, Pauses
from gateway.protocol.content import read_content
from gateway.protocol.messages import (
    Begin,
    Delta,
    Finish,
    Note,
    Reasoning,
    Text,
)
from gateway.protocol.reported_errors import choice_error, reported_error
from gateway.protocol.template import EventTemplate

_ANSWERS = frozenset(("", "answer", "fastAnswer"))  # "" with `detail: false`
# Members of FastGPT's own parts of an answer; other servers' parts have plain text.
_ITEMS = ("text", "reasoning", "tools", "tool", "interactive")


class FastGPTDecoder(EventDecoder):
    """Answer chunks are OpenAI's; everything else is a named event.

    Servers up to 4.14.6 send `[DONE]` before `flowResponses`, so the answer ends with both, or with
    the connection. A failed node is silent: only the node results contain its failure, the usage
    and the model's finish reason. The decoder also reads a whole answer as one event, since some
    proxies convert streams to whole answers.
    """

    platform = "FastGPT"
    __slots__ = (
        "_answer_id", "_begun", "_detail", "_has_more", "_has_text", "_is_paused", "_knows_nodes",
        "_marks", "_nodes", "_pauses", "_reason", "_said_done",
    )  # fmt: skip

    text_members = (b"content",)

    def __init__(
        self, chat_id: str, detail: bool, pauses: Pauses | None = None, answer_id: str = ""
    ) -> None:
        super().__init__()
        self.conversation_id = chat_id
        self._answer_id = answer_id
        self._detail = detail
        self._pauses = pauses if pauses is not None else Pauses()
        self._begun = False
        self._said_done = False
        self._reason: str | None = None
        self._has_text = False
        self._has_more = False  # reasoning, or parts other than text
        self._is_paused = False
        self._marks = CiteMarks()
        self._nodes: list[Any] = []
        self._knows_nodes = False

    def pattern(self, chunk: bytes, delta: Delta) -> EventTemplate | None:
        return None if self._marks.held else super().pattern(chunk, delta)

    @property
    def on_text(self) -> Callable[[str], bool]:
        return may_hold_mark

    @staticmethod
    def skips(name: str, head: bytes) -> bool:
        """Skip arguments and results of tools, and ignored events."""
        return name not in _ANSWERS and name not in FastGPTDecoder._HANDLERS

    def event(self, name: str, data: bytes, out: list[Delta]) -> bool | None:
        if not self._begun:
            self._begin(out)
            self._pauses.end(self.conversation_id)
        if name in _ANSWERS and data.startswith(b"{"):  # nearly all events
            return self._chunk(parse_object(data), out)
        if data.strip() in (b"[DONE]", b'"[DONE]"'):
            self._said_done = True
            self._close_if_whole(out)
        elif name in _ANSWERS:
            return self._chunk(parse_object(data), out) if data.strip() else None
        elif handle := self._HANDLERS.get(name):
            handle(self, data, out)
        return None

    def _begin(self, out: list[Delta]) -> None:
        if not self._begun:
            self._begun = True
            out.append(Begin(self.conversation_id, self._answer_id))

    def _chunk(self, chunk: dict[str, Any], out: list[Delta]) -> bool | None:
        choices = as_list(chunk.get("choices"))
        if not choices:
            if (error := reported_error(chunk)) or as_text(chunk.get("statusText")):
                raise self.explain(error or chunk)
            return None  # 4.9.7 leaks its timing into plain streams
        choice = as_object(choices[0])
        if "message" in choice:
            self._whole(chunk, as_object(choice["message"]), out)
            return None
        delta = as_object(choice.get("delta"))
        if reasoning := as_text(delta.get("reasoning_content")):
            self._think(reasoning, out)
        text = delta.get("content")
        if isinstance(text, str):
            self._say(text, out)
        elif text:
            self._say_parts(text, out)
        if reason := as_text(choice.get("finish_reason")):
            self._reason = reason
            if error := choice_error(choice):
                raise self.explain(error)
        return None if text or reasoning or reason else False

    def _say_parts(self, content: Any, out: list[Delta]) -> None:
        for part in read_content(content):
            if isinstance(part, Text):
                self._say(part.text, out)
            else:
                self._has_more = True
                out.append(part)

    def _whole(self, answer: dict[str, Any], message: dict[str, Any], out: list[Delta]) -> None:
        """Read an answer that was not streamed: one message, and the node results."""
        if reasoning := as_text(message.get("reasoning_content")):
            self._think(reasoning, out)
        content = message.get("content")
        if isinstance(content, str):
            self._say(content, out)
        for item in as_list(content):
            if any(isinstance(as_object(item).get(name), dict | list) for name in _ITEMS):
                self._item(item, out)
            else:
                self._say_parts([item], out)
        if self._detail and (variables := _variables(answer.get("newVariables"))):
            out.append(Note("outputs", variables))
        self._nodes += as_list(answer.get("responseData"))
        self._knows_nodes = "responseData" in answer
        if not self._knows_nodes and answer.get("error"):  # the last node's error
            self._nodes.append({"error": answer["error"]})
        self._end(out)

    def _item(self, item: dict[str, Any], out: list[Delta]) -> None:
        if reasoning := as_text(as_object(item.get("reasoning")).get("content")):
            self._think(reasoning, out)
        for tool in map(as_object, [*as_list(item.get("tools")), item.get("tool")]):
            self._call(tool, out)
        if text := as_text(as_object(item.get("text")).get("content")):
            self._say(f"\n{text}" if self._has_text else text, out)
        if asked := as_object(item.get("interactive")):
            self._pause(asked, out)

    def _fail(self, error: GatewayError, out: list[Delta]) -> None:
        self._begin(out)
        self._say_rest(out)
        super()._fail(error, out)

    def _think(self, text: str, out: list[Delta]) -> None:
        self._has_more = True
        out.append(Reasoning(text))

    def _say(self, text: str, out: list[Delta]) -> None:
        if self._marks.held or may_hold_mark(text):
            text = self._marks.feed(text)
        if text:
            self._has_text = True
            out.append(Text(text))

    def _say_rest(self, out: list[Delta]) -> None:
        if rest := self._marks.close():
            self._has_text = True
            out.append(Text(rest))

    def explain(self, error: Any) -> GatewayError:
        return explain_value(error)

    def _on_status(self, data: bytes, out: list[Delta]) -> None:
        status = parse_object(data)
        if self._detail:
            step = {"node": as_text(status.get("name")), "status": as_text(status.get("status"))}
            out.append(Note("progress", [step]))
        else:
            out.append(Note("progress", []))  # a sign of life without content

    def _on_tool(self, data: bytes, out: list[Delta]) -> None:
        self._call(as_object(parse_object(data).get("tool")), out)

    def _call(self, tool: dict[str, Any], out: list[Delta]) -> None:
        name = as_text(tool.get("toolName")) or as_text(tool.get("functionName"))
        shown = [{"name": name, "status": "running"}] if self._detail and name else []
        out.append(Note("tools", shown))

    def _on_nodes(self, data: bytes, out: list[Delta]) -> None:
        nodes = parse_json(data)
        if isinstance(nodes, dict):  # one pre-release sent {"0": …, "1": …}
            nodes = [nodes[key] for key in nodes]
        self._nodes += as_list(nodes)
        self._knows_nodes = True
        self._close_if_whole(out)

    def _on_node(self, data: bytes, out: list[Delta]) -> None:
        self._nodes.append(parse_object(data))
        self._knows_nodes = True
        out.append(Note("progress", []))

    def _on_variables(self, data: bytes, out: list[Delta]) -> None:
        variables = _variables(parse_object(data)) if self._detail else {}
        out.append(Note("outputs", variables) if variables else Note("progress", []))

    def _on_title(self, data: bytes, out: list[Delta]) -> None:
        if title := as_text(parse_object(data).get("title")):
            out.append(Note("title", title))

    def _on_interactive(self, data: bytes, out: list[Delta]) -> None:
        self._pause(as_object(parse_object(data).get("interactive")), out)

    def _pause(self, asked: dict[str, Any], out: list[Delta]) -> None:
        """Show the question that the bot waits on, and remember it for the turn that answers it."""
        asked = innermost(asked)
        params = as_object(asked.get("params"))
        self._is_paused = True
        self._pauses.begin(self.conversation_id, pause_in(params))
        out.append(Note("interaction", {"type": as_text(asked.get("type")), "params": params}))
        question = interactive_text(params) or ("" if self._has_text else WAITS)
        if question:
            self._say(f"\n\n{question}" if self._has_text else question, out)

    _HANDLERS: ClassVar[dict[str, Callable[["FastGPTDecoder", bytes, list[Delta]], None]]] = {
        "flowNodeStatus": _on_status,
        "moduleStatus": _on_status,
        "toolCall": _on_tool,
        "flowResponses": _on_nodes,
        "appStreamResponse": _on_nodes,
        "flowNodeResponse": _on_node,
        "updateVariables": _on_variables,
        "chatTitle": _on_title,
        "interactive": _on_interactive,
    }

    def _close_if_whole(self, out: list[Delta]) -> None:
        if self._said_done and self._knows_nodes:
            self._end(out)
        else:
            self.ending = self._said_done

    def finish(self, out: list[Delta]) -> None:
        if not self._said_done and self._reason is None:
            raise UpstreamCut("FastGPT's answer ended before it was complete.")
        self._end(out)

    def _end(self, out: list[Delta]) -> None:
        nodes = self._nodes
        self._say_rest(out)
        if not self._has_text and (text := what_plugin_gave(nodes)):
            self._say(text, out)
        reason = model_finish(nodes)
        if not self._is_paused and (error := self._failure(reason)):
            raise error
        if self._detail and (citations := quotes(nodes)):
            out.append(Note("citations", citations))
        out.append(Finish(reason or self._reason or "stop", tokens(nodes)))
        self.done = True

    def _failure(self, reason: str) -> GatewayError | None:
        """The error if the answer is incomplete or empty, else None."""
        if self._has_text:
            return last_failure(self._nodes)
        if error := any_failure(self._nodes):
            return error
        if self._has_more or reason:
            return None
        if choice := choice_made(self._nodes):
            return InvalidRequest(
                say(
                    "FastGPT's bot says nothing after the choice {choice!r}: it may be none of "
                    "the options. Ask again, and reply with one of them, or its number.",
                    choice=clean(choice, 100),
                ),
                param="messages",
            )
        return EmptyAnswer("FastGPT")


def _variables(value: Any) -> dict[str, Any]:
    """An app's variables, without the internal id that 4.8.11 adds to them."""
    variables = as_object(value)
    if _OBJECT_ID.fullmatch(as_text(variables.get("userId"))):
        return {name: value for name, value in variables.items() if name != "userId"}
    return variables


_OBJECT_ID = re.compile(r"[0-9a-f]{24}")
