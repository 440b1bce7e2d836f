"""The end of a request: hooks that run when a call is over, or is stopped."""

import time
from collections.abc import Callable

from aiohttp import web

from gateway.errors import Stopping
from gateway.http.context import CONTEXT, Context, Services
from gateway.telemetry.call import Capture
from gateway.telemetry.metrics import Metrics


def record(
    metrics: Metrics, services_now: Callable[[], Services | None]
) -> Callable[[Context, web.StreamResponse | None, int], None]:
    """Hand each admitted call to the recorder, the metrics and its trace when it is over.
    `requestlog` calls this. `services_now` returns None with `database: none`."""

    def on_over(context: Context, response: web.StreamResponse | None, status: int) -> None:
        """Calls that were refused for their key or their rate appear in the log alone."""
        call = context.call
        if call is None:
            return
        call.client_gone = call.client_gone or status == 499
        error = context.error_code
        metrics.call_ended(call, status, error, time.monotonic() - call.began)
        call.trace.end(status, error, call.conversation_id, call.finish, call.usage)
        if (services := services_now()) is not None:
            if call.capture is not None:
                _add_body(call.capture, response)
            services.recorder.add(call, status, error, context.reason)

    return on_over


def _add_body(capture: Capture, response: web.StreamResponse | None) -> None:
    """Capture the body that was not captured while it was sent, errors included."""
    body = response.body if isinstance(response, web.Response) else None
    if not capture.answer_size and isinstance(body, bytes):
        capture.add(body)


def mark_stopped(request: web.Request) -> None:
    """Mark the request as stopped, before it is cancelled. `middlewares.errors` answers with this
    if nothing has been sent."""
    request[CONTEXT].stopped = Stopping()
