"""A Coze server of one bot: /v3/chat streamed and polled, chatflows, conversations, OAuth."""

import asyncio
import itertools
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

import orjson
from aiohttp import web

from gateway.demo.audio import fault_in, spoken, transcript
from gateway.demo.base import Broken, Demo, Form, Stream, Upload, digits, dumps, json
from gateway.demo.cozehistory import Histories, envelope
from gateway.demo.script import Speech, file_name, speak
from gateway.demo.talks import Turn

_BOT = "7553210987654300001"


class CozeDemo(Demo):
    """`pages_by`: whether `before_id` and `after_id` count by time or by the order of the list.
    `variables` are those of its bot; `parameters` are those of its workflow, by name. `#two` makes
    two answers."""

    platform = "Coze"

    def __init__(
        self,
        key: str = "",
        max_file_mb: int = 512,
        refused_extensions: Collection[str] = ("exe",),
        pages_by: Literal["time", "list"] = "time",
        variables: Sequence[dict[str, Any]] = (),
        parameters: Mapping[str, dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(key, **kwargs)
        self.variables = list(variables)
        self.parameters = dict(parameters or {})
        self.max_file_mb = max_file_mb
        self.refused_extensions = refused_extensions
        self.tokens: set[str] = set()  # issued for a signed claim
        self._chats: dict[str, dict[str, Any]] = {}  # finished chats, for polling
        self._messages: dict[str, list[dict[str, Any]]] = {}
        self._ids = itertools.count(time.time_ns())
        self._histories = Histories(self, pages_by)

    def routes(self) -> list[tuple[str, str, Any]]:
        return [
            ("POST", "/v3/chat", self.chat),
            ("GET", "/v3/chat/retrieve", self.retrieve),
            ("POST", "/v3/chat/retrieve", self.retrieve),
            ("GET", "/v3/chat/message/list", self.messages),
            ("POST", "/v3/chat/cancel", self.cancel),
            ("POST", "/v3/chat/submit_tool_outputs", self.submit),
            ("POST", "/v1/workflows/chat", self.workflow_chat),
            ("POST", "/v1/files/upload", self.upload),
            ("GET", "/v1/files/retrieve", self.retrieve_file),
            ("POST", "/v1/audio/speech", self.speech),
            ("POST", "/v1/audio/transcriptions", self.transcription),
            ("POST", "/v1/conversation/create", self.create_conversation),
            ("GET", "/v1/bots/{bot}", self.bot),
            ("GET", "/v1/bot/get_online_info", self.bot),
            ("GET", "/v1/workflows/{workflow}", self.workflow),
            ("POST", "/api/permission/oauth2/token", self.token),
            *self._histories.routes(),
        ]

    def next_id(self) -> str:
        """A later id is a larger number, as with Coze."""
        return f"7{str(next(self._ids))[-18:]}"

    def knows_key(self, request: web.Request) -> bool:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        return super().knows_key(request) or token in self.tokens

    async def token(self, request: web.Request) -> web.Response:
        """A JWT has three parts; a demo does not check its signature."""
        await self.body(request)
        if request.headers.get("Authorization", "").count(".") != 2:
            return json({"error_code": "invalid_request", "error_message": "not a JWT"}, 401)
        token = f"czs_demo{digits()}"
        self.tokens.add(token)
        until = int(time.time()) + 900
        return json({"access_token": token, "expires_in": until, "token_type": "Bearer"})

    async def bot(self, request: web.Request) -> web.Response:
        if not self.knows_key(request):
            return envelope(4100, "access token invalid", 401)
        bot: dict[str, Any] = {
            "bot_id": request.match_info.get("bot") or request.query.get("bot_id"),
            "name": "演示智能体 Demo", "description": "", "icon_url": "", "version": "1",
            "create_time": 0, "update_time": 0, "bot_mode": 0,
            "prompt_info": {"prompt": ""}, "plugin_info_list": [],
            "onboarding_info": {
                "prologue": "你好，我是演示智能体。", "suggested_questions": ["你会什么？"],
            },
            "model_info": {"model_id": "demo", "model_name": "demo"}, "variables": self.variables,
            "voice_info_list": [{"language_code": "zh", "voice_id": "7426720361733046281"}],
        }  # fmt: skip
        return json({"code": 0, "msg": "", "data": bot})

    async def workflow(self, request: web.Request) -> web.Response:
        if not self.knows_key(request):
            return envelope(4100, "access token invalid", 401)
        detail = {
            "workflow_id": request.match_info["workflow"], "workflow_name": "demo_flow",
            "description": "演示对话流", "icon_url": "", "app_id": "", "created_at": 0,
            "updated_at": 0, "creator": {"id": "0", "name": "demo"},
        }  # fmt: skip
        own = ("USER_INPUT", "CONVERSATION_NAME")
        data: dict[str, Any] = {"workflow_detail": detail}
        if request.query.get("include_input_output") == "true":
            own_parameters = {name: {"type": "string", "required": False} for name in own}
            data["input"] = {"parameters": {**own_parameters, **self.parameters}}
            data["output"] = {"parameters": {}, "terminate_plan": "use_answer_content"}
        return json({"code": 0, "msg": "", "data": data, "detail": {"logid": digits()}})

    async def upload(self, request: web.Request) -> web.Response:
        if not self.knows_key(request):
            return envelope(4100, "access token invalid", 401)
        form = await self.form(request, digits)
        if problem := self._upload_problem(form):
            return envelope(*problem)
        return _uploaded(self.take(form.files[0][1]))

    def _upload_problem(self, form: Form) -> tuple[int, str] | None:
        if form.broken:
            return 4304, "the file is broken"
        if len(form.files) > 1:
            return 4301, "only one file can be uploaded at a time"
        name, file = form.files[0] if form.files else ("", None)
        if name != "file" or not file or not file.size:
            return 4300, "the file is empty"
        if file.size > self.max_file_mb << 20:
            return 4302, f"the file is larger than {self.max_file_mb} MB"
        if file.name.rpartition(".")[2].lower() in self.refused_extensions:
            return 4303, "the file type is not supported"
        return None

    async def speech(self, request: web.Request) -> web.StreamResponse:
        body = await self.body(request)
        if not self.knows_key(request):
            return envelope(4100, "access token invalid", 401)
        text, form = body.get("input"), body.get("response_format", "mp3")
        if not isinstance(text, str) or not text or len(text.encode()) > 1024:
            return envelope(4000, "input must have 1 to 1024 bytes")
        if not body.get("voice_id") or form not in ("mp3", "wav", "pcm", "ogg_opus"):
            return envelope(4000, "invalid voice_id or response_format")
        if fault_in(text) == "fail":
            return envelope(5000, "internal error")
        return await spoken(self, request, text, form)

    async def transcription(self, request: web.Request) -> web.Response:
        if not self.knows_key(request):
            return envelope(4100, "access token invalid", 401)
        form = await self.form(request, digits)
        if problem := self._upload_problem(form):
            return envelope(*problem)
        text = transcript(self, self.take(form.files[0][1]))
        return json({"code": 0, "msg": "", "data": {"text": text}, "detail": {"logid": digits()}})

    async def retrieve_file(self, request: web.Request) -> web.Response:
        if not self.knows_key(request):
            return envelope(4100, "access token invalid", 401)
        file = self.file(request.query.get("file_id"))
        return _uploaded(file) if file else envelope(4000, "file not found")

    async def create_conversation(self, request: web.Request) -> web.Response:
        body = await self.body(request)
        if not self.knows_key(request):
            return envelope(4100, "access token invalid", 401)
        conversation = digits()
        self._conversations[conversation] = []
        data = {
            "id": conversation, "name": "", "meta_data": body.get("meta_data") or {},
            "creator_id": "1", "connector_id": "1024", "created_at": int(time.time()),
            "updated_at": int(time.time()), "last_section_id": conversation,
        }  # fmt: skip
        return json({"code": 0, "msg": "", "data": data})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await self.body(request)
        if not self.knows_key(request):
            return envelope(4101, "The token you entered is incorrect.")
        if not body.get("bot_id") or not body.get("user_id"):
            return envelope(4000, "bot_id and user_id are required")
        return await self._begin(request, body, request.query.get("conversation_id", ""), ":")

    async def workflow_chat(self, request: web.Request) -> web.StreamResponse:
        body = await self.body(request)
        if not self.knows_key(request):
            return envelope(4100, "access token invalid", 401)
        if not body.get("workflow_id") or "parameters" not in body:
            return envelope(4000, "workflow_id and parameters are required")
        conversation_id = str(body.get("conversation_id") or "")
        return await self._begin(request, {**body, "stream": True}, conversation_id, ": ")

    async def _begin(
        self, request: web.Request, body: dict[str, Any], conversation_id: str, colon: str
    ) -> web.StreamResponse:
        if conversation_id and self.conversation(conversation_id) is None:
            return envelope(4002, "conversation not found")
        conversation = conversation_id or digits()
        try:
            question, files = _question(body.get("additional_messages") or [], self.file)
        except _BadContent as problem:
            return envelope(4000, f"invalid content: {problem}")
        speech = speak("Coze", question, self.remember(conversation, question), files)
        ids = {"conversation_id": conversation, "bot_id": str(body.get("bot_id") or _BOT)}
        asked = _asked(body.get("additional_messages") or [])
        for message in asked:
            message["id"] = self.next_id()
        turn = Turn(self.next_id(), question, run=self.next_id(), files=asked)
        if "#two" in question:
            turn.more = [(self.next_id(), "再补充一句。")]
        self.talks.add(conversation, turn)
        if speech.fault == "limit":
            return envelope(4020, "model requests per minute exceeded")
        run = _Run(self, ids, speech, turn)
        if body.get("stream") is True:
            tool = "get_weather" if "#tool" in question else ""
            return await run.stream(request, colon, tool)
        turn.finish(speech)
        self.keep(run.id, run.chat("completed"), run.completed())
        return json({"code": 0, "msg": "", "data": run.chat("in_progress")})

    def keep(self, chat_id: str, chat: dict[str, Any], messages: list[dict[str, Any]]) -> None:
        """Keep a chat's record, and the messages of its answer, for those who ask for them."""
        self._chats[chat_id], self._messages[chat_id] = chat, messages
        while len(self._chats) > 1000:
            self._messages.pop(next(iter(self._chats)))
            self._chats.pop(next(iter(self._chats)))

    async def submit(self, request: web.Request) -> web.StreamResponse:
        body = await self.body(request)
        outputs = body.get("tool_outputs") or [{}]
        ids = {"conversation_id": request.query.get("conversation_id", ""), "bot_id": _BOT}
        speech = speak("Coze", f"工具结果：{outputs[0].get('output')}", [])
        turn = Turn(self.next_id(), "", run=request.query.get("chat_id", ""))
        return await _Run(self, ids, speech, turn).stream(request, ":", "")

    async def retrieve(self, request: web.Request) -> web.Response:
        chat = self._chats.get(request.query.get("chat_id", ""))
        return json({"code": 0, "msg": "", "data": chat}) if chat else envelope(4001, "not found")

    async def messages(self, request: web.Request) -> web.Response:
        found = self._messages.get(request.query.get("chat_id", ""))
        return json({"code": 0, "msg": "", "data": found}) if found else envelope(4001, "not found")

    async def cancel(self, request: web.Request) -> web.Response:
        body = await self.body(request)
        chat_id = str(body.get("chat_id"))
        self.stopped.append(chat_id)
        if chat := self._chats.get(chat_id):
            chat["status"] = "canceled"
        data = {"id": chat_id, "conversation_id": body.get("conversation_id"), "status": "canceled"}
        return json({"code": 0, "msg": "", "data": data})


class _Run:
    """One chat: its objects, and its events in Coze's order."""

    def __init__(self, demo: CozeDemo, ids: dict[str, str], speech: Speech, turn: Turn) -> None:
        self._demo = demo
        self._ids = ids
        self._speech = speech
        self._turn = turn
        self.id = turn.run

    def chat(self, status: str, **more: Any) -> dict[str, Any]:
        counts = (self._speech.prompt_tokens, self._speech.completion_tokens)
        prompt, completion = counts if status == "completed" else (0, 0)
        usage = {
            "token_count": prompt + completion,
            "output_count": completion,
            "input_count": prompt,
        }
        return {
            "id": self.id, **self._ids, "created_at": int(time.time()),
            "last_error": {"code": 0, "msg": ""}, "status": status, "usage": usage,
            "section_id": self._ids["conversation_id"], **more,
        }  # fmt: skip

    def message(self, kind: str, content: str, id_: str = "", **more: Any) -> dict[str, Any]:
        return {
            "id": id_ or self._demo.next_id(), **self._ids, "role": "assistant", "type": kind,
            "content": content, "content_type": "text", "chat_id": self.id,
            "section_id": self._ids["conversation_id"], **more,
        }  # fmt: skip

    def completed(self) -> list[dict[str, Any]]:
        finished = {"msg_type": "generate_answer_finish", "data": "", "from_module": None}
        asks = ("还能做什么？", "怎么接入我的智能体？")
        return [
            self.message("answer", self._speech.text, self._turn.id),
            *(self.message("answer", text, id_) for id_, text in self._turn.more),
            self.message("verbose", orjson.dumps(finished).decode()),
            *(self.message("follow_up", ask) for ask in asks),
        ]

    async def stream(self, request: web.Request, colon: str, tool: str) -> web.StreamResponse:
        stream = await Stream.open(request, "text/event-stream", {"x-tt-logid": digits()})

        async def send(name: str, data: Any) -> None:
            await stream.write(f"event{colon}{name}\ndata{colon}".encode() + dumps(data) + b"\n\n")

        self._demo.keep(self.id, self.chat("in_progress"), [])
        await send("conversation.chat.created", self.chat("created"))
        await send("conversation.chat.in_progress", self.chat("in_progress"))
        try:
            if self._speech.fault == "fail":
                raise Broken
            if tool:
                await self._ask_for_tool(send, tool)
            else:
                await self._say(send, stream)
            await send("done", "[DONE]" if colon == ":" else {"debug_url": "https://www.coze.cn/"})
        except Broken:
            if not stream.is_cut:
                error = {"code": 5000, "msg": "the failure you asked for"}
                failed = self.chat("failed", last_error=error)
                self._turn.fail("the failure you asked for")
                self._demo.keep(self.id, failed, [])
                await send("conversation.chat.failed", failed)
        return await stream.close()

    async def _ask_for_tool(self, send: Any, tool: str) -> None:
        call = {
            "id": "call_demo1",
            "type": "function",
            "function": {"name": tool, "arguments": "{}"},
        }
        action = {"type": "submit_tool_outputs", "submit_tool_outputs": {"tool_calls": [call]}}
        chat = self.chat("requires_action", required_action=action)
        self._demo.keep(self.id, chat, [])
        await send("conversation.chat.requires_action", chat)

    async def _say(self, send: Any, stream: Stream) -> None:
        async for kind, piece in self._demo.pieces(self._speech, stream, self._turn):
            if self.id in self._demo.stopped:
                break
            content = piece if kind == "say" else ""
            more = {"reasoning_content": piece} if kind == "think" else {}
            delta = self.message("answer", content, self._turn.id, **more)
            await send("conversation.message.delta", delta)
        for id_, text in self._turn.more:
            await send("conversation.message.delta", self.message("answer", text, id_))
        messages = self.completed()
        self._demo.keep(self.id, self.chat("completed"), messages)
        for message in messages:
            await asyncio.sleep(0)
            await send("conversation.message.completed", message)
        await send("conversation.chat.completed", self.chat("completed"))


class _BadContent(Exception):
    """A message whose `object_string` Coze refuses."""


def _question(messages: list[Any], find: Callable[[Any], Upload | None]) -> tuple[str, list[str]]:
    """The last text among the messages, and the names of the files attached to it."""
    messages = [message for message in messages if isinstance(message, dict)]
    text, files = "", []
    for i, message in enumerate(messages):
        content = str(message.get("content") or "")
        if message.get("content_type") == "object_string":
            items = _items(content)
            media = [item for item in items if item["type"] != "text"]
            neighbours = [*messages[max(i - 1, 0) : i], *messages[i + 1 : i + 2]]
            _check_texts(len(items) - len(media), len(media), neighbours)
            files += [_file(item, find) for item in media]
            content = " ".join(str(i["text"]) for i in items if i["type"] == "text")
        if message.get("role") == "user" and content:
            text = content
    return text, files


def _asked(messages: list[Any]) -> list[dict[str, Any]]:
    """The messages of the user at the end, which Coze stores."""
    out: list[dict[str, Any]] = []
    for message in reversed([message for message in messages if isinstance(message, dict)]):
        if message.get("role") != "user":
            break
        kind = message.get("content_type", "text")
        content = str(message.get("content") or "")
        out.insert(0, {"content": content, "content_type": kind})
    return out


def _items(content: str) -> list[dict[str, Any]]:
    try:
        items = orjson.loads(content)
    except orjson.JSONDecodeError:
        items = None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise _BadContent("an object_string is the JSON text of an array of objects")
    for item in items:
        if item.get("type") not in ("text", "image", "file", "audio"):
            raise _BadContent(f"unknown type {item.get('type')}")
        if item["type"] == "text" and not item.get("text"):
            raise _BadContent("a text item needs text")
    return items


def _check_texts(texts: int, media: int, neighbours: list[dict[str, Any]]) -> None:
    if texts > 1:
        raise _BadContent("at most one text item")
    if not media:
        raise _BadContent("text alone needs content_type text")
    if not texts and not any(map(_is_question, neighbours)):
        raise _BadContent("a file without text needs a text message directly beside it")


def _is_question(message: dict[str, Any]) -> bool:
    is_text = message.get("content_type", "text") == "text"
    return is_text and message.get("role") == "user" and bool(message.get("content"))


def _file(item: dict[str, Any], find: Callable[[Any], Upload | None]) -> str:
    """The name of an item's file."""
    if url := item.get("file_url"):
        if not str(url).startswith(("http://", "https://")):
            raise _BadContent("file_url must be http or https")
        return file_name(str(url))
    upload = find(item.get("file_id"))
    if upload is None:
        raise _BadContent(f"unknown file_id {item.get('file_id')}")
    return upload.name


def _uploaded(file: Upload) -> web.Response:
    data = {
        "id": file.id, "bytes": file.size, "created_at": file.created_at, "file_name": file.name,
    }  # fmt: skip
    return json({"code": 0, "msg": "", "data": data, "detail": {"logid": digits()}})
