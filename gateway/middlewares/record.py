"""Hand every call that was let in to the recorder, the metrics and its trace when it is over."""

import time
from collections.abc import Callable

from aiohttp import web

from gateway.keys import Books, Context
from gateway.telemetry.call import Capture
from gateway.telemetry.metrics import Metrics


def record(
    metrics: Metrics, books_now: Callable[[], Books | None]
) -> Callable[[Context, web.StreamResponse | None, int], None]:
    """For `requestlog`, which knows when a request is over. `books_now` gives none with
    `database: none`."""

    def on_over(context: Context, response: web.StreamResponse | None, status: int) -> None:
        """Calls that were refused for their key or their rate are in the log alone."""
        call = context.call
        if call is None:
            return
        call.client_gone = call.client_gone or status == 499
        error = str(context.noted.get("error") or "")
        metrics.call_ended(call, status, error, time.monotonic() - call.began)
        call.trace.end(status, error, call.conversation_id, call.finish, call.usage)
        if (books := books_now()) is not None:
            if call.capture is not None:
                _add_body(call.capture, response)
            reason = str(context.noted.get("reason") or "")
            books.recorder.add(call, status, error, reason)

    return on_over


def _add_body(capture: Capture, response: web.StreamResponse | None) -> None:
    """What was not captured when it was sent is captured here, errors too."""
    body = response.body if isinstance(response, web.Response) else None
    if not capture.answer_size and isinstance(body, bytes):
        capture.add(body)
