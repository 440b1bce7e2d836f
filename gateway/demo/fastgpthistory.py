"""The conversations of a FastGPT app: records, titles, feedback, next questions."""

import time
import uuid
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from gateway.demo.base import Demo, json
from gateway.demo.talks import Turn

_NEXT = ["还能做什么？", "怎么接入我的智能体？"]
BAD_KEY = {
    "code": 514,
    "statusText": "unAuthApiKey",
    "message": "common:code_error.error_message.514",
    "data": None,
}


class Histories:
    """The calls on conversations. FastGPT checks the key only."""

    def __init__(self, demo: Demo, has_moved: bool) -> None:
        self._demo = demo
        self._has_moved = has_moved

    def routes(self) -> list[tuple[str, str, Any]]:
        chat = "/api/core/chat"
        places = [
            (
                ("POST", "getPaginationRecords"),
                ("POST", "record/getPaginationRecords"),
                self.records,
            ),
            (("POST", "updateHistory"), ("PUT", "history/updateHistory"), self.rename),
            (("DELETE", "delHistory"), ("DELETE", "history/delHistory"), self.delete),
        ]
        moved = [(newer if self._has_moved else older, call) for older, newer, call in places]
        return [
            *((method, f"{chat}/{path}", self._call(call)) for (method, path), call in moved),
            ("POST", f"{chat}/feedback/updateUserFeedback", self._call(self.feedback)),
            ("POST", "/api/core/ai/agent/v2/createQuestionGuide", self._call(self.guide)),
        ]

    def _call(self, handler: Any) -> Any:
        """A handler that gets the body and the query of a permitted request."""

        async def handle(request: web.Request) -> web.Response:
            body = {**request.query, **await self._demo.body(request)}
            if not self._demo.knows_key(request):
                return json(BAD_KEY, 500)
            if not body.get("appId") or not body.get("chatId"):
                return json(error(500, "appId or chatId is empty"), 500)
            answer: web.Response = handler(body)
            return answer

        return handle

    def records(self, body: dict[str, Any]) -> web.Response:
        """Items from the end: `offset` counts the newer ones; within a page the oldest is first."""
        talk = self._demo.talks.get(body["chatId"])
        items = [item for turn in (talk.turns if talk else ()) for item in _items(turn)]
        end = max(len(items) - int(body.get("offset", 0)), 0)
        start = max(end - int(body.get("pageSize", 10)), 0)
        return good({"list": items[start:end], "total": len(items)})

    def rename(self, body: dict[str, Any]) -> web.Response:
        if talk := self._demo.talks.get(body["chatId"]):
            talk.title = body.get("customTitle", talk.title)
        return good(None)

    def delete(self, body: dict[str, Any]) -> web.Response:
        self._demo.forget(body["chatId"])
        return good(None)

    def feedback(self, body: dict[str, Any]) -> web.Response:
        """What is not sent is removed; an unknown item is no error."""
        talk = self._demo.talks.get(body["chatId"])
        if talk and (turn := talk.turn(body.get("dataId", ""))):
            names = ("userGoodFeedback", "userBadFeedback")
            turn.feedback = {name: body[name] for name in names if body.get(name)}
        return good(None)

    def guide(self, body: dict[str, Any]) -> web.Response:
        return good(_NEXT if self._demo.talks.get(body["chatId"]) else [])


def _items(turn: Turn) -> list[dict[str, Any]]:
    moment = datetime.fromtimestamp(turn.created, UTC).isoformat(timespec="milliseconds")
    shared = {"time": moment.replace("+00:00", "Z"), "hideInUI": False}
    asked = [{"type": "file", "file": file} for file in turn.files]
    if turn.question:
        asked.append(_text(turn.question))
    thought = [{"type": "reasoning", "reasoning": {"content": turn.reasoning}}]
    said = [*(thought if turn.reasoning else ()), _text(turn.answer)]
    own = {
        "durationSeconds": 0.1, "llmModuleAccount": 1, "totalQuoteList": [],
        "historyPreviewLength": 2, **(turn.feedback or {}),
    }  # fmt: skip
    at = int(turn.created)
    human = {"dataId": turn.question_id, "obj": "Human", "value": asked, **shared}
    ai = {"dataId": turn.id, "obj": "AI", "value": said, **shared}
    return [
        {**human, "_id": _of(at, turn.question_id)},
        {**ai, "_id": _of(at, turn.id), **own},
    ]


def _text(content: str) -> dict[str, Any]:
    return {"type": "text", "text": {"content": content}}


def _of(moment: int, name: str) -> str:
    """The same ObjectId for the same item."""
    return f"{moment:08x}{uuid.uuid5(uuid.NAMESPACE_OID, name).hex[:16]}"


def object_id() -> str:
    return f"{int(time.time()):08x}{uuid.uuid4().hex[:16]}"


def good(data: Any) -> web.Response:
    return json({"code": 200, "statusText": "", "message": "", "data": data})


def error(code: int, message: str) -> dict[str, Any]:
    return {"code": code, "statusText": "", "message": message, "data": None}
