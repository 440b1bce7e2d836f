"""Token counts in OpenAI's form, read without trusting their types, and written."""

from typing import Any

from gateway.protocol.messages import Usage

_MOST = 1 << 53  # the largest exact integer in JSON readers; no token count is larger


def as_count(value: Any) -> int:
    """A count, which may be a number or digits in a string; anything else is 0."""
    if type(value) is int:
        return value if 0 < value < _MOST else 0
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 16:
        return int(value)
    return 0


def read_usage(value: Any) -> Usage | None:
    """OpenAI's usage object, or None."""
    if not isinstance(value, dict):
        return None
    prompt = as_count(value.get("prompt_tokens"))
    completion = as_count(value.get("completion_tokens"))
    total = as_count(value.get("total_tokens")) or prompt + completion
    usage = Usage(prompt, completion, total)
    if "prompt_tokens_details" in value:
        usage.cached = _detail(value, "prompt_tokens_details", "cached_tokens")
    if "completion_tokens_details" in value:
        usage.reasoning = _detail(value, "completion_tokens_details", "reasoning_tokens")
    return usage


def _detail(value: dict[str, Any], group: str, name: str) -> int:
    details = value.get(group)
    return as_count(details.get(name)) if isinstance(details, dict) else 0


def usage_body(usage: Usage) -> dict[str, Any]:
    """The usage object for a caller, with details only if the platform sent them."""
    body: dict[str, Any] = {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.total,
    }
    if usage.cached:
        body["prompt_tokens_details"] = {"cached_tokens": usage.cached}
    if usage.reasoning:
        body["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning}
    return body
