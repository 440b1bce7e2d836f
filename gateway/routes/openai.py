"""The OpenAI surface: chat completions and models."""

from functools import partial
from typing import Any
from urllib.parse import unquote

import orjson
from aiohttp import web

from gateway import headers as headernames
from gateway.accounts.clientheaders import CHAT, USER, plain
from gateway.accounts.credentials import Caller
from gateway.chat.routing import Target, pin, pin_files, pin_results
from gateway.errors import InvalidRequest
from gateway.files.library import owner_of
from gateway.http.answer import answering
from gateway.http.body import read_object
from gateway.http.body import text_member as _text
from gateway.http.context import ATTACHMENTS, SIGNER, State, caller_of, state_of
from gateway.http.forwarded import client_origin
from gateway.language.sentences import say
from gateway.limits.rules import counts_tokens
from gateway.protocol.client_texts import unwrapped
from gateway.protocol.messages import ChatRequest, Message, has_media
from gateway.protocol.openai_messages import narrowed, plain_turns, read_turns, require_few
from gateway.routes.background import divert, require_room, task_of
from gateway.telemetry.call import Call

_MAX_ID = 1024
MAX_VARIABLES = 1000


async def _read_chat(
    request: web.Request, state: State, call: Call
) -> tuple[ChatRequest, list[Target]]:
    caller = call.caller
    body = await read_object(request)
    model = _text(body, "model")
    if not model:
        raise InvalidRequest("'model' is missing: put the agent's name there.", param="model")
    user, chat_id = _short(body, "user"), ""
    if caller.trusts_headers:
        chat_id = plain(request.headers, CHAT)
        if not caller.end_user:  # users of the client can put another name into the body
            user = plain(request.headers, USER) or user
    call.end_user = caller.end_user or user
    targets = state.routing.allowed(caller, model)
    asked, answer = "", None
    if (task := task_of(request, state, body, targets)) is not None:
        answer, other = await divert(request, state, call, task, targets)
        if other is not None:
            asked, model, targets = model, other, state.routing.resolve(other)
    require_room(request)
    is_routed = len(targets) > 1
    seal = request.app[SIGNER].seal(caller) if caller.end_user else None
    conversation = None if task is not None else _conversation(request, body)
    if conversation:
        targets, conversation = pin(targets, conversation, state.routing.is_route(model), seal)
    stream_options = body.get("stream_options")
    messages = _turns(body, targets)
    run_seal = None
    if any([target.platform.keeps_runs for target in targets]):
        run_seal = request.app[SIGNER].run_seal(caller, call.end_user)
        targets, messages = pin_results(targets, messages, run_seal)
    if seal is not None:
        body = {**body, "messages": narrowed(body["messages"])}
    if has_media(messages) and answer is None:
        messages = await request.app[ATTACHMENTS].resolve(
            messages, owner_of(caller), partial(client_origin, request)
        )
        if seal is not None:
            targets, messages = pin_files(targets, messages, seal)
    scope = _scope(request, state, caller, targets, messages, user, chat_id)
    if any(target.platform.remembers for target in targets):
        messages = unwrapped(messages, targets[0].agent.system)
    options = _options(body)
    chat = ChatRequest(
        model=model,
        messages=messages,
        user=caller.user_of(user),
        seal=seal,
        run_seal=run_seal,
        count_tokens=counts_tokens(state.config.rate_limits, caller),
        stream=_flag(body, "stream"),
        detail=_flag(body, "detail"),
        conversation_id=conversation,
        is_routed=is_routed,
        variables=caller.variables_of(_object(body, "variables") or _object(body, "inputs")),
        include_usage=isinstance(stream_options, dict)
        and stream_options.get("include_usage") is True,
        raw=body,
        verbatim=True,
        options=options,
        scope="" if conversation or task is not None else scope,
        demands=_demands(body) if options and task is None else (),
        task="" if task is None else task.kind,
        asked=asked,
        answer=answer,
    )
    return chat, targets


def _scope(
    request: web.Request,
    state: State,
    caller: Caller,
    targets: list[Target],
    messages: tuple[Message, ...],
    user: str,
    chat_id: str,
) -> str:
    """The scope in which the history's conversation is looked up: one end user of one key at one
    agent or route. "" if there is no memory for this call."""
    first = targets[0]
    settings = state.config.memory if first.agent.memory is None else first.agent.memory
    if settings.mode == "off" or not any(target.platform.remembers for target in targets):
        return ""
    if request.headers.get(headernames.MEMORY, "").strip().lower() == "off":
        return ""
    parts = [caller.named(user), chat_id, "\n".join(sorted(target.name for target in targets))]
    if settings.system == "strict":
        parts += [turn.text for turn in messages if turn.role == "system"]
    return request.app[SIGNER].scope(caller, *parts)


