"""/api/v1/users/{end_user}/data: all that is kept of one end user, to take along or to delete.

The end user is one of the caller's own; a page's token reaches its user alone. Threads of the
memory are keyed hashes without words or names, so there is nothing in them to show or to find; they
end by themselves (`memory.keep`).
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import orjson
from aiohttp import web

from gateway.accounts.credentials import Caller
from gateway.conversations.register import Owner
from gateway.errors import DatabaseUnavailable, GatewayError, InvalidRequest, StorageUnavailable
from gateway.files.library import Files, StoredFile, owner_of
from gateway.http.body import Nothing, envelope, read_settings, require_query
from gateway.http.context import CONTEXT, CONVERSATIONS, FILES, caller_of
from gateway.http.services import services_of
from gateway.language.sentences import say
from gateway.routes.conversations import deleted, described_rows, owner_in, read_messages
from gateway.telemetry.call import kept_user
from gateway.times import iso

_STALLED_S = 60.0
_FILES_AT_ONCE = 100
MAX_FILES = 2000  # that are deleted in one call
MAX_CALLS = 10_000  # that an export lists
_MOST_MESSAGES, _MOST_CHARACTERS = 5000, 8 << 20  # of one conversation in an export


async def delete_data(request: web.Request) -> web.Response:
    """Delete conversations here and at the platforms, files, and the user's name and words in the
    record. The report says what is left: send the call again until it is complete."""
    owner = _owner(request)
    await read_settings(request, Nothing, is_optional=True)
    services, caller = services_of(request), caller_of(request)
    with contextlib.suppress(DatabaseUnavailable):
        await services.recorder.flush()
    request.app[CONVERSATIONS].drop_earlier(owner)
    report = await deleted(request, owner)
    files, has_more = await _delete_files(request.app[FILES], caller, owner.user)
    calls = await services.calls.forget(owner.caller, kept_user(owner.user))
    is_complete = report["is_complete"] and not has_more
    return envelope(
        {
            "user": owner.user,
            "conversations": report["conversations"],
            "files": files,
            "calls": calls,
            "is_complete": is_complete,
        }
    )


async def export_data(request: web.Request) -> web.StreamResponse:
    """The same as one JSON document, sent piece by piece: it may be long."""
    owner = _owner(request)
    require_query(request)
    services_of(request)  # raises without a database
    response = web.StreamResponse(
        headers={"Content-Disposition": 'attachment; filename="data.json"'}
    )
    response.content_type = "application/json"
    if request.method == "HEAD":
        return response
    pieces = _exported(request, owner)
    first = await anext(pieces)  # a failure of the database has its own status
    await response.prepare(request)
    await _write(response, first)
    async for piece in pieces:
        await _write(response, piece)
    await response.write_eof()
    return response


async def _write(response: web.StreamResponse, piece: bytes) -> None:
    async with asyncio.timeout(_STALLED_S):  # a client that does not read holds a connection
        await response.write(piece)


async def _exported(request: web.Request, owner: Owner) -> AsyncIterator[bytes]:
    head = {"user": owner.user, "exported_at": datetime.now(UTC).isoformat(timespec="seconds")}
    rows = described_rows(request, owner)
    row = await anext(rows, None)
    yield orjson.dumps(head)[:-1] + b',"conversations":['
    comma = b""
    while row is not None:
        one, shown = row
        messages: list[dict[str, Any]] = []
        before, problem, size = "", None, 0
        try:
            while True:
                page, before = await read_messages(request, one, 100, before)
                messages[:0] = page
                size += sum(len(turn["question"]) + len(turn["answer"]) for turn in page)
                if not before:
                    break
                if len(messages) >= _MOST_MESSAGES or size >= _MOST_CHARACTERS:
                    raise _too_many(before)
        except GatewayError as error:
            problem = request[CONTEXT].failed(error).message
        yield comma + orjson.dumps({**shown, "messages": messages, "problem": problem})
        comma = b","
        row = await anext(rows, None)
    files = [
        {"id": file.id, "name": file.title, "size": file.size, "created_at": iso(file.created_ms)}
        async for file in _files_of(request.app[FILES], caller_of(request), owner.user)
    ]
    calls = await services_of(request).calls.of_user(owner.caller, kept_user(owner.user), MAX_CALLS)
    yield b'],"files":' + orjson.dumps(files) + b',"calls":' + orjson.dumps(calls) + b"}"


def _too_many(before: str) -> GatewayError:
    return InvalidRequest(
        say(
            "There are older turns: read them at …/messages?before={before} of this conversation.",
            before=before,
        )
    )


def _owner(request: web.Request) -> Owner:
    return owner_in(request, request.match_info["end_user"])


async def _files_of(files: Files, caller: Caller, user: str) -> AsyncIterator[StoredFile]:
    """The files that the user's pages have uploaded, and those that the caller has uploaded in the
    user's name."""
    owners = {f"{caller.id}/{user}", owner_of(caller)}
    for owner in sorted(owners):
        after, has_more = "", True
        while has_more:
            page, has_more = await files.page(owner, _FILES_AT_ONCE, after, newest_first=True)
            for file in page:
                if owner == f"{caller.id}/{user}" or file.created_by == user:
                    yield file
            after = page[-1].id if page else ""


async def _delete_files(files: Files, caller: Caller, user: str) -> tuple[int, bool]:
    """How many were deleted, and whether some are left."""
    count = 0
    try:
        async for file in _files_of(files, caller, user):
            if count == MAX_FILES:
                return count, True
            await files.delete(file)
            count += 1
    except StorageUnavailable:
        return count, True
    return count, False
