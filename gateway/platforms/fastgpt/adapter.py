"""FastGPT: an OpenAI-like API that sends failures, usage and citations only with `detail: true`.

Source: FastGPT's completions API, 4.6 to 4.16; named events come with `detail: true`.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

from gateway.errors import (
    EmptyAnswer,
    GatewayError,
    InvalidRequest,
    KindNotTaken,
    UpstreamCut,
    clean,
)
from gateway.platforms.base import (
    BasePlatform,
    Carriage,
    EventDecoder,
    Preliminary,
    Step,
    as_list,
    as_object,
    as_text,
    base_url,
    carry_inside,
    dump,
    json_headers,
    parse_json,
    parse_object,
)
from gateway.platforms.fastgpt.citations import CiteMarks, may_hold_mark
from gateway.platforms.fastgpt.failures import concerns_key, explain, explain_value
from gateway.platforms.fastgpt.nodes import (
    any_failure,
    choice_made,
    last_failure,
    model_finish,
    quotes,
    tokens,
    what_plugin_gave,
)
from gateway.platforms.fastgpt.options import FastGPTOptions
from gateway.platforms.pauses import WAITS, Field, Pause, Pauses, number_in
from gateway.protocol import sse
from gateway.protocol.content import read_content
from gateway.protocol.exchange import UpstreamReply, UpstreamRequest
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
)
from gateway.protocol.passthrough import choice_error, told_error
from gateway.protocol.prompt import require_question
from gateway.protocol.template import EventTemplate

MAX_CHAT_ID = 250
# 4.14.5 and later use the second path.
_RECORDS = ("/core/chat/getPaginationRecords", "/core/chat/record/getPaginationRecords")
_NO_APP = "0" * 24  # an id that no app has


class FastGPT(BasePlatform):
    kind = "fastgpt"
    # Only bots of 4.15 and later receive audio and video; `accepts` allows them there.
    kinds = frozenset(("image", "file"))

    def __init__(self, name: str, agent: FastGPTOptions, url: str) -> None:
        self._name = name
        self._agent = agent
        self.app_id = agent.app_id
        self.token = agent.api_key.reveal()
        self._api = base_url(
            url, "/v1/chat/completions", "/v2/chat/completions", "/v1", "/v2", "/api", then="/api"
        )
        self._headers = json_headers(self.token, agent.headers)
        self._pauses = Pauses()

    def prepare(self, chat: ChatRequest) -> Step:
        require_question(chat)
        chat_id = _chat_id(chat)
        if len(chat_id) > MAX_CHAT_ID:
            raise InvalidRequest(
                f"The conversation id is longer than {MAX_CHAT_ID} characters.", param="chat_id"
            )
        if not chat.conversation_id:
            return self._ask(chat, chat_id, _turns(chat))
        # With a chatId FastGPT adds its stored history, so the request contains new turns only.
        pause = self._pauses.get(chat_id)
        if pause is None and number_in(chat.question.text) and self._app_id(chat):
            return self._recall(chat, chat_id)
        return self._reply(chat, chat_id, pause)

    def _reply(self, chat: ChatRequest, chat_id: str, pause: Pause | None) -> UpstreamRequest:
        """Ask with the newest turn of a known conversation, in the format that a pause requires."""
        turn = chat.question
        if pause is not None:
            turn = replace(turn, text=pause.answer(turn.text))
        return self._ask(chat, chat_id, (turn,))

    def _recall(self, chat: ChatRequest, chat_id: str, place: int = 0) -> Preliminary:
        """Ask FastGPT whether its bot waits for a choice, which another process may have shown."""

        def learn(reply: UpstreamReply) -> Step:
            if reply.status == 404 and place + 1 < len(_RECORDS):
                return self._recall(chat, chat_id, place + 1)
            return self._reply(chat, chat_id, _stored_pause(reply.object()))

        body = {"appId": self._app_id(chat), "chatId": chat_id, "offset": 0, "pageSize": 2}
        return Preliminary(self._post(_RECORDS[place], body), learn)

    def _ask(self, chat: ChatRequest, chat_id: str, turns: tuple[Message, ...]) -> UpstreamRequest:
        body: dict[str, Any] = {
            "chatId": chat_id,
            "stream": True,  # a whole answer never arrives if its model is cut
            "detail": True,  # the only way to get usage, citations and failures
            "messages": [_message(turn) for turn in turns if turn.text or turn.media],
            "variables": {**self._agent.variables, **chat.variables},
            "customUid": chat.user,
        }
        if app_id := self._app_id(chat):
            body["appId"] = app_id
        return self._post("/v1/chat/completions", body, stream=True)

    def _app_id(self, chat: ChatRequest) -> str:
        return self._agent.app_id or chat.app_id or ""

    def _post(self, path: str, body: dict[str, Any], stream: bool = False) -> UpstreamRequest:
        return UpstreamRequest("POST", self._api + path, self._headers, dump(body), stream)

    def sends_turns(self, chat: ChatRequest) -> bool:
        return not chat.conversation_id

    def carry(self, media: Media, chat: ChatRequest) -> Carriage:
        """Pictures may be embedded; FastGPT fetches other files, so they need a link that it can
        reach."""
        if media.kind == "image":
            return carry_inside(media)
        if media.is_data or (media.stored and not media.url):
            raise KindNotTaken(
                f"FastGPT fetches files by itself, and cannot reach this {media.kind}: give an"
                " http(s) URL that it can reach, or have uploads reached by setting"
                " storage.public_base_url (for a bucket S3_PUBLIC_BASE_URL).",
                param="files",
            )
        return "as it is"

    def decoder(self, chat: ChatRequest) -> "FastGPTDecoder":
        return FastGPTDecoder(_chat_id(chat), chat.detail, self._pauses)

    def refused(self, reply: UpstreamReply, chat: ChatRequest) -> Step:
        raise explain(reply)

    def as_stream(self, reply: UpstreamReply) -> bytes:
        """One event: the decoder reads a whole answer and its node results as a single event."""
        body = reply.object()
        return sse.event(dump(body)) if as_list(body.get("choices")) else b""

    def stop(self, chat: ChatRequest, decoder: Any) -> UpstreamRequest | None:
        # v1 runs end with their connection; newer servers may continue, and need the app's id.
        app_id = self._app_id(chat)
        if not app_id:
            return None
        return self._post("/v2/chat/stop", {"appId": app_id, "chatId": decoder.conversation_id})

    def probe(self) -> Step:
        """Look up the app. Without an app FastGPT does not check the key, so the default is an id
        that does not exist."""
        app = self._agent.app_id or _NO_APP
        return UpstreamRequest("GET", f"{self._api}/core/chat/init?appId={app}", self._headers)

    def verdict(self, reply: UpstreamReply) -> str | Step:
        body = reply.object()
        app = as_object(as_object(body.get("data")).get("app"))
        if reply.status == 200 and body.get("code") == 200:
            return f"app {as_text(app.get('name')) or 'found'}"
        if reply.status == 200 and body.get("code") == 403:
            # Up to 4.8.11 every key of an app gets this reply. A completion without messages runs
            # nothing, and FastGPT refuses it for the missing messages only if the key is valid.
            return Preliminary(self._post("/v1/chat/completions", {"messages": []}), _judge_key)
        if not self._agent.app_id and body and not concerns_key(body):
            return "reachable; set app_id to have the app checked too"
        raise explain(reply)


def _judge_key(reply: UpstreamReply) -> str:
    if as_text(reply.object().get("message")) == "messages is empty":
        return "the key is good; this server is too old to say which app it opens"
    raise explain(reply)


def _turns(chat: ChatRequest) -> tuple[Message, ...]:
    """All turns of a new conversation. Instructions precede the user's first turn: servers up to
    4.9.7 send a system turn to the model twice, from 4.8.20 on as parts that some models refuse."""
    earlier = chat.messages[:-1]
    system = "\n\n".join(turn.text for turn in earlier if turn.role == "system" and turn.text)
    turns = [turn for turn in earlier if turn.role != "system"] + [chat.question]
    if system:
        first = next((i for i, turn in enumerate(turns) if turn.role == "user"), len(turns) - 1)
        text = f"{system}\n\n{turns[first].text}" if turns[first].text else system
        turns[first] = replace(turns[first], text=text)
    return tuple(turns)


def _stored_pause(records: dict[str, Any]) -> Pause | None:
    """The pause of the latest stored answer, or None."""
    stored = [as_object(item) for item in as_list(as_object(records.get("data")).get("list"))]
    if not stored or stored[-1].get("obj") != "AI":
        return None
    for part in map(as_object, as_list(stored[-1].get("value"))):
        if asked := as_object(part.get("interactive")):
            return _pause(as_object(_innermost(asked).get("params")))
    return None


def _chat_id(chat: ChatRequest) -> str:
    """The conversation's id: the caller's, or for a new conversation an id unique to this call.

    FastGPT accepts any id without a check of its owner; `seals` separates users.
    """
    return chat.conversation_id or f"gw{chat.call_id}"


def _message(turn: Message) -> dict[str, Any]:
    if not turn.media:
        return {"role": _ROLES[turn.role], "content": turn.text}
    parts: list[dict[str, Any]] = [{"type": "text", "text": turn.text}] if turn.text else []
    for media in turn.media:
        if media.kind == "image":
            parts.append({"type": "image_url", "image_url": {"url": media.url}})
        else:
            name = media.name or media.url.partition("?")[0].rpartition("/")[2] or "file"
            part = {"type": "file_url", "name": name, "url": media.url}
            parts.append(part if media.kind == "file" else {**part, "fileType": media.kind})
    return {"role": _ROLES[turn.role], "content": parts}


# FastGPT has no role for a client's tool; its result is sent as a message of the user.
_ROLES = {"system": "system", "user": "user", "assistant": "assistant", "tool": "user"}


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
        "_begun", "_detail", "_has_more", "_has_text", "_is_paused", "_knows_nodes", "_marks",
        "_nodes", "_pauses", "_reason", "_said_done",
    )  # fmt: skip

    text_members = (b"content",)

    def __init__(self, chat_id: str, detail: bool, pauses: Pauses | None = None) -> None:
        super().__init__()
        self.conversation_id = chat_id
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
    def heard(self) -> Callable[[str], bool]:
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
            out.append(Begin(self.conversation_id))

    def _chunk(self, chunk: dict[str, Any], out: list[Delta]) -> bool | None:
        choices = as_list(chunk.get("choices"))
        if not choices:
            if (error := told_error(chunk)) or as_text(chunk.get("statusText")):
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

    def _think(self, words: str, out: list[Delta]) -> None:
        self._has_more = True
        out.append(Reasoning(words))

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
        asked = _innermost(asked)
        params = as_object(asked.get("params"))
        self._is_paused = True
        self._pauses.begin(self.conversation_id, _pause(params))
        out.append(Note("interaction", {"type": as_text(asked.get("type")), "params": params}))
        words = _interactive_text(params) or ("" if self._has_text else WAITS)
        if words:
            self._say(f"\n\n{words}" if self._has_text else words, out)

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
        if not self._has_text and (words := what_plugin_gave(nodes)):
            self._say(words, out)
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
                f"FastGPT's bot says nothing after the choice {clean(choice, 100)!r}: it may be"
                " none of the options. Ask again, and reply with one of them, or its number.",
                param="messages",
            )
        return EmptyAnswer("FastGPT")


def _variables(given: Any) -> dict[str, Any]:
    """An app's variables, without the internal id that 4.8.11 adds to them."""
    variables = as_object(given)
    if _OBJECT_ID.fullmatch(as_text(variables.get("userId"))):
        return {name: value for name, value in variables.items() if name != "userId"}
    return variables


