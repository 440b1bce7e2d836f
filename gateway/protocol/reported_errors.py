"""Failures that an answer or an event reports, in the forms of OpenAI-compatible servers."""

from typing import Any

from gateway.protocol.sse import ERRORS

_GOOD = (None, "", 0, 200, "0", "200")  # codes


def reported_error(body: Any) -> Any:
    """The failure that an answer or an event reports: OpenAI's `error`, or another form that
    compatible servers use (FastChat, vLLM, MiniMax, FastAPI, Google); None if it reports none."""
    if isinstance(body, list):
        return reported_error(body[0]) if body and isinstance(body[0], dict) else None
    if not isinstance(body, dict):
        return None
    if error := body.get("error") or body.get("errors"):
        return error
    if choices := body.get("choices"):
        first = choices[0] if isinstance(choices, list) else None
        return choice_error(first) if isinstance(first, dict) else None
    base = body.get("base_resp")
    is_refused = isinstance(base, dict) and base.get("status_code")
    codes = (body.get("error_code"), body.get("code"))
    is_refused = is_refused or any(code not in _GOOD for code in codes)
    is_refused = is_refused or body.get("object") == "error" or body.get("success") is False
    # A good answer's text is in `choices`; a message next to a good code is no failure.
    has_message = codes == (None, None) and _is_failure_message(
        body.get("message") or body.get("msg")
    )
    if not (is_refused or body.get("detail") or has_message):
        return None
    text = body.get("text")
    return {**body, "message": text} if text and "message" not in body else body


def _is_failure_message(value: Any) -> bool:
    """Whether it is a failure's message and not a message of an answer."""
    return bool(value) and not (isinstance(value, dict) and ("content" in value or "role" in value))


def choice_error(choice: dict[str, Any]) -> Any:
    """The failure that a choice reports, or None."""
    if error := choice.get("error"):
        return error
    if choice.get("finish_reason") == "error":
        return "it ended with 'error'"
    return None


def event_error(name: str, payload: bytes, value: Any) -> Any:
    """The failure that an event reports; `payload` is its data, `value` its JSON (None if it is not
    JSON). An event named `error` always is a failure."""
    error = reported_error(value)
    if name in ERRORS:
        return error or value or _as_message(payload)
    is_json = value is not None or payload.startswith(b"{") or payload == b"null"
    is_text = not is_json or (value is None and b'"error"' in payload)
    return _as_message(payload) if is_text else error


def _as_message(payload: bytes) -> dict[str, str]:
    return {"message": payload[:2000].decode("utf-8", "replace")}
