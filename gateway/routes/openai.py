"""The OpenAI surface: chat completions, models, and whatever else compatible agents offer."""

import asyncio
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast
from urllib.parse import unquote

import orjson
from aiohttp import web

from gateway.chat.routing import Target, pin, pin_files, pin_results
from gateway.errors import (
    Forbidden,
    GatewayError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    UpstreamTimeout,
)
from gateway.files.library import owner_of
from gateway.http.answer import answering
from gateway.http.body import read_object
from gateway.http.context import (
    ATTACHMENTS,
    CONTEXT,
    FILES,
    FORMS,
    SIGNER,
    UPSTREAM,
    State,
    call_of,
    caller_of,
    state_of,
)
from gateway.http.formcopy import FormCopy
from gateway.http.forwarded import client_origin
from gateway.limits.rules import counts_tokens
from gateway.limits.shares import Part
from gateway.platforms.base import PassesThrough, dump
from gateway.protocol.exchange import UpstreamReply, UpstreamRequest
from gateway.protocol.messages import ChatRequest, Message, has_media
from gateway.protocol.openai_messages import narrowed, plain_turns, read_turns, require_few
from gateway.protocol.passthrough import usage_at_end
from gateway.protocol.redaction import Scrubber, masked
from gateway.telemetry.call import Call, Capture
from gateway.upstream.client import Exchange

_MAX_ID = 1024
MAX_VARIABLES = 1000
_TAIL = 2048  # bytes at the end of an answer, which contain the usage


async def _read_chat(
    request: web.Request, state: State, call: Call
) -> tuple[ChatRequest, list[Target]]:
    caller = call.caller
    body = await read_object(request)
    model = _text(body, "model")
    if not model:
        raise InvalidRequest("'model' is missing: put the agent's name there.", param="model")
    user = _short(body, "user")
    call.end_user = caller.end_user or user
    targets = state.routing.allowed(caller, model)
    is_routed = len(targets) > 1
    seal = request.app[SIGNER].seal(caller) if caller.end_user else None
    if conversation := _conversation(request, body):
        targets, conversation = pin(targets, conversation, state.routing.is_route(model), seal)
    stream_options = body.get("stream_options")
    messages = _turns(body, targets)
    if seal is not None:
        targets, messages = pin_results(targets, messages, seal)
        body = {**body, "messages": narrowed(body["messages"])}
    if has_media(messages):
        messages = await request.app[ATTACHMENTS].resolve(
            messages, owner_of(caller), partial(client_origin, request)
        )
        if seal is not None:
            targets, messages = pin_files(targets, messages, seal)
    options = _options(body)
    chat = ChatRequest(
        model=model,
        messages=messages,
        user=caller.user_of(user),
        seal=seal,
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
        demands=_demands(body) if options else (),
    )
    return chat, targets


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


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name)
    if value is None:
        return ""
    if isinstance(value, str):
        return value.strip()
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidRequest(f"'{name}' must be a string.", param=name)
    return str(value)


def _short(body: dict[str, Any], name: str) -> str:
    text = _text(body, name)
    if len(text) > _MAX_ID:
        raise InvalidRequest(f"'{name}' is longer than {_MAX_ID} characters.", param=name)
    return text


