"""Render deltas for the caller: as OpenAI chunks, or as one whole completion.

The two surfaces differ little: under `/api/v1/chat` the `id` is the conversation's, the usage is
always sent, and with `detail` notes are also named events.
"""

from typing import Any

import orjson

from gateway.errors import GatewayError, api_body, openai_body
from gateway.language.sentences import Language
from gateway.protocol import sse
from gateway.protocol.messages import (
    Begin,
    ChatRequest,
    Delta,
    Failed,
    Finish,
    Note,
    Raw,
    Reasoning,
    Replace,
    Text,
    ToolCall,
    Usage,
)
from gateway.protocol.usage import usage_body

MAX_NOTES = 200  # entries of one list in the `gateway` member
MAX_NOTE = 1 << 20  # bytes of one note; files may be as long as the answer itself


def public_id(chat: ChatRequest, agent: str, id_: str) -> str:
    """A platform's id as the caller sees it: sealed for a caller that acts for a single user, and
    prefixed with the agent's name for a route."""
    if id_ and chat.seal is not None:
        id_ = chat.seal.close(agent, id_)
    return f"{agent}:{id_}" if chat.is_routed and id_ else id_


class Notes:
    """Collects the `gateway` member of the final chunk or the whole answer."""

    __slots__ = ("_agent", "_begun", "_chat", "_members", "conversation", "id", "is_stopped")

    def __init__(self, chat: ChatRequest, agent: str) -> None:
        self._chat = chat
        self._agent = agent
        self._begun: Begin | None = None
        self._members: dict[str, Any] | None = None  # by note; most answers have none
        self.conversation = public_id(chat, agent, chat.own_at(agent))
        self.id = self.conversation
        self.is_stopped = False  # by its user, before its end

    def begin(self, delta: Begin) -> None:
        self._begun = delta
        if delta.conversation_id:
            self.conversation = public_id(self._chat, self._agent, delta.conversation_id)
        # Without a conversation the answer's own id at least names the agent.
        self.id = self.conversation or public_id(self._chat, self._agent, delta.message_id)

    @property
    def members(self) -> dict[str, Any]:
        """What the notes say, by their names."""
        return self._members or {}

    @property
    def message_id(self) -> str:
        """The answer's id at whoever keeps the conversation."""
        begun, chat = self._begun, self._chat
        if chat.own_at(self._agent) and not (begun is not None and begun.conversation_id):
            return chat.own_message
        return (begun.message_id if begun is not None else "") or chat.own_message

    def tool_id(self, delta: ToolCall) -> str:
        """A call's id as the caller sees it: sealed like a conversation's, if it can
        continue one."""
        seal = self._chat.run_seal
        if seal is None or not (delta.is_kept and delta.id):
            return delta.id
        return seal.close(self._agent, delta.id)

    def add(self, note: Note) -> bool:
        """Add the note. Returns False if it is too long, or nested too deep to be serialized."""
        try:
            size = len(orjson.dumps(note.data))
        except orjson.JSONEncodeError:
            return False
        if size > MAX_NOTE and note.name != "files":
            return False
        if note.name == "interaction" and not self.conversation:
            # A run without a conversation is continued by the call's own id.
            self.conversation = public_id(self._chat, self._agent, self._chat.call_id)
        if self._members is None:
            self._members = {}
        if isinstance(note.data, list):
            kept = self._members.setdefault(note.name, []) if note.data else []
            kept += note.data[: MAX_NOTES - len(kept)]
        else:
            self._members[note.name] = note.data
        return True

    def finish(self, usage: Usage | None) -> dict[str, Any]:
        members: dict[str, Any] = {"agent": self._chat.route or self._agent}
        if self.conversation:
            members["conversation_id"] = self.conversation
        if message := self.message_id:
            members["message_id"] = message
        if self.is_stopped:
            members["stopped"] = True
        members |= self._members or {}
        return {**members, "usage": "exact" if usage and usage.total else "unknown"}


def error_frame(error: GatewayError, conversational: bool, language: Language = "en") -> bytes:
    """The event that ends an interrupted stream, without `finish_reason` and `[DONE]`. A known time
    for a retry is in the event's `retry` field.

    Under `/api/v1/chat` it has the JSON of any error there, repeated as `error`, which
    distinguishes it from a chunk.
    """
    body = openai_body(error, language)
    if conversational:
        envelope = api_body(error, language)
        body = {**envelope, "error": {**body["error"], **envelope}}
    hint = b"" if error.retry_after_s is None else b"retry: %d\n" % (error.retry_after_s * 1000)
    return hint + sse.event(sse.one_line(orjson.dumps(body)))


