"""Hand every call that was let in to the recorder, the metrics and its trace when it is over."""

import asyncio
import time

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from gateway.call import Call
from gateway.keys import BOOKS, CONTEXT
from gateway.metrics import Metrics


def record(metrics: Metrics) -> Middleware:
    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        """Calls that were refused for their key or their rate are in the log alone."""
        status, response = 500, None
        try:
            response = await handler(request)
            status = response.status
            return response
        except (asyncio.CancelledError, ConnectionError):
            stopped = request[CONTEXT].stopped
            status = 499 if stopped is None else 503  # which was told by cutting the answer
            raise
        finally:
            context = request[CONTEXT]
            if (call := context.call) is not None:
                call.client_gone = call.client_gone or status == 499
                error = str(context.noted.get("error") or "")
                metrics.call_ended(call, status, error, time.monotonic() - call.began)
                call.trace.end(status, error, call.conversation_id, call.finish, call.usage)
                if (books := request.app.get(BOOKS)) is not None:
                    _add_body(call, response)
                    books.recorder.add(call, status, error)

    return middleware


def _add_body(call: Call, response: web.StreamResponse | None) -> None:
    """What was not streamed is captured here, errors too."""
    body = response.body if isinstance(response, web.Response) else None
    if call.capture is not None and isinstance(body, bytes):
        call.capture.add(body)
