"""Maps FastGPT's refusals and failures to the gateway's errors: its codes, names and messages.

Messages are often translation keys. FastGPT forwards a model vendor's message unchanged:
`429 Rate limit reached`; old versions put the vendor's code in front.
"""

import re
from typing import Any

from gateway.errors import (
    ConversationBusy,
    ConversationNotFound,
    GatewayError,
    InvalidRequest,
    QuotaExhausted,
    RateLimited,
    UpstreamMisconfigured,
    clean,
)
from gateway.language.sentences import say
from gateway.platforms.base import as_object, as_text
from gateway.platforms.failures import RETRY_AFTER_S, explain_http, explain_message, message_of
from gateway.protocol.exchange import UpstreamReply
from gateway.protocol.usage import as_count

_MOST = 2000  # characters of a failure's message
_BAD_KEY = {403, 514, 506000, 506001, 506003}
_NO_MONEY = {500004, 510, 506002}
_BAD_APP = {511, 502000, 502001}
_NAMES = {
    "unauthorization": 403, "toomanyrequest": 429, "insufficientquota": 510, "unauthmodel": 511,
    "unauthapikey": 514, "aipointsnotenough": 500004, "appunexist": 502000, "unauthapp": 502001,
    "unauthchat": 504000, "chatisgenerating": 504001, "openapiexceedlimit": 506002,
}  # fmt: skip


def concerns_key(body: dict[str, Any]) -> bool:
    """Whether a refusal concerns the key, not the app or the request."""
    code = as_count(body.get("code"))
    return code in _BAD_KEY or 506000 <= code < 507000


def explain(reply: UpstreamReply) -> GatewayError:
    body = reply.object()
    if as_count(body.get("code")):
        return explain_code(body, reply)
    message = message_of(body)
    if message and reply.status in (200, 500):
        return explain_code(body, reply)
    return explain_http("FastGPT", reply, message)


def explain_value(value: Any) -> GatewayError:
    """The error for the JSON of an error event in any format."""
    body = as_object(value)
    inner = as_object(body.get("error"))
    return explain_code(inner or body or {"message": value})


def explain_code(body: dict[str, Any], reply: UpstreamReply | None = None) -> GatewayError:
    """The error for FastGPT's own message or code; the HTTP status is 500 for nearly all."""
    message = message_of(body)
    return _explain_own_message(message.lower()) or _explain_own_code(body, message, reply)


def _explain_own_code(
    body: dict[str, Any], message: str, reply: UpstreamReply | None
) -> GatewayError:
    code = as_count(body.get("code"))
    quoted = readable(message, as_text(body.get("statusText"))).rstrip(".。")
    if code in _BAD_KEY:
        return UpstreamMisconfigured(
            say(
                "FastGPT refused the gateway's API key (code {code}). Check api_key, and "
                "that the key belongs to this app and server.",
                code=code,
            )
        )
    if code in _BAD_APP:
        return UpstreamMisconfigured(
            say(
                "FastGPT does not offer this app to the key ({message}). Check app_id.",
                message=quoted or code,
            )
        )
    if code in _NO_MONEY:
        return QuotaExhausted(
            say("The FastGPT account has no credit left (code {code}).", code=code)
        )
    if code == 429:
        wait = re.search(r"in (\d{1,5}) seconds?", message)
        return RateLimited(
            say(
                "FastGPT is limiting calls: {message}.", message=quoted or say("too many requests")
            ),
            retry_after_s=float(wait[1]) if wait else RETRY_AFTER_S,
            retryable=True,
        )
    if code == 504001:
        return ConversationBusy("FastGPT is still answering in this conversation; wait for it.")
    if code == 504000:
        return ConversationNotFound("FastGPT does not give this conversation to the key's user.")
    if code == 400 or body.get("zodError") or body.get("errorType") == "UserError":
        return InvalidRequest(
            say(
                "FastGPT does not accept the request: {message}.",
                message=quoted or say("bad input"),
            )
        )
    if 506000 <= code < 507000 or 502000 <= code < 503000:
        return UpstreamMisconfigured(
            say(
                "FastGPT refuses the key or the app (code {code}: {quote}).",
                code=code,
                quote=quoted,
            )
        )
    if 510000 <= code < 511000:
        return InvalidRequest(
            say("FastGPT does not take the file: {message}.", message=quoted or code)
        )
    if code and reply and reply.status not in (200, 500):
        return explain_http("FastGPT", reply, quoted)
    if code in (401, 403, 404, 413, 415):
        return explain_http("FastGPT", UpstreamReply(code, {}, b""), quoted)
    return explain_message("FastGPT", quoted or (f"code {code}" if code else ""))


def _explain_own_message(message: str) -> GatewayError | None:
    """The error for FastGPT's refusals without their own code, or None."""
    if message.startswith("key is error"):
        return UpstreamMisconfigured(
            "FastGPT refused the gateway's API key: it opens the whole account. Take the key of"
            " the app itself for api_key, or set app_id (from 4.8.20 on)."
        )
    if message in ("app is empty", "appid is empty") or message.startswith(
        "cast to objectid failed"
    ):
        return UpstreamMisconfigured(
            "FastGPT does not know the app. Check app_id: it is the 24 hexadecimal digits in the"
            " address of the app's page."
        )
    if message in _NO_QUESTION:
        return InvalidRequest(
            say("FastGPT does not accept the request: {message}.", message=message),
            param="messages",
        )
    return None


_NO_QUESTION = (
    "messages is empty", "messages is not array", "question is empty", "user question is empty",
)  # fmt: skip


def explain_run(where: str, message: str) -> GatewayError:
    """The error for a node's failure: `message` is FastGPT's name of the failure, or a vendor's
    message."""
    tail = re.split(r"[.:]", message[:_MOST])[-1].replace("_", "").lower()
    if code := _NAMES.get(tail) or (as_count(tail) if _KEY.fullmatch(message[:_MOST]) else 0):
        return explain_code({"code": code})
    return explain_message(where, readable(message))


_STATUS = re.compile(r"^(?=[45]\d\d )")
_NAMESPACES = r"(?:common|chat|app|workflow|dataset|user|account\w*|file|publish|plugin|login)"
_KEY = re.compile(
    rf"(?<!\S){_NAMESPACES}:[A-Za-z_][\w.-]*(?!\S)"
    r"|^[a-z][a-z_]*:[A-Za-z_][\w.-]*$|^(?:common|core|error|support)(?:\.\w+)+$"
)
_KEYS_MEANING = {
    "LLM_model_response_empty": "the model sent an empty answer",
    "AI_input_is_empty": "the model was given no question",
}
_PAGE = re.compile(r"<(?:!doctype|html|head|body)\b", re.IGNORECASE)


def readable(message: str, otherwise: str = "") -> str:
    """FastGPT's message without parts that readers do not understand: translation keys, a missing
    code (`null …`), a proxy's web page. `otherwise` if nothing remains."""
    message = _STATUS.sub("HTTP ", message[:_MOST].removeprefix("null ").strip())
    if page := _PAGE.search(message):
        message = f"{message[: page.start()]} it got a web page"
    message = _KEY.sub(lambda key: _KEYS_MEANING.get(key[0].partition(":")[2], ""), message)
    return clean(message) or clean(otherwise)
