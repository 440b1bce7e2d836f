"""A FastGPT server of one app, as of 4.14.7: `flowResponses` before `[DONE]`."""

from typing import Any

from aiohttp import web

from gateway.demo.mind import Speech, speak
from gateway.demo.openai import files, text
from gateway.demo.stage import Broken, Demo, Stream, dumps, json, new_id

_USAGE = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 1}  # FastGPT's constants


class FastGPTDemo(Demo):
    platform = "FastGPT"

    def routes(self) -> list[tuple[str, str, Any]]:
        return [
            ("POST", "/api/v1/chat/completions", self.completions),
            ("GET", "/api/core/chat/init", self.init),
            ("POST", "/api/v2/chat/stop", self.stop),
        ]

    async def init(self, request: web.Request) -> web.Response:
        if not self.knows_key(request):
            return json(_BAD_KEY, 500)
        app = {"name": "演示应用 Demo", "type": "simple", "chatModels": ["demo"]}
        data = {"chatId": "", "appId": request.query.get("appId", ""), "app": app}
        return json({"code": 200, "statusText": "", "message": "", "data": data})

    async def stop(self, request: web.Request) -> web.Response:
        self.stopped.append(str((await self.body(request)).get("chatId")))
        return json({"code": 200, "statusText": "", "message": "", "data": {"success": True}})

    async def completions(self, request: web.Request) -> web.StreamResponse:
        body = await self.body(request)
        streamed, detail = body.get("stream") is True, body.get("detail") is True
        if not self.knows_key(request):
            return await _fail(request, _BAD_KEY) if streamed else json(_BAD_KEY, 500)
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            return json({"code": 500, "statusText": "error", "message": "messages is empty"}, 500)
        asked = messages[-1] if isinstance(messages[-1], dict) else {}
        question = text(asked)
        chat_id = str(body.get("chatId") or new_id())
        earlier = self.remember(chat_id, question)
        speech = speak("FastGPT", question, earlier, files(asked))
        if speech.fault == "limit":
            words = "Rate limit exceeded. Please try again in 1 seconds."
            return json({"code": 429, "statusText": "error", "message": words, "data": None}, 429)
        nodes = _nodes(speech, question)
        if streamed:
            return await self._stream(request, speech, detail, nodes)
        message: dict[str, Any] = {"role": "assistant", "content": speech.text}
        if speech.reasoning:
            message["reasoning_content"] = speech.thought
        choices = [{"message": message, "finish_reason": "stop", "index": 0}]
        more = {"responseData": nodes, "newVariables": {}} if detail else {}
        return json({**more, "id": chat_id, "model": "", "usage": _USAGE, "choices": choices})

    async def _stream(
        self, request: web.Request, speech: Speech, detail: bool, nodes: list[dict[str, Any]]
    ) -> web.StreamResponse:
        stream = await Stream.open(request, "text/event-stream;charset=utf-8")

        async def send(name: str, data: bytes) -> None:
            """`event:` and `data:` are two writes, as FastGPT makes them."""
            if detail:
                await stream.write(f"event: {name}\n".encode())
            await stream.write(b"data: " + data + b"\n\n")

        try:
            if detail:
                await send("flowNodeStatus", dumps({"status": "running", "name": "AI 对话"}))
            if speech.fault == "fail":
                raise Broken
            async for kind, piece in self.pieces(speech, stream):
                member = "reasoning_content" if kind == "think" else "content"
                await send("answer", _chunk({"role": "assistant", member: piece}))
            await send("answer", _chunk({"role": "assistant", "content": None}, "stop"))
            if detail:
                await send("flowResponses", dumps(nodes))
            await send("answer", b"[DONE]")
        except Broken:
            if not stream.is_cut:
                words = dumps({"message": "The failure you asked for."})
                await stream.write(b"event: error\ndata: " + words + b"\n\n")
        return await stream.close()


_BAD_KEY = {
    "code": 514,
    "statusText": "unAuthApiKey",
    "message": "common:code_error.error_message.514",
    "data": None,
}


async def _fail(request: web.Request, error: dict[str, Any]) -> web.StreamResponse:
    stream = await Stream.open(request, "text/event-stream;charset=utf-8")
    await stream.write(b"event: error\ndata: " + dumps(error) + b"\n\n")
    return await stream.close()


def _chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
    choice = {"delta": delta, "index": 0, "finish_reason": finish}
    return dumps({"id": "", "object": "", "created": 0, "model": "", "choices": [choice]})


def _nodes(speech: Speech, question: str) -> list[dict[str, Any]]:
    start = {"nodeId": "448745", "moduleName": "流程开始", "moduleType": "workflowStart"}
    chat = {"nodeId": "7BdojPlukIQw", "moduleName": "AI 对话", "moduleType": "chatNode"}
    tokens = {"inputTokens": speech.prompt_tokens, "outputTokens": speech.completion_tokens}
    more = {"model": "demo", **tokens, "query": question, "finishReason": "stop"}
    return [
        {"id": new_id(), **start, "runningTime": 0},
        {"id": new_id(), **chat, "runningTime": 1.5, "totalPoints": 0, **more},
    ]
