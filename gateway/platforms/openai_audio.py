"""Transcription by OpenAI-compatible upstreams, for callers of the gateway's own API.

Callers of `/v1/audio` get the upstream's answer as it is, without this module.
"""

from collections.abc import Callable, Mapping

from gateway.errors import NotFound, UpstreamFailed
from gateway.filetypes import mime_of
from gateway.language.sentences import say
from gateway.platforms.audio import TranscriptionEndpoint
from gateway.platforms.base import Step, as_text
from gateway.platforms.failures import explain_http
from gateway.protocol.audio import Recording
from gateway.protocol.exchange import UpstreamReply
from gateway.protocol.messages import ChatRequest

_PATH = "audio/transcriptions"
_FIELDS = ("language", "prompt", "temperature")


class OpenAITranscription(TranscriptionEndpoint):
    """The upstream has its own limits."""

    platform = say("The upstream")
    options: frozenset[str] | None = frozenset(_FIELDS)

    def __init__(
        self,
        address: Callable[[str], str],
        headers: Mapping[str, str],
        model: Callable[[str], str],
    ) -> None:
        """`model` is the upstream's name for the one that a caller asks."""
        self._address = address
        self._headers = headers
        self._model = model

    def require_limits(self, recording: Recording) -> None:
        pass

    def require_size(self, size: int) -> None:
        pass

    def declared(self, recording: Recording) -> str:
        return mime_of(recording.extension)

    def request(self, recording: Recording, mime: str, chat: ChatRequest) -> Step:
        given = {name: recording.fields[name] for name in _FIELDS if recording.fields.get(name)}
        fields = {"model": self._model(chat.model), "response_format": "json", **given}
        request = recording.as_form(self._address(_PATH), self._headers, fields, mime)
        request.judges_json = True
        return request

    def text(self, reply: UpstreamReply) -> str:
        body = reply.object()
        if reply.status in (404, 405) and not body.get("error"):
            raise NotFound(say("The upstream has no endpoint {path!r}.", path=_PATH))
        if reply.status != 200 or body.get("error"):
            raise explain_http(self.platform, reply, own_request=True, own_model=True)
        if "text" not in body:
            raise UpstreamFailed("The upstream's answer could not be understood.")
        return as_text(body["text"])
