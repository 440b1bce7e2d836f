"""A Dify server of one app, with the framing and key order of 1.16."""

import time
from typing import Any

from aiohttp import web

from gateway.demo.mind import Speech, speak
from gateway.demo.stage import Broken, Demo, Stream, dumps, json, new_id

_KIND = "text/event-stream; charset=utf-8"


class DifyDemo(Demo):
    platform = "Dify"

    def __init__(self, key: str = "", mode: str = "chat", **kwargs: Any) -> None:
        """`mode` is the app's: chat, agent-chat, advanced-chat, completion or workflow."""
        super().__init__(key, **kwargs)
        self.mode = mode

    def routes(self) -> list[tuple[str, str, Any]]:
        return [
            ("GET", "/v1/info", self.info),
            ("GET", "/v1/parameters", self.parameters),
            ("POST", "/v1/chat-messages", self.chat),
            ("POST", "/v1/completion-messages", self.completion),
            ("POST", "/v1/workflows/run", self.workflow),
            ("POST", "/v1/chat-messages/{task}/stop", self.stop),
            ("POST", "/v1/completion-messages/{task}/stop", self.stop),
            ("POST", "/v1/workflows/tasks/{task}/stop", self.stop),
        ]

    def _refusal(self, request: web.Request) -> web.Response | None:
        if self.knows_key(request):
            return None
        return _error(401, "unauthorized", "Access token is invalid")

    async def info(self, request: web.Request) -> web.Response:
        about = {"name": "演示应用 Demo", "description": "demo", "tags": [], "mode": self.mode}
        return self._refusal(request) or json({**about, "author_name": "AI Gateway"})

    async def parameters(self, request: web.Request) -> web.Response:
        field = {"label": "问题", "variable": "query", "required": True, "default": ""}
        form = [{"paragraph": field}] if self.mode in ("workflow", "completion") else []
        return self._refusal(request) or json({"opening_statement": "", "user_input_form": form})

    async def stop(self, request: web.Request) -> web.Response:
        body = await self.body(request)
        if not body.get("user"):
            return _error(400, "invalid_param", "Arg user must be provided.")
        self.stopped.append(request.match_info["task"])
        return json({"result": "success"})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await self.body(request)
        if refusal := self._refusal(request):
            return refusal
        if self.mode in ("completion", "workflow"):
            words = "Please check if your app mode matches the right API route."
            return _error(400, "not_chat_app", words)
        if problem := _missing(body, "query"):
            return problem
        conversation = body.get("conversation_id") or new_id()
        owner = f"{body['user']}/{conversation}"
        if body.get("conversation_id") and self.conversation(owner) is None:
            return _error(404, "not_found", "Conversation Not Exists.")
        earlier = self.remember(owner, body["query"])
        speech = speak("Dify", body["query"], earlier, len(body.get("files") or []))
        return await self._answer(request, body, speech, {"conversation_id": conversation})

    async def completion(self, request: web.Request) -> web.StreamResponse:
        body = await self.body(request)
        if refusal := self._refusal(request):
            return refusal
        if self.mode != "completion":
            words = "App unavailable, please check your app configurations."
            return _error(400, "app_unavailable", words)
        if problem := _missing(body):
            return problem
        speech = speak("Dify", str(body["inputs"].get("query") or ""), [])
        return await self._answer(request, body, speech, {})

    async def workflow(self, request: web.Request) -> web.StreamResponse:
        body = await self.body(request)
        if refusal := self._refusal(request):
            return refusal
        if self.mode != "workflow":
            words = "Please check if your app mode matches the right API route."
            return _error(400, "not_workflow_app", words)
        if problem := _missing(body):
            return problem
        if not body["inputs"].get("query"):
            return _error(400, "invalid_param", "query is required in input form")
        return await self._run(request, body, speak("Dify", str(body["inputs"]["query"]), []))

    async def _answer(
        self, request: web.Request, body: dict[str, Any], speech: Speech, ids: dict[str, str]
    ) -> web.StreamResponse:
        """An easy app: message deltas, then `message_end`."""
        if speech.fault == "limit":
            return _error(429, "too_many_requests", "Too many requests. Please try again later.")
        message, task = new_id(), new_id()
        envelope = {**ids, "message_id": message, "created_at": int(time.time()), "task_id": task}
        usage = _usage(speech)
        metadata: dict[str, Any] = {
            "annotation_reply": None,
            "retriever_resources": [],
            "usage": usage,
        }
        if body.get("response_mode") != "streaming":
            if self.mode == "agent-chat":
                words = "Agent Chat App does not support blocking mode"
                return _error(400, "invalid_param", words)
            answer: dict[str, Any] = {
                "answer": _with_thought(speech),
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
            async for kind, piece in self.pieces(speech, stream):
                if (kind == "think") != thinking:
                    thinking = not thinking
                    piece = f"<think>\n{piece}" if thinking else f"\n</think>\n{piece}"
                frame = {"event": event, **envelope, "id": message, "answer": piece}
                await stream.write(_frame({**frame, "from_variable_selector": []}))
            end = {"event": "message_end", **envelope, "id": message, "metadata": metadata}
            await stream.write(_frame({**end, "files": []}))
        except Broken:
            if not stream.is_cut:
                fault: dict[str, Any] = {"code": "completion_request_error", "status": 400}
                fault["message"] = "[demo] Error: the failure you asked for"
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


def _frame(value: dict[str, Any]) -> bytes:
    return b"data: " + dumps(value) + b"\n\n"


def _missing(body: dict[str, Any], *names: str) -> web.Response | None:
    if not isinstance(body.get("inputs"), dict):
        return _error(400, "invalid_param", "inputs: Field required")
    for name in names:
        if not body.get(name):
            return _error(400, "invalid_param", f"{name} is required")
    if not body.get("user"):
        return _error(400, "invalid_param", "Arg user must be provided.")
    return None


def _error(status: int, code: str, message: str) -> web.Response:
    return json({"code": code, "message": message, "status": status}, status)


def _with_thought(speech: Speech) -> str:
    thought = f"<think>\n{speech.thought}\n</think>\n" if speech.reasoning else ""
    return thought + speech.text


def _usage(speech: Speech) -> dict[str, Any]:
    prompt, completion = speech.prompt_tokens, speech.completion_tokens
    return {
        "prompt_tokens": prompt, "prompt_unit_price": "0", "prompt_price_unit": "0",
        "prompt_price": "0E-7", "completion_tokens": completion, "completion_unit_price": "0",
        "completion_price_unit": "0", "completion_price": "0E-7",
        "total_tokens": prompt + completion, "total_price": "0E-7", "currency": "USD",
        "latency": 0.1,
    }  # fmt: skip
