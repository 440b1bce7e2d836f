"""Answers that the gateway gives by itself, in place of a run: to background calls."""

import time

from aiohttp import web

from gateway import headers as headernames
from gateway.chat.routing import Target
from gateway.errors import UpstreamFailed
from gateway.http.context import CONTEXT, UPSTREAM, header_value, state_of
from gateway.http.fastwrite import ALREADY_SENT, Stream, answer_json, begin_stream
from gateway.protocol.messages import ChatRequest, Delta, Finish, Text, Usage
from gateway.protocol.render import StreamRenderer, WholeRenderer
from gateway.telemetry.call import Call


async def answer_locally(
    request: web.Request, call: Call, chat: ChatRequest, targets: list[Target]
) -> web.StreamResponse:
    """Answer with `chat.answer`, streamed or whole. A probe is answered only if one of the targets
    is healthy; else this raises UpstreamFailed."""
    context, name = request[CONTEXT], targets[0].name
    context.agent, context.attempts = name, 0
    call.was_asked = False  # so it counts in no quota and no usage
    if chat.task == "probe":
        await _require_health(request, targets)
    call.first_delta()
    finish = Finish("stop", Usage())
    call.finished(finish)
    deltas: list[Delta] = [Text(chat.answer or ""), finish]
    headers: dict[str, str] = {
        headernames.AGENT: header_value(chat.route or name),
        headernames.ATTEMPTS: "0",
        headernames.TASK: chat.task,
    }
    created = int(time.time())
    if not chat.stream:
        whole = WholeRenderer(chat, name, created, conversational=False)
        whole.feed(deltas)
        body = whole.body()
        if call.capture is not None:
            call.capture.add(body)
        return answer_json(request, context, headers, body)
    frames = StreamRenderer(chat, name, created, conversational=False).feed(deltas)
    if call.capture is not None:
        call.capture.add(frames)
    response = await begin_stream(request, context, headers)
    await response.write_eof(frames)
    return ALREADY_SENT if isinstance(response, Stream) else response


async def _require_health(request: web.Request, targets: list[Target]) -> None:
    """Raises UpstreamFailed with the last target's problem if none is healthy."""
    detail = ""
    for target in targets:
        health = await state_of(request).health.check(request.app[UPSTREAM], target)
        if health.healthy:
            return
        detail = health.detail
    raise UpstreamFailed(detail)
