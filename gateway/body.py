"""Request bodies: bytes to a JSON object to a checked model, with errors that name the member."""

from typing import Any, TypeVar

import orjson
from aiohttp import web
from pydantic import BaseModel, ValidationError

from gateway.errors import InvalidRequest, UnsupportedMediaType

M = TypeVar("M", bound=BaseModel)


async def read_object(request: web.Request) -> dict[str, Any]:
    """The body as a JSON object. The content type is not insisted on: curl sends a wrong one.

    Raises InvalidRequest, UnsupportedMediaType, or aiohttp's 413.
    """
    if request.content_type.startswith("multipart/"):
        raise UnsupportedMediaType("Send the body as JSON (Content-Type: application/json).")
    try:
        raw = await request.read()
    except web.RequestPayloadError:
        raise InvalidRequest("The body is not what its Content-Encoding says.") from None
    raw = raw.removeprefix(b"\xef\xbb\xbf")  # editors and shells on Windows put it there
    if not raw.strip():
        raise InvalidRequest("The request has no body; send a JSON object.")
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        try:
            raw.decode()
        except UnicodeDecodeError:
            raise InvalidRequest("The body is not UTF-8 text; send it as UTF-8.") from None
        raise InvalidRequest(f"The body is not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return value


def check(model: type[M], value: dict[str, Any]) -> M:
    """The checked model. Raises InvalidRequest that names the first bad member and counts all."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False, include_context=False)
        first = problems[0]
        path = ".".join(str(step) for step in first["loc"])
        more = f" ({len(problems)} problems in all)" if len(problems) > 1 else ""
        words = first["msg"].removeprefix("Value error, ")
        raise InvalidRequest(f"{path!r}: {words}{more}", param=path or None) from None
