"""Decodes n8n's answers: a stream of lines, or one JSON value.

The workflow's settings decide which of the two n8n sends, so the decoder detects the format. The
stream ends with the connection: each model step and each streaming node has a `begin` and an `end`.
"""

from dataclasses import dataclass, field
from typing import Any

import orjson

from gateway.errors import (
    EmptyAnswer,
    GatewayError,
    UpstreamCut,
    UpstreamFailed,
    UpstreamMisconfigured,
)
from gateway.language.sentences import say
from gateway.platforms.base import (
    BadEvent,
    EventDecoder,
    as_list,
    as_object,
    as_text,
    json_text,
    parse_json,
)
from gateway.platforms.failures import explain_message
from gateway.protocol import ndjson
from gateway.protocol.messages import Begin, Delta, Finish, Note, Text

MAX_HELD = 1 << 20  # characters of nodes that write while another node does
MAX_WHOLE = 32 << 20  # bytes of an answer that is not a stream
MAX_NODES = 1000  # nodes that have begun and not ended
_FRAMES = ("begin", "item", "end", "error")
_PARAGRAPH = "\n\n"
_BETWEEN = ("output", "text", "message", "response")  # where nodes put their text, in this order

# n8n's messages with status 200 when there will be no answer.
_NOTHING = "Workflow executed successfully but"
_STARTED = "Workflow was started"
_PAGE = say("A page came in place of n8n's answer; a proxy may have given up waiting.")

Key = tuple[str, int, int]  # a node, its run and its item


@dataclass(slots=True)
class _Node:
    """One run of a node, with its text that is not emitted yet."""

    held: list[str] = field(default_factory=list)
    has_ended: bool = False
    has_spoken: bool = False  # some of its text has been emitted


