"""Maps Zhipu's refusals to the gateway's errors."""

from typing import Any

from gateway.errors import (
    GatewayError,
    InternalError,
    InvalidRequest,
    UpstreamMisconfigured,
    clean,
)
from gateway.platforms.base import (
    as_id,
    as_object,
    dump,
)
from gateway.platforms.failures import (
    classify,
    explain_http,
    explain_member,
    explain_words,
    words_of,
)
from gateway.protocol.exchange import UpstreamReply


def explain(reply: UpstreamReply) -> GatewayError:
    body = reply.object()
    error = as_object(body.get("error")) or body
    code = as_id(error.get("code"))
    words = words_of(error)
    if not _is_good(code):
        return explain_code(code, words, reply)
    return explain_http("Zhipu", reply, words)


def explain_glms(reply: UpstreamReply) -> GatewayError:
    body = reply.object()
    words = words_of(body)
    low = words.lower()
    if reply.status not in (200, 400) or not body or classify(words, ()) not in (None, "key"):
        return explain_http("智谱清言", reply, words)
    if body.get("validation_error"):
        return UpstreamMisconfigured(
            f"智谱清言 does not accept the assistant: check assistant_id. {clean(words)}"
        )
    if any(mark in low for mark in ("assistant", "token", "api_key", "apikey", "auth", "密钥")):
        return UpstreamMisconfigured(
            f"智谱清言 refused the call: {clean(words)}."
            " Check api_key (id.secret) and assistant_id."
        )
    return explain_words("智谱清言", words)


def _is_good(code: str) -> bool:
    return code in ("", "0", "200")


def explain_told(told: dict[str, Any]) -> GatewayError:
    """The error for an event that reports a failure, whichever member has its message."""
    code = as_id((as_object(told.get("error")) or told).get("code"))
    if _is_good(code):
        return explain_member("Zhipu", told)
    return explain_code(code, words_of(told))


_CALLER = {"1210", "1213", "1214", "1215"}


def explain_code(code: str, words: str, reply: UpstreamReply | None = None) -> GatewayError:
    """The error for Zhipu's code, a string of digits; most codes are in the table of failures."""
    said = f" (Zhipu {code}: {clean(words) or 'no message'})"
    if code == "1231":
        return InternalError("The gateway repeated a request id." + said)
    if code in _CALLER:
        return InvalidRequest("Zhipu does not accept the request." + said)
    if code.startswith("11") and len(code) == 4 and code != "1113":
        return UpstreamMisconfigured("Zhipu does not give this model or app to the account." + said)
    if reply is None or reply.status < 300:
        body = dump({"error": {"code": code, "message": words}})
        reply = UpstreamReply(200, {} if reply is None else reply.headers, body)
    return explain_http("Zhipu", reply, f"{words} (Zhipu {code})")
