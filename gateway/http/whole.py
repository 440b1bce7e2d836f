"""Whole answers: one JSON object, kept alive with spaces if the client asks for that."""

import asyncio
import time

import orjson
from aiohttp import web

from gateway.chat.run import Run
from gateway.errors import GatewayError, api_body, openai_body
from gateway.http.context import CONTEXT, is_api
from gateway.http.fastwrite import answer_json
from gateway.http.inflight import forget_cancellation
from gateway.http.language import choice_of
from gateway.http.outcome import end, headers_of, stop_of, stopped_by_user, too_long
from gateway.http.remember import keep
from gateway.protocol.messages import ChatRequest
from gateway.protocol.render import WholeRenderer
from gateway.telemetry.call import Call


async def _whole(
    request: web.Request, call: Call, run: Run, chat: ChatRequest, conversational: bool
) -> bytes:
    """The JSON of the answer."""
    created = int(time.time())
    renderer = WholeRenderer(chat, run.attempt.target.name, created, conversational)
    try:
        deltas = await run.start()
        call.first_delta()
        attempt = run.attempt
        renderer = WholeRenderer(chat, attempt.target.name, created, conversational)
        renderer.feed(deltas)
        while not attempt.over:
            more = await attempt.read(run.ends_at)
            if more is None:
                raise TimeoutError
            renderer.feed(more)
    except TimeoutError:
        raise too_long(run) from None
    except asyncio.CancelledError:
        if not request[CONTEXT].stopped_by_user:
            raise
        forget_cancellation()
        renderer.feed([stopped_by_user(run, renderer.notes)])
    else:
        if renderer.finish:
            call.finished(renderer.finish)
    run.texts, run.thoughts, run.renderer = renderer.texts, renderer.thoughts, renderer
    await keep(request, run, call, cut=renderer.notes.is_stopped)
    return renderer.body()


async def answer_whole(
    request: web.Request, call: Call, run: Run, chat: ChatRequest, conversational: bool
) -> web.StreamResponse:
    body = await _whole(request, call, run, chat, conversational)
    if call.capture is not None:
        call.capture.add(body)
    return answer_json(request, request[CONTEXT], headers_of(run), body)


async def answer_kept_alive(
    request: web.Request,
    call: Call,
    run: Run,
    chat: ChatRequest,
    conversational: bool,
    keepalive_s: float,
) -> web.StreamResponse:
    """A whole answer whose head is sent after `keepalive_s`, followed by spaces until the JSON is
    complete. A failure after that is the error's JSON under status 200, since the status is already
    sent."""
    response: web.StreamResponse | None = None
    working = asyncio.ensure_future(_whole(request, call, run, chat, conversational))
    try:
        while not await _is_done(request, working, keepalive_s):
            if response is None:
                plain = {"X-Accel-Buffering": "no", "Cache-Control": "no-cache"}
                response = web.StreamResponse(headers=plain | headers_of(run))
                response.content_type = "application/json"
                await response.prepare(request)
            await response.write(b" ")
        if response is None:
            body, headers = working.result(), headers_of(run)
            return web.Response(body=body, content_type="application/json", headers=headers)
        run.close()  # free the agent's slot before waiting for a slow caller
        await response.write(_or_error(request, working))
    except asyncio.CancelledError:
        if response is None or (stopped := request[CONTEXT].stopped) is None:
            raise
        forget_cancellation()
        await response.write(_error_json(request, stop_of(stopped, run)))
    finally:
        await end(working)
    await response.write_eof()
    return response


async def _is_done(request: web.Request, working: asyncio.Future[bytes], timeout_s: float) -> bool:
    """Whether the work is done by then. If the answer's user stops it, it ends early."""
    run = request[CONTEXT].run
    try:
        return bool((await asyncio.wait({working}, timeout=timeout_s))[0])
    except asyncio.CancelledError:
        if not request[CONTEXT].stopped_by_user:
            raise
        forget_cancellation()
        if run is not None and run.draft is not None and not run.draft.is_over:
            working.cancel()
        await asyncio.wait({working})
        return True


def _or_error(request: web.Request, working: asyncio.Future[bytes]) -> bytes:
    try:
        return working.result()
    except GatewayError as error:
        return _error_json(request, error)


def _error_json(request: web.Request, error: GatewayError) -> bytes:
    shown = request[CONTEXT].failed(error)
    render = api_body if is_api(request.path) else openai_body
    return orjson.dumps(render(shown, choice_of(request).language))
