"""A FastGPT server of one app, as of 4.12.2.

`[DONE]` comes before `flowResponses`, and only the node results show that a model failed. The call
limit and `stop` are those of 4.14.
"""

from collections.abc import Sequence
from typing import Any

from aiohttp import web

from gateway.demo.audio import fault_in, spoken
from gateway.demo.base import Broken, Demo, Stream, dumps, json, new_id
from gateway.demo.fastgpthistory import BAD_KEY, Histories, error, good, object_id
from gateway.demo.openai import files, text
from gateway.demo.script import Speech, speak
from gateway.demo.talks import Turn

_USAGE = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 1}  # FastGPT's constants
_STREAM = "text/event-stream;charset=utf-8"
_HEADERS = {
    "Access-Control-Allow-Origin": "*",
    "X-Accel-Buffering": "no",
    "Cache-Control": "no-cache, no-transform",
}
_SPEECH = {"type": "model", "model": "demo-tts", "voice": "alloy", "speed": 1}
_CHAT_CONFIG = {
    "questionGuide": {"open": False}, "ttsConfig": _SPEECH,
    "whisperConfig": {"open": False, "autoSend": False, "autoTTSResponse": False},
    "chatInputGuide": {"open": False, "textList": [], "customUrl": ""}, "instruction": "",
    "autoExecute": {"open": False, "defaultPrompt": ""},
    "welcomeText": "你好，我是演示应用。", "variables": [],
    "fileSelectConfig": {"canSelectFile": True, "canSelectImg": True, "maxFiles": 10},
    "_id": "0" * 24,
}  # fmt: skip
_FAILED = "500 The failure you asked for."
_CUT = "Premature close"


