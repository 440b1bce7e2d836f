"""Turn a run into an HTTP answer, streamed or whole.

Nothing is sent before the first delta, so a failure keeps its status. After `keepalive_s` of
silence the gateway sends the 200 head and keep-alive comments; from then on, as after the first
delta, a failure becomes one error event and the end of the stream. With `keepalive_whole` a whole
answer is kept alive in the same way, by spaces before its JSON.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from functools import partial
from typing import Any

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler

from gateway import headers as headernames
from gateway.chat.routing import Target
from gateway.chat.run import Run
from gateway.config.models import KeepAliveForm, Server
from gateway.errors import (
    GatewayError,
    InternalError,
    Stopping,
    UpstreamTimeout,
    api_body,
    openai_body,
)
from gateway.http.body import hold_more
from gateway.http.context import (
    ATTACHMENTS,
    CONTEXT,
    METRICS,
    UPSTREAM,
    Context,
    State,
    header_value,
    is_api,
)
from gateway.http.fastwrite import ALREADY_SENT, Stream, answer_json, begin_stream
from gateway.http.inflight import forget_cancellation
from gateway.http.language import choice_of
from gateway.http.local import answer_locally
from gateway.http.pump import Pump, open_pump
from gateway.http.remember import is_open, keep, look_up, memory_header, recalled
from gateway.language.sentences import say
from gateway.memory.recall import MAX_TEXT
from gateway.platforms.base import ignored_options
from gateway.protocol.messages import ChatRequest, Delta, Failed, Finish
from gateway.protocol.render import Notes, StreamRenderer, WholeRenderer, error_frame, public_id
from gateway.protocol.sse import KEEP_ALIVE, KEEP_ALIVE_LINE
from gateway.telemetry.call import Call, Capture

log = logging.getLogger("gateway")

# Reads the question from a request's body and resolves the targets that may answer it.
ReadQuestion = Callable[[web.Request, State, Call], Awaitable[tuple[ChatRequest, list[Target]]]]

# Sends the answer of a run: (request, call, run, question, conversational, server's settings).
Answer = Callable[
    [web.Request, Call, Run, ChatRequest, bool, Server], Coroutine[Any, Any, web.StreamResponse]
]

_LONGEST_NAME, _MOST_NAMES = 40, 20  # of ignored members in a header
END_S = 10.0  # to send the end of a stream to a caller that reads slowly


def answering(
    read: ReadQuestion, *, conversational: bool = False, answer: Answer | None = None
) -> Handler:
    """A handler that answers from the first target that succeeds. `conversational` means
    `/api/v1/chat`; `answer` sends what the run gives, in place of a chat's answer."""
    send = answer or _answer

    async def handler(request: web.Request) -> web.StreamResponse:
        app, context = request.app, request[CONTEXT]
        call, state = context.call, context.state
        assert call is not None
        assert state is not None
        chat, targets = await read(request, state, call)
        call.streamed = chat.stream
        call.model = state.routing.known(chat.model)
        hidden = not call.caller.may_ask_all and [target.name for target in targets]
        if hidden and (
            route := context.hide(hidden, state.routing.asked(chat.asked or chat.model))
        ):
            chat = replace(chat, route=route)
        if any([target.agent.capture != "off" for target in targets]):
            call.capture = Capture(state.config.record.max_body, context.body or b"")
        context.body = None  # free it: a stream may last for minutes
        if chat.answer is not None:
            return await answer_locally(request, call, chat, targets)
        holders = call.caller.holders
        hold = partial(hold_more, request)
        draft = await look_up(request, state, call, chat, targets, conversational=conversational)
        recall = None
        if chat.scope:
            recall, targets = await recalled(request, state, chat, targets)
        shared = (call.trace, holders, hold, state.profiles)
        with Run(app[UPSTREAM], app[ATTACHMENTS], chat, targets, *shared) as run:
            context.run, run.recall, run.draft = run, recall, draft
            if recall is not None or (draft is not None and draft.question is not None):
                run.texts = []
                run.thoughts = [] if draft is not None and draft.question is not None else None
            error = ""
            try:
                return await send(request, call, run, chat, conversational, state.config.server)
            except (asyncio.CancelledError, ConnectionError):
                if context.stopped is not None:
                    context.stopped = _stop_of(context.stopped, run)
                else:
                    await _drain(request, run, call)
                raise
            except GatewayError as failure:
                error = context.failed(failure).message
                raise
            finally:
                context.run = None
                _note(context, call, run)
                if is_open(run):
                    app[UPSTREAM].spawn(keep(request, run, call, cut=True, error=error))

    return handler