chat_completions = answering(_read_chat, conversational=False)


# Members that the gateway itself handles, for all platforms.
_UNDERSTOOD = frozenset(
    (
        "model", "messages", "user", "stream", "stream_options", "detail", "variables", "inputs",
        "conversation_id", "chat_id",
    )
)  # fmt: skip
# Values that request nothing beyond the default.
_NOTHING_ASKED: dict[str, Any] = {"n": (1,), "tool_choice": ("auto", "none")}


def _options(body: dict[str, Any]) -> tuple[str, ...]:
    """The names of the other options that the caller sets."""
    if body.keys() <= _UNDERSTOOD:
        return ()
    names = body.keys() - _UNDERSTOOD
    return tuple(sorted([name for name in names if _asks(name, body[name])]))


def _asks(name: str, value: Any) -> bool:
    if value is None or value is False or value in ("", [], {}):
        return False
    if name == "response_format":
        return not (isinstance(value, dict) and value.get("type") == "text")
    return value not in _NOTHING_ASKED.get(name, ())


def _demands(body: dict[str, Any]) -> tuple[str, ...]:
    """The options that a plain text answer would not meet."""
    out = []
    for name in ("tool_choice", "function_call"):
        if _demands_tool(body.get(name)):
            out.append(name)
    wanted = body.get("response_format")
    if isinstance(wanted, dict) and wanted.get("type") == "json_schema":
        out.append("response_format")
    return tuple(out)


def _demands_tool(choice: Any) -> bool:
    """Whether a tool must be called; `allowed_tools` has this in its own `mode`."""
    if not isinstance(choice, dict):
        return choice in ("required", "any")
    allowed = choice.get("allowed_tools")
    mode = allowed.get("mode") if isinstance(allowed, dict) else choice.get("mode")
    return (mode or choice.get("type")) not in ("auto", "none")


def _turns(body: dict[str, Any], targets: list[Target]) -> tuple[Message, ...]:
    """The neutral turns. An OpenAI-compatible upstream validates its messages itself."""
    messages = body.get("messages")
    if plain := plain_turns(messages):
        return plain
    require_few(messages)
    only_openai = all(target.platform.passes_through for target in targets)
    try:
        return read_turns(messages, skips=only_openai)
    except InvalidRequest:
        if not (only_openai and isinstance(messages, list) and messages):
            raise
        return (Message("user", ""),)


def _conversation(request: web.Request, body: dict[str, Any]) -> str | None:
    """The platform's conversation to continue, from the body or a header."""
    id_ = _text(body, "conversation_id") or _text(body, "chat_id")
    if not id_ and "x-conversation-id" in request.headers:
        id_ = unquote(request.headers["x-conversation-id"].strip())
    if not id_:
        return None
    if len(id_) > _MAX_ID or not id_.isprintable():
        raise InvalidRequest("The conversation id cannot be one.", param="conversation_id")
    return id_


def _short(body: dict[str, Any], name: str) -> str:
    text = _text(body, name)
    if len(text) > _MAX_ID:
        raise InvalidRequest(
            say("'{name}' is longer than {most} characters.", name=name, most=_MAX_ID), param=name
        )
    return text


def _flag(body: dict[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise InvalidRequest(say("'{name}' must be true or false.", name=name), param=name)
    return bool(value)


def _object(body: dict[str, Any], name: str) -> dict[str, Any]:
    value = body.get(name)
    if value is not None and not isinstance(value, dict):
        raise InvalidRequest(say("'{name}' must be an object.", name=name), param=name)
    if value and len(value) > MAX_VARIABLES:
        raise InvalidRequest(
            say("'{name}' has more than {most} members.", name=name, most=MAX_VARIABLES), param=name
        )
    return value or {}


async def models(request: web.Request) -> web.Response:
    state = state_of(request)
    visible = state.routing.visible(caller_of(request))
    data = [_model(name, owner, state.since) for name, owner in visible]
    return web.json_response({"object": "list", "data": data}, dumps=_dumps)


async def model(request: web.Request) -> web.Response:
    """One model. Its name may hold a slash, encoded or not, and any script."""
    state = state_of(request)
    wanted = request.match_info["id"].strip("/")
    for name, owner in state.routing.visible(caller_of(request)):
        if name.lower() == wanted.lower():
            return web.json_response(_model(name, owner, state.since), dumps=_dumps)
    # Raises if the model does not exist; `agent/any-model` does.
    state.routing.allowed(caller_of(request), wanted)
    return web.json_response(_model(wanted, "openai", state.since), dumps=_dumps)


def _model(name: str, owner: str, since: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": since, "owned_by": owner}


def _dumps(value: Any) -> str:
    return orjson.dumps(value).decode()
