"""RAGFlow: chat assistants and agents of one tenant, from 0.16 to 0.27.

Source: RAGFlow's HTTP reference and server. Newer servers (0.26) have one endpoint for all chats
and one for all agents. Older servers have one endpoint per bot, which requires a session: without
one they answer a first question with the bot's greeting.
"""

import re
from collections import deque
from typing import Any
from urllib.parse import quote

from gateway.errors import InvalidRequest
from gateway.language.sentences import say
from gateway.platforms.base import (
    Decoder,
    Preliminary,
    ProfileStep,
    Step,
    as_id,
    as_list,
    as_object,
    as_text,
    base_url,
    dump,
    json_headers,
)
from gateway.platforms.pauses import Pause, Pauses
from gateway.platforms.ragflow.conversations import RAGFlowConversations
from gateway.platforms.ragflow.decoder import RAGFlowDecoder
from gateway.platforms.ragflow.failures import explain, lacks_path
from gateway.platforms.ragflow.options import ENDPOINTS, RAGFlowOptions
from gateway.platforms.ragflow.profile import agent_profile, chat_profile
from gateway.protocol import loosejson, sse
from gateway.protocol.exchange import UpstreamReply, UpstreamRequest
from gateway.protocol.messages import ChatRequest
from gateway.protocol.profile import Profile
from gateway.protocol.prompt import as_prompt, require_question
from gateway.protocol.usage import as_count

# Members of the bodies that are not variables of a bot.
_RESERVED = frozenset((
    "question", "messages", "stream", "chat_id", "session_id", "llm_id", "legacy", "user_id",
    "pass_all_history_messages", "store_history_messages", "temperature", "top_p", "max_tokens",
    "presence_penalty", "frequency_penalty", "reasoning", "tools", "quote", "agent_id", "files",
    "return_trace", "chat_template_kwargs", "openai-compatible",
))  # fmt: skip


