"""The conversations of a Coze bot: messages, names, sections, feedback."""

from typing import Any, Literal

from aiohttp import web

from gateway.demo.base import Demo, digits, json
from gateway.demo.talks import Talk, Turn

_BOT = "7553210987654300001"


class Histories:
    """The calls on conversations. Coze checks the token only."""

    def __init__(self, demo: Demo, pages_by: Literal["time", "list"]) -> None:
        self._demo = demo
        self._pages_by = pages_by

    def routes(self) -> list[tuple[str, str, Any]]:
        one = "/v1/conversations/{conversation}"
        feedback = f"{one}/messages/{{message}}/feedback"
        return [
            ("POST", "/v1/conversation/message/list", self._call(self.messages)),
            ("PUT", one, self._call(self.rename)),
            ("DELETE", one, self._call(self.delete)),
            ("POST", f"{one}/clear", self._call(self.clear)),
            ("POST", feedback, self._call(self.feedback)),
            ("DELETE", feedback, self._call(self.feedback)),
        ]

    def _call(self, handler: Any) -> Any:
        """A handler that gets the id, the conversation and the body of a permitted request."""

        async def handle(request: web.Request) -> web.Response:
            body = await self._demo.body(request)
            if not self._demo.knows_key(request):
                return envelope(4100, "access token invalid", 401)
            id_ = request.match_info.get("conversation") or request.query.get("conversation_id", "")
            if self._demo.conversation(id_) is None:
                return envelope(4002, "conversation not found")
            answer: web.Response = handler(request, id_, self._demo.talks[id_], body)
            return answer

        return handle

    def messages(
        self, request: web.Request, id_: str, talk: Talk, body: dict[str, Any]
    ) -> web.Response:
        found = [message for turn in talk.turns for message in _messages(turn, id_)]
        is_descending = body.get("order", "desc") == "desc"
        if is_descending:
            found.reverse()
        ids = [message["id"] for message in found]
        before, after = body.get("before_id"), body.get("after_id")
        if self._pages_by == "time" and is_descending:
            before, after = after, before
        limit = int(body.get("limit", 50))
        if after in ids:
            rest = found[ids.index(after) + 1 :]
            page, has_more = rest[:limit], len(rest) > limit
        elif before in ids:
            rest = found[: ids.index(before)]
            page, has_more = rest[-limit:], len(rest) > limit
        else:
            page, has_more = found[:limit], len(found) > limit
        ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {}
        return _good(page, **ends, has_more=has_more)

    def rename(
        self, request: web.Request, id_: str, talk: Talk, body: dict[str, Any]
    ) -> web.Response:
        name = str(body.get("name", ""))
        if not 0 < len(name) <= 100:
            return envelope(4000, "name is too long")
        talk.title = name
        return _good({"id": id_, "name": name})

    def delete(
        self, request: web.Request, id_: str, talk: Talk, body: dict[str, Any]
    ) -> web.Response:
        self._demo.forget(id_)
        return _good(None)

    def clear(
        self, request: web.Request, id_: str, talk: Talk, body: dict[str, Any]
    ) -> web.Response:
        """The messages stay, but the bot forgets them."""
        self._demo.clear_context(id_)
        talk.section += 1
        return _good({"id": f"{id_}{talk.section}", "conversation_id": id_})

    def feedback(
        self, request: web.Request, id_: str, talk: Talk, body: dict[str, Any]
    ) -> web.Response:
        turn = talk.turn(request.match_info["message"])
        if turn is None:
            return envelope(4001, "message not found")
        is_short = len(body.get("comment", "")) <= 250 and len(body.get("reason_types", ())) <= 10
        if not is_short or any(len(reason) > 30 for reason in body.get("reason_types", ())):
            return envelope(4000, "comment or reason_types too long")
        turn.feedback = body if request.method == "POST" else None
        return _good(None)


def _messages(turn: Turn, conversation: str) -> list[dict[str, Any]]:
    """The messages of a turn, the oldest first. Times are numbers or digits, as Coze has both."""
    now = int(turn.created)
    shared = {"conversation_id": conversation, "chat_id": turn.run, "meta_data": {}}
    times = {"created_at": str(now), "updated_at": str(now)}
    asked = [
        {"id": each["id"], **shared, "bot_id": "", "role": "user", "type": "question",
         "content": each["content"], "content_type": each["content_type"], **times}
        for each in turn.files
    ]  # fmt: skip
    if not turn.answer:
        return asked
    said = [(turn.id, turn.answer), *(turn.more if turn.status == "completed" else ())]
    answers = [
        {"id": id_, **shared, "bot_id": _BOT, "role": "assistant", "type": "answer",
         "content": text, "content_type": "text", "created_at": now + 1, "updated_at": str(now + 1)}
        for id_, text in said
    ]  # fmt: skip
    if turn.reasoning:
        answers[0]["reasoning_content"] = turn.reasoning
    return [*asked, *answers]


def _good(data: Any, **more: Any) -> web.Response:
    body = {} if data is None else {"data": data}
    return json({"code": 0, "msg": "", **body, **more, "detail": {"logid": digits()}})


def envelope(code: int, message: str, status: int = 200) -> web.Response:
    body = {"code": code, "msg": message, "detail": {"logid": digits()}}
    return json(body, status, **{"x-tt-logid": digits()})
