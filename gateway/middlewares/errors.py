"""Render errors, the gateway's and aiohttp's, in the format of the surface that was called."""

import asyncio
import logging

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from gateway.database import Taken, ValueRefused
from gateway.errors import (
    BodyTooLarge,
    Conflict,
    GatewayError,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    Stopping,
    UnsupportedMediaType,
    api_body,
    headers,
    openai_body,
)
from gateway.http.context import CONTEXT, header_value, is_api
from gateway.http.inflight import InFlight, forget_cancellation
from gateway.http.language import Choice, choice_of
from gateway.language.sentences import say

log = logging.getLogger("gateway")


def errors(in_flight: InFlight) -> Middleware:
    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        """Render failures, and refuse to begin work while the process stops.

        Once an answer has begun, an error cannot be rendered: a second status line would land in
        its body. Then the connection is closed, the only remaining way to signal that the answer is
        incomplete.
        """
        try:
            if in_flight.stopping and request.method not in ("GET", "HEAD", "OPTIONS"):
                raise Stopping
            return await handler(request)
        except asyncio.CancelledError:
            stopped = request[CONTEXT].stopped
            if stopped is None or request.writer.output_size > 0:
                raise  # the caller has disconnected, or the answer has begun
            forget_cancellation()
            error: GatewayError = stopped
        except web.HTTPException as caught:
            if caught.status < 400:
                raise
            error = translate(caught, request)
        except ConnectionError:
            raise  # the caller's connection is closed; no answer can reach it
        except Exception as caught:
            error = _ours(caught, request)
        return _rendered(request, error)

    return middleware


def _ours(error: Exception, request: web.Request) -> GatewayError:
    if isinstance(error, GatewayError):
        return error
    if isinstance(error, Taken):
        return Conflict("Somebody else has just taken that name or address.")
    if isinstance(error, ValueRefused):
        return InvalidRequest("The request holds a value that cannot be kept, such as a NUL.")
    id_ = request[CONTEXT].request_id
    log.error("Unexpected error, request id %s", id_, exc_info=error)
    return InternalError(
        say("The gateway met an unexpected condition; its log has {request_id}.", request_id=id_)
    )


def _rendered(request: web.Request, error: GatewayError) -> web.Response:
    shown = request[CONTEXT].failed(error)
    for failure in (error, shown):
        drop_frames(failure)
    if request.writer.output_size > 0:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("the answer broke after it had begun") from None
    return _response(request, shown, choice_of(request))


def drop_frames(failure: BaseException | None) -> None:
    """Drop references to the frames of failed calls. Frames hold bodies and files, and errors hold
    their frames: a frame with the error in a variable makes a reference cycle, and the garbage
    collector runs rarely."""
    while failure is not None:
        failure.__traceback__ = None
        before = failure.__cause__ or failure.__context__
        failure.__cause__ = failure.__context__ = None  # errors may refer to each other
        failure = before


def error_response(request: web.BaseRequest, error: GatewayError, choice: Choice) -> web.Response:
    """The error as an answer; notes it for the log and the record."""
    context = request.get(CONTEXT)
    return _response(request, context.failed(error) if context else error, choice)


def _response(request: web.BaseRequest, error: GatewayError, choice: Choice) -> web.Response:
    extra = headers(error) | choice.headers
    if context := request.get(CONTEXT):
        if context.agent:
            extra["x-gateway-agent"] = header_value(context.route or context.agent)
        if context.attempts is not None:
            extra["x-gateway-attempts"] = str(context.attempts)
    render = api_body if is_api(request.path) else openai_body
    body = render(error, choice.language)
    return web.Response(
        status=error.status,
        body=orjson.dumps(body),
        content_type="application/json",
        headers=extra,
    )


def translate(error: web.HTTPException, request: web.BaseRequest) -> GatewayError:
    """The gateway's error for one of aiohttp's."""
    if isinstance(error, web.HTTPNotFound):
        path = request.path[:100]
        return NotFound(
            say("There is nothing at {method} {path!r}.", method=request.method, path=path)
        )
    if isinstance(error, web.HTTPMethodNotAllowed):
        return MethodNotAllowed(request.method, error.allowed_methods)
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        limit = request.client_max_size
        return BodyTooLarge(
            say("The request body is larger than {most} bytes (server.max_body).", most=limit)
        )
    if isinstance(error, web.HTTPUnsupportedMediaType):
        return UnsupportedMediaType(error.reason)
    if error.status < 500:
        return InvalidRequest(error.reason)
    return InternalError(error.reason)
