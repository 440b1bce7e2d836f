"""A RAGFlow server of one tenant: chat assistants and agents, with sessions and citations."""

import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal

from aiohttp import web

from gateway.demo.base import Broken, Demo, Stream, dumps, json
from gateway.demo.script import Speech, speak
from gateway.demo.talks import Talk, Turn

_KIND = "text/event-stream; charset=utf-8"
_CHUNK: dict[str, Any] = {
    "id": "b48c170e90f70af9", "content": "AI Gateway 把多个智能体平台放在同一个接口后面。",
    "document_id": "8e1f0a2a7b1f11f0", "document_name": "AI Gateway.md",
    "dataset_id": "3d0c9b117b1f11f0", "image_id": "", "url": None, "similarity": 0.81,
    "vector_similarity": 0.74, "term_similarity": 0.86, "positions": [], "doc_type": "text",
}  # fmt: skip
_DOCUMENT = {"doc_name": "AI Gateway.md", "doc_id": "8e1f0a2a7b1f11f0", "count": 1}
_CHUNK_KEY = "347"  # agents know chunks by a hash

# A picture of one pixel: RAGFlow stores icons in this form.
ICON = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGBgAAAABQAB"
    "h6FO1AAAAABJRU5ErkJggg=="
)

Send = Callable[[Any], Awaitable[None]]