class N8nDecoder(EventDecoder):
    """`nodes` are the names of the nodes whose text is the answer; if empty, all nodes."""

    __slots__ = (
        "_begun", "_error", "_has_frames", "_held_size", "_is_cut", "_nodes", "_said", "_speaker",
        "_waiting", "_whole", "_whole_size",
    )  # fmt: skip

    platform = "n8n"
    framing = ndjson.Parser
    ends_with_connection = True

    def __init__(self, conversation_id: str, nodes: frozenset[str] = frozenset()) -> None:
        super().__init__()
        self.conversation_id = conversation_id
        self._nodes = nodes
        self._begun = False
        self._has_frames = False
        self._whole: list[bytes] = []  # lines that are not frames
        self._whole_size = 0
        self._is_cut = False  # the last line is an incomplete frame
        self._waiting: dict[Key, _Node] = {}  # in the order of their `begin`
        self._held_size = 0
        self._speaker: Key | None = None  # the run whose text is emitted immediately
        self._said = False  # whether text has been emitted
        self._error: GatewayError | None = None  # of the last failed node; later text clears it

    def event(self, name: str, data: bytes, out: list[Delta]) -> None:
        if not self._begun:
            self._begun = True
            out.append(Begin(conversation_id=self.conversation_id))
        frame = self._frame(data)
        if frame is None:
            if self._has_frames:
                self._read_line(data, out)
            else:
                self._keep(data)
            return
        self._has_frames = True
        kind, about = frame["type"], as_object(frame.get("metadata"))
        if self._nodes and as_text(about.get("nodeName")) not in self._nodes and kind != "error":
            out.append(Note("progress", []))
            return
        key = _key(about)
        if kind == "begin":
            self._node(key)
            title = as_text(about.get("nodeName"))
            out.append(Note("progress", [{"name": title, "status": "running"}] if title else []))
        elif kind == "item":
            self._say(key, _content(frame.get("content")), out)
        elif kind == "end":
            self._end(key, out)
        else:
            self._end(key, out)
            self._error = explain_message("n8n", as_text(frame.get("content")) or "a node failed")

    def _frame(self, data: bytes) -> dict[str, Any] | None:
        """A frame, which is a line of a stream; None for anything else."""
        if not data.startswith(b"{"):
            return None
        try:
            value = as_object(parse_json(data))
        except BadEvent:
            return None
        is_frame = value.get("type") in _FRAMES and ("metadata" in value or "content" in value)
        return value if is_frame or (self._has_frames and "type" in value) else None

    def _read_line(self, data: bytes, out: list[Delta]) -> None:
        """Read a line in a stream of frames that is not a frame."""
        if data.startswith(b"<"):
            raise UpstreamFailed(_PAGE)
        if data.startswith(b"{"):  # an incomplete frame, or one of an unknown kind
            self._is_cut = not _is_json(data)
            return
        self._pass_on(_Node(), data.decode("utf-8", "replace"), out)

    def _keep(self, data: bytes) -> None:
        self._whole.append(data)
        self._whole_size += len(data)
        if self._whole_size > MAX_WHOLE:
            raise UpstreamFailed(say("n8n's answer is longer than {most} bytes.", most=MAX_WHOLE))

    # Nodes that write concurrently.

    def _node(self, key: Key) -> _Node:
        node = self._waiting.get(key)
        if node is None or node.has_ended:
            if len(self._waiting) >= MAX_NODES:
                raise UpstreamFailed(
                    say("More than {most} nodes of the workflow write at once.", most=MAX_NODES)
                )
            node = self._waiting[key] = _Node()
        return node

    def _say(self, key: Key, text: str, out: list[Delta]) -> None:
        node = self._node(key)
        if not text:
            return
        if self._speaker is None:
            self._speaker = key
        # If the first text is an object, it may be all of a Respond to Webhook node's answer.
        is_object = not node.has_spoken and not node.held and text.lstrip()[:1] == "{"
        if self._speaker != key or is_object:
            node.held.append(text)
            self._held_size += len(text)
            if self._held_size > MAX_HELD:
                raise UpstreamFailed("Nodes of the workflow write too much at the same time.")
            return
        self._release(node, out)
        self._pass_on(node, text, out)

    def _end(self, key: Key, out: list[Delta]) -> None:
        node = self._waiting.get(key)
        if node is None:
            return
        node.has_ended = True
        if self._speaker in (key, None):
            self._speaker = key
            self._next(out)

    def _next(self, out: list[Delta]) -> None:
        """After the speaker's end, emit the text of waiting nodes, up to one that still writes."""
        for key in list(self._waiting):
            node = self._waiting[key]
            is_speaker = key == self._speaker
            if not (is_speaker or node.held):
                continue
            if node.has_ended:
                if len(node.held) == 1 and not node.has_spoken:
                    self._held_size -= len(node.held[0])
                    node.held = [_inner(node.held[0])]
                    self._held_size += len(node.held[0])
                self._release(node, out)
                del self._waiting[key]
                self._speaker = None
            else:
                self._speaker = key
                self._release(node, out)
                return
        self._speaker = None

    def _release(self, node: _Node, out: list[Delta]) -> None:
        held, node.held = node.held, []
        for text in held:
            self._held_size -= len(text)
            self._pass_on(node, text, out)

    def _pass_on(self, node: _Node, text: str, out: list[Delta]) -> None:
        if not text:
            return
        if self._said and not node.has_spoken:
            text = _PARAGRAPH + text
        node.has_spoken = self._said = True
        self._error = None
        out.append(Text(text))

    # The end.

    def finish(self, out: list[Delta]) -> None:
        is_cut = self._is_cut or any(not node.has_ended for node in self._waiting.values())
        for node in self._waiting.values():
            node.has_ended = True
        self._next(out)
        if self._error is not None:
            raise self._error
        if is_cut:
            raise UpstreamCut("n8n's answer ended before its node had.")
        if self._has_frames:
            if not self._said:
                raise EmptyAnswer("n8n")
        else:
            self._read_whole(out)
        out.append(Finish())

    def _read_whole(self, out: list[Delta]) -> None:
        raw = b"\n".join(self._whole)
        if not raw:
            raise UpstreamMisconfigured(
                "n8n sent nothing: streaming is on in the trigger, but off in the answering node."
            )
        try:
            value = orjson.loads(raw)
        except orjson.JSONDecodeError:
            if raw.lstrip()[:1] == b"<":
                raise UpstreamFailed(_PAGE) from None
            if raw.lstrip()[:1] in b"{[":
                raise UpstreamCut("n8n's answer ended before it was complete.") from None
            out.append(Text(raw.decode("utf-8", "replace")))
            return
        if isinstance(value, list):
            value = value[0] if value else {}
        if not isinstance(value, dict):
            value = {"output": value}
        self._read_object(value, out)

    def _read_object(self, value: dict[str, Any], out: list[Delta]) -> None:
        message = as_text(value.get("message"))
        if value.get("executionStarted") is True:
            raise UpstreamMisconfigured(
                "The workflow answers over a WebSocket (response nodes), which is not supported;"
                " let the trigger respond when the last node finishes, or stream."
            )
        if message == _STARTED:
            raise UpstreamMisconfigured(
                "The workflow answers before it has run; let the webhook respond when the last"
                " node finishes, or stream."
            )
        if message.startswith(_NOTHING):
            raise EmptyAnswer("n8n")
        text, member = _text_in(value)
        if steps := as_list(value.get("intermediateSteps")):
            out.append(Note("tools", steps))
        rest = {k: v for k, v in value.items() if k not in (member, "intermediateSteps")}
        if member and rest:
            out.append(Note("outputs", rest))
        text = text if member else json_text(value)
        if not text.strip() or text in ("{}", "null"):
            raise EmptyAnswer("n8n")
        out.append(Text(text))


def _key(about: dict[str, Any]) -> Key:
    run, item = about.get("runIndex"), about.get("itemIndex")
    node = as_text(about.get("nodeId")) or as_text(about.get("nodeName"))
    return node, run if isinstance(run, int) else 0, item if isinstance(item, int) else 0


def _is_json(data: bytes) -> bool:
    try:
        orjson.loads(data)
    except orjson.JSONDecodeError:
        return False
    return True


def _content(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json_text(value)


def _inner(text: str) -> str:
    """The text in a JSON object if `text` is one that has text, else `text`."""
    if text.lstrip()[:1] != "{":
        return text
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
    inner, member = _text_in(as_object(value))
    return inner if member else text


def _text_in(value: dict[str, Any]) -> tuple[str, str]:
    """(the text of a node's object, the member that holds it), or ("", "")."""
    for member in _BETWEEN:
        found = value.get(member)
        if isinstance(found, dict):
            found = found.get("text")
        if isinstance(found, str):
            return found, member
        if member == "output" and isinstance(found, int | float | bool):
            return json_text(found), member
    return "", ""
