"""Decodes RAGFlow's answers: a chat's frames, an agent's events, or OpenAI's chunks.

A chat's frame is `{"code", "data": {"answer", "reference", …}}`. Up to 0.23.1 `answer` is the whole
text so far (`cumulative`), from 0.24 on the new text (`delta`); there the frame with `final`
repeats the whole text, or is empty, or contains the only text. The last frame is `"data": true`.
"""

import re
from collections.abc import Callable
from typing import Any, ClassVar, Literal

from gateway.errors import EmptyAnswer, GatewayError, UpstreamCut
from gateway.platforms.base import (
    EventDecoder,
    as_id,
    as_list,
    as_object,
    as_text,
    parse_object,
)
from gateway.platforms.failures import is_failure, message_of
from gateway.platforms.pauses import WAITS, Field, Pause, Pauses
from gateway.platforms.ragflow.failures import ERROR, explain_answer, explain_code
from gateway.platforms.ragflow.marks import Marks, may_hold_mark, without_citations
from gateway.protocol.messages import (
    Begin,
    Delta,
    Finish,
    Note,
    Reasoning,
    Replace,
    Text,
    Usage,
)
from gateway.protocol.template import EventTemplate
from gateway.protocol.thinking import ThinkingSplitter
from gateway.protocol.usage import as_count, read_usage

Frames = Literal["auto", "delta", "cumulative"]

_END_OF_THINKING = "</think>"
_MAX_UNDECIDED = 20  # frames
_STARTED = re.compile(rb'"event":\s*"(?:node|workflow)_started"')


