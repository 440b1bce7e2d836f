"""FastGPT: an OpenAI-like API that sends failures, usage and citations only with `detail: true`.

Source: FastGPT's completions API, 4.6 to 4.16; named events come with `detail: true`.
"""

from dataclasses import replace
from typing import Any

from gateway.errors import (
    InvalidRequest,
    KindNotTaken,
)
from gateway.language.sentences import say
from gateway.platforms.base import (
    Delivery,
    Preliminary,
    ProfileStep,
    Step,
    as_list,
    as_object,
    as_text,
    base_url,
    dump,
    json_headers,
    link_or_inline,
)
from gateway.platforms.fastgpt.audio import FastGPTSpeech
from gateway.platforms.fastgpt.conversations import FastGPTConversations
from gateway.platforms.fastgpt.decoder import FastGPTDecoder
from gateway.platforms.fastgpt.failures import concerns_key, explain
from gateway.platforms.fastgpt.interactive import stored_pause
from gateway.platforms.fastgpt.options import FastGPTOptions
from gateway.platforms.fastgpt.profile import app_profile
from gateway.platforms.pauses import Pause, Pauses, number_in
from gateway.protocol import sse
from gateway.protocol.exchange import UpstreamReply, UpstreamRequest
from gateway.protocol.messages import (
    ChatRequest,
    Media,
    Message,
)
from gateway.protocol.profile import Profile
from gateway.protocol.prompt import require_question

MAX_CHAT_ID = 250
# 4.14.5 and later use the second path.
_RECORDS = ("/core/chat/getPaginationRecords", "/core/chat/record/getPaginationRecords")
_NO_APP = "0" * 24  # an id that no app has


class FastGPT(FastGPTConversations):
    kind = "fastgpt"
    # Only bots of 4.15 and later receive audio and video; `accepts` allows them there.
    kinds = frozenset(("image", "file"))
    no_transcription = say("FastGPT transcribes for its own pages only, not by an API key")

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
        self.speech = FastGPTSpeech(agent, self._api, self._headers, self._look_up())

    @property
    def remembers(self) -> bool:
        return True

    def prepare(self, chat: ChatRequest) -> Step:
        require_question(chat)
        chat_id = _chat_id(chat)
        if len(chat_id) > MAX_CHAT_ID:
            raise InvalidRequest(
                say("The conversation id is longer than {most} characters.", most=MAX_CHAT_ID),
                param="chat_id",
            )
        if not chat.conversation_id:
            return self._ask(chat, chat_id, _turns(chat.messages[:-1], chat.question))
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
        return self._ask(chat, chat_id, _turns(chat.messages[: chat.resent], turn))

    def _recall(self, chat: ChatRequest, chat_id: str, place: int = 0) -> Preliminary:
        """Ask FastGPT whether its bot waits for a choice, which another process may have shown."""

        def learn(reply: UpstreamReply) -> Step:
            if reply.status == 404 and place + 1 < len(_RECORDS):
                return self._recall(chat, chat_id, place + 1)
            return self._reply(chat, chat_id, stored_pause(reply.object()))

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
            "responseChatItemId": _answer_id(chat),
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

    def delivery(self, media: Media, chat: ChatRequest) -> Delivery:
        """Pictures may be embedded; FastGPT fetches other files, so they need a link that it can
        reach."""
        if media.kind == "image":
            return link_or_inline(media)
        if media.is_data or (media.stored and not media.url):
            raise KindNotTaken(
                say(
                    "FastGPT fetches files by itself, and cannot reach this {kind}: give an "
                    "http(s) URL that it can reach, or have uploads reached by setting "
                    "storage.public_base_url (for a bucket S3_PUBLIC_BASE_URL).",
                    kind=media.kind,
                ),
                param="files",
            )
        return "url"

    def decoder(self, chat: ChatRequest) -> FastGPTDecoder:
        return FastGPTDecoder(_chat_id(chat), chat.detail, self._pauses, _answer_id(chat))

    def recover(self, reply: UpstreamReply, chat: ChatRequest) -> Step:
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
        return self._look_up()

    def describe(self, reply: UpstreamReply) -> str | Step:
        body = reply.object()
        app = as_object(as_object(body.get("data")).get("app"))
        if reply.status == 200 and body.get("code") == 200:
            return say("app {name}", name=as_text(app.get("name")) or say("found"))
        if reply.status == 200 and body.get("code") == 403:
            # Up to 4.8.11 every key of an app gets this reply. A completion without messages runs
            # nothing, and FastGPT refuses it for the missing messages only if the key is valid.
            return Preliminary(self._post("/v1/chat/completions", {"messages": []}), _judge_key)
        if not self._agent.app_id and body and not concerns_key(body):
            return say("reachable; set app_id to have the app checked too")
        raise explain(reply)

    def profile(self) -> ProfileStep:
        """FastGPT tells an app by its id only."""
        return Preliminary(self._look_up(), self._read) if self._agent.app_id else super().profile()

    def _read(self, reply: UpstreamReply) -> Profile:
        body = reply.object()
        app = as_object(as_object(body.get("data")).get("app"))
        if reply.status == 200 and body.get("code") == 200:
            return app_profile(app, self.file_needs, self._agent.variables)
        if reply.status == 200 and body.get("code") == 403:  # up to 4.8.11, for every key
            return Profile(files=self.file_needs)
        raise explain(reply)

    def _look_up(self) -> UpstreamRequest:
        app = self._agent.app_id or _NO_APP
        return UpstreamRequest("GET", f"{self._api}/core/chat/init?appId={app}", self._headers)


def _judge_key(reply: UpstreamReply) -> str:
    if as_text(reply.object().get("message")) == "messages is empty":
        return say("the key is good; this server is too old to say which app it opens")
    raise explain(reply)


def _turns(earlier: tuple[Message, ...], question: Message) -> tuple[Message, ...]:
    """The turns to send: `earlier` are those that FastGPT has not stored. Instructions precede the
    user's first turn: servers up to 4.9.7 send a system turn to the model twice, from 4.8.20 on as
    parts that some models refuse."""
    system = "\n\n".join(turn.text for turn in earlier if turn.role == "system" and turn.text)
    turns = [turn for turn in earlier if turn.role != "system"] + [question]
    if system:
        first = next((i for i, turn in enumerate(turns) if turn.role == "user"), len(turns) - 1)
        text = f"{system}\n\n{turns[first].text}" if turns[first].text else system
        turns[first] = replace(turns[first], text=text)
    return tuple(turns)


def _answer_id(chat: ChatRequest) -> str:
    """The id under which FastGPT keeps the answer; its stream has none."""
    return f"gw{chat.call_id[:22]}"


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
