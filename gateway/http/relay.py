"""Send the answer of a run as the upstream wrote it, without its headers and the agent's keys."""

import asyncio
from collections.abc import Iterable

from aiohttp import web

from gateway import headers as headernames
from gateway.chat.run import Run
from gateway.config.models import Server
from gateway.http.answer import headers_of, too_long
from gateway.protocol.messages import ChatRequest, Delta, Failed, Finish, Raw
from gateway.protocol.redaction import Scrubber, masked
from gateway.telemetry.call import Call

_ANY = "application/octet-stream"


async def relay(
    request: web.Request,
    call: Call,
    run: Run,
    chat: ChatRequest,
    conversational: bool,
    server: Server,
) -> web.StreamResponse:
    """For `answering`. Nothing is sent before the first bytes have arrived. A failure after that
    can only break the connection off: the answer may have any format."""
    try:
        deltas = await run.start()
        async with asyncio.timeout_at(run.ends_at):
            return await _copy(request, call, run, deltas)
    except TimeoutError:
        raise too_long(run) from None


async def _copy(
    request: web.Request, call: Call, run: Run, deltas: list[Delta]
) -> web.StreamResponse:
    attempt = run.attempt
    credentials = attempt.target.credentials
    kind = masked(attempt.connection.headers.get("Content-Type", ""), credentials)
    if not (kind and kind.isprintable()):  # aiohttp would fail once it has begun the answer
        kind = _ANY
    call.first_delta()
    call.streamed = kind.startswith("text/event-stream")
    own = {headernames.CONTENT_TYPE: kind, headernames.BUFFERING: "no"}
    response = web.StreamResponse(headers=headers_of(run) | own)
    await response.prepare(request)
    scrubber, loop = Scrubber(credentials), asyncio.get_running_loop()
    while not attempt.over:
        await _send(response, call, b"".join(map(scrubber.feed, _raw(deltas))))
        attempt.show_life(loop.time())  # the caller may have been slow to take it
        deltas = await attempt.read() or []
    run.close()  # free the agent's slot before waiting for a slow caller
    last = deltas[-1]
    if isinstance(last, Failed):
        raise last.error
    assert isinstance(last, Finish)
    call.finished(last)
    await _send(response, call, b"".join(map(scrubber.feed, _raw(deltas))) + scrubber.end())
    await response.write_eof()
    return response


async def _send(response: web.StreamResponse, call: Call, data: bytes) -> None:
    if not data:
        return
    if call.capture is not None:
        call.capture.add(data)
    await response.write(data)


def _raw(deltas: list[Delta]) -> Iterable[bytes]:
    return (delta.data for delta in deltas if isinstance(delta, Raw))