class RAGFlowDecoder(EventDecoder):
    """With `auto`, frames are deltas if one has a member that only deltas have, and cumulative if
    one repeats the text of the previous frame."""

    platform = "RAGFlow"
    __slots__ = (
        "_begun", "_chunks", "_finish", "_frames", "_has_content", "_has_text", "_is_paused",
        "_is_thinking", "_marks", "_node_error", "_outputs", "_pauses", "_shown", "_split",
        "_undecided", "_usage", "_whole",
    )  # fmt: skip

    text_members = (b"answer", b"content")

    def __init__(
        self, frames: Frames = "auto", conversation_id: str = "", pauses: Pauses | None = None
    ) -> None:
        super().__init__()
        self.conversation_id = conversation_id
        self._frames = frames
        self._pauses = pauses if pauses is not None else Pauses()
        self._begun = False
        self._marks = Marks()
        self._split = ThinkingSplitter()
        self._is_thinking = False
        self._has_text = False
        self._has_content = False  # text or reasoning
        self._whole = ""  # the last cumulative frame, unchanged
        self._shown: list[str] = []  # the text emitted for it
        self._undecided: list[str] = []  # frames that may be deltas or cumulative
        self._chunks: dict[int, dict[str, Any]] = {}
        self._node_error = ""  # of the last failed step; later text clears it
        self._outputs: dict[str, Any] | None = None  # of an agent's finished run
        self._usage: Usage | None = None
        self._finish = ""
        self._is_paused = False

    def event(self, name: str, data: bytes, out: list[Delta]) -> None:
        if not data.strip():
            return
        if data.strip() == b"[DONE]":
            self._end(out)
            return
        event = parse_object(data)
        if isinstance(event.get("event"), str):
            self._on_event(event, out)
        elif event.get("choices"):
            self._on_chunk(event, out)
        elif is_failure(event):
            raise self.explain(event)
        elif event.get("data") is True:
            self._end(out)
        elif isinstance(event.get("data"), dict):
            self._on_frame(event["data"], out)

    def explain(self, error: Any) -> GatewayError:
        body = as_object(error)
        answer = as_text(as_object(body.get("data")).get("answer"))
        message = answer if answer.startswith(ERROR) else message_of(error) or answer
        return explain_code(as_count(body.get("code")), message)

    @property
    def on_text(self) -> Callable[[str], bool]:
        return may_hold_mark

    def pattern(self, chunk: bytes, delta: Delta) -> EventTemplate | None:
        adds_only = self._frames == "delta" and self._marks.is_plain and self._split.passes_all
        return super().pattern(chunk, delta) if adds_only else None

    @staticmethod
    def skips(name: str, head: bytes) -> bool:
        """Skip the inputs of an agent's steps, such as retrieved chunks."""
        return _STARTED.search(head, 0, 4096) is not None

    def _fail(self, error: GatewayError, out: list[Delta]) -> None:
        self._flush(out)
        super()._fail(error, out)

    def _begin(self, conversation_id: str, message_id: str, out: list[Delta]) -> None:
        if not self._begun:
            self._begun = True
            self.conversation_id = conversation_id or self.conversation_id
            self._pauses.end(self.conversation_id)
            out.append(Begin(self.conversation_id, message_id))

    # The answer's text.

    def _say(self, text: str, out: list[Delta]) -> None:
        self._show(self._marks.feed(text), out)

    def _show(self, pieces: list[Text | Note], out: list[Delta]) -> None:
        for piece in pieces:
            if isinstance(piece, Note):
                out.append(piece)
            elif self._is_thinking:
                self._add([Reasoning(piece.text)], out)
            else:
                self._add(self._split.feed(piece.text), out)

    def _add(self, deltas: list[Delta], out: list[Delta]) -> None:
        for delta in deltas:
            self._has_content = True
            if isinstance(delta, Text):
                self._has_text, self._node_error = True, ""
                if self._frames != "delta":
                    self._shown.append(delta.text)
        out += deltas

    def _flush(self, out: list[Delta]) -> None:
        """Emit text held back, since no text follows for now."""
        self._show(self._marks.close(), out)
        self._add(self._split.close(), out)

    def _think(self, is_thinking: bool, out: list[Delta]) -> None:
        """Begin or end a think block."""
        self._show(self._marks.restart(), out)
        self._is_thinking = is_thinking

    # Chats.

    def _on_frame(self, frame: dict[str, Any], out: list[Delta]) -> None:
        self._begin(as_id(frame.get("session_id")), as_id(frame.get("id")), out)
        self._refer(frame.get("reference"))
        is_delta = "final" in frame or "start_to_think" in frame or "end_to_think" in frame
        if self._frames == "auto" and is_delta:
            self._decide("delta", out)
        if frame.get("start_to_think") is True:
            self._think(True, out)
        answer = as_text(frame.get("answer"))
        if frame.get("final") is True and self._frames == "delta":
            self._on_final(answer, out)
        elif answer:
            self._on_answer(answer, out)
        if frame.get("end_to_think") is True:
            self._think(False, out)

    def _on_answer(self, answer: str, out: list[Delta]) -> None:
        if self._frames == "delta":
            self._say(answer, out)
        elif self._frames == "cumulative":
            self._grow(answer, out)
        elif not self._undecided:
            self._undecided.append(answer)
            self._say(_open(answer), out)  # new in either mode
        else:
            self._undecided.append(answer)
            before = _open(self._undecided[-2])
            if not answer.startswith(before) or len(self._undecided) > _MAX_UNDECIDED:
                self._decide("delta", out)
            elif len(before) > 1:
                self._decide("cumulative", out)

    def _decide(self, frames: Literal["delta", "cumulative"], out: list[Delta]) -> None:
        """Set how to read frames, and read the frames that waited for the decision."""
        self._frames = frames
        first, *waiting = self._undecided or [""]
        self._undecided = []
        self._whole = _open(first)
        if frames == "delta" and first != self._whole:
            waiting.insert(0, _END_OF_THINKING)
        for answer in waiting:
            self._on_answer(answer, out)

    def _grow(self, answer: str, out: list[Delta]) -> None:
        """Read a cumulative frame. It may not begin with the previous text: a server that retries
        starts over, and servers insert citations when the text is complete."""
        answer = _open(answer)
        if answer.startswith(self._whole):
            new, self._whole = answer[len(self._whole) :], answer
            self._say(new, out)
            return
        so_far, bare = without_citations(self._whole), without_citations(answer)
        self._whole = answer
        if bare.startswith(so_far):
            self._say(bare[len(so_far) :], out)
        else:
            self._replace(answer, out)

    def _replace(self, answer: str, out: list[Delta]) -> None:
        self._marks.restart()  # text it held back was not emitted
        self._split, before, self._shown = ThinkingSplitter(), "".join(self._shown), []
        made: list[Delta] = []
        self._say(answer, made)
        text = "".join(self._shown)
        if before and text:
            out.append(Replace(text, text[len(before) :] if text.startswith(before) else None))
        else:
            out += made

    def _on_final(self, answer: str, out: list[Delta]) -> None:
        """Read the frame with `final`. Its text counts only if none came before."""
        self._think(False, out)
        self._flush(out)
        if self._has_text or not answer or self._marks.error:
            return
        has_thought, self._split, said = self._has_content, ThinkingSplitter(), list[Delta]()
        self._say(answer, said)
        self._flush(said)
        out += [d for d in said if not (has_thought and isinstance(d, Reasoning))]

    def _refer(self, reference: Any) -> None:
        """Remember chunks by the numbers that the text cites. Agents send them in an object with
        those numbers as keys, and the API for OpenAI's clients as the reference itself."""
        chunks = reference if isinstance(reference, list) else as_object(reference).get("chunks")
        if isinstance(chunks, dict):
            self._chunks |= {as_count(key): as_object(chunk) for key, chunk in chunks.items()}
        elif chunks := as_list(chunks):
            self._chunks = dict(enumerate(map(as_object, chunks)))

    # Agents.

    def _on_event(self, event: dict[str, Any], out: list[Delta]) -> None:
        kind, data = event["event"], as_object(event.get("data"))
        if kind == "error":
            raise self.explain(data or event)
        self._frames = "delta"
        self._begin(as_id(event.get("session_id")), as_id(event.get("message_id")), out)
        if handle := self._HANDLERS.get(kind):
            handle(self, data, out)

    def _on_message(self, data: dict[str, Any], out: list[Delta]) -> None:
        if data.get("start_to_think") is True:
            self._think(True, out)
        self._say(as_text(data.get("content")), out)
        if data.get("end_to_think") is True:
            self._think(False, out)

    def _on_message_end(self, data: dict[str, Any], out: list[Delta]) -> None:
        self._think(False, out)
        self._flush(out)
        self._refer(data.get("reference"))

    def _on_node(self, data: dict[str, Any], out: list[Delta]) -> None:
        error = message_of(data.get("error"))
        has_ended = "outputs" in data
        step = {
            "node": as_text(data.get("component_type")),
            "title": as_text(data.get("component_name")),
            "status": "failed" if error else "finished" if has_ended else "running",
        }
        self._node_error = error or self._node_error
        out.append(Note("progress", [step]))

    def _on_started(self, data: dict[str, Any], out: list[Delta]) -> None:
        out.append(Note("progress", []))

    def _on_inputs(self, data: dict[str, Any], out: list[Delta]) -> None:
        """Show the inputs that the agent waits for, and remember them for the turn that
        answers."""
        self._flush(out)
        self._is_paused = True
        inputs = {key: as_object(field) for key, field in as_object(data.get("inputs")).items()}
        tips = as_text(data.get("tips"))
        self._pauses.begin(self.conversation_id, pause_of(inputs))
        asked = {"type": "user_inputs", "inputs": inputs, "tips": tips}
        out.append(Note("interaction", asked))
        question = "\n".join(filter(None, [tips.strip(), *map(_line, inputs, inputs.values())]))
        question = question or ("" if self._has_text else WAITS)
        if question:
            self._add([Text(f"\n\n{question}" if self._has_text else question)], out)

    def _on_finished(self, data: dict[str, Any], out: list[Delta]) -> None:
        self._outputs = as_object(data.get("outputs"))
        self._usage = read_usage(data.get("usage"))
        self.ending = True  # only `[DONE]` follows

    _HANDLERS: ClassVar[
        dict[str, Callable[["RAGFlowDecoder", dict[str, Any], list[Delta]], None]]
    ] = {
        "workflow_started": _on_started,
        "node_started": _on_node,
        "node_finished": _on_node,
        "message": _on_message,
        "message_end": _on_message_end,
        "user_inputs": _on_inputs,
        "workflow_finished": _on_finished,
    }

    # OpenAI's chunks, in case `base_url` leads to that API.

    def _on_chunk(self, chunk: dict[str, Any], out: list[Delta]) -> None:
        self._frames = "delta"
        self._begin("", as_id(chunk.get("id")), out)
        choice = as_object(as_list(chunk["choices"])[0] if as_list(chunk["choices"]) else None)
        delta = as_object(choice.get("delta")) or as_object(choice.get("message"))
        if reasoning := as_text(delta.get("reasoning_content")):
            self._add([Reasoning(reasoning)], out)
        self._say(as_text(delta.get("content")), out)
        self._refer(delta.get("reference"))
        if final := as_text(delta.get("final_content")):
            self._on_final(final, out)
        self._finish = as_text(choice.get("finish_reason")) or self._finish

    # The end.

    def usage_so_far(self) -> Usage | None:
        return self._usage if self._usage and self._usage.total else None

    def _end(self, out: list[Delta]) -> None:
        if self._undecided:
            self._decide("cumulative", out)
        self._think(False, out)
        self._flush(out)
        if self._outputs and not self._has_text:
            self._say(as_text(self._outputs.get("content")), out)
            self._flush(out)
        if error := self._failure():
            raise error
        if citations := self._citations():
            out.append(Note("citations", citations))
        out.append(Finish(self._finish or "stop", self.usage_so_far()))
        self.done = True

    def _failure(self) -> GatewayError | None:
        """The error if the answer is incomplete or empty, else None."""
        if self._marks.error:
            return explain_answer(self._marks.error)
        if self._is_paused:
            return None
        if self._node_error and not (self._has_text and self._outputs is not None):
            return explain_answer(self._node_error)
        return None if self._has_text else EmptyAnswer("RAGFlow")

    def _citations(self) -> list[dict[str, Any]]:
        """The citations: first those in the text, in the order of their numbers."""
        if not self._chunks:
            return []
        cited = [self._chunks.pop(own, {}) for own in self._marks.numbers]
        return [_citation(chunk) for chunk in (*cited, *self._chunks.values())]

    def finish(self, out: list[Delta]) -> None:
        """Handle a body that ends without the last frame."""
        if self._outputs is None and not self._is_paused and not self._finish:
            if self._marks.error or self._node_error:
                raise explain_answer(self._marks.error or self._node_error)
            raise UpstreamCut("RAGFlow's answer ended before it was complete.")
        self._end(out)


