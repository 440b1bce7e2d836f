"""Decodes n8n's answers: a stream of lines, or one JSON value or text.

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
from gateway.platforms.failures import explain_message, message_of
from gateway.protocol import loosejson, ndjson
from gateway.protocol.messages import Begin, Delta, Finish, Note, Text

MAX_HELD = 1 << 20  # characters of nodes that write while another node does
MAX_WHOLE = 32 << 20  # bytes of an answer that is not a stream
MAX_NODES = 1000  # nodes that have begun and not ended
_FRAME = b'{"type":'  # the beginning of every frame
_PARAGRAPH = "\n\n"
_BETWEEN = ("output", "text", "message", "response")  # where nodes put their text, in this order

# n8n's messages with status 200 when there will be no answer.
_NOTHING = "Workflow executed successfully but"
_STARTED = "Workflow was started"

Key = tuple[str, int, int]  # a node, its run and its item


@dataclass(slots=True, eq=False)
class _Node:
    """One run of a node, with its text that is not emitted yet. `has_begun` is false if an item
    came without a `begin`, perhaps after the node's `end`."""

    key: Key
    has_begun: bool
    held: list[str] = field(default_factory=list)
    has_ended: bool = False
    has_spoken: bool = False  # some of its text has been emitted

    @property
    def may_be_object(self) -> bool:
        """Whether the text so far may be all of a Respond to Webhook node's answer."""
        return not self.has_spoken and len(self.held) == 1 and self.held[0].lstrip()[:1] == "{"