class RAGFlowDemo(Demo):
    """`version`: `delta` is that of 0.26, `cumulative` of 0.23 with the endpoints of its time.

    `parameters` are variables of the assistant, `inputs` of the agent by name. `#form` makes an
    agent wait for a choice.
    """

    platform = "RAGFlow"

    def __init__(
        self,
        key: str = "",
        version: Literal["delta", "cumulative"] = "delta",
        parameters: Sequence[dict[str, Any]] = (),
        inputs: Mapping[str, dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(key, **kwargs)
        self.version = version
        self.parameters = [{"key": "knowledge", "optional": False}, *parameters]
        self.inputs = dict(inputs or {})

    def routes(self) -> list[tuple[str, str, Any]]:
        newer = [
            ("POST", "/api/v1/chat/completions", self.chat),
            ("POST", "/api/v1/agents/chat/completions", self.agent),
            ("GET", "/api/v1/chats/{bot}", self.about),
            ("PATCH", "/api/v1/chats/{bot}/sessions/{session}", self.rename),
            (
                "PUT",
                "/api/v1/chats/{bot}/sessions/{session}/messages/{message}/feedback",
                self.rate,
            ),
            ("GET", "/api/v1/agents/{bot}", self.about_agent),
        ]
        older = [("PUT", "/api/v1/chats/{bot}/sessions/{session}", self.rename)]
        return [
            *(newer if self.version == "delta" else older),
            ("GET", "/api/v1/chats", self.chats),
            ("GET", "/api/v1/agents", self.agents),
            ("POST", "/api/v1/chats/{bot}/sessions", self.create_session),
            ("POST", "/api/v1/agents/{bot}/sessions", self.create_session),
            ("GET", "/api/v1/{bots:chats|agents}/{bot}/sessions", self.sessions),
            ("DELETE", "/api/v1/{bots:chats|agents}/{bot}/sessions", self.delete),
            ("POST", "/api/v1/chats/{bot}/completions", self.chat),
            ("POST", "/api/v1/agents/{bot}/completions", self.agent),
        ]

    def _refusal(self, request: web.Request) -> web.Response | None:
        if self.knows_key(request):
            return None
        return _error(109, "Authentication error: API key is invalid!")

    async def about(self, request: web.Request) -> web.Response:
        bot = {
            "create_time": 1795312801000, "dataset_ids": ["3d0c9b117b1f11f0"],
            "description": "演示助手", "do_refer": "1", "icon": ICON,
            "id": request.match_info["bot"],
            "kb_names": ["手册"], "language": "Chinese", "llm_id": "demo", "llm_setting": {},
            "name": "演示助手 Demo", "prompt_config": {
                "empty_response": "", "parameters": self.parameters,
                "prologue": "你好，我是演示助手。", "quote": True, "refine_multiturn": True,
                "system": "The prompt. {knowledge}", "tts": False,
            }, "prompt_type": "simple", "status": "1",
        }  # fmt: skip
        return self._refusal(request) or _good(bot)

    async def chats(self, request: web.Request) -> web.Response:
        bot: dict[str, Any] = {
            "avatar": ICON, "datasets": [], "description": "演示助手", "do_refer": "1",
            "id": request.query.get("id"), "language": "Chinese", "llm": {"model_name": "demo"},
            "name": "演示助手 Demo", "prompt": {
                "empty_response": "", "opener": "你好，我是演示助手。",
                "prompt": "The prompt. {knowledge}", "show_quote": True, "tts": False,
                "variables": self.parameters,
            }, "prompt_type": "simple", "status": "1",
        }  # fmt: skip
        return self._refusal(request) or _good([bot])

    async def about_agent(self, request: web.Request) -> web.Response:
        return self._refusal(request) or _good(self._agent(request.match_info["bot"]))

    async def agents(self, request: web.Request) -> web.Response:
        return self._refusal(request) or _good([self._agent(request.query.get("id", ""))])

    def _agent(self, bot: str) -> dict[str, Any]:
        """With its graph, as servers have it since 0.20; before, `query` was in place of
        `inputs`."""
        params: dict[str, Any] = {
            "enablePrologue": True, "mode": "conversational", "prologue": "你好，我是演示智能体。",
        }  # fmt: skip
        if self.version == "delta":
            params["inputs"] = {name: {**each, "name": name} for name, each in self.inputs.items()}
        else:
            params["query"] = [{**each, "key": name} for name, each in self.inputs.items()]
        begin = {"component_name": "Begin", "params": params}
        components = {
            "Agent:Demo": {
                "obj": {"component_name": "Agent", "params": {"sys_prompt": "The prompt."}},
                "downstream": [], "upstream": ["begin"],
            },
            "begin": {"obj": begin, "downstream": ["Agent:Demo"], "upstream": []},
        }  # fmt: skip
        dsl = {"components": components, "globals": {}, "graph": {}, "history": [], "path": []}
        return {
            "avatar": ICON, "canvas_category": "agent_canvas", "canvas_type": None,
            "description": "演示智能体", "dsl": dsl, "id": bot, "permission": "me",
            "title": "演示智能体 Demo", "user_id": "1",
        }  # fmt: skip

    async def create_session(self, request: web.Request) -> web.Response:
        body = await self.body(request)
        if refusal := self._refusal(request):
            return refusal
        session = _new_id()
        self._conversations[session] = []
        self.talks[session].title = str(body.get("name"))
        return _good({"id": session, "name": body.get("name"), "messages": []})

    async def sessions(self, request: web.Request) -> web.Response:
        """The session with the query's `id`, whole; no others are listed."""
        id_ = request.query.get("id", "")
        talk = self._talk(id_)
        shown = [_session(id_, talk, self.version == "delta")] if talk else []
        return self._refusal(request) or _good(shown)

    def _talk(self, session: str) -> Talk | None:
        return None if self.conversation(session) is None else self.talks[session]

    async def rename(self, request: web.Request) -> web.Response:
        body, id_ = await self.body(request), request.match_info["session"]
        talk = self._talk(id_)
        if refusal := self._refusal(request):
            return refusal
        if talk is None:
            return _error(102, "Session not found!")
        talk.title = str(body.get("name"))
        return _good(_session(id_, talk, True))

    async def delete(self, request: web.Request) -> web.Response:
        body = await self.body(request)
        if refusal := self._refusal(request):
            return refusal
        for id_ in body.get("ids") or list(self._conversations):  # as some versions do
            if not self.forget(str(id_)):
                return _error(102, f"The chat doesn't own the session {id_}")
        return _good(True)

    async def rate(self, request: web.Request) -> web.Response:
        """An unknown message is no error."""
        body, talk = await self.body(request), self._talk(request.match_info["session"])
        if refusal := self._refusal(request):
            return refusal
        if talk is None:
            return _error(102, "Session not found!")
        if not isinstance(body.get("thumbup"), bool):
            return _error(102, "thumbup must be a boolean")
        if turn := talk.turn(request.match_info["message"]):
            turn.feedback = {name: body[name] for name in ("thumbup", "feedback") if name in body}
        return _good(_session(request.match_info["session"], talk, True))

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await self.body(request)
        bot = request.match_info.get("bot") or body.get("chat_id")
        if refusal := self._refusal(request) or self._session_problem(body, "chat"):
            return refusal
        turns = [turn for turn in body.get("messages") or () if isinstance(turn, dict)]
        asked = [str(turn.get("content")) for turn in turns if turn.get("role") == "user"]
        question = str(body.get("question") or (asked[-1] if asked else ""))
        if not question:
            return _error(102, "Please input your question.")
        session = body.get("session_id")
        earlier, turn = asked[:-1], Turn(_new_id(), question)
        if body.get("store_history_messages") is not False:
            session = session or _new_id()
            earlier = self.remember(session, question)
            self.talks.add(session, turn)
        speech = speak("RAGFlow", question, earlier)
        run = _Chat(self, speech, {"session_id": session, "chat_id": bot, "id": turn.id}, turn)
        if body.get("stream", True) is False:
            return run.whole()
        return await run.stream(request)

    async def agent(self, request: web.Request) -> web.StreamResponse:
        body = await self.body(request)
        if refusal := self._refusal(request) or self._session_problem(body, "agent"):
            return refusal
        question = str(body.get("query") or body.get("question") or "")
        session = body.get("session_id") or _new_id()
        speech = speak("RAGFlow", question, self.remember(session, question))
        turn = self.talks.add(session, Turn(_new_id(), question))
        run = _Agent(self, speech, session, "#form" in question, turn)
        if body.get("stream") is not True:
            return run.whole()
        return await run.stream(request)

    def _session_problem(self, body: dict[str, Any], bot: str) -> web.Response | None:
        session = body.get("session_id")
        if session and self.conversation(str(session)) is None:
            return _error(102, f"Session does not belong to this {bot}!")
        return None


class _Chat:
    """One answer of an assistant: frames of new text, or of all the text so far."""

    def __init__(self, demo: RAGFlowDemo, speech: Speech, ids: dict[str, Any], turn: Turn) -> None:
        self._demo = demo
        self._turn = turn
        self._speech = speech
        self._ids = ids

    def whole(self) -> web.Response:
        if failure := _failure(self._speech):
            self._turn.fail(failure)
            return _error(100, failure)
        self._turn.finish(self._speech)
        thought = f"<think>{self._speech.thought}</think>" if self._speech.reasoning else ""
        return _good(self._frame(f"{thought}{self._speech.text} [ID:0]", _reference()))

    async def stream(self, request: web.Request) -> web.StreamResponse:
        stream = await Stream.open(request, _KIND)

        async def send(data: Any) -> None:
            frame = {"code": 0, "message": "", "data": data}
            await stream.write(b"data:" + dumps(frame) + b"\n\n")

        try:
            if failure := _failure(self._speech):  # which is an ordinary answer
                self._turn.fail(failure)
                await send(self._frame(failure, {}, **self._flags(final=False)))
            elif self._demo.version == "delta":
                await self._deltas(send, stream)
            else:
                await self._repeats(send, stream)
            if self._demo.version == "delta":
                await send(self._frame("", _reference(), final=True))
        except Broken:
            if not stream.is_cut:
                message = "the failure you asked for"
                data = {"answer": f"**ERROR**: {message}", "reference": []}
                failed = {"code": 500, "message": message, "data": data}
                await stream.write(b"data:" + dumps(failed) + b"\n\n")
        if not stream.is_cut:
            await send(True)
        return await stream.close()

    async def _deltas(self, send: Send, stream: Stream) -> None:
        thinks = False
        async for kind, piece in self._demo.pieces(self._speech, stream, self._turn):
            if (kind == "think") != thinks:
                thinks = not thinks
                flag = {"start_to_think": True} if thinks else {"end_to_think": True}
                await send(self._frame("", {"chunks": []}, final=False, **flag))
            await send(self._frame(piece, {"chunks": []}, final=False))
        await send(self._frame(" [ID:0]", {"chunks": []}, final=False))

    async def _repeats(self, send: Send, stream: Stream) -> None:
        so_far, thinks = "", False
        async for kind, piece in self._demo.pieces(self._speech, stream, self._turn):
            so_far = so_far.removesuffix("</think>") if kind == "think" else so_far
            so_far += f"<think>{piece}" if kind == "think" and not thinks else piece
            thinks = thinks or kind == "think"
            so_far += "</think>" if kind == "think" else ""
            await send(self._frame(so_far, {}))
        await send(self._frame(f"{so_far} ##0$$", _reference()))

    def _flags(self, **flags: bool) -> dict[str, bool]:
        return flags if self._demo.version == "delta" else {}

    def _frame(self, answer: str, reference: Any, **flags: bool) -> dict[str, Any]:
        frame = {"answer": answer, "reference": reference, "audio_binary": None, **self._ids}
        return {**frame, **flags}


class _Agent:
    """One run of an agent, and its events."""

    def __init__(
        self, demo: RAGFlowDemo, speech: Speech, session: str, asks: bool, turn: Turn
    ) -> None:
        self._demo = demo
        self._turn = turn
        self._speech = speech
        self._asks = asks
        self._ids = {"message_id": turn.id, "task_id": _new_id(), "session_id": session}
        self._begun = int(time.time())

    @property
    def _usage(self) -> dict[str, int]:
        prompt, completion = self._speech.prompt_tokens, self._speech.completion_tokens
        total = prompt + completion
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}

    def whole(self) -> web.Response:
        if failure := _failure(self._speech):
            self._turn.fail(failure)
            return _error(100, failure)
        self._turn.finish(self._speech)
        run = {"content": f"{self._speech.text} [ID:{_CHUNK_KEY}]", "reference": _agent_reference()}
        return _good({"data": {**run, "trace": [], "usage": self._usage}, **self._ids})

    async def stream(self, request: web.Request) -> web.StreamResponse:
        stream = await Stream.open(request, _KIND)

        async def send(name: str, data: Any) -> None:
            message, task, session = self._ids.values()
            event = {
                "event": name, "message_id": message, "created_at": self._begun, "task_id": task,
                "data": data, "session_id": session,
            }  # fmt: skip
            await stream.write(b"data:" + dumps(event) + b"\n\n")

        await send("workflow_started", {"inputs": {}})
        node = {"component_id": "Agent:Demo", "component_name": "Agent_0"}
        node["component_type"] = "Agent"
        await send("node_started", {"inputs": {}, **node, "thoughts": ""})
        try:
            if failure := _failure(self._speech):
                self._turn.fail(failure)
                await send("node_finished", {"outputs": {}, **node, "error": failure})
            elif self._asks:
                choice = {"name": "城市", "type": "options", "options": ["杭州", "上海"]}
                await send("user_inputs", {"inputs": {"city": choice}, "tips": "请选择城市。"})
            else:
                await self._say(send, stream)
                await send("node_finished", {"outputs": {}, **node, "error": None})
                outputs = {"content": self._speech.text}
                end = {"inputs": {}, "outputs": outputs, "elapsed_time": 1.0, "usage": self._usage}
                await send("workflow_finished", end)
        except Broken:
            if not stream.is_cut:
                error = "the failure you asked for"
                await send("node_finished", {"outputs": {}, **node, "error": error})
        if not stream.is_cut:
            await stream.write(b"data:[DONE]\n\n")
        return await stream.close()

    async def _say(self, send: Any, stream: Stream) -> None:
        thinks = False
        async for kind, piece in self._demo.pieces(self._speech, stream, self._turn):
            if (kind == "think") != thinks:
                thinks = not thinks
                flag = "start_to_think" if thinks else "end_to_think"
                await send("message", {"content": "", flag: True})
            await send("message", {"content": piece})
        await send("message", {"content": f" [ID:{_CHUNK_KEY}]"})
        await send("message_end", {"reference": _agent_reference()})


def _session(id_: str, talk: Talk, is_newer: bool) -> dict[str, Any]:
    """A session with its messages: newer servers list references by answer, older ones put the
    chunks into the message."""
    messages: list[dict[str, Any]] = [{"role": "assistant", "content": "你好"}]
    references: list[dict[str, Any]] = []
    for turn in talk.turns:
        thought = f"<think>{turn.reasoning}</think>" if turn.reasoning else ""
        mark = " [ID:0]" if is_newer else " ##0$$"
        said = f"{thought}{turn.answer}{mark}" if turn.answer else turn.error
        answer = {"role": "assistant", "content": said, **(turn.feedback or {})}
        if is_newer:
            answer |= {"id": turn.id, "created_at": turn.created}
            references.append(_reference())
        else:
            answer["reference"] = _reference()["chunks"]
        messages += [{"role": "user", "content": turn.question, "id": turn.id}, answer]
    more = {"reference": references} if is_newer else {}
    return {"id": id_, "name": talk.title, "messages": messages, "user_id": "", **more}


def _failure(speech: Speech) -> str:
    if speech.fault == "limit":
        return "**ERROR**: RATE_LIMIT_EXCEEDED - Error code: 429 - too many requests"
    return "**ERROR**: GENERIC_ERROR - the failure you asked for" if speech.fault == "fail" else ""


def _reference() -> dict[str, Any]:
    return {"total": 1, "chunks": [_CHUNK], "doc_aggs": [_DOCUMENT]}


def _agent_reference() -> dict[str, Any]:
    name = _DOCUMENT["doc_name"]
    return {"chunks": {_CHUNK_KEY: _CHUNK}, "doc_aggs": {name: _DOCUMENT}}


def _good(data: Any) -> web.Response:
    return json({"code": 0, "message": "", "data": data})


def _error(code: int, message: str) -> web.Response:
    return json({"code": code, "data": False, "message": message})


def _new_id() -> str:
    return uuid.uuid4().hex
