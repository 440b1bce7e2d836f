"""Draw errors, ours and aiohttp's, in the envelope of the surface that was called."""

import logging
from typing import Any

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler

from gateway.errors import (
    BodyTooLarge,
    GatewayError,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    UnsupportedMediaType,
    api_body,
    headers,
    openai_body,
)
from gateway.keys import NOTED, REQUEST_ID

log = logging.getLogger("gateway")


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Once an answer has begun nothing is drawn: a second status line would land in its body."""
    try:
        return await handler(request)
    except GatewayError as error:
        return render(request, error)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return render(request, translate(error, request))
    except ConnectionError:
        raise  # the caller's connection is gone; there is nobody to answer
    except Exception:
        log.exception("Unexpected error, request id %s", request[REQUEST_ID])
        words = (
            f"The gateway met an unexpected condition; its log has request {request[REQUEST_ID]}."
        )
        return render(request, InternalError(words))


def render(request: web.BaseRequest, error: GatewayError) -> web.Response:
    """The error as an answer."""
    body: dict[str, Any] = api_body(error) if is_api(request.path) else openai_body(error)
    if noted := request.get(NOTED):
        noted["error"] = error.code or error.type
    return web.Response(
        status=error.status,
        body=orjson.dumps(body),
        content_type="application/json",
        headers=headers(error),
    )


def is_api(path: str) -> bool:
    """Whether the path belongs to the surface with the `{code, msg, data}` envelope."""
    return path.startswith("/api/")


def translate(error: web.HTTPException, request: web.BaseRequest) -> GatewayError:
    """Our error for aiohttp's own."""
    if isinstance(error, web.HTTPNotFound):
        path = request.path[:100]
        return NotFound(f"There is nothing at {request.method} {path!r}.")
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        return MethodNotAllowed(f"{request.method} is not possible here; use {allowed}.")
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        limit = request.client_max_size
        return BodyTooLarge(f"The request body is larger than {limit} bytes (server.max_body).")
    if isinstance(error, web.HTTPUnsupportedMediaType):
        return UnsupportedMediaType(error.reason)
    if error.status < 500:
        return InvalidRequest(error.reason)
    return InternalError(error.reason)
