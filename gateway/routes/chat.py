"""POST /api/v1/chat: one question to the agent named in the `Agent` header."""

from dataclasses import replace
from typing import Annotated, Any, Literal
from urllib.parse import unquote

from aiohttp import web
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from gateway.body import check, read_object
from gateway.config import FastGPTAgent
from gateway.credentials import Caller
from gateway.errors import Forbidden, InvalidRequest
from gateway.keys import CALLER, STATE
from gateway.messages import ChatRequest, Media, MediaKind, Message
from gateway.reply import reply
from gateway.routing import Target, pin

Id = Annotated[str, Field(max_length=1024)]


def _or(default: Any) -> BeforeValidator:
    """null means what leaving the member out means."""
    return BeforeValidator(lambda value: default if value is None else value)


def _at_most(most: int) -> BeforeValidator:
    """Counted before the entries are looked at, so that a million bad ones cost nothing."""

    def check_length(value: Any) -> Any:
        if isinstance(value, list | dict) and len(value) > most:
            raise ValueError(f"must have at most {most} entries")
        return value

    return BeforeValidator(check_length)


class File(BaseModel):
    """A file by URL. `type` is guessed from the name if it is not given."""

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)

    url: Annotated[str, Field(pattern=r"^(?i:https?://|data:)\S+$")]
    type: Literal["image", "file", "document", "audio", "video"] | None = None
    name: str = ""


class ChatBody(BaseModel):
    """The body of the call. Unknown members are ignored."""

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True, coerce_numbers_to_str=True)

    query: Annotated[str, _or("")] = ""
    user: Id | None = None
    uid: Id | None = None
    stream: Annotated[bool, _or(False)] = False
    detail: Annotated[bool, _or(False)] = False
    conversation_id: Id | None = None
    chat_id: Id | None = None
    app_id: Id | None = None
    files: Annotated[list[str | File], _or([]), _at_most(50)] = []
    variables: Annotated[dict[str, Any], _or({}), _at_most(1000)] = {}


_KINDS: dict[MediaKind, tuple[str, ...]] = {
    "image": ("jpg", "jpeg", "png", "gif", "webp", "svg", "bmp"),
    "audio": ("mp3", "wav", "ogg", "flac", "m4a"),
    "video": ("mp4", "avi", "mov", "wmv", "webm"),
}


async def chat(request: web.Request) -> web.StreamResponse:
    state = request.app[STATE].now
    name = _agent_name(request)
    if not name:
        known = ", ".join(state.routing.targets)
        raise InvalidRequest(
            f"Say which agent to ask in the header 'Agent'. Known: {known}.",
            param="Agent",
            detail={"known": list(state.routing.targets)},
        )
    targets = state.routing.resolve(name, "agent")
    caller = request[CALLER]
    caller.require_agent(name, [target.name for target in targets])
    body = check(ChatBody, await read_object(request))
    media = tuple(_media(file) for file in body.files)
    if not body.query.strip() and not media:
        raise InvalidRequest("'query' is missing: put the question there.", param="query")
    given = body.conversation_id or body.chat_id or None
    _check_id(given)
    is_routed = len(targets) > 1
    for user in (body.user, body.uid):
        caller.user_of(user)  # raises if the token is for another one
    targets, conversation = pin(targets, given)
    question = ChatRequest(
        model=name if is_routed else targets[0].name,
        messages=(Message("user", body.query, media),),
        user=caller.user_of(body.user or body.uid),
        is_bound=bool(caller.end_user),
        stream=body.stream,
        detail=body.detail,
        conversation_id=conversation,
        is_routed=is_routed,
        variables=_variables(body, caller),
    )
    if body.app_id:
        question = _for_app(question, body.app_id, targets)
    keepalive_s = state.config.server.keepalive
    return await reply(request, question, targets, conversational=True, keepalive_s=keepalive_s)


def _agent_name(request: web.Request) -> str:
    """The header's value; clients send names outside ASCII raw or percent-encoded."""
    raw = request.headers.get("Agent", "").strip()
    return unquote(raw.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))


def _check_id(conversation: str | None) -> None:
    if conversation and not conversation.isprintable():
        raise InvalidRequest("The conversation id cannot be one.", param="conversation_id")


def _variables(body: ChatBody, caller: Caller) -> dict[str, Any]:
    uid = caller.end_user if "uid" in body.variables and caller.end_user else body.uid
    return {**body.variables, **({"uid": uid} if uid else {})}


def _for_app(chat: ChatRequest, app_id: str, targets: list[Target]) -> ChatRequest:
    """FastGPT keys may open several apps; a configured app is not the caller's to change."""
    for target in targets:
        if not isinstance(target.agent, FastGPTAgent):
            continue
        if target.agent.app_id and target.agent.app_id != app_id:
            raise Forbidden(f"Agent {target.name!r} is bound to another app_id.")
    return replace(chat, app_id=app_id)


def _media(file: str | File) -> Media:
    if isinstance(file, str):
        try:
            file = check(File, {"url": file})
        except InvalidRequest:
            raise InvalidRequest(
                "'files' must hold http(s) or data: URLs.", param="files"
            ) from None
    return Media(_kind(file), file.url, file.name)


def _kind(file: File) -> MediaKind:
    """As the caller says, else by the media type of a `data:` URL, else by the name's ending."""
    if file.type is not None:
        return "file" if file.type == "document" else file.type
    if file.url.startswith("data:"):
        given = file.url[5:].partition("/")[0]
        return next((kind for kind in _KINDS if kind == given), "file")
    path = (file.name or file.url).partition("?")[0].partition("#")[0].lower()
    ending = path.rpartition(".")[2]
    return next((kind for kind, endings in _KINDS.items() if ending in endings), "file")
