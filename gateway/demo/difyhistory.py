"""The conversations of a Dify app: messages, names, feedback, next questions."""

import uuid
from collections.abc import Callable
from typing import Any

from aiohttp import web

from gateway.demo.base import Demo, json
from gateway.demo.difysettings import Settings
from gateway.demo.talks import Talk, Turn

_NO_PARENT = "00000000-0000-0000-0000-000000000000"
_STATUS = {"failed": "error"}
_NEXT = ["还能做什么？", "怎么接入我的智能体？"]


class Histories:
    """The calls on conversations. Each knows an end user's own ones only."""

    def __init__(
        self,
        demo: Demo,
        settings: Settings,
        refusal: Callable[[web.Request], web.Response | None],
    ) -> None:
        self._demo = demo
        self._settings = settings
        self._refusal = refusal

    def routes(self) -> list[tuple[str, str, Any]]:
        return [
            ("GET", "/v1/messages", self._call(self.messages)),
            ("POST", "/v1/conversations/{conversation}/name", self._call(self.name)),
            ("DELETE", "/v1/conversations/{conversation}", self._call(self.delete)),
            ("POST", "/v1/messages/{message}/feedbacks", self._call(self.feedback)),
            ("GET", "/v1/messages/{message}/suggested", self._call(self.suggested)),
        ]

    def _call(self, handler: Any) -> Any:
        """A handler that gets the body, or the query, of a permitted request as a dictionary."""

        async def handle(request: web.Request) -> web.Response:
            body = await self._demo.body(request)
            values = dict(request.query) if request.method == "GET" else body
            if refusal := self._refusal(request):
                return refusal
            if not values.get("user"):
                return error(400, "invalid_param", "Arg user must be provided.")
            if self._settings.mode in ("completion", "workflow"):
                message = "Please check if your app mode matches the right API route."
                return error(400, "not_chat_app", message)
            answer: web.Response = handler(request, values)
            return answer

        return handle

    def _talk(self, user: str, conversation: str) -> Talk | None:
        owner = f"{user}/{conversation}"
        return self._demo.talks.get(owner) if self._demo.conversation(owner) is not None else None

    def messages(self, request: web.Request, query: dict[str, Any]) -> web.Response:
        conversation = query.get("conversation_id", "")
        if not conversation or not _is_uuid(conversation):
            return error(400, "invalid_param", _pydantic(conversation))
        talk = self._talk(query["user"], conversation)
        if talk is None:
            return _no_conversation("messages")
        turns, limit = talk.turns, int(query.get("limit", 20))
        if first := query.get("first_id"):
            turn = talk.turn(first)
            if turn is None:
                return error(404, "not_found", "First Message Not Exists.")
            turns = turns[: turns.index(turn)]
        origin = f"{request.scheme}://{request.host}"
        shown = [_message(turn, conversation, origin) for turn in turns[-limit:]]
        return json({"limit": limit, "has_more": len(turns) > limit, "data": shown})

    def name(self, request: web.Request, body: dict[str, Any]) -> web.Response:
        id_ = request.match_info["conversation"]
        talk = self._talk(body["user"], id_)
        if talk is None:
            return _no_conversation(f"conversations/{id_}/name")
        if body.get("auto_generate") is True:
            talk.title = (talk.turns[0].question if talk.turns else "")[:20]
        elif body.get("name"):
            talk.title = body["name"]
        else:
            return error(400, "invalid_param", "name is required when auto_generate is false")
        return json({
            "id": id_, "name": talk.title, "inputs": {}, "status": "normal",
            "introduction": "你好，我是演示应用。", "created_at": talk.created,
            "updated_at": talk.created,
        })  # fmt: skip

    def delete(self, request: web.Request, body: dict[str, Any]) -> web.Response:
        id_ = request.match_info["conversation"]
        if not self._demo.forget(f"{body['user']}/{id_}"):
            return _no_conversation(f"conversations/{id_}")
        return web.Response(status=204, content_type="application/json")

    def feedback(self, request: web.Request, body: dict[str, Any]) -> web.Response:
        turn = self._message(request, body["user"])
        if turn is None:
            return error(404, "not_found", "Message Not Exists.")
        rating = body.get("rating")
        if rating not in ("like", "dislike", None):
            return error(400, "invalid_param", "Input should be 'like' or 'dislike'")
        if rating is None and turn.feedback is None:
            message = "rating cannot be None when feedback not exists"
            return error(400, "invalid_param", message)
        turn.feedback = {"rating": rating, "content": body.get("content")} if rating else None
        return json({"result": "success"})

    def suggested(self, request: web.Request, query: dict[str, Any]) -> web.Response:
        if self._message(request, query["user"]) is None:
            return error(404, "not_found", "Message Not Exists.")
        if not self._settings.suggests:
            return error(400, "bad_request", "Suggested Questions Is Disabled.")
        return json({"result": "success", "data": _NEXT})

    def _message(self, request: web.Request, user: str) -> Turn | None:
        """The user's message, in whichever conversation it is."""
        talks = [talk for key, talk in self._demo.talks.items() if key.startswith(f"{user}/")]
        found = (talk.turn(request.match_info["message"]) for talk in talks)
        return next((turn for turn in found if turn), None)


def _message(turn: Turn, conversation: str, origin: str) -> dict[str, Any]:
    files = [_message_file(file.shown(origin)) for file in turn.files]
    rating = turn.feedback and {"rating": turn.feedback["rating"]}
    return {
        "id": turn.id, "conversation_id": conversation, "parent_message_id": _NO_PARENT,
        "inputs": {}, "query": turn.question, "answer": with_thought(turn.reasoning, turn.answer),
        "feedback": rating, "retriever_resources": [], "created_at": int(turn.created),
        "agent_thoughts": [], "message_files": files, "message_tokens": turn.prompt_tokens,
        "answer_tokens": turn.completion_tokens, "provider_response_latency": 0.1,
        "total_price": "0E-7", "currency": "USD", "status": _STATUS.get(turn.status, "normal"),
        "error": turn.error or None, "extra_contents": [],
        "total_tokens": turn.prompt_tokens + turn.completion_tokens,
    }  # fmt: skip


def _message_file(shown: dict[str, Any]) -> dict[str, Any]:
    names = ("filename", "type", "url", "mime_type", "size", "transfer_method")
    own = {name: shown[name] for name in names}
    ids = {"belongs_to": "user", "upload_file_id": shown["upload_file_id"]}
    return {"id": shown["related_id"], **own, **ids}


def with_thought(thought: str, text: str) -> str:
    return f"<think>\n{thought}\n</think>\n{text}" if thought else text


def _no_conversation(path: str) -> web.Response:
    hint = f"You have requested this URI [/v1/{path}] but did you mean /v1/{path} ?"
    return error(404, "not_found", f"Conversation Not Exists. {hint}")


def _is_uuid(text: str) -> bool:
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True


def _pydantic(conversation: str) -> str:
    problem = (
        "Value error, conversation_id must be a valid UUID" if conversation else "Field required"
    )
    return f"1 validation error for MessageListQuery\nconversation_id\n  {problem}"


def error(status: int, code: str, message: str) -> web.Response:
    return json({"code": code, "message": message, "status": status}, status)