class StreamRenderer:
    """Deltas in, bytes out. No bytes come out before the first content. `error_frame` renders the
    failure of an answer.

    A chunk is a prepared head, one encoded string and a prepared tail: no object is built per
    delta. Head and tail hold what OpenAI requires in every chunk: one id, one `created`, one model.
    """

    __slots__ = (
        "_chat", "_conversational", "_created", "_early", "_id", "_open", "_reason", "_said",
        "_size", "_tail", "_text_head", "_verbatim", "finish", "notes", "texts", "thoughts",
    )  # fmt: skip

    def __init__(self, chat: ChatRequest, agent: str, created: int, conversational: bool) -> None:
        self._chat = chat
        self._created = created
        self._conversational = conversational
        self.notes = Notes(chat, agent)
        self._id = (conversational and self.notes.id) or f"chatcmpl-{chat.call_id}"
        self._open = False
        self._said = False
        self._verbatim = False
        self.finish: Finish | None = None  # set once the answer is complete
        self._early: list[bytes] | None = None  # named events that arrived before the first content
        self._reason = ""
        self._text_head = self._tail = b""
        # If set, they receive the pieces of the answer and of the reasoning that are sent.
        self.texts: list[str] | None = None
        self.thoughts: list[str] | None = None
        self._size = 0  # of the common beginning of `_text_head` and all other chunks

    def feed(self, deltas: list[Delta]) -> bytes:
        """The bytes for one network chunk's deltas, to be sent in one write."""
        parts: list[bytes] = []
        for delta in deltas:
            if type(delta) is Text:
                if not self._open:
                    self._start(parts)
                self._said = True
                if self.texts is not None:
                    self.texts.append(delta.text)
                parts.append(self._text_head + sse.one_line(orjson.dumps(delta.text)) + self._tail)
            elif type(delta) is Raw:
                self._verbatim = True
                parts.append(delta.data)
            else:
                self._other(delta, parts)
        return b"".join(parts)

    @property
    def around_text(self) -> tuple[bytes, bytes]:
        """The bytes before and after the JSON string of a Text delta, once there was one."""
        return self._text_head, self._tail

    @property
    def _head(self) -> bytes:
        return self._text_head[: self._size]

    def _other(self, delta: Delta, parts: list[bytes]) -> None:
        if isinstance(delta, Begin):
            self._begin(delta)
        elif isinstance(delta, Note):
            self._note(delta, parts)
        elif isinstance(delta, Finish) and self._verbatim:
            self.finish = delta
        elif not self._verbatim and not isinstance(delta, Failed):
            if not self._open:
                self._start(parts)
            if isinstance(delta, Reasoning):
                if self.thoughts is not None:
                    self.thoughts.append(delta.text)
                self._piece({"reasoning_content": delta.text}, parts)
            elif isinstance(delta, ToolCall):
                piece = _tool_piece(delta, self.notes.tool_id(delta))
                self._piece({"tool_calls": [piece]}, parts)
            elif isinstance(delta, Replace):
                self._replace(delta, parts)
            elif isinstance(delta, Finish):
                self._finish(delta, parts)

    def _begin(self, delta: Begin) -> None:
        self.notes.begin(delta)
        if self._conversational and not self._open:
            self._id = self.notes.id or self._id

    def _start(self, parts: list[bytes]) -> None:
        """Emit the role chunk, and prepare the bytes that all chunks share."""
        self._open = True
        frame = {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._chat.route or self._chat.model,
        }
        head = b"data: " + sse.one_line(orjson.dumps(frame))[:-1] + b',"choices":'
        self._text_head, self._size = head + b'[{"index":0,"delta":{"content":', len(head)
        usage = b',"usage":null' if self._chat.include_usage else b""
        self._tail = b'},"finish_reason":null}]' + usage + b"}\n\n"
        self._piece({"role": "assistant", "content": ""}, parts)
        parts += self._early or ()
        self._early, self._id = None, ""  # the head contains them

    def _piece(self, delta: dict[str, Any], parts: list[bytes]) -> None:
        json = sse.one_line(orjson.dumps(delta))
        parts.append(self._head + b'[{"index":0,"delta":' + json[:-1] + self._tail)

    def _replace(self, delta: Replace, parts: list[bytes]) -> None:
        """Sent text cannot be withdrawn: send the remainder, or the new text after a break."""
        text = delta.rest
        if text is None:
            text = f"\n\n{delta.text}" if self._said else delta.text
        if text:
            if self.texts is not None:
                self.texts.append(text)
            self._piece({"content": text}, parts)

    def _note(self, note: Note, parts: list[bytes]) -> None:
        if not self.notes.add(note):
            return
        if note.text and not self._conversational:
            text = f"\n\n{note.text}" if self._said else note.text
            parts.append(self.feed([Text(text)]))
        if not (self._conversational and self._chat.detail and note.data):
            return
        event = sse.event(sse.one_line(orjson.dumps(note.data)), note.name)
        if self._open:
            parts.append(event)
        elif self._early is None:
            self._early = [event]
        elif len(self._early) < MAX_NOTES:
            self._early.append(event)

    def _finish(self, delta: Finish, parts: list[bytes]) -> None:
        self.finish = delta
        choice = [{"index": 0, "delta": {}, "finish_reason": delta.reason}]
        members: dict[str, Any] = {"gateway": self.notes.finish(delta.usage)}
        if self._conversational:
            members = {"usage": usage_body(delta.usage or Usage()), **members}
        elif self._chat.include_usage:
            members = {"usage": None, **members}
        parts.append(self._frame(choice, members))
        if self._chat.include_usage and delta.usage and not self._conversational:
            parts.append(self._frame([], {"usage": usage_body(delta.usage)}))
        parts.append(sse.DONE)

    def _frame(self, choices: list[Any], members: dict[str, Any]) -> bytes:
        rest = sse.one_line(orjson.dumps(members, option=orjson.OPT_NON_STR_KEYS))
        return self._head + orjson.dumps(choices) + b"," + rest[1:] + b"\n\n"


