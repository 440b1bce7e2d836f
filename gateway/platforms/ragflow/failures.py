"""RAGFlow's failures: a `code` with any status, or an error text as the answer.

RAGFlow sends a failure of the model as an ordinary answer `**ERROR**: <CLASS> - <vendor's text>`.
"""

import re

from gateway.errors import (
    ConversationNotFound,
    GatewayError,
    InvalidRequest,
    UpstreamMisconfigured,
    clean,
)
from gateway.language.sentences import say
from gateway.platforms.failures import explain_http, explain_message, message_of
from gateway.protocol.exchange import UpstreamReply
from gateway.protocol.usage import as_count

ERROR = "**ERROR**: "
# The status for each class of model failures; 0 means that the vendor's text decides.
CLASSES = {
    "RATE_LIMIT_EXCEEDED": 429,
    "QUOTA_EXCEEDED": 402,
    "AUTH_ERROR": 401,
    "CONTENT_FILTERED": 451,
    "TIMEOUT": 504,
    "INVALID_REQUEST": 0,
    "SERVER_ERROR": 0,
    "CONNECTION_ERROR": 0,
    "MODEL_ERROR": 0,
    "MAX_RETRIES_EXCEEDED": 0,
    "GENERIC_ERROR": 0,
}
_CLASS = re.compile(rf"\s*({'|'.join(CLASSES)})\b")
_RATE = re.compile(r"rate.?limit|too many requests", re.IGNORECASE)
_QUOTA = re.compile(r"quota|out of credit", re.IGNORECASE)

_CREDENTIALS = (108, 109, 401, 403)
_UNAUTHORIZED = re.compile(r"<Unauthorized|\b401: Unauthorized")
_SESSION = re.compile(r"\bsession\b.*\bnot\b|\bown the session\b|\bno session\b", re.IGNORECASE)
_QUESTION = re.compile(r"\binput your question|\bquestion\b.*\b(?:required|empty)", re.IGNORECASE)
_BOT = re.compile(r"\b(?:chat|assistant|dialog|agent|canvas)\b", re.IGNORECASE)


def explain(reply: UpstreamReply) -> GatewayError:
    """The error for a reply that is not an answer."""
    body = reply.object()
    code = as_count(body.get("code"))
    if code:
        return explain_code(code, message_of(body))
    return explain_http("RAGFlow", reply)


def lacks_path(reply: UpstreamReply) -> bool:
    """Whether the server lacks the endpoint; other codes prove that it exists, and so does a
    message about the conversation."""
    body = reply.object()
    code = as_count(body.get("code"))
    if code == 100 and "MethodNotAllowed" in message_of(body):
        return True
    is_lost = isinstance(explain(reply), ConversationNotFound)
    return not is_lost and (code in (404, 405) or (not code and reply.status in (404, 405)))


def explain_code(code: int, message: str) -> GatewayError:
    """The error for one of RAGFlow's codes. `message` may be a model's failure."""
    message = _bare(message)
    if _CLASS.match(message):
        return explain_answer(message)
    quoted = say(
        " (RAGFlow {code}: {message})", code=code, message=clean(message) or say("no message")
    )
    if code in _CREDENTIALS or _UNAUTHORIZED.search(message):
        return UpstreamMisconfigured(
            say("RAGFlow refused the API key: check api_key.{quote}", quote=quoted)
        )
    if _SESSION.search(message):
        return ConversationNotFound(
            say(
                "RAGFlow does not know this conversation; leave conversation_id out to begin one."
                "{quote}",
                quote=quoted,
            )
        )
    if code == 101 or (code == 102 and _QUESTION.search(message)):
        return InvalidRequest(say("RAGFlow does not accept the request.{quote}", quote=quoted))
    if code == 102 and _BOT.search(message):
        return UpstreamMisconfigured(
            say(
                "RAGFlow does not have this bot, or not for this key: check chat_id or agent_id."
                "{quote}",
                quote=quoted,
            )
        )
    if code in (404, 405):
        return UpstreamMisconfigured(
            say(
                "RAGFlow does not find what was asked for: check base_url, and chat_id or"
                " agent_id.{quote}",
                quote=quoted,
            )
        )
    if code in (413, 429, 503, 504):
        return explain_http("RAGFlow", UpstreamReply(code, {}, b""), message)
    return explain_answer(message or f"no message (code {code})")


def explain_answer(text: str) -> GatewayError:
    """The error for an answer that is an error text, with or without its leading mark."""
    message = _bare(text)
    found = _CLASS.match(message)
    status = CLASSES[found[1]] if found else 0
    error = explain_message("RAGFlow", message)
    if error.status != 502:
        return error
    if not status and _RATE.search(message):
        status = 429
    elif not status and _QUOTA.search(message):
        status = 402
    if status:
        error = explain_http("RAGFlow", UpstreamReply(status, {}, b""), message)
        error = error.replace(retryable=False, outage=False)  # the run has begun
    return error


def _bare(text: str) -> str:
    return text.strip().removeprefix(ERROR.rstrip()).strip()
