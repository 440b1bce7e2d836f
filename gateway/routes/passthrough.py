"""Whatever else OpenAI-compatible agents offer under /v1, such as embeddings: passed on to them."""

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from aiohttp import web

from gateway.chat.routing import Target
from gateway.errors import Forbidden, InvalidRequest, MethodNotAllowed, NotFound
from gateway.files.library import owner_of
from gateway.http.answer import answering
from gateway.http.body import read_object, text_member
from gateway.http.context import FILES, FORMS, State, caller_of, state_of
from gateway.http.formcopy import FormCopy
from gateway.http.relay import relay
from gateway.language.sentences import say
from gateway.limits.shares import Part
from gateway.platforms.base import dump
from gateway.protocol.exchange import UpstreamRequest
from gateway.protocol.messages import ChatRequest, DescribeRequest, PassedOn
from gateway.telemetry.call import Call

# Names of endpoints, without any part that a URL library could resolve outside the base URL.
_PATH = re.compile(r"[A-Za-z0-9_\-]+(?:/[A-Za-z0-9_\-][A-Za-z0-9._\-]*)*")


async def pass_on(request: web.Request) -> web.StreamResponse:
    """Pass any other POST under /v1 to the OpenAI-compatible agents of the name in `model`."""
    caller = caller_of(request)
    if caller.end_user and not caller.trusts_headers:  # a page, which writes its own bodies
        raise Forbidden("A web page's token opens chats and audio only.")
    if request.content_type.startswith("multipart/"):
        return await _pass_form_on(request)
    return await _pass_json_on(request)


@asynccontextmanager
async def held_form(
    request: web.Request, only: frozenset[str] | None = None
) -> AsyncIterator[FormCopy]:
    """The request's form, for as long as it is passed on. It is stored like an upload and may
    arrive as slowly, so it takes an upload slot. For `only` see `FormCopy`."""
    files, caller = request.app[FILES], caller_of(request)
    with files.slot(owner_of(caller)):
        held = Part(request.app[FORMS], caller.holders)
        async with FormCopy(request, state_of(request).config.storage, held, only) as form:
            yield form


async def _pass_form_on(request: web.Request) -> web.StreamResponse:
    async with held_form(request) as form:
        return await answering(partial(_read_form, form), answer=relay)(request)


async def _read_form(
    form: FormCopy, request: web.Request, state: State, call: Call
) -> tuple[ChatRequest, list[Target]]:
    return _question(request, state, call, await form.keep(), partial(with_form, form))


async def _read_json(
    request: web.Request, state: State, call: Call
) -> tuple[ChatRequest, list[Target]]:
    body = await read_object(request)
    call.end_user = call.caller.end_user or text_member(body, "user")
    return _question(request, state, call, text_member(body, "model"), partial(with_json, body))


_pass_json_on = answering(_read_json, answer=relay)


def _question(
    request: web.Request, state: State, call: Call, asked: str, describe: DescribeRequest
) -> tuple[ChatRequest, list[Target]]:
    path = request.match_info["path"].strip("/")
    if not _PATH.fullmatch(path) or path == "chat/completions":
        raise NotFound(
            say("There is nothing at {method} /v1/{path}.", method="POST", path=path[:100])
        )
    if not asked:
        raise InvalidRequest("'model' is missing: put the agent's name there.", param="model")
    allowed = state.routing.allowed(call.caller, asked)
    targets = [target for target in allowed if target.platform.passes_through]
    if not targets:
        raise NotFound(
            say(
                "/v1/{path} is only there for OpenAI-compatible agents; {agent!r} is not "
                "one. Ask agents at /v1/chat/completions.",
                path=path[:100],
                agent=asked[:100],
            )
        )
    call.surface = "passthrough"
    passed = PassedOn(path, request.rel_url.raw_query_string, describe)
    return ChatRequest(asked, (), "", passed=passed), targets


# Called for each attempt, so that a form is read again from its beginning.


def with_json(
    body: dict[str, Any], url: str, headers: Mapping[str, str], model: str
) -> UpstreamRequest:
    return UpstreamRequest("POST", url, headers, dump({**body, "model": model}))


def with_form(form: FormCopy, url: str, headers: Mapping[str, str], model: str) -> UpstreamRequest:
    """The upstream request for a form: audio to transcribe, images to edit."""
    others = {name: headers[name] for name in headers if name.lower() != "content-type"}
    return UpstreamRequest(
        "POST",
        url,
        {**others, "Content-Type": form.content_type},
        form.head(model),
        rest=form.rest(),
        rest_size=form.size,
    )


async def nothing(request: web.Request) -> web.StreamResponse:
    """Any other method under /v1: only POST is passed on, and no other path exists.

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
    raise NotFound(
        say("There is nothing at {method} /v1/{path}.", method=request.method[:16], path=path[:100])
    )