def _open(answer: str) -> str:
    """A cumulative answer without the end tag of a think block that may still grow."""
    return answer.removesuffix(_END_OF_THINKING)


def pause_of(inputs: dict[str, dict[str, Any]]) -> Pause:
    """The pause for an agent's inputs. If the only input has options, the pause is a choice."""
    fields = tuple(
        Field(key, as_text(field.get("name")) or key, field.get("type") in ("integer", "number"))
        for key, field in inputs.items()
    )
    options = _options(next(iter(inputs.values()))) if len(inputs) == 1 else []
    return Pause(tuple(options), fields)


def _options(field: dict[str, Any]) -> list[str]:
    options = [as_text(option) for option in as_list(field.get("options"))]
    return [option for option in options if option]


def _line(key: str, field: dict[str, Any]) -> str:
    """A field of a form, and its options."""
    options = [f"{i}. {option}" for i, option in enumerate(_options(field), 1)]
    return "\n".join([f"- {as_text(field.get('name')) or key}", *options])


def _citation(chunk: dict[str, Any]) -> dict[str, Any]:
    score, url = chunk.get("similarity"), as_text(chunk.get("url"))
    return {
        "title": as_text(chunk.get("document_name")) or as_text(chunk.get("docnm_kwd")),
        "text": as_text(chunk.get("content")) or as_text(chunk.get("content_with_weight")),
        "score": score if isinstance(score, int | float) else None,
    } | ({"url": url} if url else {})
