"""Dify's audio: `/text-to-audio` and `/audio-to-text`, if the app's author has switched them on."""

from collections.abc import Mapping

from gateway.platforms.audio import Manner, SpeechEndpoint, TranscriptionEndpoint
from gateway.platforms.base import Step, as_text, dump
from gateway.platforms.dify.failures import explain
from gateway.platforms.dify.options import DifyOptions
from gateway.protocol.audio import Recording
from gateway.protocol.exchange import UpstreamReply, UpstreamRequest
from gateway.protocol.messages import ChatRequest


class DifySpeech(SpeechEndpoint):
    """The app's model chooses the format and the speed, and the voice unless one is named."""

    platform = "Dify"

    def __init__(self, agent: DifyOptions, api: str, headers: Mapping[str, str]) -> None:
        super().__init__(agent)
        self._url = f"{api}/text-to-audio"
        self._headers = {**headers, "Accept": "audio/*, application/json"}

    def request(self, text: str, manner: Manner, chat: ChatRequest) -> Step:
        body = {"text": text, "user": chat.user}
        if manner.voice:
            body["voice"] = manner.voice
        return UpstreamRequest("POST", self._url, self._headers, dump(body), judges_json=True)

    def recover(self, reply: UpstreamReply, chat: ChatRequest) -> Step:
        raise explain(reply)


class DifyTranscription(TranscriptionEndpoint):
    """Dify goes by the declared type. Its versions differ, but all take these: `audio/mpeg`, the
    usual type of MP3, is refused by some."""

    platform = "Dify"
    types = {  # noqa: RUF012
        "mp3": "audio/mp3", "mpga": "audio/mp3", "mpeg": "audio/mp3", "wav": "audio/wav",
        "m4a": "audio/m4a", "mp4": "audio/mp4", "webm": "audio/webm", "amr": "audio/amr",
    }  # fmt: skip
    most_mb = 30

    def __init__(self, api: str, headers: Mapping[str, str]) -> None:
        self._url = f"{api}/audio-to-text"
        self._headers = headers

    def request(self, recording: Recording, mime: str, chat: ChatRequest) -> Step:
        request = recording.as_form(self._url, self._headers, {"user": chat.user}, mime)
        request.judges_json = True
        return request

    def text(self, reply: UpstreamReply) -> str:
        body = reply.object()
        if reply.status != 200 or "text" not in body:
            raise explain(reply)
        return as_text(body["text"])
