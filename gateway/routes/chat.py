"""POST /api/v1/chat: one question to the agent named in the `Agent` header."""

import re
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal

from aiohttp import web
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from gateway.accounts.credentials import Caller
from gateway.chat.attachments import Attachments
from gateway.chat.routing import MAX_KNOWN, Target, listed, pin, pin_files, pin_results
from gateway.errors import FileNotFound, Forbidden, InvalidRequest
from gateway.files.library import name_of, owner_of
from gateway.filetypes import MediaKind, extension_of, kind_of, mime_of
from gateway.http.answer import answering
from gateway.http.body import agent_name, at_most, check, read_object
from gateway.http.context import ATTACHMENTS, SIGNER, State
from gateway.http.forwarded import client_origin
from gateway.language.sentences import say
from gateway.protocol.messages import ChatRequest, Media, Message, has_media
from gateway.protocol.openai_messages import read_turns, require_few
from gateway.telemetry.call import Call

Id = Annotated[str, Field(max_length=1024)]
_URL = r"^(?i:https?://|data:)\S+$"


def _or(default: Any) -> BeforeValidator:
    """null means the same as an omitted member."""
    return BeforeValidator(lambda value: default if value is None else value)


class File(BaseModel):
    """A file by URL, or by the id that an upload returned. A client may send the whole answer of an
    upload; a missing `type` is guessed from the other members."""

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True, coerce_numbers_to_str=True)

    url: Annotated[str | None, Field(pattern=_URL)] = None
    id: Annotated[str | None, Field(max_length=8192)] = None
    type: Literal["image", "file", "document", "audio", "video", "custom"] | None = None
    name: Annotated[str, _or("")] = ""
    mime_type: Annotated[str, _or("")] = ""


def _named(value: Any) -> Any:
    """A file may also be just its URL or id."""
    if not isinstance(value, str | dict | File):
        raise ValueError(say("must be a URL, the id of an upload, or an object with one of them"))
    if isinstance(value, dict) and value.get("upload_file_id"):  # Dify's own form
        return {**value, "id": value.get("id") or value["upload_file_id"]}
    if not isinstance(value, str):
        return value
    return {"url": value} if re.match(_URL, value) else {"id": value}


class ChatBody(BaseModel):
    """The body of the call. Unknown members are ignored, and the answer's headers name them."""

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True, coerce_numbers_to_str=True)

    query: Annotated[str, _or("")] = ""
    user: Id | None = None
    uid: Id | None = None
    stream: Annotated[bool, _or(False)] = False
    detail: Annotated[bool, _or(False)] = False
    conversation_id: Id | None = None
    chat_id: Id | None = None
    app_id: Id | None = None
    files: Annotated[list[Annotated[File, BeforeValidator(_named)]], _or([]), at_most(50)] = []
    variables: Annotated[dict[str, Any], _or({}), at_most(1000)] = {}
    model: Any = None
    messages: Annotated[list[Any], _or([])] = []


# Names that Dify, FastGPT and Coze use for the gateway's members.
_ALIASES = {
    "chatId": "chat_id",
    "appId": "app_id",
    "conversationId": "conversation_id",
    "customUid": "user",
    "user_id": "user",
    "inputs": "variables",
    "custom_variables": "variables",
}
_MODES = {"streaming": True, "blocking": False}


