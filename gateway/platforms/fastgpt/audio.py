"""FastGPT's speech. Its transcription is for its own pages only: no API key opens it."""

from collections.abc import Callable, Mapping
from typing import Any

from gateway.errors import InvalidRequest
from gateway.platforms.audio import Manner, Remembered, SpeechEndpoint
from gateway.platforms.base import Preliminary, Step, as_object, dump
from gateway.platforms.fastgpt.failures import explain
from gateway.platforms.fastgpt.options import FastGPTOptions
from gateway.protocol.exchange import UpstreamReply, UpstreamRequest
from gateway.protocol.messages import ChatRequest

# 4.14.5 and later use the first path.
_PATHS = ("/core/chat/record/getSpeech", "/core/chat/item/getSpeech")


class FastGPTSpeech(SpeechEndpoint):
    """The app's settings name the model, which the call must repeat."""

    platform = "FastGPT"
    speeds = (0.25, 4.0)

    def __init__(
        self, agent: FastGPTOptions, api: str, headers: Mapping[str, str], look_up: UpstreamRequest
    ) -> None:
        """`look_up` asks for the app's settings."""
        super().__init__(agent)
        self._app_id = agent.app_id
        self._api = api
        self._headers = {**headers, "Accept": "audio/*, application/json"}
        self._look_up = look_up
        self._settings = Remembered[dict[str, Any]]()
        self._path = ""

    def request(self, text: str, manner: Manner, chat: ChatRequest) -> Step:
        if not self._app_id:
            raise InvalidRequest(
                "FastGPT tells an app's voice by its id only: have the operator set the agent's"
                " app_id.",
                param="model",
            )

        def then(learn: Callable[[UpstreamReply], None]) -> Callable[[UpstreamReply], Step]:
            def go_on(reply: UpstreamReply) -> Step:
                learn(reply)
                return self.request(text, manner, chat)

            return go_on

        settings = self._settings.get()
        if settings is None:
            return Preliminary(self._look_up, then(self._learn_settings), shared=True)
        if not self._path:
            empty = UpstreamRequest("POST", self._api + _PATHS[0], self._headers, b"{}")
            return Preliminary(empty, then(self._learn_path), shared=True)
        return self._speak(text, manner, settings)

    def _learn_settings(self, reply: UpstreamReply) -> None:
        body = reply.object()
        app = as_object(as_object(body.get("data")).get("app"))
        if reply.status != 200 or body.get("code") != 200:
            raise explain(reply)
        settings = as_object(as_object(app.get("chatConfig")).get("ttsConfig"))
        if settings.get("type") != "model":
            raise InvalidRequest(
                "This FastGPT app does not speak by a model: choose one under voice playback in the"
                " app's settings, and publish it.",
                param="model",
            )
        self._settings.keep(settings)

    def _learn_path(self, reply: UpstreamReply) -> None:
        """A server that has the path refuses the empty request, without a cost."""
        is_missing = reply.status == 404 and not reply.object().get("code")
        self._path = _PATHS[is_missing]

    def _speak(self, text: str, manner: Manner, settings: dict[str, Any]) -> UpstreamRequest:
        settings = dict(settings)
        if manner.voice:
            settings["voice"] = manner.voice
        if manner.speed is not None:
            settings["speed"] = manner.speed
        body = {
            "appId": self._app_id,
            "sourceType": "app",  # the newest versions name the app in this way
            "sourceId": self._app_id,
            "ttsConfig": settings,
            "input": text,
        }
        url = self._api + self._path
        return UpstreamRequest("POST", url, self._headers, dump(body), judges_json=True)

    def recover(self, reply: UpstreamReply, chat: ChatRequest) -> Step:
        self._settings.keep(None)  # the app or the server may have changed
        self._path = ""
        raise explain(reply)
