"""Send the answer of a run as the upstream wrote it, without its headers and the agent's keys."""

import asyncio
from collections.abc import Iterable

from aiohttp import web

from gateway import headers as headernames
from gateway.chat.run import Run
from gateway.config.models import Server
from gateway.http.body import envelope
from gateway.http.context import is_api
from gateway.http.outcome import headers_of, too_long
from gateway.platforms.audio import SpeechDecoder
from gateway.platforms.base import dump
from gateway.protocol.audio import Recording
from gateway.protocol.messages import ChatRequest, Delta, Failed, Finish, Raw, Text
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


async def transcript(
    request: web.Request,
    call: Call,
    run: Run,
    chat: ChatRequest,
    conversational: bool,
    server: Server,
) -> web.StreamResponse:
    """For `answering`: a transcript, drawn by the gateway or as the upstream wrote it."""
    try:
        deltas = await run.start()
        async with asyncio.timeout_at(run.ends_at):
            if isinstance(deltas[0], Raw):
                return await _copy(request, call, run, deltas)
            while not run.attempt.over:
                deltas += await run.attempt.read() or []
    except TimeoutError:
        raise too_long(run) from None
    last = deltas[-1]
    if isinstance(last, Failed):
        raise last.error
    assert isinstance(last, Finish)
    call.first_delta()
    call.finished(last)
    text = "".join([delta.text for delta in deltas if isinstance(delta, Text)])
    return _drawn(request, call, run, chat, text)


def _drawn(
    request: web.Request, call: Call, run: Run, chat: ChatRequest, text: str
) -> web.StreamResponse:
    headers: dict[str, str] = headers_of(run)
    assert isinstance(chat.audio, Recording)
    if is_api(request.path):
        response = envelope({"text": text})
    elif chat.audio.fields.get("response_format") == "text":
        response = web.Response(text=f"{text}\n")  # OpenAI ends it so, too
    else:
        response = web.json_response({"text": text}, dumps=lambda value: dump(value).decode())
    response.headers.update(headers)
    if call.capture is not None and isinstance(response.body, bytes):
        call.capture.add(response.body)
    return response


async def _copy(
    request: web.Request, call: Call, run: Run, deltas: list[Delta]
) -> web.StreamResponse:
    attempt = run.attempt
    credentials = attempt.target.credentials
    kind = attempt.connection.headers.get("Content-Type", "")
    if isinstance(attempt.decoder, SpeechDecoder):
        kind = attempt.decoder.media_type(kind)
    kind = masked(kind, credentials)
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