_OBJECT_ID = re.compile(r"[0-9a-f]{24}")


def _innermost(asked: dict[str, Any]) -> dict[str, Any]:
    """The question itself: tools, sub-apps and loops wrap it, possibly several times."""
    for _ in range(20):
        inner = as_object(as_object(asked.get("params")).get("childrenResponse"))
        if not inner:
            break
        asked = inner
    return asked


def _options(params: dict[str, Any]) -> list[str]:
    choices = as_list(params.get("userSelectOptions")) or as_list(params.get("options"))
    return [as_text(choice) or as_text(as_object(choice).get("value")) for choice in choices]


def _pause(params: dict[str, Any]) -> Pause:
    fields = []
    for entry in map(as_object, as_list(params.get("inputForm"))):
        key, label = as_text(entry.get("key")), as_text(entry.get("label"))
        fields.append(Field(key, label, entry.get("valueType") == "number"))
    return Pause(tuple(_options(params)), tuple(fields))


def _interactive_text(params: dict[str, Any]) -> str:
    lines = [as_text(params.get("description")) or as_text(params.get("content"))]
    lines += [f"{i}. {option}" for i, option in enumerate(_options(params), 1)]
    for entry in as_list(params.get("inputForm")):
        lines.append(f"- {as_text(as_object(entry).get('label'))}")
    return "\n".join(line for line in lines if line)
