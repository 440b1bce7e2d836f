"""Zhipu's three interfaces: the model API, 智谱清言 assistants, and applications."""

import time
from collections.abc import Sequence
from typing import Any

from aiohttp import web

from gateway.demo.audio import fault_in, spoken, transcript
from gateway.demo.base import Broken, Stream, Upload, digits, dumps, json, new_id
from gateway.demo.openai import OpenAIDemo, files, text, usage
from gateway.demo.script import Speech, speak

_GLMS = "/chatglm/assistant-api/v1"
_APPS = "/api/llm-application/open"


_VARIABLES: tuple[dict[str, Any], ...] = (
    {"name": "语言", "type": "selection_list", "tips": "", "allowed_values": ["中文", "English"],
     "input_template": {"options": ["中文", "English"]}},
    {"name": "附件", "type": "upload_file", "tips": "PDF", "allowed_values": []},
)  # fmt: skip


class ZhipuDemo(OpenAIDemo):
    """`variables` are those of its application."""

    platform = "Zhipu"
    prefix = "/api/paas/v4"

    def __init__(
        self, key: str = "", variables: Sequence[dict[str, Any]] = _VARIABLES, **kwargs: Any
    ) -> None:
        super().__init__(key, **kwargs)
        self.listed = [{"id": digits(), **each} for each in variables]
        self.tokens: set[str] = set()
        self.token_life_s = 864_000

    def routes(self) -> list[tuple[str, str, Any]]:
        return [
            ("POST", f"{self.prefix}/chat/completions", self.ask_model),
            ("GET", f"{self.prefix}/models", self.models),
            ("POST", f"{self.prefix}/audio/speech", self.speech),
            ("POST", f"{self.prefix}/audio/transcriptions", self.transcription),
            ("POST", f"{_GLMS}/get_token", self.get_token),
            ("POST", f"{_GLMS}/file_upload", self.upload),
            ("POST", f"{_GLMS}/stream", self.ask_assistant),
            ("POST", f"{_APPS}/v2/application/{{app}}/conversation", self.new_conversation),
            ("GET", f"{_APPS}/v2/application/{{app}}/variables", self.variables),
            ("POST", f"{_APPS}/v3/application/invoke", self.ask_application),
            ("GET", f"{_APPS}/history_session_record/{{app}}/{{conversation}}", self.problems),
        ]

    def refusal(self, request: web.Request) -> web.Response | None:
        return None if self.knows_key(request) else _error(401, "1000", "身份验证失败。")

    async def ask_model(self, request: web.Request) -> web.StreamResponse:
        body = await self.body(request)
        if refusal := self.refusal(request):
            return refusal
        messages = [m for m in body.get("messages") or [] if isinstance(m, dict)]
        asked = [m for m in messages if m.get("role") == "user"]
        if not asked:
            return _error(400, "1214", "messages 参数非法。请检查文档。")
        earlier = [text(m) for m in asked[:-1]]
        speech = speak("Zhipu", text(asked[-1]), earlier, files(asked[-1]))
        if speech.fault == "limit":
            return _error(429, "1302", "您当前使用该 API 的并发数过高。")
        if speech.fault == "fail":
            return _error(500, "500", "内部错误。")
        return await self._chunks(request, self.head(body, "chat.completion.chunk"), speech)

    async def _chunks(
        self, request: web.Request, head: dict[str, Any], speech: Speech
    ) -> web.StreamResponse:
        """No `object`, the role in every delta, usage next to the finish reason."""
        head = {key: head[key] for key in ("id", "created", "model")}
        stream = await Stream.open(request, "text/event-stream;charset=UTF-8")
        try:
            async for kind, piece in self.pieces(speech, stream):
                member = "reasoning_content" if kind == "think" else "content"
                choice: dict[str, Any] = {"index": 0, "delta": {"role": "assistant", member: piece}}
                await stream.write(b"data: " + dumps({**head, "choices": [choice]}) + b"\n\n")
            delta = {"role": "assistant", "content": ""}
            choice = {"index": 0, "finish_reason": "stop", "delta": delta}
            last = {**head, "choices": [choice], "usage": usage(speech)}
            await stream.write(b"data: " + dumps(last) + b"\n\n" + b"data: [DONE]\n\n")
        except Broken:
            if not stream.is_cut:
                fault = dumps({"error": {"code": "1234", "message": "网络错误"}})
                await stream.write(b"data: " + fault + b"\n\n")
        return await stream.close()

    async def speech(self, request: web.Request) -> web.StreamResponse:
        body = await self.body(request)
        if refusal := self.refusal(request):
            return refusal
        text, form = body.get("input"), body.get("response_format", "pcm")
        is_good = isinstance(text, str) and 0 < len(text) <= 1024 and form in ("wav", "pcm")
        if body.get("model") != "glm-tts" or not is_good:
            return _error(400, "1214", "input 或 response_format 参数非法。请检查文档。")
        if fault_in(str(text)) == "fail":
            return _error(500, "500", "内部错误。")
        return await spoken(self, request, str(text), form)

    async def transcription(self, request: web.Request) -> web.Response:
        if refusal := self.refusal(request):
            return refusal
        form = await self.form(request, digits)
        if not form.files or not form.fields.get("model", "").startswith("glm-asr"):
            return _error(400, "1214", "file 或 model 参数非法。请检查文档。")
        text = transcript(self, self.take(form.files[0][1]))
        ids = {"id": digits(), "created": int(time.time()), "request_id": digits()}
        return json({**ids, "model": form.fields["model"], "text": text})

    # 智谱清言

    async def get_token(self, request: web.Request) -> web.Response:
        body = await self.body(request)
        if self.key and f"{body.get('api_key')}.{body.get('api_secret')}" != self.key:
            return json({"message": "invalid api_key", "status": 10001, "result": {}})
        token = f"demo.{new_id()}"
        self.tokens.add(token)
        expires = int(time.time()) + self.token_life_s
        result = {"access_token": token, "expires_in": self.token_life_s, "token_expires": expires}
        return json({"message": "success", "status": 0, "result": result})

    def _token_refusal(self, request: web.Request) -> web.Response | None:
        if request.headers.get("Authorization", "").removeprefix("Bearer ") in self.tokens:
            return None
        return _glms_error(401, "token invalid", 401)

    async def upload(self, request: web.Request) -> web.Response:
        """The contract says only that the whole `result` goes into `file_list`; this form is
        invented.

        `{"file_id": 24 hex digits, "file_name", "file_size": bytes, "file_url", "order": 0}`
        """
        if refusal := self._token_refusal(request):
            return refusal
        form = await self.form(request, _short_id)
        files = [file for name, file in form.files if name == "file"]
        if not files or not files[0].size:
            return _glms_error(10020, "file is empty")
        file = self.take(files[0])
        url = f"{request.scheme}://{request.host}/files/{file.id}"
        result = {"file_id": file.id, "file_name": file.name, "file_size": file.size}
        result |= {"file_url": url, "order": 0}
        return json({"message": "success", "status": 0, "result": result})

    async def ask_assistant(self, request: web.Request) -> web.StreamResponse:
        body = await self.body(request)
        if refusal := self._token_refusal(request):
            return refusal
        conversation_id = str(body.get("conversation_id") or "")
        if conversation_id and self.conversation(conversation_id) is None:
            return _glms_error(10050, "conversation not found")
        uploads = [self._listed(item) for item in body.get("file_list") or []]
        names = [upload.name for upload in uploads if upload]
        if len(names) < len(uploads):
            return _glms_error(10021, "file not found")
        conversation = conversation_id or _short_id()
        question = str(body.get("prompt") or "")
        speech = speak("Zhipu", question, self.remember(conversation, question), names)
        if speech.fault in ("fail", "limit"):
            return _glms_error(10500, "the failure you asked for")
        stream = await Stream.open(request, "text/event-stream")
        so_far = ""
        try:
            async for kind, piece in self.pieces(speech, stream):
                so_far += piece if kind == "say" else ""
                await stream.write(_glms_frame(conversation, so_far, "init"))
            await stream.write(_glms_frame(conversation, so_far, "finish"))
        except Broken:
            stream.cut()
        return await stream.close()

    def _listed(self, item: Any) -> Upload | None:
        """The upload whose result is in a `file_list`."""
        return self.file(item.get("file_id")) if isinstance(item, dict) else None

    # Applications

    async def new_conversation(self, request: web.Request) -> web.Response:
        await self.body(request)
        if refusal := self.refusal(request):
            return refusal
        conversation = digits()
        self._conversations[conversation] = []
        return json({"data": {"conversation_id": conversation}, "code": 200, "message": "请求成功"})

    async def variables(self, request: web.Request) -> web.Response:
        now = int(time.time() * 1000)
        answer = {"data": self.listed, "code": 200, "message": "SUCCESS", "timestamp": now}
        return self.refusal(request) or json(answer)

    async def problems(self, request: web.Request) -> web.Response:
        """Questions that may follow: the path's name is misleading."""
        if refusal := self.refusal(request):
            return refusal
        if self.conversation(request.match_info["conversation"]) is None:
            return json({"code": 10404, "message": "conversation not found"})
        data = {"problems": ["还能做什么？", "怎么接入我的智能体？"]}
        now = int(time.time() * 1000)
        return json({"data": data, "code": 200, "message": "SUCCESS", "timestamp": now})

    async def ask_application(self, request: web.Request) -> web.StreamResponse:
        body = await self.body(request)
        if refusal := self.refusal(request):
            return refusal
        conversation = str(body.get("conversation_id") or "")
        if self.conversation(conversation) is None:
            return json({"code": 10404, "message": "conversation not found"})
        question = str(body["messages"][0]["content"][0]["value"])
        speech = speak("Zhipu", question, self.remember(conversation, question))
        ids = {"request_id": digits(13), "conversation_id": conversation, "app_id": body["app_id"]}

        def frame(finish: str | None, delta: dict[str, Any], **more: Any) -> bytes:
            error = {key: more.pop(key) for key in ("error_msg",) if key in more}
            choice = {"index": 0, "finish_reason": finish, "delta": delta, **error}
            return b"data: " + dumps({**ids, "choices": [choice], **more}) + b"\n\n"

        stream = await Stream.open(request, "text/event-stream;charset=UTF-8")
        try:
            if speech.fault in ("fail", "limit"):
                raise Broken
            async for kind, piece in self.pieces(speech, stream):
                if kind == "say":
                    await stream.write(frame(None, {"content": {"msg": piece, "type": "text"}}))
            counts = {
                "inputTokenCount": speech.prompt_tokens,
                "outputTokenCount": speech.completion_tokens,
                "totalTokenCount": speech.prompt_tokens + speech.completion_tokens,
            }
            node = {"model": "demo", "nodeName": "大模型", **counts}
            await stream.write(frame("stop", {}, usage=[node]))
        except Broken:
            if not stream.is_cut:
                fault = {"code": "10500", "msg": "the failure you asked for"}
                await stream.write(frame("error", {}, error_msg=fault))
        return await stream.close()


def _glms_frame(conversation: str, so_far: str, status: str) -> bytes:
    message = {
        "role": "assistant",
        "content": {"type": "text", "text": so_far},
        "status": status,
        "created_at": "2026-11-22 10:00:01",
        "meta_data": {},
    }
    ids = {"history_id": conversation, "conversation_id": conversation}
    frame = {**ids, "message": message, "status": status, "last_error": {}}
    return b"event:message\ndata:" + dumps(frame) + b"\n\n"


def _glms_error(code: int, message: str, status: int = 200) -> web.Response:
    return json({"message": message, "status": code, "result": {}}, status)


def _short_id() -> str:
    """24 hex digits."""
    return new_id().replace("-", "")[:24]


def _error(status: int, code: str, message: str) -> web.Response:
    return json({"error": {"code": code, "message": message}}, status)
