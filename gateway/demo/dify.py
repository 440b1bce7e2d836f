"""A Dify server of one app, with the framing and key order of 1.16."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

from aiohttp import web

from gateway.demo.audio import fault_in, spoken, transcript
from gateway.demo.base import Broken, Demo, Stream, dumps, json, new_id
from gateway.demo.difyfiles import (
    FileCheck,
    GivenFile,
    RefusedInput,
    upload_answer,
    upload_problem,
)
from gateway.demo.difyforms import MARK, Forms
from gateway.demo.difyhistory import Histories, error, with_thought
from gateway.demo.difyinputs import check_inputs
from gateway.demo.difysettings import FILE_TYPES, LIMITS_MB, Settings
from gateway.demo.script import Speech, speak
from gateway.demo.talks import Turn

_KIND = "text/event-stream; charset=utf-8"
_AUDIO = ("mp3", "m4a", "wav", "amr", "mpga")  # as of 1.16


class DifyDemo(Demo):
    platform = "Dify"

    def __init__(
        self,
        key: str = "",
        mode: str = "chat",
        file_types: Sequence[str] = FILE_TYPES,
        file_limit: int = 3,
        limits_mb: Mapping[str, int] | None = None,
        suggests: bool = False,
        has_audio: bool = True,
        form: Sequence[dict[str, Any]] = (),
        **kwargs: Any,
    ) -> None:
        """`mode` is the app's: chat, agent-chat, advanced-chat, completion or workflow.

        Without `file_types` the app takes no files; otherwise at most `file_limit` per question.
        `limits_mb` overrides some of the size limits of: image, video, audio, other. `suggests`:
        the app suggests next questions. With `has_audio` the app speaks and transcribes.
        `form` are more entries of its `user_input_form`.
        """
        super().__init__(key, **kwargs)
        self.mode = mode
        self.has_audio = has_audio
        sizes = {**LIMITS_MB, **(limits_mb or {})}
        self.settings = Settings(
            mode, list(file_types), file_limit, sizes, suggests, has_audio, tuple(form)
        )
        self._histories = Histories(self, self.settings, self.refusal)
        self._forms = Forms(self, self.refusal)

    def routes(self) -> list[tuple[str, str, Any]]:
        return [
            ("GET", "/v1/info", self.info),
            ("GET", "/v1/parameters", self.parameters),
            ("GET", "/v1/site", self.site),
            ("POST", "/v1/files/upload", self.upload),
            ("POST", "/v1/text-to-audio", self.text_to_audio),
            ("POST", "/v1/audio-to-text", self.audio_to_text),
            ("POST", "/v1/chat-messages", self._asking(self.chat)),
            ("POST", "/v1/completion-messages", self._asking(self.completion)),
            ("POST", "/v1/workflows/run", self._asking(self.workflow)),
            ("POST", "/v1/chat-messages/{task}/stop", self.stop),
            ("POST", "/v1/completion-messages/{task}/stop", self.stop),
            ("POST", "/v1/workflows/tasks/{task}/stop", self.stop),
            *self._histories.routes(),
            *self._forms.routes(),
        ]

    def refusal(self, request: web.Request) -> web.Response | None:
        if self.knows_key(request):
            return None
        return error(401, "unauthorized", "Access token is invalid")

    async def info(self, request: web.Request) -> web.Response:
        about = {"name": "演示应用 Demo", "description": "demo", "tags": [], "mode": self.mode}
        return self.refusal(request) or json({**about, "author_name": "AI Gateway"})

    async def parameters(self, request: web.Request) -> web.Response:
        return self.refusal(request) or json(self.settings.parameters())

    async def site(self, request: web.Request) -> web.Response:
        return self.refusal(request) or json(self.settings.site())

    async def upload(self, request: web.Request) -> web.Response:
        if refusal := self.refusal(request):
            return refusal
        form = await self.form(request, new_id)
        if problem := upload_problem(form, self.settings.limits_mb):
            return error(*problem)
        file = next(file for name, file in form.files if name == "file")
        return json(upload_answer(self.take(file), _origin(request)), 201)

    async def text_to_audio(self, request: web.Request) -> web.StreamResponse:
        body = await self.body(request)
        if refusal := self.refusal(request):
            return refusal
        if not self.has_audio:
            return error(400, "invalid_param", "TTS is not enabled")
        if not body.get("user"):
            return error(400, "invalid_param", "Arg user must be provided.")
        text = str(body.get("text") or "")
        if fault_in(text) == "fail":
            return error(400, "completion_request_error", "[demo] Error: the failure you asked for")
        return await spoken(self, request, text)

    async def audio_to_text(self, request: web.Request) -> web.Response:
        if refusal := self.refusal(request):
            return refusal
        form = await self.form(request, new_id)
        if not self.has_audio:
            return error(400, "speech_to_text_disabled", "Speech to text is disabled.")
        file = next((file for name, file in form.files if name == "file"), None)
        if not form.fields.get("user"):
            return error(400, "invalid_param", "Arg user must be provided.")
        if file is None:
            return error(400, "no_audio_uploaded", "Please upload your audio.")
        if file.mime.removeprefix("audio/") not in _AUDIO:
            return error(415, "unsupported_audio_type", "Audio type not allowed.")
        if file.size > 30 << 20:
            return error(413, "audio_too_large", "Audio size larger than 30 mb")
        return json({"text": transcript(self, self.take(file))})

    async def stop(self, request: web.Request) -> web.Response:
        body = await self.body(request)
        if not body.get("user"):
            return error(400, "invalid_param", "Arg user must be provided.")
        self.stopped.append(request.match_info["task"])
        return json({"result": "success"})

    def _asking(self, handler: Any) -> Any:
        """Wrap a handler with the common steps of all questions: read the body, check the key, and
        report refused inputs."""

        async def handle(request: web.Request) -> web.StreamResponse:
            body = await self.body(request)
            if refusal := self.refusal(request):
                return refusal
            try:
                return cast(web.StreamResponse, await handler(request, body))
            except RefusedInput as refused:
                return await self._refuse(request, body, str(refused))

        return handle

    async def chat(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if self.mode in ("completion", "workflow"):
            message = "Please check if your app mode matches the right API route."
            return error(400, "not_chat_app", message)
        if problem := _missing(body, "query"):
            return problem
        check_inputs(list(self.settings.form), body["inputs"])
        conversation = body.get("conversation_id") or new_id()
        owner = f"{body['user']}/{conversation}"
        if body.get("conversation_id") and self.conversation(owner) is None:
            return error(404, "not_found", "Conversation Not Exists.")
        files = self._files_of(body)
        earlier = self.remember(owner, body["query"])
        speech = speak("Dify", body["query"], earlier, [file.name for file in files])
        turn = self.talks.add(owner, Turn(new_id(), body["query"], files=list(files)))
        if MARK in body["query"] and body.get("response_mode") == "streaming":
            return await self._forms.pause(request, str(body["user"]), conversation, turn)
        ids = {"conversation_id": conversation}
        return await self._answer(request, body, speech, ids, turn)

    async def completion(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if self.mode != "completion":
            message = "App unavailable, please check your app configurations."
            return error(400, "app_unavailable", message)
        if problem := _missing(body):
            return problem
        check_inputs(self.settings.inputs(), body["inputs"])
        files = self._files_of(body)
        question = str(body["inputs"].get("query") or "")
        speech = speak("Dify", question, [], [file.name for file in files])
        turn = Turn(new_id(), question, files=list(files))
        return await self._answer(request, body, speech, {}, turn)

    async def workflow(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if self.mode != "workflow":
            message = "Please check if your app mode matches the right API route."
            return error(400, "not_workflow_app", message)
        if problem := _missing(body):
            return problem
        check_inputs(self.settings.inputs(), body["inputs"])
        files = self._files_of(body)
        names = [file.name for file in files]
        speech = speak("Dify", str(body["inputs"]["query"]), [], names)
        return await self._run(request, body, speech)

    def _files_of(self, body: dict[str, Any]) -> list[GivenFile]:
        """The files of a question; raises RefusedInput."""
        if not self.settings.file_types:
            return []  # Dify drops them silently
        check = FileCheck(self.settings, self.file, str(body["user"]))
        if self.mode != "workflow":
            return check.all(body.get("files"))
        value = body["inputs"].get("file")
        if value and not isinstance(value, dict):
            raise RefusedInput("file in input form must be a file")
        return [check.one(value)] if value else []

    async def _refuse(
        self, request: web.Request, body: dict[str, Any], message: str
    ) -> web.StreamResponse:
        """A streaming chatflow or workflow has answered 200 before it checks its inputs."""
        if self.settings.is_easy or body.get("response_mode") != "streaming":
            return error(400, "invalid_param", message)
        run, workflow, now = new_id(), new_id(), int(time.time())
        ids = {"task_id": run, "workflow_run_id": run}
        started = {"id": run, "workflow_id": workflow, "inputs": {}, "created_at": now}
        finished: dict[str, Any] = {
            "id": run, "workflow_id": workflow, "status": "failed", "outputs": None,
            "error": message, "elapsed_time": 0.0, "total_tokens": 0, "total_steps": 0,
            "created_by": {}, "created_at": now, "finished_at": now, "exceptions_count": 1,
            "files": [],
        }  # fmt: skip
        stream = await Stream.open(request, _KIND)
        await stream.write(b"event: ping\n\n")
        data = {**started, "reason": "initial"}
        await stream.write(_frame({"event": "workflow_started", **ids, "data": data}))
        await stream.write(_frame({"event": "workflow_finished", **ids, "data": finished}))
        return await stream.close()

    async def _answer(
        self,
        request: web.Request,
        body: dict[str, Any],
        speech: Speech,
        ids: dict[str, str],
        turn: Turn,
    ) -> web.StreamResponse:
        """An easy app: message deltas, then `message_end`."""
        if speech.fault == "limit":
            turn.fail("Too many requests.")
            return error(429, "too_many_requests", "Too many requests. Please try again later.")
        message, task = turn.id, new_id()
        envelope = {**ids, "message_id": message, "created_at": int(time.time()), "task_id": task}
        usage = _usage(speech)
        metadata: dict[str, Any] = {
            "annotation_reply": None,
            "retriever_resources": [],
            "usage": usage,
        }
        if body.get("response_mode") != "streaming":
            if self.mode == "agent-chat":
                return error(400, "invalid_param", "Agent Chat App does not support blocking mode")
            turn.finish(speech)
            answer: dict[str, Any] = {
                "answer": with_thought(speech.thought, speech.text),
                "metadata": metadata,
                "mode": self.mode,
            }
            return json({"event": "message", "id": message, **envelope, **answer})
        stream = await Stream.open(request, _KIND)
        event = "agent_message" if self.mode == "agent-chat" else "message"
        try:
            if speech.fault == "fail":
                raise Broken
            thinking = False
            async for kind, piece in self.pieces(speech, stream, turn):
                if (kind == "think") != thinking:
                    thinking = not thinking
                    piece = f"<think>\n{piece}" if thinking else f"\n</think>\n{piece}"
                frame = {"event": event, **envelope, "id": message, "answer": piece}
                await stream.write(_frame({**frame, "from_variable_selector": []}))
            end = {"event": "message_end", **envelope, "id": message, "metadata": metadata}
            # An easy app lists its caller's own files here; a chatflow only those that it made.
            shown = (
                [file.shown(_origin(request)) for file in turn.files]
                if self.settings.is_easy
                else []
            )
            await stream.write(_frame({**end, "files": shown}))
        except Broken:
            if not stream.is_cut:
                fault: dict[str, Any] = {"code": "completion_request_error", "status": 400}
                fault["message"] = "[demo] Error: the failure you asked for"
                turn.fail(fault["message"])
                await stream.write(_frame({"event": "error", **ids, **fault}))
        return await stream.close()

    async def _run(
        self, request: web.Request, body: dict[str, Any], speech: Speech
    ) -> web.StreamResponse:
        """A workflow: a ping, its nodes, text chunks, `workflow_finished`."""
        run, task = new_id(), new_id()
        ids = {"workflow_run_id": run, "task_id": task}
        tokens = speech.prompt_tokens + speech.completion_tokens
        data = {
            "id": run, "workflow_id": new_id(), "status": "succeeded",
            "outputs": {"text": speech.text}, "error": None, "elapsed_time": 1.0,
            "total_tokens": tokens, "total_steps": 3, "created_at": int(time.time()),
            "finished_at": int(time.time()),
        }  # fmt: skip
        if speech.fault in ("fail", "limit"):
            data |= {"status": "failed", "outputs": {}, "error": "the failure you asked for"}
        if body.get("response_mode") != "streaming":
            return json({**ids, "data": data})
        stream = await Stream.open(request, _KIND)
        await stream.write(b"event: ping\n\n")
        started = {"id": run, "workflow_id": data["workflow_id"], "inputs": {}, "created_at": 0}
        await stream.write(_frame({"event": "workflow_started", **ids, "data": started}))
        node = {"id": new_id(), "node_id": "1", "node_type": "llm", "title": "LLM", "index": 2}
        await stream.write(_frame({"event": "node_started", **ids, "data": node}))
        try:
            if data["status"] == "succeeded":
                async for kind, piece in self.pieces(speech, stream):
                    if kind == "say":
                        chunk = {"text": piece, "from_variable_selector": ["1", "text"]}
                        await stream.write(_frame({"event": "text_chunk", **ids, "data": chunk}))
                done = {**node, "status": "succeeded", "outputs": {"usage": _usage(speech)}}
                await stream.write(_frame({"event": "node_finished", **ids, "data": done}))
        except Broken:
            data |= {"status": "failed", "outputs": {}, "error": "the failure you asked for"}
        if not stream.is_cut:
            await stream.write(_frame({"event": "workflow_finished", **ids, "data": data}))
        return await stream.close()


def _origin(request: web.Request) -> str:
    return f"{request.scheme}://{request.host}"


def _frame(value: dict[str, Any]) -> bytes:
    return b"data: " + dumps(value) + b"\n\n"


def _missing(body: dict[str, Any], *names: str) -> web.Response | None:
    if not isinstance(body.get("inputs"), dict):
        return error(400, "invalid_param", "inputs: Field required")
    for name in names:
        if not body.get(name):
            return error(400, "invalid_param", f"{name} is required")
    if not body.get("user"):
        return error(400, "invalid_param", "Arg user must be provided.")
    return None


def _usage(speech: Speech) -> dict[str, Any]:
    prompt, completion = speech.prompt_tokens, speech.completion_tokens
    return {
        "prompt_tokens": prompt, "prompt_unit_price": "0", "prompt_price_unit": "0",
        "prompt_price": "0E-7", "completion_tokens": completion, "completion_unit_price": "0",
        "completion_price_unit": "0", "completion_price": "0E-7",
        "total_tokens": prompt + completion, "total_price": "0E-7", "currency": "USD",
        "latency": 0.1,
    }  # fmt: skip