class N8nDecoder(EventDecoder):
    """`nodes` are the names of the nodes whose text is the answer; if empty, all nodes."""

    __slots__ = (
        "_begun", "_error", "_has_frames", "_held_size", "_is_cut", "_last", "_nodes", "_open",
        "_speaker", "_waiting", "_whole", "_whole_size",
    )  # fmt: skip

    platform = "n8n"
    framing = ndjson.TextParser
    ends_with_connection = True

    def __init__(self, conversation_id: str, nodes: frozenset[str] = frozenset()) -> None:
        super().__init__()
        self.conversation_id = conversation_id
        self._nodes = nodes
        self._begun = False
        self._has_frames = False
        self._whole: list[bytes] = []  # lines before the first frame
        self._whole_size = 0
        self._is_cut = False  # a line is an incomplete frame
        self._open: dict[Key, _Node] = {}  # nodes that have not ended
        self._waiting: list[_Node] = []  # nodes with text to emit or to come, in their order
        self._held_size = 0
        self._speaker: _Node | None = None  # the node whose text is emitted immediately
        self._last: Key | None = None  # of the node whose text was emitted last
        self._error: GatewayError | None = None  # of the last failed node; later text clears it

    def event(self, name: str, data: bytes, out: list[Delta]) -> bool | None:
        line = data.strip()
        if not line:
            if self._whole:  # plain text
                self._keep(line)
            return False
        if not self._begun:
            self._begun = True
            out.append(Begin(conversation_id=self.conversation_id))
        frame = self._frame(line)
        if frame is not None:
            self._read_frame(frame, out)
        elif self._has_frames:
            self._read_line(line, out)
        else:
            self._keep(data)
        return None

    def _frame(self, line: bytes) -> dict[str, Any] | None:
        """A frame, which is a line of a stream; None for anything else. Before the first frame, an
        object with a `type` may be a workflow's whole answer."""
        if not line.startswith(b"{"):
            return None
        try:
            value = as_object(parse_json(line))
        except BadEvent:
            return None
        kind = value.get("type")
        if self._has_frames or kind == "error":
            return value if kind else None
        is_frame = kind in ("begin", "item", "end") and ("metadata" in value or "content" in value)
        return value if is_frame else None

    def _read_frame(self, frame: dict[str, Any], out: list[Delta]) -> None:
        if not self._has_frames:
            self._has_frames, before, self._whole = True, self._whole, []
            for line in before:
                self._read_line(line.strip(), out)
        kind, about = frame["type"], as_object(frame.get("metadata"))
        key = _key(about)
        if kind == "error":
            self._end(key, out)
            message = message_of(frame.get("content"))
            self._error = explain_message("n8n", message or "a node failed")
        elif self._nodes and as_text(about.get("nodeName")) not in self._nodes:
            out.append(Note("progress", []))
        elif kind == "begin":
            self._node(key, has_begun=True)
            title = as_text(about.get("nodeName"))
            out.append(Note("progress", [{"name": title, "status": "running"}] if title else []))
        elif kind == "item":
            self._say(key, _content(frame.get("content")), out)
        elif kind == "end":
            self._end(key, out)

    def _read_line(self, line: bytes, out: list[Delta]) -> None:
        """Read a line in a stream of frames that is not a frame: text, unless it is JSON."""
        _refuse_page(line)
        if line.startswith(_FRAME) or _FRAME.startswith(line):
            self._is_cut = self._is_cut or not _is_json(line)
        elif line and not (self._nodes or _is_json(line)):
            self._node(_NO_KEY, has_begun=True)
            self._say(_NO_KEY, line.decode("utf-8", "replace"), out)
            self._end(_NO_KEY, out)

    def _keep(self, data: bytes) -> None:
        self._whole.append(data)
        self._whole_size += len(data) + 1
        if self._whole_size > MAX_WHOLE:
            raise UpstreamFailed(say("n8n's answer is longer than {most} bytes.", most=MAX_WHOLE))

    # Nodes that write concurrently.

    def _node(self, key: Key, has_begun: bool) -> _Node:
        node = self._open.get(key)
        if node is None:
            if len(self._waiting) >= MAX_NODES:
                raise UpstreamFailed(
                    say("More than {most} nodes of the workflow write at once.", most=MAX_NODES)
                )
            node = self._open[key] = _Node(key, has_begun)
            self._waiting.append(node)
        return node

    def _say(self, key: Key, text: str, out: list[Delta]) -> None:
        if not text:
            return
        self._error = None
        node = self._open.get(key) or self._node(key, has_begun=False)
        if node is self._speaker and node.has_spoken:  # most items
            out.append(Text(text))
            return
        if self._speaker is None:
            self._speaker = node
        node.held.append(text)
        self._held_size += len(text)
        if node is self._speaker and not node.may_be_object:
            self._release(node, out)
        elif self._held_size > MAX_HELD:
            raise UpstreamFailed("Nodes of the workflow write too much at the same time.")

    def _end(self, key: Key, out: list[Delta]) -> None:
        node = self._open.pop(key, None)
        if node is None:
            return
        node.has_ended = True
        if self._speaker in (node, None):
            self._next(node, out)
        elif not node.held:
            self._waiting.remove(node)

    def _next(self, ended: _Node, out: list[Delta]) -> None:
        """After a node's end, emit the text of waiting nodes, up to one that still writes."""
        self._speaker = None
        for node in (ended, *(node for node in self._waiting if node is not ended)):
            if node.has_ended:
                if node.may_be_object:
                    self._held_size -= len(node.held[0])
                    node.held = [_inner(node.held[0])]
                    self._held_size += len(node.held[0])
                self._release(node, out)
                self._waiting.remove(node)
            elif node.held:
                self._speaker = node
                if not node.may_be_object:
                    self._release(node, out)
                return

    def _release(self, node: _Node, out: list[Delta]) -> None:
        """Emit a node's text. A blank line separates it from the text of another node or run."""
        held, node.held = node.held, []
        for text in held:
            self._held_size -= len(text)
            if text:
                goes_on = node.has_spoken or (not node.has_begun and self._last == node.key)
                is_first = self._last is None or goes_on
                node.has_spoken, self._last = True, node.key
                out.append(Text(text if is_first else _PARAGRAPH + text))

    # The end.

    def finish(self, out: list[Delta]) -> None:
        for key in list(self._open):
            self._end(key, out)
        if self._error is not None:
            raise self._error
        if self._is_cut:
            raise UpstreamCut("n8n's answer ended inside a line.")
        if not self._has_frames:
            self._read_whole(out)
        elif self._last is None:
            raise EmptyAnswer("n8n")
        out.append(Finish())

    def _read_whole(self, out: list[Delta]) -> None:
        raw = b"\n".join(self._whole).strip()
        if not raw:
            raise UpstreamMisconfigured(
                "n8n sent nothing: streaming is on in the trigger, but off in the answering node."
            )
        _refuse_page(raw)
        try:
            value = loosejson.loads(raw)
        except loosejson.NotJson:
            out.append(Text(_plain(raw)))
            return
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if isinstance(value, dict):
            self._read_object(value, out)
            return
        texts = [_text_of(item) for item in as_list(value)]
        if texts and all(texts):  # as a stream of these items has them
            text = _PARAGRAPH.join(texts)
        else:
            text = "" if value in (None, []) else _content(value)
        if not text.strip():
            raise EmptyAnswer("n8n")
        out.append(Text(text))

    def _read_object(self, value: dict[str, Any], out: list[Delta]) -> None:
        if value.get("executionStarted") is True:
            raise UpstreamMisconfigured(
                "The workflow answers over a WebSocket (response nodes), which is not supported;"
                " let the trigger respond when the last node finishes, or stream."
            )
        text, member = _text_in(value)
        if text == _STARTED and member == "message":
            raise UpstreamMisconfigured(
                "The workflow answers before it has run; let the webhook respond when the last"
                " node finishes, or stream."
            )
        if text.startswith(_NOTHING) and member == "message":
            raise EmptyAnswer("n8n")
        if steps := as_list(value.get("intermediateSteps")):
            out.append(Note("tools", steps))
        rest = {k: v for k, v in value.items() if k not in (member, "intermediateSteps")}
        if member and rest:
            out.append(Note("outputs", rest))
        if not member and any(v not in (None, "", [], {}) for v in rest.values()):
            text = json_text(rest)
        if not text.strip():
            raise EmptyAnswer("n8n")
        out.append(Text(text))