def _answer(
    request: web.Request,
    call: Call,
    run: Run,
    chat: ChatRequest,
    conversational: bool,
    server: Server,
) -> Coroutine[Any, Any, web.StreamResponse]:
    """Return an awaitable. This is no coroutine: a coroutine's frame would stay in memory for the
    whole stream."""
    if chat.stream:
        return _Stream(request, call, run, chat, conversational, server).answer()
    if server.keepalive_whole:
        return _kept_alive(request, call, run, chat, conversational, server.keepalive)
    return _answer_whole(request, call, run, chat, conversational)


def _stop_of(stopped: Stopping, run: Run) -> Stopping:
    """The error for a call that the end of the process cuts short."""
    if not run.attempt.has_accepted:
        return stopped
    return Stopping(
        "The gateway is being restarted, which cut this answer short; ask again.",
        should_retry=False,
    )


async def _drain(request: web.Request, run: Run, call: Call) -> None:
    """The caller has disconnected: read the rest of a started answer if `on_disconnect` asks for
    that, so that the record has its usage."""
    attempt, target = run.attempt, run.attempt.target
    policy = target.agent.on_disconnect
    if policy.policy == "cancel" or not attempt.is_running or target.draining >= policy.max_calls:
        return
    loop = asyncio.get_running_loop()
    until = loop.time() + policy.max_time
    call.client_gone = True
    target.draining += 1
    run.take_over()
    try:
        while not attempt.over and loop.time() < until:  # after that the platform is asked to stop
            forget_cancellation()  # the disconnect, which may cancel the task more than once
            try:
                deltas = await attempt.read(until)
            except asyncio.CancelledError:
                context = request[CONTEXT]
                if context.stopped is not None:
                    context.stopped = None  # no client is left to receive it
                    raise
                continue
            for delta in deltas or ():
                if isinstance(delta, Finish):
                    call.finished(delta)
    finally:
        target.draining -= 1


def _note(context: Context, call: Call, run: Run) -> None:
    """Copy the fields of the run that the log, the record and the metrics need."""
    target, decoder = run.attempt.target, run.attempt.decoder
    context.agent, context.attempts = target.name, run.attempts
    if run.fallbacks or run.retries:  # else the answer carries its only reason
        context.failures = run.reasons[:10]
    call.agent, call.provider = target.name, target.platform.kind
    call.was_asked = context.attempts > 0
    call.conversation_id = run.conversation_id
    if run.recall is not None:
        call.memory = run.recall.kind_at(target.name, call.conversation_id)
    call.fallbacks, call.failures, call.retries = run.fallbacks, run.failures, run.retries
    if call.usage is None and decoder is not None:
        call.usage = decoder.usage_so_far()
    call.capture_always = target.agent.capture == "all"
    if target.agent.capture == "off":
        call.capture = None


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


async def _answer_whole(
    request: web.Request, call: Call, run: Run, chat: ChatRequest, conversational: bool
) -> web.StreamResponse:
    body = await _whole(request, call, run, chat, conversational)
    if call.capture is not None:
        call.capture.add(body)
    return answer_json(request, request[CONTEXT], headers_of(run), body)


