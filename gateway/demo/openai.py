"""An OpenAI-compatible model server."""

import base64
import struct
import time
from typing import Any

from aiohttp import web

from gateway.demo.audio import fault_in, spoken, transcript
from gateway.demo.base import Broken, Demo, Stream, dumps, json, new_id
from gateway.demo.script import Speech, data_name, file_name, speak

MODELS = ("gpt-4o-mini", "gpt-4o", "text-embedding-3-small")


class OpenAIDemo(Demo):
    platform = "OpenAI"
    prefix = "/v1"

    def routes(self) -> list[tuple[str, str, Any]]:
        return [
            ("POST", f"{self.prefix}/chat/completions", self.completions),
            ("POST", f"{self.prefix}/embeddings", self.embeddings),
            ("POST", f"{self.prefix}/audio/speech", self.speech),
            ("POST", f"{self.prefix}/audio/transcriptions", self.transcription),
            ("GET", f"{self.prefix}/models", self.models),
        ]

    def refusal(self, request: web.Request) -> web.Response | None:
        if self.knows_key(request):
            return None
        return error(401, "Incorrect API key provided.", "invalid_request_error", "invalid_api_key")

    async def models(self, request: web.Request) -> web.Response:
        data = [
            {"id": name, "object": "model", "created": 0, "owned_by": "demo"} for name in MODELS
        ]
        return self.refusal(request) or json({"object": "list", "data": data})

    async def embeddings(self, request: web.Request) -> web.Response:
        body = await self.body(request)
        if refusal := self.refusal(request):
            return refusal
        sent = body.get("input")
        inputs = sent if isinstance(sent, list) else [sent]
        vectors = [[round(len(str(text)) / 100, 4), 0.5] for text in inputs]
        packed = body.get("encoding_format") == "base64"
        data = [
            {"object": "embedding", "index": i, "embedding": _packed(v) if packed else v}
            for i, v in enumerate(vectors)
        ]
        usage = {"prompt_tokens": len(inputs), "total_tokens": len(inputs)}
        return json({"object": "list", "data": data, "model": body.get("model"), "usage": usage})

    async def speech(self, request: web.Request) -> web.StreamResponse:
        body = await self.body(request)
        if refusal := self.refusal(request):
            return refusal
        text, form = body.get("input"), body.get("response_format", "mp3")
        if not isinstance(text, str) or not text or len(text) > 4096 or not body.get("voice"):
            message = "'input' must have 1 to 4096 characters, and 'voice' is required."
            return error(400, message, "invalid_request_error", "invalid_value")
        if fault_in(text) == "fail":
            return error(500, "The failure you asked for.", "server_error", None)
        return await spoken(self, request, text, "mp3" if form not in ("wav", "pcm") else form)

    async def transcription(self, request: web.Request) -> web.Response:
        if refusal := self.refusal(request):
            return refusal
        form = await self.form(request, new_id)
        if not form.files or not form.fields.get("model"):
            message = "'file' and 'model' are required."
            return error(400, message, "invalid_request_error", "invalid_value")
        said = transcript(self, self.take(form.files[0][1]))
        if form.fields.get("response_format") == "text":
            return web.Response(text=f"{said}\n")
        return json({"text": said})

    async def completions(self, request: web.Request) -> web.StreamResponse:
        body = await self.body(request)
        if refusal := self.refusal(request):
            return refusal
        messages = [m for m in body.get("messages") or [] if isinstance(m, dict)]
        if not messages:
            message = "'messages' must be a non-empty array."
            return error(400, message, "invalid_request_error", "invalid_value")
        asked = [m for m in messages if m.get("role") == "user"] or [{}]
        earlier = [text(m) for m in asked[:-1]]
        speech = speak(self.platform, text(asked[-1]), earlier, files(asked[-1]))
        if speech.fault == "limit":
            response = error(429, "Rate limit reached.", "rate_limit_error", "rate_limit_exceeded")
            response.headers["Retry-After"] = "1"
            return response
        if speech.fault == "fail":
            return error(500, "The failure you asked for.", "server_error", None)
        tool = _tool_to_call(body, messages)
        if body.get("stream") is True:
            return await self._stream(request, body, speech, tool)
        if speech.fault == "break":
            return error(500, "The failure you asked for.", "server_error", None)
        if speech.fault == "cut" and request.transport is not None:
            request.transport.abort()
        return json(self._whole(body, speech, tool))

    def head(self, body: dict[str, Any], kind: str) -> dict[str, Any]:
        id_ = f"chatcmpl-{new_id().replace('-', '')}"
        model = body.get("model") or "demo"
        return {"id": id_, "object": kind, "created": int(time.time()), "model": model}

    def _whole(self, body: dict[str, Any], speech: Speech, tool: str) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": speech.text, "refusal": None}
        if speech.reasoning:
            message["reasoning_content"] = speech.thought
        if tool:
            call = {
                "id": "call_demo1",
                "type": "function",
                "function": {"name": tool, "arguments": "{}"},
            }
            message |= {"content": None, "tool_calls": [call]}
        reason = "tool_calls" if tool else "stop"
        choices = [
            {"index": i, "message": message, "logprobs": None, "finish_reason": reason}
            for i in range(_count(body.get("n")))
        ]
        return {**self.head(body, "chat.completion"), "choices": choices, "usage": usage(speech)}

    async def _stream(
        self, request: web.Request, body: dict[str, Any], speech: Speech, tool: str
    ) -> web.StreamResponse:
        stream = await Stream.open(request, "text/event-stream; charset=utf-8")
        head = self.head(body, "chat.completion.chunk")
        wants_usage = (body.get("stream_options") or {}).get("include_usage") is True

        async def send(delta: dict[str, Any], finish: str | None = None) -> None:
            for i in range(_count(body.get("n"))):
                choice = {"index": i, "delta": delta, "logprobs": None, "finish_reason": finish}
                more = {"usage": None} if wants_usage else {}
                frame = dumps({**head, "choices": [choice], **more})
                await stream.write(b"data: " + frame + b"\n\n")

        try:
            await send({"role": "assistant", "content": ""})
            if tool:
                function = {"name": tool, "arguments": ""}
                call = {"index": 0, "id": "call_demo1", "type": "function", "function": function}
                await send({"tool_calls": [call]})
                await send({"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]})
            else:
                async for kind, piece in self.pieces(speech, stream):
                    member = "reasoning_content" if kind == "think" else "content"
                    await send({member: piece})
            await send({}, "tool_calls" if tool else "stop")
            if wants_usage:
                last = dumps({**head, "choices": [], "usage": usage(speech)})
                await stream.write(b"data: " + last + b"\n\n")
            await stream.write(b"data: [DONE]\n\n")
        except Broken:
            if not stream.is_cut:
                fault = {"message": "The failure you asked for.", "type": "server_error"}
                frame = dumps({"error": {**fault, "param": None, "code": None}})
                await stream.write(b"data: " + frame + b"\n\n")
        return await stream.close()


def _packed(vector: list[float]) -> str:
    """32-bit floats in base64, which OpenAI's SDKs request."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _count(n: Any) -> int:
    return min(n, 8) if isinstance(n, int) and n > 0 else 1


def _tool_to_call(body: dict[str, Any], messages: list[dict[str, Any]]) -> str:
    """The first offered tool, if the question is `#tool` and its result is not there yet."""
    if messages[-1].get("role") == "tool" or "#tool" not in text(messages[-1]):
        return ""
    for tool in body.get("tools") or []:
        return str(tool.get("function", {}).get("name", "")) if isinstance(tool, dict) else ""
    return ""


def text(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = [part for part in content or [] if isinstance(part, dict)]
    return "\n".join(str(part.get("text", "")) for part in parts if part.get("type") == "text")


def files(message: dict[str, Any]) -> list[str]:
    """A name for each file among the parts of a message."""
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    return [
        _file(part, str(part.get("type")))
        for part in parts
        if isinstance(part, dict) and part.get("type") not in ("text", "input_text")
    ]


def _file(part: dict[str, Any], kind: str) -> str:
    inner = part.get(kind)  # {"type": "image_url", "image_url": {…}}, or just the URL
    if not isinstance(inner, dict):
        inner = {"url": inner, **part}  # FastGPT puts name and URL into the part itself
    if name := inner.get("filename") or inner.get("name"):
        return str(name)
    if url := inner.get("url") or inner.get("file_data"):
        return file_name(str(url))
    if data := inner.get("data"):
        return data_name(f"audio/{inner.get('format')}", str(data))
    return str(inner.get("file_id") or kind)


def usage(speech: Speech) -> dict[str, int]:
    prompt, completion = speech.prompt_tokens, speech.completion_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def error(status: int, message: str, type_: str, code: str | None) -> web.Response:
    return json({"error": {"message": message, "type": type_, "param": None, "code": code}}, status)
