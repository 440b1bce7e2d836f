"""Files: uploads of front ends, OpenAI's `/v1/files`, and the links to stored files.

The gateway stores an upload, or streams it to the agent's platform.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import orjson
from aiohttp import web

from gateway.chat.delivery import require_kind, upload_file
from gateway.chat.routing import Target
from gateway.errors import FileNotFound, GatewayError
from gateway.files.library import MAX_LISTED, NAME, StoredFile, disposition, owner_of
from gateway.filetypes import kind_of, mime_of, served_as
from gateway.http.body import agent_name, choice, envelope, number
from gateway.http.context import ATTACHMENTS, CONTEXT, FILES, SIGNER, UPSTREAM, caller_of, state_of
from gateway.http.forwarded import client_origin
from gateway.http.multipart import UploadForm
from gateway.protocol.exchange import Source
from gateway.protocol.messages import Media

_NO_SCRIPTS = "default-src 'none'; img-src 'self'; media-src 'self'; sandbox"
_NO_POLICY = "frame-ancestors *"  # browsers' PDF viewers do not run in a sandbox
MAX_CREATED_BY = 1024  # characters
MAX_PURPOSE = 64
STALLED_S = 60.0


async def upload(request: web.Request) -> web.Response:
    state, caller = state_of(request), caller_of(request)
    target = _target(request)
    with request.app[FILES].slot(owner_of(caller)):
        return await _upload(request, target, UploadForm(request, state.config.storage))


async def _upload(request: web.Request, target: Target | None, form: UploadForm) -> web.Response:
    await form.begin()
    mime = mime_of(form.extension)
    if target is not None:
        request[CONTEXT].agent = target.name
        require_kind(target, Media(kind_of(mime), "", form.title))
    if target is not None and target.agent.upload == "platform":
        data = await _to_platform(request, target, form)
    else:
        file = await _keep(request, form)
        data = _described(file, await request.app[FILES].link(file, client_origin(request)))
    created_by = caller_of(request).named(_given_user(form))
    request[CONTEXT].file_bytes = form.size
    return envelope({**data, "created_by": created_by, "type": kind_of(mime)})


async def _keep(request: web.Request, form: UploadForm, purpose: str = "") -> StoredFile:
    """Store the form's file in the gateway's own file store."""
    caller = caller_of(request)

    async def finish() -> tuple[str, str]:
        await form.finish()
        return caller.named(_given_user(form)), form.fields.get("purpose", purpose)[:MAX_PURPOSE]

    files, owner = request.app[FILES], owner_of(caller)
    return await files.add(owner, form.title, form.extension, form.chunks(), finish)


async def _to_platform(request: web.Request, target: Target, form: UploadForm) -> dict[str, Any]:
    """Stream the form's file to the platform without storing it. If the form breaks off, the upload
    there is not completed."""
    caller, failures = caller_of(request), list[GatewayError]()

    async def chunks() -> AsyncIterator[bytes]:
        try:
            async for chunk in form.chunks():
                yield chunk
            await form.finish()
        except GatewayError as error:
            failures.append(error)
            raise

    mime = mime_of(form.extension)
    source = Source(form.title, mime, None, chunks())
    try:
        async with target.slot(caller.holders):
            id_ = await upload_file(
                request.app[UPSTREAM], target, source, lambda: caller.user_of(_given_user(form))
            )
    except GatewayError as error:
        raise (error if error in failures else target.redacted(error)) from None
    if seal := request.app[SIGNER].seal(caller):
        id_ = seal.close_file(target.name, id_)
    request.app[ATTACHMENTS].remember(id_, kind_of(mime))
    return {
        "id": id_,
        "name": form.title,
        "size": form.size,
        "extension": form.extension,
        "mime_type": mime,
        "created_at": int(time.time()),
    }


def _described(file: StoredFile, link: str) -> dict[str, Any]:
    return {
        "id": link,
        "file_id": file.id,
        "name": file.title,
        "size": file.size,
        "extension": file.extension,
        "mime_type": file.mime,
        "created_at": file.created_ms // 1000,
    }


def _given_user(form: UploadForm) -> str:
    """The end user that the form names for the file; platforms return the file to that
    user alone."""
    return form.fields.get("created_by", "").strip()[:MAX_CREATED_BY]


def _target(request: web.Request) -> Target | None:
    """The agent that the file is for, if the caller names one. A route with several agents gives
    None: the file is then passed to the agent that answers."""
    name = agent_name(request)
    if not name:
        return None
    targets = state_of(request).routing.allowed(caller_of(request), name, "agent")
    return targets[0] if len(targets) == 1 else None


async def agents(request: web.Request) -> web.Response:
    """The agents that take files."""
    caller = caller_of(request)
    names = [
        target.name
        for target in state_of(request).routing.targets.values()
        if target.kinds and caller.may_ask(target.name, [target.name])
    ]
    return envelope({"supported_agents": names, "count": len(names)})


# OpenAI's form. Files uploaded with a web page's token belong to its user.


async def create(request: web.Request) -> web.Response:
    form = UploadForm(request, state_of(request).config.storage)
    with request.app[FILES].slot(owner_of(caller_of(request))):
        await form.begin()
        file = await _keep(request, form, "user_data")
    request[CONTEXT].file_bytes = file.size
    return _json(request.app[FILES].described(file))


async def list_files(request: web.Request) -> web.Response:
    limit = number(request, "limit", MAX_LISTED // 10, 10_000)
    order = choice(request, "order", ("asc", "desc")) or "desc"
    files, has_more = await request.app[FILES].page(
        owner_of(caller_of(request)),
        min(limit, MAX_LISTED),
        request.query.get("after", ""),
        newest_first=order == "desc",
        purpose=request.query.get("purpose", ""),
    )
    data = [request.app[FILES].described(file) for file in files]
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {}
    return _json({"object": "list", "data": data, "has_more": has_more, **ends})


async def retrieve(request: web.Request) -> web.Response:
    return _json(request.app[FILES].described(await _own(request)))


async def delete(request: web.Request) -> web.Response:
    file = await _own(request)
    await request.app[FILES].delete(file)
    return _json({"id": file.id, "object": "file", "deleted": True})


async def content(request: web.Request) -> web.StreamResponse:
    return await _sent(request, await _own(request))


async def _own(request: web.Request) -> StoredFile:
    return await request.app[FILES].get(request.match_info["id"], owner_of(caller_of(request)))


def _json(value: Any) -> web.Response:
    return web.Response(body=orjson.dumps(value), content_type="application/json")


# Links. A link works without a key: its name cannot be guessed.


async def served(request: web.Request) -> web.StreamResponse:
    """Files in a folder are sent from here; a bucket sends its own."""
    files = request.app[FILES]
    name = request.match_info["name"]
    if not NAME.fullmatch(name):
        raise FileNotFound("There is no such file.")
    file = await files.find(name)
    if files.local_path(file) is None:
        raise web.HTTPFound(await files.link(file, ""))
    return await _sent(request, file)


async def _sent(request: web.Request, file: StoredFile) -> web.StreamResponse:
    headers = {
        "Content-Type": served_as(file.mime),
        "Content-Disposition": disposition(file.title, file.mime),
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "private, max-age=3600",
        "Content-Security-Policy": _NO_POLICY if file.mime == "application/pdf" else _NO_SCRIPTS,
    }
    path = request.app[FILES].local_path(file)
    if path is not None:
        return web.FileResponse(path, headers=headers)  # supports ranges
    async with request.app[FILES].source(file) as source:
        response = web.StreamResponse(headers=headers)
        response.content_length = source.size
        await response.prepare(request)
        async for block in source.chunks:
            async with asyncio.timeout(STALLED_S):  # a client that does not read holds a connection
                await response.write(block)
        await response.write_eof()
    return response