_NO_KEY: Key = ("", 0, 0)


def _key(about: dict[str, Any]) -> Key:
    run, item = about.get("runIndex"), about.get("itemIndex")
    node = as_text(about.get("nodeId")) or as_text(about.get("nodeName"))
    return node, run if isinstance(run, int) else 0, item if isinstance(item, int) else 0


def _refuse_page(raw: bytes) -> None:
    if raw[:9].lower().startswith((b"<!doctype", b"<html")):
        raise UpstreamFailed(
            "A page came in place of n8n's answer: a proxy may have given up waiting, or base_url"
            " is not the workflow's address."
        )


def _is_json(data: bytes) -> bool:
    try:
        loosejson.loads(data)
    except loosejson.NotJson:
        return False
    return True


def _plain(raw: bytes) -> str:
    """An answer that is not JSON, as text. Raises UpstreamCut for a piece of JSON, and
    UpstreamMisconfigured for a file."""
    if raw[:1] in (b"{", b"["):
        text = raw.decode("utf-8", "replace")
        try:
            orjson.loads(text)
        except orjson.JSONDecodeError as error:
            if error.pos >= len(text):
                raise UpstreamCut("n8n's answer ended before it was complete.") from None
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise UpstreamMisconfigured("The workflow answers with a file; let it respond with text.")
    return text


def _content(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json_text(value)


def _inner(text: str) -> str:
    """The text in a JSON object if `text` is one that has text, else `text`."""
    try:
        value = loosejson.loads(text.encode("utf-8", "replace"))
    except loosejson.NotJson:
        return text
    inner, member = _text_in(as_object(value))
    return inner if member else text


def _text_of(item: Any) -> str:
    return item if isinstance(item, str) else _text_in(as_object(item))[0]


def _text_in(value: dict[str, Any]) -> tuple[str, str]:
    """(the text of a node's object, the member that holds it), or ("", "")."""
    empty = ""
    for member in _BETWEEN:
        found = value.get(member)
        if isinstance(found, dict) and isinstance(found.get("text"), str):
            found = found["text"]
        elif member in ("output", "text") and not isinstance(found, str | None):
            found = json_text(found)
        if isinstance(found, str):
            if found.strip():
                return found, member
            empty = empty or member
    return "", empty