def _translated(body: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The body with other platforms' names translated, and the names of unknown members. The
    gateway's own names win where both occur."""
    out = {name: value for name, value in body.items() if name in ChatBody.model_fields}
    ignored = []
    for name in body.keys() - out.keys():
        value, ours = body[name], _ALIASES.get(name, "")
        if value is None:
            continue
        if ours == "variables" and isinstance(value, dict):
            own = out.get(ours)
            out[ours] = {**value, **own} if isinstance(own, dict) else value
        elif ours and out.get(ours) is None:
            out[ours] = value
        elif name == "response_mode" and out.get("stream") is None:
            out["stream"] = _is_streaming(value)
        else:
            ignored.append(name)
    return out, sorted(ignored)


def _is_streaming(mode: Any) -> bool:
    if not isinstance(mode, str) or mode not in _MODES:
        message = say("'response_mode' must be one of {allowed}.", allowed=", ".join(_MODES))
        raise InvalidRequest(message, param="response_mode")
    return _MODES[mode]


def _messages(body: ChatBody, attachments: Attachments) -> tuple[Message, ...]:
    """The question, or FastGPT's `messages` with the question last."""
    media = tuple(_media(file, attachments) for file in body.files)
    if body.query.strip() or not body.messages:
        if not body.query.strip() and not media:
            raise InvalidRequest("'query' is missing: put the question there.", param="query")
        return (Message("user", body.query, media),)
    require_few(body.messages)
    *earlier, question = read_turns(body.messages)
    return (*earlier, replace(question, media=question.media + media))


async def _read(request: web.Request, state: State, call: Call) -> tuple[ChatRequest, list[Target]]:
    caller = call.caller
    name = agent_name(request)
    if not name:
        known = [name for name, _ in state.routing.visible(caller)][:MAX_KNOWN]
        raise InvalidRequest(
            say("Say which agent to ask in the header 'Agent'.{known}", known=listed(known)),
            param="Agent",
            detail={"known": known},
        )
    targets = state.routing.allowed(caller, name, "agent")
    members, ignored = _translated(await read_object(request))
    body = check(ChatBody, members)
    call.end_user = caller.end_user or body.user or body.uid or ""
    attachments = request.app[ATTACHMENTS]
    messages = _messages(body, attachments)
    if body.messages and body.query.strip():
        ignored.append("messages")
    asked = state.routing.asked(name, body.model)
    if "/" in asked:
        targets = state.routing.allowed(caller, asked, "agent")
    if body.model is not None and asked == state.routing.asked(name):
        ignored.append("model")
    conversation_id = body.conversation_id or body.chat_id or None
    _check_id(conversation_id)
    is_routed = len(targets) > 1
    for user in (body.user, body.uid):
        caller.user_of(user)  # raises if the token is for another user
    seal = request.app[SIGNER].seal(caller)
    targets, conversation = pin(targets, conversation_id, state.routing.is_route(name), seal)
    run_seal = None
    if any([target.platform.keeps_runs for target in targets]):
        run_seal = request.app[SIGNER].run_seal(caller, call.end_user)
        targets, messages = pin_results(targets, messages, run_seal)
    if has_media(messages):
        messages = await attachments.resolve(
            messages, owner_of(caller), partial(client_origin, request)
        )
        if seal is not None:
            targets, messages = pin_files(targets, messages, seal)
    question = ChatRequest(
        model=asked,
        messages=messages,
        user=caller.user_of(body.user or body.uid),
        seal=seal,
        run_seal=run_seal,
        stream=body.stream,
        detail=body.detail,
        conversation_id=conversation,
        is_routed=is_routed,
        variables=_variables(body, caller),
        ignored=tuple(ignored),
    )
    if body.app_id:
        question = _for_app(question, body.app_id, targets)
    return question, targets


chat = answering(_read, conversational=True)


def _check_id(conversation: str | None) -> None:
    if conversation and not conversation.isprintable():
        raise InvalidRequest("The conversation id cannot be one.", param="conversation_id")


def _variables(body: ChatBody, caller: Caller) -> dict[str, Any]:
    uid = caller.end_user if "uid" in body.variables and caller.end_user else body.uid
    variables = caller.variables_of(body.variables)
    return {**variables, **({"uid": uid} if uid else {})}


def _for_app(chat: ChatRequest, app_id: str, targets: list[Target]) -> ChatRequest:
    """A key may open several apps; a caller cannot change the one that is configured."""
    for target in targets:
        bound = target.platform.app_id
        if bound and bound != app_id:
            raise Forbidden(say("Agent {name!r} is bound to another app_id.", name=target.name))
    return replace(chat, app_id=app_id)


def _media(file: File, attachments: Attachments) -> Media:
    link, id_ = file.url, file.id or ""
    if not link and re.match(_URL, id_):  # the ids of the gateway's own uploads are URLs
        link, id_ = id_, ""
    if link:
        return Media(_kind(file, link), link, file.name)
    if not id_ or "://" in id_:
        raise InvalidRequest(
            "Each of 'files' needs an http(s) or data: 'url', or the 'id' of an upload.",
            param="files",
        )
    if id_.startswith("file-") and not name_of(id_):
        raise FileNotFound(say("There is no file {id!r}.", id=id_[:120]), param="files")
    kind = _kind(file, "") if file.type or file.name or file.mime_type else None
    kind = kind or ("file" if name_of(id_) else attachments.remembered(id_))
    if kind is None:
        raise InvalidRequest(
            say(
                'What kind of file is {id!r}? Say it in \'type\' ({{"id": "…", "type": '
                '"image"}}), or send the whole answer of the upload.',
                id=id_[:80],
            ),
            param="files",
        )
    return Media(kind, "", file.name, uploaded=id_)


def _kind(file: File, link: str) -> MediaKind:
    """The kind that the caller declares, else by the media type, else by the extension of the name
    or the link."""
    if file.type is not None and file.type != "custom":  # Dify's name for all other kinds
        return "file" if file.type == "document" else file.type
    if link[:5].lower() == "data:":
        return kind_of(link[5:])
    path = file.name or link.partition("?")[0].partition("#")[0]
    return kind_of(file.mime_type or mime_of(extension_of(path.rpartition("/")[2])))