class WholeRenderer:
    """Deltas in, one completion out."""

    def __init__(self, chat: ChatRequest, agent: str, created: int, conversational: bool) -> None:
        self._chat = chat
        self._created = created
        self._conversational = conversational
        self.notes = Notes(chat, agent)
        self._id = (conversational and self.notes.id) or f"chatcmpl-{chat.call_id}"
        self.texts: list[str] = []  # the pieces of the answer
        self.thoughts: list[str] = []  # and of the reasoning
        self._calls: dict[int, dict[str, Any]] = {}
        self.finish: Finish | None = None
        self._raw = b""

    def feed(self, deltas: list[Delta]) -> None:
        """Add the deltas. Raises the error of a Failed delta: nothing has been sent yet."""
        for delta in deltas:
            if isinstance(delta, Text):  # the most common one first
                self.texts.append(delta.text)
            elif isinstance(delta, Raw):
                self._raw += delta.data
            elif isinstance(delta, Finish):
                self.finish = delta
            elif isinstance(delta, Reasoning):
                self.thoughts.append(delta.text)
            elif isinstance(delta, Replace):
                self.texts = [delta.text]
            elif isinstance(delta, ToolCall):
                self._tool_call(delta)
            elif isinstance(delta, Begin):
                self.notes.begin(delta)
                if self._conversational:
                    self._id = self.notes.id or self._id
            elif isinstance(delta, Note):
                self._note(delta)
            elif isinstance(delta, Failed):
                raise delta.error

    def _note(self, note: Note) -> None:
        if self.notes.add(note) and note.text and not self._conversational:
            self.texts.append(f"\n\n{note.text}" if self.texts else note.text)

    def _tool_call(self, delta: ToolCall) -> None:
        call = self._calls.setdefault(delta.index, _tool_piece(ToolCall(delta.index), ""))
        call["type"] = "function"
        call["id"] = call.get("id") or self.notes.tool_id(delta)
        function = call["function"]
        function["name"] = function.get("name") or delta.name
        function["arguments"] += delta.arguments

    def body(self) -> bytes:
        """The JSON of the answer; call it after Finish."""
        if self._raw:
            return self._raw
        finish = self.finish or Finish()
        text = "".join(self.texts)
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if self._calls and not text:
            message["content"] = None
        if self.thoughts:
            message["reasoning_content"] = "".join(self.thoughts)
        if self._calls:
            message["tool_calls"] = [
                {key: call[key] for key in ("id", "type", "function")}
                for _, call in sorted(self._calls.items())
            ]
        body: dict[str, Any] = {
            "id": self._id,
            "object": "chat.completion",
            "created": self._created,
            "model": self._chat.route or self._chat.model,
            "choices": [{"index": 0, "message": message, "finish_reason": finish.reason}],
        }
        if finish.usage or self._conversational:
            body["usage"] = usage_body(finish.usage or Usage())
        body["gateway"] = self.notes.finish(finish.usage)
        return orjson.dumps(body, option=orjson.OPT_NON_STR_KEYS)


def _tool_piece(delta: ToolCall, id_: str) -> dict[str, Any]:
    """A piece of a call as OpenAI streams it: only the first piece has id, type and name."""
    piece: dict[str, Any] = {"index": delta.index}
    function: dict[str, Any] = {"arguments": delta.arguments}
    if id_ or delta.name:
        piece |= {"id": id_, "type": "function"}
        function = {"name": delta.name, "arguments": delta.arguments}
    return piece | {"function": function}
