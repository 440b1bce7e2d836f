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

from aiohttp import web
from aiohttp.typedefs import Handler

from gateway.chat.routing import Target
from gateway.chat.run import Run
from gateway.config.models import KeepAliveForm, Server
from gateway.errors import GatewayError, InternalError
from gateway.http.body import hold_more
from gateway.http.context import ATTACHMENTS, CONTEXT, METRICS, UPSTREAM, Context, State
from gateway.http.fastwrite import ALREADY_SENT, Stream, begin_stream
from gateway.http.inflight import forget_cancellation
from gateway.http.language import choice_of
from gateway.http.local import answer_locally
from gateway.http.outcome import end, headers_of, stop_of, stopped_by_user, too_long
from gateway.http.pump import Pump, open_pump
from gateway.http.remember import is_open, keep, look_up, recalled
from gateway.http.whole import answer_kept_alive, answer_whole
from gateway.memory.recall import MAX_TEXT
from gateway.protocol.messages import ChatRequest, Delta, Failed, Finish
from gateway.protocol.render import StreamRenderer, error_frame
from gateway.protocol.sse import KEEP_ALIVE, KEEP_ALIVE_LINE
from gateway.telemetry.call import Call, Capture

log = logging.getLogger("gateway")

# Reads the question from a request's body and resolves the targets that may answer it.
ReadQuestion = Callable[[web.Request, State, Call], Awaitable[tuple[ChatRequest, list[Target]]]]

# Sends the answer of a run: (request, call, run, question, conversational, server's settings).
Answer = Callable[
    [web.Request, Call, Run, ChatRequest, bool, Server], Coroutine[Any, Any, web.StreamResponse]
]

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
                    context.stopped = stop_of(context.stopped, run)
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
        return answer_kept_alive(request, call, run, chat, conversational, server.keepalive)
    return answer_whole(request, call, run, chat, conversational)


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
                    error = stop_of(stopped, self._run)
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
                await end(beat)

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
