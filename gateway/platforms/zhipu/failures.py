"""Maps Zhipu's refusals to the gateway's errors."""

from typing import Any

from gateway.errors import (
    ConversationNotFound,
    GatewayError,
    InternalError,
    InvalidRequest,
    UpstreamMisconfigured,
    clean,
)
from gateway.language.sentences import say
from gateway.platforms.base import (
    as_id,
    as_object,
    dump,
)
from gateway.platforms.failures import (
    classify,
    explain_http,
    explain_member,
    explain_message,
    message_of,
)
from gateway.protocol.exchange import UpstreamReply


def explain(reply: UpstreamReply) -> GatewayError:
    body = reply.object()
    error = as_object(body.get("error")) or body
    code = as_id(error.get("code"))
    message = message_of(error)
    if not _is_good(code):
        return explain_code(code, message, reply)
    return explain_http("Zhipu", reply, message)


def explain_glms(reply: UpstreamReply) -> GatewayError:
    body = reply.object()
    message = message_of(body)
    low = message.lower()
    if reply.status not in (200, 400) or not body or classify(message, ()) not in (None, "key"):
        return explain_http("智谱清言", reply, message)
    if body.get("validation_error"):
        return UpstreamMisconfigured(
            say(
                "智谱清言 does not accept the assistant: check assistant_id. {message}",
                message=clean(message),
            )
        )
    if lost := _lost_conversation(message):
        return lost
    if any(mark in low for mark in ("assistant", "token", "api_key", "apikey", "auth", "密钥")):
        return UpstreamMisconfigured(
            say(
                "智谱清言 refused the call: {message}. Check api_key (id.secret) and assistant_id.",
                message=clean(message),
            )
        )
    return explain_message("智谱清言", message)


def _is_good(code: str) -> bool:
    return code in ("", "0", "200")


def explain_reported(reported: dict[str, Any]) -> GatewayError:
    """The error for an event that reports a failure, whichever member has its message."""
    code = as_id((as_object(reported.get("error")) or reported).get("code"))
    if _is_good(code):
        return explain_member("Zhipu", reported)
    return explain_code(code, message_of(reported))


def _lost_conversation(message: str) -> GatewayError | None:
    """The error for a message about the conversation; its code differs from product to product."""
    if not ("conversation" in message.lower() or "会话" in message):
        return None
    return ConversationNotFound(
        say(
            "Zhipu does not know this conversation; leave conversation_id out to begin one. "
            "{message}",
            message=clean(message),
        ),
        param="conversation_id",
    )


_CALLER = {"1210", "1213", "1214", "1215"}


def explain_code(code: str, message: str, reply: UpstreamReply | None = None) -> GatewayError:
    """The error for Zhipu's code, a string of digits; most codes are in the table of failures."""
    quoted = say(
        " (Zhipu {code}: {message})", code=code, message=clean(message) or say("no message")
    )
    if lost := _lost_conversation(message):
        return lost
    if code == "1231":
        return InternalError(say("The gateway repeated a request id.{quote}", quote=quoted))
    if code in _CALLER:
        return InvalidRequest(say("Zhipu does not accept the request.{quote}", quote=quoted))
    if code.startswith("11") and len(code) == 4 and code != "1113":
        return UpstreamMisconfigured(
            say("Zhipu does not give this model or app to the account.{quote}", quote=quoted)
        )
    if reply is None or reply.status < 300:
        body = dump({"error": {"code": code, "message": message}})
        reply = UpstreamReply(200, {} if reply is None else reply.headers, body)
    return explain_http("Zhipu", reply, f"{message} (Zhipu {code})")
