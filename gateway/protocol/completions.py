"""Whole completions and JSON lines as an event stream, and whether a completion says anything."""

from typing import Any

import orjson

from gateway.protocol import sse
from gateway.protocol.content import says_something
from gateway.protocol.exchange import UpstreamReply
from gateway.protocol.loosejson import object_in
from gateway.protocol.reported_errors import reported_error
from gateway.protocol.sse import DONE


def lines_as_events(reply: UpstreamReply) -> bytes:
    """The events for a reply in JSON lines; b"" if it is anything else."""
    first, _, rest = reply.body.lstrip().partition(b"\n")
    if not (rest.strip() and object_in(first)):
        return b""
    lines = [line for line in reply.body.splitlines() if line.strip()]
    return b"".join(map(sse.event, lines)) if all(map(object_in, lines)) else b""


def as_events(reply: UpstreamReply) -> bytes:
    """A whole completion as an event stream; b"" if it is not a completion."""
    body = reply.object()
    chunk = b"" if reported_error(body) else as_chunk(body)
    return sse.event(chunk) + DONE if chunk else b""


def as_chunk(body: dict[str, Any]) -> bytes:
    """A whole completion as one chunk of a stream; b"" if it is not a completion, or is nested too
    deep to be serialized."""
    choices = body.get("choices")
    if not isinstance(choices, list):
        return b""
    chunks = [_as_delta(choice) for choice in choices if isinstance(choice, dict)]
    if not any(isinstance(c, dict) and isinstance(c.get("message"), dict) for c in choices):
        return b""
    try:
        return orjson.dumps({**body, "object": "chat.completion.chunk", "choices": chunks})
    except orjson.JSONEncodeError:
        return b""


def _as_delta(choice: dict[str, Any]) -> dict[str, Any]:
    message = choice.get("message")
    if not isinstance(message, dict) or choice.get("delta"):
        return choice
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        numbered = [{"index": i, **c} for i, c in enumerate(calls) if isinstance(c, dict)]
        message = {**message, "tool_calls": numbered}
    return {**{k: v for k, v in choice.items() if k != "message"}, "delta": message}


def has_content(body: Any) -> bool:
    """Whether a completion or a chunk has any content or a finish reason."""
    choices = body.get("choices") if isinstance(body, dict) else None
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict) and (choice.get("finish_reason") or says_something(choice)):
            return True
    return False
