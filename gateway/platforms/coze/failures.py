"""Maps Coze's refusals to the gateway's errors."""

from typing import Any

from gateway.errors import (
    BodyTooLarge,
    ContentRefused,
    ContextTooLong,
    ConversationBusy,
    ConversationNotFound,
    GatewayError,
    InvalidRequest,
    QuotaExhausted,
    RateLimited,
    UnsupportedMediaType,
    UpstreamMisconfigured,
    UpstreamUnavailable,
    clean,
)
from gateway.language.sentences import say
from gateway.platforms.failures import RETRY_AFTER_S, explain_http, explain_message, message_of
from gateway.protocol.exchange import UpstreamReply
from gateway.protocol.usage import as_count


def explain(reply: UpstreamReply) -> GatewayError:
    body = reply.object()
    if as_count(body.get("code")) or as_count(body.get("error_code")):
        return explain_code(body, reply.status)
    return explain_http("Coze", reply)


EXPIRED = {4100, 700012006}  # codes for a token that was valid


REFUSED = {4101, *EXPIRED}


_OPERATOR = {
    4006: say("Coze does not know the bot: check bot_id."),
    4200: say("Coze does not know the bot or workflow: check bot_id, and that it is published."),
    4015: say("The Coze bot is not published to the API channel: publish it there in Coze."),
    4021: say("The Coze bot has no workflow configured."),
    4100: say("Coze refused the token: it is wrong or expired. Check api_key."),
    700012006: say("Coze refused the token: it is wrong or expired. Check api_key."),
    4101: say(
        "Coze does not let this token do this: check api_key, its scopes and workspace, and that"
        " base_url is of the same world (api.coze.cn or api.coze.com)."
    ),
    6003: say("Coze asks for a paid plan for this."),
}


_QUOTA = {4008, 4011, 4019, 4022, 4028}


_NOT_ACCEPTED = (InvalidRequest, "Coze does not accept the request.")


_MODERATED = (ContentRefused, "Coze's moderation refused the question.")


_CALLER: dict[int, tuple[type[GatewayError], str]] = {
    **dict.fromkeys((4000, 4003, 4004, 4005, 4300, 4301, 4304), _NOT_ACCEPTED),
    **dict.fromkeys((4014, 4102, 4105), _MODERATED),
    4010: (ContextTooLong, "The conversation is too long for the bot's model."),
    4302: (BodyTooLarge, "The file is too large for Coze."),
    4303: (UnsupportedMediaType, "Coze does not take a file of this type."),
}


def explain_code(event: dict[str, Any], status: int = 200) -> GatewayError:
    """The error for Coze's own code, which may be a number or a string of digits."""
    code = as_count(event.get("code")) or as_count(event.get("error_code"))
    message = message_of(event)
    quoted = say(
        " (Coze {code}: {message})",
        code=code or status,
        message=clean(message) or say("no message"),
    )
    if code == 4000 and status == 404:
        return UpstreamMisconfigured(
            say("Coze has no such path: check base_url.{quote}", quote=quoted)
        )
    if code in _OPERATOR:
        return UpstreamMisconfigured(say("{problem}{quote}", problem=_OPERATOR[code], quote=quoted))
    if code in _QUOTA:
        return QuotaExhausted(
            say("The Coze account has no credit or calls left.{quote}", quote=quoted)
        )
    if code == 4020:
        return RateLimited(
            say("Coze is limiting the model's calls.{quote}", quote=quoted),
            retry_after_s=RETRY_AFTER_S,
        )
    if code == 4009:
        return UpstreamUnavailable(
            say("Coze is busy.{quote}", quote=quoted), retry_after_s=RETRY_AFTER_S
        )
    if code in (4016, 4315):
        return ConversationBusy(
            say("Coze is still answering in this conversation; wait for it.{quote}", quote=quoted)
        )
    if code in (4001, 4002, 4314):
        return ConversationNotFound(
            say(
                "Coze does not know this conversation; leave conversation_id out to begin one."
                "{quote}",
                quote=quoted,
            )
        )
    if code == 4010:
        return ContextTooLong(
            say("The conversation is too long for the bot's model.{quote}", quote=quoted)
        )
    if code in (4014, 4102, 4105):
        return ContentRefused(say("Coze's moderation refused the question.{quote}", quote=quoted))
    if code in _CALLER or code == 4000:
        return InvalidRequest(say("Coze does not accept the request.{quote}", quote=quoted))
    if status in (401, 402, 403, 413, 415, 429):
        return explain_http("Coze", UpstreamReply(status, {}, b""), f"{message} (Coze {code})")
    return explain_message("Coze", f"{message or 'no message'} (Coze {code or status})")