class RAGFlow(RAGFlowConversations):
    kind = "ragflow"
    restarts = True

    def __init__(self, name: str, agent: RAGFlowOptions, url: str) -> None:
        self._agent = agent
        self.token = agent.api_key.reveal()
        self._api = base_url(re.sub(ENDPOINTS, "", url), "/api/v1", "/v1", "/api", then="/api/v1")
        self._headers = json_headers(self.token, agent.headers)
        self._bot = agent.agent_id or agent.chat_id or "demo"
        self._bots = "agents" if agent.agent_id else "chats"
        self._path = f"/{self._bots}/{quote(self._bot, safe='')}"
        self._is_old = False  # true once the newer endpoint proves to be missing
        self._missed: deque[str] = deque(maxlen=1000)  # calls whose endpoint was missing
        self._pauses = Pauses()

    @property
    def remembers(self) -> bool:
        return True

    def prepare(self, chat: ChatRequest) -> Step:
        require_question(chat)
        if unknown := _RESERVED & chat.variables.keys():
            raise InvalidRequest(
                say(
                    "{name!r} is no variable of a RAGFlow bot, but a setting of its API.",
                    name=min(unknown),
                ),
                param="variables",
            )
        if self._is_old and not chat.conversation_id:
            body = {"name": chat.question.text[:60] or "AI Gateway", "user_id": chat.user}
            request = self._post(f"{self._path}/sessions", body)
            return Preliminary(request, lambda reply: self._keep_session(reply, chat))
        return self._ask(chat, chat.conversation_id or "")

    def _keep_session(self, reply: UpstreamReply, chat: ChatRequest) -> Step:
        session = as_id(as_object(reply.object().get("data")).get("id"))
        if session:
            return self._ask(chat, session)
        return self.recover(reply, chat)

    def _ask(self, chat: ChatRequest, session: str) -> UpstreamRequest:
        make = self._agent_body if self._agent.agent_id else self._chat_body
        body = make(chat) | ({"session_id": session} if session else {})
        if self._is_old:
            return self._post(f"{self._path}/completions", body, stream=True)
        path = "/agents/chat/completions" if self._agent.agent_id else "/chat/completions"
        return self._post(path, body, stream=True)

    def _chat_body(self, chat: ChatRequest) -> dict[str, Any]:
        body = {**self._agent.variables, **chat.variables, "stream": True}
        if not self._is_old:
            body["chat_id"] = self._bot
        if self._is_old or chat.conversation_id or len(chat.messages) == 1:
            return body | {"question": as_prompt(chat)}
        # The caller keeps the conversation, so RAGFlow need not store it.
        history = {"pass_all_history_messages": True, "store_history_messages": False}
        return body | {"messages": _turns(chat), **history}

    def _agent_body(self, chat: ChatRequest) -> dict[str, Any]:
        query, session = as_prompt(chat), chat.conversation_id
        values = {**self._agent.variables, **chat.variables}
        pause = self._pauses.get(session) if session else None
        if pause is not None:
            values |= _filled(pause, query)
        body: dict[str, Any] = {"query": query, "stream": True}
        if values:
            body["inputs"] = {
                key: {"type": _type(value), "value": value} for key, value in values.items()
            }
        if self._is_old:
            return {**values, **body, "question": query}
        return body | {"agent_id": self._bot} | ({} if session else {"user_id": chat.user})

    def _post(self, path: str, body: dict[str, Any], stream: bool = False) -> UpstreamRequest:
        return UpstreamRequest("POST", self._api + path, self._headers, dump(body), stream)

    def _get(self, path: str) -> UpstreamRequest:
        return UpstreamRequest("GET", self._api + path, self._headers)

    def decoder(self, chat: ChatRequest) -> Decoder:
        return RAGFlowDecoder(self._agent.frames, chat.conversation_id or "", self._pauses)

    def recover(self, reply: UpstreamReply, chat: ChatRequest) -> Step:
        """Retry with the older endpoint the first time that one is missing. Raises any other
        error."""
        if lacks_path(reply):
            if chat.call_id not in self._missed:
                self._missed.append(chat.call_id)
                self._is_old = True
                return self.prepare(chat)
            self._is_old = False
        raise explain(reply)

    def as_stream(self, reply: UpstreamReply) -> bytes:
        """The events for a chat's whole answer, or an agent's, which contains its run as `data`, or
        a completion."""
        if completion := super().as_stream(reply):
            return completion
        body = reply.object()
        data, run = as_object(body.get("data")), as_object(as_object(body.get("data")).get("data"))
        if as_count(body.get("code")) or not data:
            return b""
        if "answer" in data:
            frames = [{"code": 0, "data": {**data, "final": True}}, {"code": 0, "data": True}]
            return b"".join(sse.event(dump(frame)) for frame in frames)
        if not run and "session_id" not in data:
            return b""
        ids = {key: data.get(key) for key in ("session_id", "message_id")}
        outputs = {"content": run.get("content")}
        events = [
            {"event": "message_end", **ids, "data": {"reference": run.get("reference")}},
            {
                "event": "workflow_finished",
                **ids,
                "data": {"outputs": outputs, "usage": run.get("usage")},
            },
        ]
        return b"".join(sse.event(dump(event)) for event in events) + sse.DONE

    def stop(self, chat: ChatRequest, decoder: Decoder) -> UpstreamRequest | None:
        return None  # a run ends with its connection

    def probe(self) -> Step:
        if self._agent.agent_id:
            return self._get(f"{self._path}/sessions?page=1&page_size=1&dsl=false")
        return self._get(self._path)

    def describe(self, reply: UpstreamReply) -> str | Step:
        if lacks_path(reply) and not self._agent.agent_id:
            return Preliminary(self._get(f"/chats?id={quote(self._bot, safe='')}"), self._found)
        return self._found(reply)

    def _found(self, reply: UpstreamReply) -> str:
        """The verdict on a lookup or a list: a chat's name, or an agent's id."""
        found = _bot_in(reply)
        if self._agent.agent_id:
            return say("agent {name!r}", name=self._bot)
        return say("chat {name!r}", name=as_text(found.get("name")) or self._bot)

    def profile(self) -> ProfileStep:
        """Older servers look a bot up in the list only."""

        def learn(reply: UpstreamReply) -> ProfileStep:
            if lacks_path(reply):
                path = f"/{self._bots}?id={quote(self._bot, safe='')}"
                return Preliminary(self._get(path), self._read)
            return self._read(reply)

        return Preliminary(self._get(self._path), learn)

    def _read(self, reply: UpstreamReply) -> Profile:
        read = agent_profile if self._agent.agent_id else chat_profile
        return read(_bot_in(reply), self.file_needs, self._agent.variables)


def _bot_in(reply: UpstreamReply) -> dict[str, Any]:
    """The bot in the answer to a look-up, or the first in a list. Raises the error in any other."""
    body = reply.object()
    if reply.status != 200 or body.get("code") != 0:
        raise explain(reply)
    data = body.get("data")
    listed = as_object(data).get("chats", as_object(data).get("canvas"))
    if listed is None:
        listed = [data] if isinstance(data, dict) else data
    return as_object(next(iter(as_list(listed)), None))


# RAGFlow drops turns of other roles.
_ROLES = {"assistant": "assistant", "user": "user", "tool": "user"}


def _turns(chat: ChatRequest) -> list[dict[str, str]]:
    """All turns; instructions precede the user's first turn."""
    system = "\n\n".join(turn.text for turn in chat.messages if turn.role == "system" and turn.text)
    turns = [
        {"role": _ROLES[turn.role], "content": turn.text}
        for turn in chat.messages
        if turn.role != "system" and (turn.text or turn is chat.question)
    ]
    if system:
        first = next(turn for turn in turns if turn["role"] == "user")
        first["content"] = f"{system}\n\n{first['content']}"
    return turns


def _filled(pause: Pause, reply: str) -> dict[str, Any]:
    """The values of the fields that an agent waits for, as far as `reply` has them."""
    answer = pause.answer(reply)
    if pause.options:
        return {pause.fields[0].key: answer}
    try:
        values = as_object(loosejson.loads(answer.encode()))
    except loosejson.NotJson:
        return {}
    return {field.key: values[field.key] for field in pause.fields if field.key in values}


def _type(value: Any) -> str:
    """RAGFlow's type name for a field with that value."""
    if isinstance(value, bool):
        return "boolean"
    return "integer" if isinstance(value, int | float) else "line"