def _flag(body: dict[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise InvalidRequest(f"'{name}' must be true or false.", param=name)
    return bool(value)


def _object(body: dict[str, Any], name: str) -> dict[str, Any]:
    value = body.get(name)
    if value is not None and not isinstance(value, dict):
        raise InvalidRequest(f"'{name}' must be an object.", param=name)
    if value and len(value) > MAX_VARIABLES:
        raise InvalidRequest(f"'{name}' has more than {MAX_VARIABLES} members.", param=name)
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


async def nothing(request: web.Request) -> web.StreamResponse:
    """Any other method under /v1: only POST is passed through, and no other path exists.

    Raises MethodNotAllowed for a path that has a route of its own, else NotFound.
    """
    path = request.match_info["path"].strip("/")
    catch_all = request.match_info.route.resource
    allowed: set[str] = set()
    for resource in request.app.router.resources():
        if resource is not catch_all:
            allowed |= (await resource.resolve(request))[1]
    if allowed:
        raise MethodNotAllowed(request.method, allowed)
    raise NotFound(f"There is nothing at {request.method[:16]} /v1/{path[:100]}.")


# Names of endpoints, without any part that a URL library could resolve outside the base URL.
_PATH = re.compile(r"[A-Za-z0-9_\-]+(?:/[A-Za-z0-9_\-][A-Za-z0-9._\-]*)*")


async def pass_on(request: web.Request) -> web.StreamResponse:
    """Pass any other POST under /v1, such as embeddings, to the OpenAI-compatible agent
    in `model`."""
    if caller_of(request).end_user:
        raise Forbidden("A web page's token opens chats only.")
    if request.content_type.startswith("multipart/"):
        return await _pass_form_on(request)
    body = await read_object(request)
    call_of(request).end_user = _text(body, "user") or ""
    return await _pass_on(request, _text(body, "model"), partial(_with_json, body))


async def _pass_form_on(request: web.Request) -> web.StreamResponse:
    """Pass a form through. It is stored like an upload and may arrive as slowly, so it takes an
    upload slot."""
    files, caller = request.app[FILES], caller_of(request)
    with files.place(owner_of(caller)):
        held = Part(request.app[FORMS], caller.holders)
        async with FormCopy(request, state_of(request).config.storage, held) as form:
            asked = await form.keep()
            return await _pass_on(request, asked, partial(_with_form, form))


def _with_json(body: dict[str, Any], headers: Mapping[str, str], model: str) -> UpstreamRequest:
    return UpstreamRequest("POST", "", headers, dump({**body, "model": model}))


def _with_form(form: FormCopy, headers: Mapping[str, str], model: str) -> UpstreamRequest:
    """The upstream request for a form: audio to transcribe, images to edit."""
    others = {name: headers[name] for name in headers if name.lower() != "content-type"}
    return UpstreamRequest(
        "POST",
        "",
        {**others, "Content-Type": form.content_type},
        form.head(model),
        rest=form.rest(),
        rest_size=form.size,
    )


async def _pass_on(
    request: web.Request, asked: str, describe: Callable[[Mapping[str, str], str], UpstreamRequest]
) -> web.StreamResponse:
    """`describe` makes the request, without its URL, from an agent's headers and model."""
    path = request.match_info["path"].strip("/")
    if not asked or not _PATH.fullmatch(path) or path == "chat/completions":
        hint = "" if asked else " without a 'model' in the body"
        raise NotFound(f"There is nothing at POST /v1/{path[:100]}{hint}.")
    state = state_of(request)
    targets = state.routing.allowed(caller_of(request), asked)
    target, platform = _openai_target(targets, asked, path)
    context, call = request[CONTEXT], call_of(request)
    call.surface, call.agent, call.provider = "passthrough", target.name, platform.kind
    call.model = state.routing.known(asked)
    if target.agent.capture != "off":
        limit = state.config.record.max_body
        call.capture = Capture(limit, context.body or b"")
        call.capture_always = target.agent.capture == "all"
    context.body = None  # free it: a stream may last for minutes
    context.agent = target.name
    context.hide([target.name], call.model)
    query = request.rel_url.raw_query_string
    upstream_request = describe(platform.headers, platform.model(asked))
    upstream_request.url = platform.address(path, query)
    try:
        async with target.place(caller_of(request).holders):
            return await _in_time(request, target, upstream_request)
    except GatewayError as error:
        raise target.explain(error) from None


async def _in_time(
    request: web.Request, target: Target, upstream_request: UpstreamRequest
) -> web.StreamResponse:
    total_s = target.agent.timeouts.total
    try:
        async with asyncio.timeout(total_s):
            return await _copy(request, target, upstream_request)
    except TimeoutError:
        raise UpstreamTimeout(
            f"The answer took longer than {total_s:g} s.",
            # Once the answer has begun, a caller that does not read may be the cause.
            outage=call_of(request).first_delta_at is None,
        ) from None


def _openai_target(targets: list[Target], asked: str, path: str) -> tuple[Target, PassesThrough]:
    for target in targets:
        if target.platform.passes_through:
            return target, cast(PassesThrough, target.platform)
    raise NotFound(
        f"/v1/{path[:100]} is only there for OpenAI-compatible agents; {asked[:100]!r} is not one."
        " Ask agents at /v1/chat/completions."
    )


async def _copy(
    request: web.Request, target: Target, upstream_request: UpstreamRequest
) -> web.StreamResponse:
    """Copy the upstream's answer unchanged, except for its errors and its own headers."""
    timeouts = target.agent.timeouts
    exchange: Exchange | None = None
    tail = b""
    try:
        trace_headers = call_of(request).trace.attempt(
            target.name, target.platform.kind, target.url
        )
        exchange = await request.app[UPSTREAM].send(upstream_request, target.way, trace_headers)
        if exchange.status != 200:
            raise _refusal(await exchange.reply(), cast(PassesThrough, target.platform))
        await exchange.peek()
        kind = exchange.headers.get("Content-Type", "application/octet-stream")
        call = call_of(request)
        call.streamed = kind.startswith("text/event-stream")
        kind = masked(kind, target.credentials)
        response = web.StreamResponse(headers={"Content-Type": kind, "X-Accel-Buffering": "no"})
        await response.prepare(request)
        scrubber = Scrubber(target.credentials)
        is_over = False
        while not is_over:
            chunk = await _within(timeouts.idle, exchange)
            is_over = not chunk
            chunk = scrubber.end() if is_over else scrubber.feed(chunk)
            if not chunk:
                continue
            call.first_delta()
            tail = (tail + chunk)[-_TAIL:]
            if call.capture is not None:
                call.capture.add(chunk)
            await response.write(chunk)
        await response.write_eof()
        call.is_whole = True
        return response
    finally:
        call_of(request).usage = usage_at_end(tail)
        if exchange is not None:
            exchange.close()


async def _within(idle_s: float, exchange: Exchange) -> bytes:
    try:
        async with asyncio.timeout(idle_s):
            return await exchange.read()
    except TimeoutError:
        raise UpstreamTimeout(f"The upstream has been silent for {idle_s:g} s.") from None


def _refusal(reply: UpstreamReply, platform: PassesThrough) -> GatewayError:
    if reply.status in (404, 405) and not reply.object().get("error"):
        return NotFound("The upstream has no such endpoint.")
    return platform.failure(reply)
