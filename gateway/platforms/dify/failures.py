"""Maps Dify's refusals to the gateway's errors."""

import re
from typing import Any

from gateway.errors import (
    AudioTooLarge,
    AudioTypeNotTaken,
    BodyTooLarge,
    ConversationNotFound,
    GatewayError,
    InvalidRequest,
    MessageNotFound,
    QuotaExhausted,
    RateLimited,
    UnsupportedMediaType,
    UpstreamFailed,
    UpstreamMisconfigured,
    clean,
    retry_after,
)
from gateway.language.sentences import say
from gateway.platforms.base import (
    as_id,
    as_object,
    as_text,
)
from gateway.platforms.failures import (
    RETRY_AFTER_S,
    explain_http,
    explain_message,
    message_of,
)
from gateway.protocol import loosejson
from gateway.protocol.exchange import UpstreamReply
from gateway.protocol.usage import as_count


def explain(reply: UpstreamReply) -> GatewayError:
    body = reply.object()
    code, message = as_text(body.get("code")), message_of(body)
    error = _explain_code(code, message) or explain_http("Dify", reply, message)
    if isinstance(error, RateLimited):
        return error.replace(retry_after_s=retry_after(reply.headers, error.retry_after_s))
    return error


def _plain(message: str) -> str:
    """The message in a plugin's error, which is JSON after a request id."""
    start = message.find('{"')
    if start >= 0:
        try:
            inner = as_text(as_object(loosejson.loads(message[start:].encode())).get("message"))
        except loosejson.NotJson:
            return message
        return inner or message
    return message


def explain_event(event: dict[str, Any]) -> GatewayError:
    """The error for an `error` event. The run has begun, so `invalid_param` is rarely the caller's
    fault."""
    code = as_id(event.get("code"))
    message = _plain(message_of(event))
    if code in ("", "invalid_param", "completion_request_error", "internal_server_error"):
        return explain_message("Dify", message)
    status = as_count(event.get("status"))
    if error := _explain_code(code, message):
        return error
    if 400 <= status < 600 and status not in (400, 500):
        return explain_http("Dify", UpstreamReply(status, {}, b""), message)
    return explain_message("Dify", message)


def explain_run(data: dict[str, Any]) -> GatewayError:
    """The error for a failed workflow. Dify refused the input of a workflow that failed before its
    first step."""
    message = _plain(message_of(data.get("error"), data))
    error = explain_message("Dify", message)
    if "conversation not exists" in message.lower():
        return ConversationNotFound(NO_CONVERSATION)
    if data.get("total_steps") == 0 and message and type(error) is UpstreamFailed:
        return _refused(message)
    return error


# Such as "city is required in input form", "(type 'select') tone in input form must be a string".
_INPUT = re.compile(r"(?:\(type '[\w-]+'\) )?(\w{1,100}) (?:is required )?in input form\b")


def _refused(message: str) -> InvalidRequest:
    """The error for a request that Dify does not accept; it names the input that is wrong."""
    found = _INPUT.match(message)
    return InvalidRequest(
        say("Dify does not accept the request: {message}", message=clean(message)),
        param=f"variables.{found[1]}" if found else None,
    )


NO_CONVERSATION = say(
    "Dify does not know this conversation for this user. Leave conversation_id out to begin a new"
    " one; a conversation belongs to the `user` who began it."
)


_OPERATOR = {
    "unauthorized": say("Dify refused the gateway's API key: check api_key (it begins with app-)."),
    "forbidden": say(
        "Dify does not let this app be used through its API: switch the app's API on."
    ),
    "not_chat_app": say("The Dify app is of another kind: set mode to auto."),
    "not_workflow_app": say("The Dify app is of another kind: set mode to auto."),
    "not_completion_app": say("The Dify app is of another kind: set mode to auto."),
    "app_unavailable": say(
        "The Dify app is unavailable: check that it is published, and its mode."
    ),
    "agent_not_published": say("The Dify agent has not been published: publish it in Dify."),
    "provider_not_initialize": say(
        "The Dify app has no working model: set its credentials in Dify."
    ),
    "speech_to_text_disabled": say(
        "The Dify app does not transcribe: switch speech to text on in the app's features."
    ),
    "provider_not_support_speech_to_text": say(
        "Dify has no model that transcribes: set a default one for speech to text in Dify."
    ),
    "model_currently_not_support": say(
        "Dify's plan does not allow the app's model: choose another."
    ),
}


def _explain_code(code: str, message: str) -> GatewayError | None:
    quoted = clean(message)
    low = message.lower()
    if code in _OPERATOR:
        return UpstreamMisconfigured(
            say("{problem} (Dify: {message})", problem=_OPERATOR[code], message=quoted or code)
        )
    if code == "provider_quota_exceeded":
        return QuotaExhausted(
            say("The model's quota in Dify is used up. {message}", message=quoted)
        )
    if code in ("too_many_requests", "rate_limit_error") or low.startswith("too many requests"):
        return RateLimited(
            say(
                "Dify is busy with this app's other calls; try again shortly. {message}",
                message=quoted,
            ),
            retry_after_s=RETRY_AFTER_S,
            retryable=True,
        )
    if code == "not_found" and low.startswith("conversation not exists"):
        return ConversationNotFound(NO_CONVERSATION)
    if code == "not_found" and low.startswith(("message not exists", "first message not exists")):
        return MessageNotFound()
    if code == "invalid_param" and low.startswith("workflow not published"):
        return UpstreamMisconfigured(
            say(
                "The Dify workflow has not been published: publish it in Dify. (Dify: {message})",
                message=quoted,
            )
        )
    if low.startswith("tts is not enabled"):
        return UpstreamMisconfigured(
            say(
                "The Dify app does not speak: switch text to speech on in the app's features. "
                "(Dify: {message})",
                message=quoted,
            )
        )
    if code == "invalid_param" and low.startswith("run failed"):
        return explain_message("Dify", message)
    if code == "completion_request_error":
        return explain_message("Dify", message)
    if code in ("invalid_param", "bad_request", "conversation_completed"):
        error = explain_message("Dify", message)
        if "invokeerror" in low or type(error) is not UpstreamFailed:
            return error  # the message is more precise than the code
        return _refused(message)
    return _explain_file(code, quoted)


_BAD_FILE = (
    "no_file_uploaded", "no_audio_uploaded", "too_many_files", "filename_not_exists_error",
)  # fmt: skip


def _explain_file(code: str, quoted: str) -> GatewayError | None:
    if code in _BAD_FILE:
        return InvalidRequest(
            say("Dify does not accept the file: {message}", message=quoted), param="file"
        )
    if code == "unsupported_audio_type":
        return AudioTypeNotTaken(
            say("Dify does not transcribe a file of this type. {message}", message=quoted)
        )
    if code == "audio_too_large":
        return AudioTooLarge(say("The recording is too large for Dify. {message}", message=quoted))
    if code in ("unsupported_media_type", "unsupported_file_type"):
        return UnsupportedMediaType(
            say("Dify does not take a file of this type. {message}", message=quoted)
        )
    if code == "file_too_large":
        return BodyTooLarge(say("The file is too large for Dify. {message}", message=quoted))
    return None
