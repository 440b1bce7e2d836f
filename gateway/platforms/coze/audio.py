"""Coze's audio: `/v1/audio/speech` and `/v1/audio/transcriptions`. Coze Studio has neither."""

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from gateway.errors import InvalidRequest
from gateway.platforms.audio import Manner, Remembered, SpeechEndpoint, TranscriptionEndpoint
from gateway.platforms.base import Preliminary, Step, as_id, as_list, as_object, as_text, dump
from gateway.platforms.coze.failures import explain
from gateway.platforms.coze.options import CozeOptions
from gateway.protocol.audio import Recording, in_bytes
from gateway.protocol.exchange import UpstreamReply, UpstreamRequest
from gateway.protocol.messages import ChatRequest

Authorize = Callable[[Callable[[], Step]], Step]  # the step, once there is a valid token
Retry = Callable[[UpstreamReply, ChatRequest, Callable[[ChatRequest], Step]], Step]


class CozeSpeech(SpeechEndpoint):
    platform = "Coze"
    formats = {"mp3": "mp3", "wav": "wav", "pcm": "pcm", "opus": "ogg_opus"}  # noqa: RUF012
    format = "mp3"
    speeds = (0.2, 3.0)
    most = 1024
    measure = staticmethod(in_bytes)

    def __init__(
        self,
        agent: CozeOptions,
        api: str,
        headers: Callable[[], dict[str, str]],
        authorize: Authorize,
        retry: Retry,
    ) -> None:
        super().__init__(agent)
        self._url = f"{api}/v1/audio/speech"
        bot = quote(agent.bot_id or "", safe="")
        self._bot = f"{api}/v1/bots/{bot}?is_published=true" if bot else ""
        self._own = Remembered[str]()  # the bot's voice
        self._headers = headers
        self._authorize = authorize
        self._retry = retry

    def request(self, text: str, manner: Manner, chat: ChatRequest) -> Step:
        voice = manner.voice or self._own.get()
        if not voice and self._bot:
            return self._authorize(lambda: self._learn_voice(text, manner, chat))
        if not voice:
            raise _no_voice()
        body: dict[str, Any] = {
            "input": text,
            "voice_id": voice,
            "response_format": self.formats[manner.format],
        }
        if manner.speed is not None:
            body["speed"] = manner.speed

        def ask() -> Step:
            headers = {**self._headers(), "Accept": "audio/*, application/json"}
            return UpstreamRequest("POST", self._url, headers, dump(body), judges_json=True)

        return self._authorize(ask)

    def _learn_voice(self, text: str, manner: Manner, chat: ChatRequest) -> Step:
        """Coze's speech needs a voice: ask for the one that the bot's author has chosen."""

        def learn(reply: UpstreamReply) -> Step:
            body = reply.object()
            if reply.status != 200 or body.get("code") != 0:
                raise explain(reply)
            voices = as_list(as_object(body.get("data")).get("voice_info_list"))
            voice = as_id(as_object(voices[0]).get("voice_id")) if voices else ""
            if not voice:
                raise _no_voice()
            self._own.keep(voice)
            return self.request(text, manner, chat)

        request = UpstreamRequest("GET", self._bot, self._headers())
        return Preliminary(request, learn, shared=True)

    def recover(self, reply: UpstreamReply, chat: ChatRequest) -> Step:
        return self._retry(reply, chat, self.prepare)


def _no_voice() -> InvalidRequest:
    return InvalidRequest(
        "Coze needs a voice: name one of Coze's in 'voice', or have the operator choose one for the"
        " bot, or set the agent's voice or voices.",
        param="voice",
    )


class CozeTranscription(TranscriptionEndpoint):
    platform = "Coze"
    types = {  # noqa: RUF012
        "mp3": "audio/mpeg", "wav": "audio/wav", "m4a": "audio/mp4", "mp4": "audio/mp4",
        "ogg": "audio/ogg", "opus": "audio/ogg", "pcm": "audio/pcm", "raw": "audio/pcm",
        "spx": "audio/ogg", "aac": "audio/aac", "amr": "audio/amr",
    }  # fmt: skip
    most_mb = 10

    def __init__(
        self, api: str, headers: Callable[[], dict[str, str]], authorize: Authorize, retry: Retry
    ) -> None:
        self._url = f"{api}/v1/audio/transcriptions"
        self._headers = headers
        self._authorize = authorize
        self._retry = retry

    def request(self, recording: Recording, mime: str, chat: ChatRequest) -> Step:
        def ask() -> Step:
            request = recording.as_form(self._url, self._headers(), {}, mime)
            request.judges_json = True
            return request

        return self._authorize(ask)

    def text(self, reply: UpstreamReply) -> str:
        data = as_object(reply.object().get("data"))
        if reply.status != 200 or reply.object().get("code") != 0 or "text" not in data:
            raise explain(reply)
        return as_text(data["text"])

    def recover(self, reply: UpstreamReply, chat: ChatRequest) -> Step:
        return self._retry(reply, chat, self.prepare)