class FastGPTDemo(Demo):
    """`has_moved`: the calls on conversations are where 4.14.5 has them. `suggests`: the app
    suggests next questions. `variables` are those of the app, and `plugin_inputs` make it a plugin
    with these."""

    platform = "FastGPT"

    def __init__(
        self,
        key: str = "",
        has_moved: bool = False,
        suggests: bool = False,
        variables: Sequence[dict[str, Any]] = (),
        plugin_inputs: Sequence[dict[str, Any]] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(key, **kwargs)
        self.suggests = suggests
        self.variables = list(variables)
        self.plugin_inputs = list(plugin_inputs)
        self._histories = Histories(self, has_moved)

    def app(self) -> web.Application:
        app = super().app()
        app.on_response_prepare.append(_leave_out_no_type)
        return app

    def routes(self) -> list[tuple[str, str, Any]]:
        return [
            ("POST", "/api/v1/chat/completions", self.completions),
            ("GET", "/api/core/chat/init", self.init),
            ("POST", "/api/v2/chat/stop", self.stop),
            *self._histories.routes(),
            ("POST", "/api/core/chat/item/getSpeech", self.speech),
        ]

    async def init(self, request: web.Request) -> web.Response:
        if "appId" not in request.query:
            return json(error(501, "You don't have an app yet"), 501)
        if not self.knows_key(request):
            return json(BAD_KEY, 500)
        config = {
            **_CHAT_CONFIG, "questionGuide": {"open": self.suggests}, "variables": self.variables,
        }  # fmt: skip
        app = {
            "chatConfig": config, "chatModels": ["demo"], "name": "演示应用 Demo",
            "avatar": "", "intro": "", "type": "plugin" if self.plugin_inputs else "simple",
            "pluginInputs": self.plugin_inputs,
        }  # fmt: skip
        data = {"appId": request.query["appId"], "app": app}
        return good(data)

    async def stop(self, request: web.Request) -> web.Response:
        self.stopped.append(str((await self.body(request)).get("chatId")))
        return good({"success": True})

    async def speech(self, request: web.Request) -> web.StreamResponse:
        """The sound has no `Content-Type`."""
        body = await self.body(request)
        if not self.knows_key(request):
            return json(BAD_KEY, 500)
        config, text = body.get("ttsConfig"), str(body.get("input") or "")
        if not isinstance(config, dict) or config.get("model") != "demo-tts" or not text:
            return json(error(500, "model or voice not found"), 500)
        if fault_in(text) == "fail":
            return json(error(500, "the failure you asked for"), 500)
        return await spoken(self, request, text, declared="application/octet-stream")

    async def completions(self, request: web.Request) -> web.StreamResponse:
        body = await self.body(request)
        streamed, detail = body.get("stream") is True, body.get("detail") is True
        if not self.knows_key(request):
            return await _refuse(request, BAD_KEY) if streamed else json(BAD_KEY, 500)
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            message = "messages is empty"
            if streamed:
                return await _refuse(request, {"message": message})
            return json(error(500, message), 500)
        asked = messages[-1] if isinstance(messages[-1], dict) else {}
        question = text(asked)
        chat_id = str(body.get("chatId") or new_id())
        earlier = self.remember(chat_id, question)
        speech = speak("FastGPT", question, earlier, files(asked))
        turn = Turn(
            str(body.get("responseChatItemId") or object_id()), question, object_id(),
            files=_stored_files(asked),
        )  # fmt: skip
        self.talks.add(chat_id, turn)
        if speech.fault == "limit":
            turn.fail("")
            message = "Rate limit exceeded. Please try again in 1 seconds."
            return json({"code": 429, "statusText": "error", "message": message, "data": None}, 429)
        if streamed:
            return await self._stream(request, speech, detail, turn)
        turn.finish(speech)
        return json(_whole(speech, detail, question, chat_id))

    async def _stream(
        self, request: web.Request, speech: Speech, detail: bool, turn: Turn
    ) -> web.StreamResponse:
        stream = await Stream.open(request, _STREAM, _HEADERS)

        async def send(name: str, data: bytes) -> None:
            """With `detail`, `event:` and `data:` are two writes, as in FastGPT."""
            if detail:
                await stream.write(f"event: {name}\n".encode())
            await stream.write(b"data: " + data + b"\n\n")

        if detail:
            await send("flowNodeStatus", dumps({"status": "running", "name": "AI 对话"}))
        try:
            if speech.fault == "fail":
                turn.fail("")
                raise Broken
            async for kind, piece in self.pieces(speech, stream, turn):
                member = "reasoning_content" if kind == "think" else "content"
                await send("answer", _chunk({"role": "assistant", member: piece}))
            error = ""
        except Broken:
            if stream.is_cut:
                return await stream.close()
            error = _FAILED if speech.fault == "fail" else _CUT
        if detail:
            await send("workflowDuration", dumps({"durationSeconds": 1.5}))
        await send("answer", _chunk({"role": "assistant", "content": None}, "stop"))
        await send("answer", b"[DONE]")
        if detail:
            await send("flowResponses", dumps(_nodes(speech, turn.question, error)))
        return await stream.close()


async def _leave_out_no_type(request: web.Request, response: web.StreamResponse) -> None:
    """FastGPT's refusals of a stream have no `Content-Type`; aiohttp would add one."""
    if response.headers.get("Content-Type") == "":
        del response.headers["Content-Type"]


def _stored_files(asked: dict[str, Any]) -> list[dict[str, str]]:
    """The files of a question as FastGPT stores them."""
    out = []
    for part in asked.get("content") or ():
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "image_url":
            image = part.get("image_url")
            url = image.get("url") if isinstance(image, dict) else image
            out.append({"type": "image", "name": "", "url": str(url)[:2000]})
        elif kind == "file_url":
            name, url = str(part.get("name", "")), str(part.get("url", ""))
            out.append({"type": "file", "name": name, "url": url})
    return out


async def _refuse(request: web.Request, error: dict[str, Any]) -> web.StreamResponse:
    stream = await Stream.open(request, "")
    await stream.write(b"event: error\n")
    await stream.write(b"data: " + dumps(error) + b"\n\n")
    return await stream.close()


def _chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
    choice = {"delta": delta, "index": 0, "finish_reason": finish}
    return dumps({"id": "", "object": "", "created": 0, "model": "", "choices": [choice]})


def _whole(speech: Speech, detail: bool, question: str, chat_id: str) -> dict[str, Any]:
    error = _FAILED if speech.fault else ""
    text = "" if error else speech.text
    content: Any = text
    if detail and (speech.reasoning or error):
        thought = [{"type": "reasoning", "reasoning": {"content": speech.thought}}]
        content = [*(thought if not error else []), {"type": "text", "text": {"content": text}}]
    message = {"role": "assistant", "content": content}
    choices = [{"message": message, "finish_reason": "stop", "index": 0}]
    nodes = _nodes(speech, question, error)
    more = {"responseData": nodes, "newVariables": {}} if detail else {}
    return {**more, "id": chat_id, "model": "", "usage": _USAGE, "choices": choices}


def _nodes(speech: Speech, question: str, error: str) -> list[dict[str, Any]]:
    start = {"nodeId": "448745", "moduleName": "流程开始", "moduleType": "workflowStart"}
    chat = {"nodeId": "7BdojPlukIQw", "moduleName": "AI 对话", "moduleType": "chatNode"}
    tokens = {"inputTokens": speech.prompt_tokens, "outputTokens": speech.completion_tokens}
    done = {
        "totalPoints": 0, "model": "demo", **tokens, "query": question, "maxToken": 2000,
        "reasoningText": speech.thought, "historyPreview": [], "contextTotalLen": 2,
        "finishReason": "stop",
    }  # fmt: skip
    return [
        {"id": new_id(), **start, "runningTime": 0},
        {**({"errorText": error} if error else done), "id": new_id(), **chat, "runningTime": 1.5},
    ]