async def _kept_alive(
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
        await response.write(_error_json(request, _stop_of(stopped, run)))
    finally:
        await _end(working)
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


class _Stream:
    """One streamed answer."""

    __slots__ = (
        "_call", "_chat", "_comment", "_conversational", "_keepalive_s", "_last", "_problem",
        "_pump", "_renderer", "_request", "_response", "_run",
    )  # fmt: skip

    def __init__(
        self,
        request: web.Request,
        call: Call,
        run: Run,
        chat: ChatRequest,
        conversational: bool,
        server: Server,
    ) -> None:
        self._request = request
        self._run = run
        self._chat = chat
        self._conversational = conversational
        self._keepalive_s = server.keepalive
        self._comment = _comment(request, conversational, server.keepalive_form)
        self._call = call
        self._response: Stream | web.StreamResponse | None = None  # set once the head is sent
        self._renderer: StreamRenderer | None = None  # set once the answer has begun
        self._pump: Pump | None = None  # set once the pump forwards the rest
        self._last = b""  # the final frames, sent together with the end of the stream
        self._problem = ""  # why the answer broke off

    async def answer(self) -> web.StreamResponse:
        error: GatewayError | None = None
        metrics = self._request.app[METRICS]
        metrics.open_streams += 1
        try:
            try:
                await self._begin()
                if not self._run.attempt.over:
                    await self._rest()
            except TimeoutError:
                error = too_long(self._run)
            except GatewayError as caught:
                error = caught
            except asyncio.CancelledError:
                context = self._request[CONTEXT]
                stopped = context.stopped
                if context.stopped_by_user:
                    forget_cancellation()
                    await self._end_early()
                elif stopped is None or self._response is None:
                    # the caller has disconnected; or nothing was sent, and `middlewares.errors`
                    # answers
                    raise
                else:
                    forget_cancellation()
                    error = _stop_of(stopped, self._run)
            except ConnectionError:
                raise  # the caller has disconnected
            except Exception:
                if self._response is None:
                    raise
                log.exception(
                    "Unexpected error in a stream of agent %s", self._run.attempt.target.name
                )
                error = InternalError("The gateway met an unexpected condition.")
            finally:
                self._drop_pump()
            if error is not None and self._response is None:
                raise error
            return await self._finish(error)
        finally:
            metrics.open_streams -= 1

    async def _end_early(self) -> None:
        """End the answer where its user has stopped it, unless it has just become complete."""
        if self._last:
            return
        if self._renderer is None:
            self._renderer = self._new_renderer()
        await self._commit()
        finish = stopped_by_user(self._run, self._renderer.notes)
        self._last = self._renderer.feed([finish])

    def _new_renderer(self) -> StreamRenderer:
        agent, created = self._run.attempt.target.name, int(time.time())
        return StreamRenderer(self._chat, agent, created, self._conversational)

    def _drop_pump(self) -> None:
        """Drop the pump, which refers to this object: a reference cycle would stay in memory for
        long."""
        if self._pump is not None:
            self._pump.stop()
            self._pump = None

    async def _finish(self, error: GatewayError | None) -> web.StreamResponse:
        """Send the last frames, or the error if the answer broke off."""
        assert self._response is not None
        # Do not report a stop that arrives just after the answer became complete.
        if error is not None and not self._last:
            self._last = self._error_frame(error)
        await keep(
            self._request,
            self._run,
            self._call,
            cut=not self._call.is_whole,
            error=self._problem,
        )
        self._run.close()  # free the agent's slot before waiting for a slow caller
        with self._run.until(self._run.timers.now() + END_S):
            if self._call.capture is not None:
                self._call.capture.add(self._last)
            await self._response.write_eof(self._last)
        return ALREADY_SENT if isinstance(self._response, Stream) else self._response

    async def _begin(self) -> None:
        """Send the first deltas as soon as they arrive, unless they are also the last."""
        run = self._run
        deltas = await self._first_deltas()
        self._call.first_delta()
        self._request[CONTEXT].free_body()
        renderer = self._renderer = self._new_renderer()
        renderer.texts, renderer.thoughts, run.renderer = run.texts, run.thoughts, renderer
        with run.until(run.ends_at):
            await self._commit()
            frames = renderer.feed(deltas)
            if run.attempt.over:
                self._note_end(deltas, frames)
            else:
                await self._write(frames)

    def _rest(self) -> Awaitable[None]:
        """Return an awaitable that forwards everything but the last frames. It raises TimeoutError
        when `total` expires."""
        assert self._response is not None
        assert self._renderer is not None
        capture = self._call.capture
        self._pump = open_pump(
            self._request,
            self._response,
            self._run,
            self._renderer,
            self._keepalive_s,
            self._comment,
            None if capture is None else capture.add,
            self._note_end,
        )
        return self._copy() if self._pump is None else self._pump.carry()

    async def _copy(self) -> None:
        """Do the pump's work through aiohttp's public interface; every read wakes a task."""
        renderer = self._renderer
        assert renderer is not None
        attempt, loop = self._run.attempt, asyncio.get_running_loop()
        beat_at = loop.time() + self._keepalive_s
        async with asyncio.timeout_at(self._run.ends_at):
            while not attempt.over:
                batch = await attempt.read(beat_at)
                frames = self._comment if batch is None else renderer.feed(batch)
                if attempt.received > MAX_TEXT:
                    renderer.texts = renderer.thoughts = None
                if attempt.over:
                    self._note_end(batch or [], frames)
                elif frames:
                    await self._write(frames)
                    beat_at = loop.time() + self._keepalive_s

    async def _write(self, frames: bytes) -> None:
        assert self._response is not None
        if self._call.capture is not None:
            self._call.capture.add(frames)
        await self._response.write(frames)

    def _note_end(self, deltas: list[Delta], frames: bytes) -> None:
        """Note the result for the log and the record, since the status can no longer show a
        failure. The last delta may be a failure, which the renderer leaves out."""
        if deltas and isinstance(deltas[-1], Failed):
            frames += self._error_frame(deltas[-1].error)
        self._last = frames
        if self._renderer is not None and self._renderer.finish:
            self._call.finished(self._renderer.finish)

    def _error_frame(self, error: GatewayError) -> bytes:
        error = self._request[CONTEXT].failed(error)
        self._problem = error.message
        return error_frame(error, self._conversational, choice_of(self._request).language)

    async def _first_deltas(self) -> list[Delta]:
        """Wait for the first deltas; after `keepalive_s` commit to 200 and keep the connection
        alive."""
        beats: list[asyncio.Task[None]] = []

        def begin() -> None:
            beats.append(asyncio.ensure_future(self._beat()))

        timers = self._run.timers
        timer = timers.set(timers.now() + self._keepalive_s, begin)
        try:
            return await self._run.start()
        finally:
            timers.forget(timer)
            for beat in beats:
                await _end(beat)

    async def _beat(self) -> None:
        """Send keep-alive comments until cancelled."""
        while True:
            response = await self._commit()
            await response.write(self._comment)
            await asyncio.sleep(self._keepalive_s)

    async def _commit(self) -> "Stream | web.StreamResponse":
        if self._response is None:
            context = self._request[CONTEXT]
            self._response = await begin_stream(self._request, context, headers_of(self._run))
        return self._response


def _comment(request: web.Request, conversational: bool, form: KeepAliveForm) -> bytes:
    """The comment that keeps a stream alive.

    OpenAI's SDKs identify themselves by a header. The Go SDK (before 3.43) takes the blank line
    after a comment for an event and fails; the Python SDK does so if an event had an id. All of
    them skip a single comment line. Clients that split at blank lines (Dify) would then also skip
    the event that follows, so they get the comment with its blank line.
    """
    is_sdk = not conversational and "x-stainless-lang" in request.headers
    return KEEP_ALIVE_LINE if form == "line" or (form == "auto" and is_sdk) else KEEP_ALIVE


def stopped_by_user(run: Run, notes: Notes) -> Finish:
    """The end of an answer that its user has stopped; the upstream is released."""
    notes.is_stopped = True
    decoder = run.attempt.decoder
    return Finish("stop", decoder.usage_so_far() if decoder is not None else None)


async def _end(task: asyncio.Future[Any]) -> None:
    """Cancel the task if it still runs, and retrieve its exception so that asyncio does
    not log it."""
    if not task.done():
        task.cancel()
        await asyncio.wait({task})
    if not task.cancelled():
        task.exception()


def headers_of(run: Run) -> dict[str, str]:
    attempt, agent = run.attempt, run.attempt.target.name
    headers: dict[str, str] = {
        headernames.AGENT: header_value(run.chat.route or agent),
        headernames.ATTEMPTS: str(run.attempts),
    }
    if run.chat.task:
        headers[headernames.TASK] = run.chat.task
    if run.conversation_id:
        conversation = public_id(run.chat, agent, run.conversation_id)
        headers[headernames.CONVERSATION_ID] = header_value(conversation)
    if run.recall is not None:
        headers[headernames.MEMORY] = memory_header(run)
    if run.chat.options or run.chat.ignored:
        names = ignored_options(attempt.endpoint, run.chat, attempt.decoder)
        if names:
            headers[headernames.IGNORED] = _listed(names)
    return headers


def _listed(names: tuple[str, ...]) -> str:
    shown = [header_value(name[:_LONGEST_NAME]).replace(",", "%2C") for name in names[:_MOST_NAMES]]
    return ", ".join([*shown, "..."] if len(names) > _MOST_NAMES else shown)


def too_long(run: Run) -> UpstreamTimeout:
    message = say(
        "Agent {name!r}: the answer took longer than {seconds:g} s.",
        name=run.attempt.target.name,
        seconds=run.total_s,
    )
    return UpstreamTimeout(message, should_retry=False)
