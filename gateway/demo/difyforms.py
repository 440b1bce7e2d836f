"""Human input of a Dify chatflow: `#form` in a question pauses the run until its form is sent."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from gateway.demo.base import Demo, Stream, dumps, json, new_id
from gateway.demo.difyhistory import error
from gateway.demo.talks import Turn

MARK = "#form"
MAX_RUNS = 1000
_KIND = "text/event-stream; charset=utf-8"
_TEXT = "请确认你的问题 ✅ / Please confirm your question"
_ACTIONS = [
    {"id": "approve", "title": "同意", "button_style": "primary"},
    {"id": "reject", "title": "驳回", "button_style": "default"},
]
_FORM_S = 3600


@dataclass
class _Run:
    """A run that waits, then has an answer."""

    user: str
    ids: dict[str, str]
    turn: Turn
    token: str
    action: str = ""
    comment: str = ""


class Forms:
    """The calls on forms, and on the runs that wait for them."""

    def __init__(self, demo: Demo, refusal: Callable[[web.Request], web.Response | None]) -> None:
        self._demo = demo
        self._refusal = refusal
        self._runs: OrderedDict[str, _Run] = OrderedDict()

    def routes(self) -> list[tuple[str, str, Any]]:
        return [
            ("POST", "/v1/form/human_input/{token}", self.submit),
            ("GET", "/v1/workflow/{run}/events", self.events),
        ]

    async def pause(
        self, request: web.Request, user: str, conversation: str, turn: Turn
    ) -> web.StreamResponse:
        """The stream of a run that begins to wait."""
        run_id = new_id()
        ids = {
            "conversation_id": conversation,
            "message_id": turn.id,
            "task_id": new_id(),
            "workflow_run_id": run_id,
        }
        run = self._runs[run_id] = _Run(user, ids, turn, new_id())
        while len(self._runs) > MAX_RUNS:
            self._runs.popitem(last=False)
        form = {
            "form_id": new_id(),
            "node_id": "1",
            "node_title": "人工审批",
            "form_content": _TEXT,
            "inputs": [{"type": "paragraph", "output_variable_name": "comment", "default": None}],
            "actions": _ACTIONS,
            "display_in_ui": False,
            "form_token": run.token,
            "resolved_default_values": {},
            "expiration_time": int(time.time()) + _FORM_S,
        }
        reason = {"TYPE": "human_input_required", **form}
        paused = {"workflow_run_id": run_id, "paused_nodes": ["1"], "outputs": {}}
        stream = await Stream.open(request, _KIND)
        await stream.write(b"event: ping\n\n")
        await self._write(stream, run, "workflow_started", id=run_id, reason="initial")
        await self._write(stream, run, "human_input_required", **form)
        await self._write(
            stream, run, "workflow_paused", **paused, reasons=[reason], status="paused"
        )
        return await stream.close()

    async def submit(self, request: web.Request) -> web.Response:
        body = await self._demo.body(request)
        if refusal := self._refusal(request):
            return refusal
        token = request.match_info["token"]
        run = next((run for run in self._runs.values() if run.token == token), None)
        if run is None:
            return error(404, "not_found", "Form not found")
        if run.action:
            return error(412, "human_input_form_submitted", "This form has already been submitted")
        if body.get("action") not in [action["id"] for action in _ACTIONS]:
            return error(400, "invalid_param", "Invalid action")
        inputs = body.get("inputs")
        run.action = body["action"]
        run.comment = str(inputs.get("comment") or "") if isinstance(inputs, dict) else ""
        return json({})

    async def events(self, request: web.Request) -> web.StreamResponse:
        await self._demo.body(request)
        if refusal := self._refusal(request):
            return refusal
        run = self._runs.get(request.match_info["run"])
        if run is None or request.query.get("user") != run.user or not run.action:
            return error(404, "not_found", "Workflow run not found")
        title = next(str(each["title"]) for each in _ACTIONS if each["id"] == run.action)
        text = f"“{title}”已收到 🎊。{run.comment}"
        run.turn.answer, run.turn.status = text, "completed"
        message = {"id": run.turn.id, "answer": text, "from_variable_selector": ["answer"]}
        end = {"id": run.turn.id, "metadata": {"retriever_resources": [], "usage": {}}}
        finished = {"status": "succeeded", "outputs": {"answer": text}, "error": None}
        stream = await Stream.open(request, _KIND)
        await stream.write(b"event: ping\n\n")
        await self._write(stream, run, "workflow_started", reason="resumption")
        await self._write(stream, run, "human_input_form_filled", action_id=run.action)
        await stream.write(_frame({"event": "message", **run.ids, **message}))
        await stream.write(_frame({"event": "message_end", **run.ids, **end}))
        await self._write(stream, run, "workflow_finished", **finished)
        return await stream.close()

    async def _write(self, stream: Stream, run: _Run, event: str, **data: Any) -> None:
        await stream.write(_frame({"event": event, **run.ids, "data": data}))


def _frame(value: dict[str, Any]) -> bytes:
    return b"data: " + dumps(value) + b"\n\n"
