"""The audio of Zhipu's model API: `/audio/speech` and `/audio/transcriptions`, nearly OpenAI's."""

from collections.abc import Mapping
from typing import Any

from gateway.platforms.audio import Manner, SpeechEndpoint, TranscriptionEndpoint
from gateway.platforms.base import Step, as_text, dump
from gateway.platforms.zhipu.failures import explain
from gateway.platforms.zhipu.options import ZhipuOptions
from gateway.protocol.audio import Recording
from gateway.protocol.exchange import UpstreamReply, UpstreamRequest
from gateway.protocol.messages import ChatRequest


class ZhipuSpeech(SpeechEndpoint):
    platform = "Zhipu"
    formats = {"wav": "wav", "pcm": "pcm"}  # noqa: RUF012
    format = "wav"
    speeds = (0.5, 2.0)
    own_voice = "tongtong"
    most = 1024

    def __init__(self, agent: ZhipuOptions, api: str, headers: Mapping[str, str]) -> None:
        super().__init__(agent)
        self._model = agent.speech_model
        self._url = f"{api}/audio/speech"
        self._headers = {**headers, "Accept": "audio/*, application/json"}

    def request(self, text: str, manner: Manner, chat: ChatRequest) -> Step:
        body: dict[str, Any] = {
            "model": self._model,
            "input": text,
            "voice": manner.voice,
            "response_format": self.formats[manner.format],
            "stream": False,  # a stream is events with base64, and PCM only
        }
        if manner.speed is not None:
            body["speed"] = manner.speed
        return UpstreamRequest("POST", self._url, self._headers, dump(body), judges_json=True)

    def recover(self, reply: UpstreamReply, chat: ChatRequest) -> Step:
        raise explain(reply)


class ZhipuTranscription(TranscriptionEndpoint):
    platform = "Zhipu"
    types = {"wav": "audio/wav", "mp3": "audio/mpeg"}  # noqa: RUF012
    most_mb = 25
    options: frozenset[str] | None = frozenset(("prompt",))

    def __init__(self, agent: ZhipuOptions, api: str, headers: Mapping[str, str]) -> None:
        self._model = agent.transcription_model
        self._url = f"{api}/audio/transcriptions"
        self._headers = headers

    def request(self, recording: Recording, mime: str, chat: ChatRequest) -> Step:
        fields = {"model": self._model, "stream": "false"}
        if prompt := recording.fields.get("prompt"):
            fields["prompt"] = prompt
        request = recording.as_form(self._url, self._headers, fields, mime)
        request.judges_json = True
        return request

    def text(self, reply: UpstreamReply) -> str:
        body = reply.object()
        if reply.status != 200 or "text" not in body or body.get("error"):
            raise explain(reply)
        return as_text(body["text"])
