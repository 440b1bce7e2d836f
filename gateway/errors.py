"""Every error of the gateway, and the only functions that render one as a body.

    GatewayError
    ├── the caller's:     InvalidRequest ContextTooLong ContentRefused Unauthorized
    │                     WrongPassword InvalidToken TokenExpired Forbidden
    │                     NotFound AgentNotFound ConversationNotFound MessageNotFound
    │                     NotOffered MethodNotAllowed ConversationBusy Conflict BodyTooLarge
    │                     UnsupportedMediaType RateLimited TooManyAtOnce ShareTaken CallsUsedUp
    │                     KindNotTaken OptionNotFollowed FileNotFound SenderTooSlow
    │                     UriTooLong HeadersTooLarge
    ├── the operator's:   UpstreamMisconfigured QuotaExhausted
    ├── the upstream's:   UpstreamFailed UpstreamUnreachable UpstreamCut UpstreamTimeout
    │                     UpstreamConnectTimeout UpstreamUnavailable TargetBusy CircuitOpen
    │                     EmptyAnswer
    └── the gateway's:    InternalError DatabaseUnavailable Overloaded TooManyConnections
                          StorageUnavailable StorageFull Stopping

Classes carry a status, a code and a message; `openai_body` and `api_body` render them.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

from gateway.language.sentences import Language, Sentence, edited, in_language, say


class Guess(float):
    """A number of seconds that the gateway guessed because an upstream named none: for callers
    only; the gateway itself does not wait for it."""


class StartError(Exception):
    """The gateway cannot run with this configuration, and time does not fix that."""


class GatewayError(Exception):
    """An error to report to the caller. `message` is plain text that says what to do about it.

    `retry_after_s` becomes `Retry-After`. `should_retry` becomes `x-should-retry`, which takes
    precedence in the OpenAI SDKs. The other flags are facts for `chat.run.decide`: `retryable` is
    True only if the failure itself proves that no upstream has begun to work; `elsewhere` means
    that this target cannot answer but the route's next one may; `outage` means that the upstream
    itself is down, which the circuit breaker counts. `cause` is the underlying fault in its own
    text, for operators.

    An error does not change after it was made; `replace` makes another one.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = None
    should_retry: bool | None = None
    retryable: bool = False
    elsewhere: bool = False
    outage: bool = False

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        detail: Any = None,
        retry_after_s: float | None = None,
        should_retry: bool | None = None,
        retryable: bool | None = None,
        elsewhere: bool | None = None,
        outage: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.message: str = message if isinstance(message, Sentence) else say(message)
        self.param = param
        self.detail = detail
        self.retry_after_s = retry_after_s
        if should_retry is not None:
            self.should_retry = should_retry
        if retryable is not None:
            self.retryable = retryable
        if elsewhere is not None:
            self.elsewhere = elsewhere
        if outage is not None:
            self.outage = outage

    @property
    def cause(self) -> str | None:
        return None if self.__cause__ is None else describe_fault(self.__cause__)

    def replace(self, **facts: Any) -> Self:
        """The same error with other facts: `error.replace(retryable=False)`."""
        other = self.__class__.__new__(self.__class__)
        other.__dict__.update(self.__dict__, **facts)
        other.args = (other.message,)
        other.__cause__, other.__suppress_context__ = self.__cause__, True
        return other

    def renamed(self, agent: str, route: str) -> "GatewayError":
        """The error with the route's name in place of the agent's, which the caller may not see."""
        names = repr(agent), repr(route)
        return self.replace(message=edited(self.message, lambda text: text.replace(*names)))


class InvalidRequest(GatewayError):
    """The caller's request is invalid, or cannot be served in this form."""

    status, type, code = 400, "invalid_request_error", "invalid_value"


class ContextTooLong(InvalidRequest):
    """The conversation does not fit the agent's model."""

    code = "context_length_exceeded"


class ContentRefused(InvalidRequest):
    """The platform's moderation refused the question."""

    code = "content_filter"


class InvalidVariable(InvalidRequest):
    """A variable does not fit the form of the agent."""


class KindNotTaken(InvalidRequest):
    """The agent cannot take a file of that kind; another target of the route may."""

    code = "unsupported_file_kind"
    elsewhere = True


class OptionNotFollowed(InvalidRequest):
    """The agent does not support an option that the caller demands; another target of the route
    may."""

    code = "unsupported_parameter"
    elsewhere = True


class Unauthorized(GatewayError):
    """The caller's own key is missing or wrong. Never used for an upstream's key."""

    status, type, code = 401, "invalid_request_error", "invalid_api_key"


class WrongPassword(Unauthorized):
    """The name or the password is wrong; the error does not say which."""

    code = "invalid_credentials"


class InvalidToken(Unauthorized):
    """A login's or a page's token is forged, or its account or key no longer exists."""

    code = "invalid_token"


class TokenExpired(Unauthorized):
    """A valid token has expired."""

    code = "token_expired"


class Forbidden(GatewayError):
    """The caller is known but may not do this."""

    status, type, code = 403, "permission_error", "permission_denied"


class NotFound(GatewayError):
    """No such path or resource."""

    status, type, code = 404, "invalid_request_error", "not_found"


class AgentNotFound(NotFound):
    """No agent, route or model has that name."""

    code = "model_not_found"


class ConversationNotFound(NotFound):
    """The platform does not know the conversation, or it belongs to another user."""

    code = "conversation_not_found"


class MessageNotFound(NotFound):
    """The conversation has no such message."""

    code = "message_not_found"

    def __init__(self) -> None:
        super().__init__(
            "There is no such message in this conversation; send the message_id of an answer."
        )


class FileNotFound(NotFound):
    """No such file, or it belongs to another caller."""

    code = "file_not_found"


class MethodNotAllowed(GatewayError):
    """The path exists, but not with this method. `allowed` are its methods."""

    status, type, code = 405, "invalid_request_error", "method_not_allowed"

    def __init__(self, method: str, allowed: Iterable[str]) -> None:
        self.allowed = ", ".join(sorted(allowed))
        super().__init__(
            say(
                "{method} is not possible here; use {allowed}.",
                method=method[:16],
                allowed=self.allowed,
            )
        )


class NotOffered(GatewayError):
    """The agent's platform, or its version or kind of app, cannot do this."""

    status, type, code = 501, "invalid_request_error", "not_offered"
    should_retry = False


class SenderTooSlow(GatewayError):
    """The caller stopped sending in the middle of its request."""

    status, type, code = 408, "invalid_request_error", "request_timeout"


class ConversationBusy(GatewayError):
    """Another answer is still in progress in that conversation."""

    status, type, code = 409, "upstream_error", "conversation_busy"


class Conflict(GatewayError):
    """The request contradicts the present state: a name that is taken, the last admin."""

    status, type, code = 409, "invalid_request_error", "conflict"


class BodyTooLarge(GatewayError):
    """The request body is over the configured limit."""

    status, type, code = 413, "invalid_request_error", "request_too_large"


class AudioTooLarge(BodyTooLarge):
    """The recording is over the platform's limit; another target of the route may take it."""

    elsewhere = True


class UriTooLong(GatewayError):
    """The request's path or query is longer than any valid one."""

    status, type, code = 414, "invalid_request_error", "uri_too_long"


class HeadersTooLarge(GatewayError):
    """The request's headers are too many or too long."""

    status, type, code = 431, "invalid_request_error", "headers_too_large"


class UnsupportedMediaType(GatewayError):
    """The gateway does not accept this type of body or file."""

    status, type, code = 415, "invalid_request_error", "unsupported_media_type"


class AudioTypeNotTaken(UnsupportedMediaType):
    """The platform does not transcribe files of this type; another target of the route may."""

    elsewhere = True


class RateLimited(GatewayError):
    """Too many calls: the caller's to the gateway, or the gateway's to the upstream."""

    status, type, code = 429, "rate_limit_error", "rate_limit_exceeded"


class TooManyAtOnce(RateLimited):
    """The caller has reached its limit of calls in flight."""

    code = "concurrency_limit_exceeded"


class ShareTaken(TooManyAtOnce):
    """The caller has used its share of an agent's slots; another target of the route may
    have room."""

    elsewhere = True


class CallsUsedUp(RateLimited):
    """The call quota of a key, or of a user for this month, is used up; a short wait does
    not help."""

    type, code = "insufficient_quota", "call_quota_exceeded"
    should_retry = False


class QuotaExhausted(GatewayError):
    """The agent's budget or plan is used up; a retry does not help."""

    status, type, code = 429, "insufficient_quota", "insufficient_quota"
    should_retry = False
    elsewhere = True


class InternalError(GatewayError):
    """A bug in the gateway."""


class DatabaseUnavailable(GatewayError):
    """The database does not answer, and the request needs it."""

    status, type, code = 503, "server_error", "database_unavailable"

    def __init__(
        self, message: str = say("The database does not answer; try again shortly.")
    ) -> None:
        super().__init__(message, retry_after_s=2.0)


class StorageUnavailable(GatewayError):
    """The file store does not answer, or denies access."""

    status, type, code = 503, "server_error", "storage_unavailable"

    def __init__(
        self, message: str = say("The file store does not answer; try again shortly.")
    ) -> None:
        super().__init__(message, retry_after_s=2.0)


class StorageFull(GatewayError):
    """The file store is full."""

    status, type, code = 507, "server_error", "insufficient_storage"

    def __init__(self) -> None:
        super().__init__("The file store is full; tell the operator.")


class Overloaded(GatewayError):
    """The gateway's queue for expensive work is full."""

    status, type, code = 503, "server_error", "overloaded"


class TooManyConnections(Overloaded):
    """The gateway has as many connections as `server.max_connections` allows."""

    code = "too_many_connections"
    should_retry = True


class UpstreamFailed(GatewayError):
    """The upstream failed, or violated its protocol."""

    status, type, code = 502, "upstream_error", "upstream_failed"


class UpstreamMisconfigured(UpstreamFailed):
    """The operator's key, app or address for an upstream is wrong; the caller cannot fix it."""

    code = "upstream_auth_failed"
    should_retry = False
    elsewhere = True


class UpstreamUnreachable(UpstreamFailed):
    """The connection to the upstream failed, so no request was sent."""

    code = "upstream_unreachable"
    retryable = True
    outage = True


class UpstreamCut(UpstreamFailed):
    """The upstream's answer broke off."""

    code = "upstream_cut"
    outage = True


class EmptyAnswer(UpstreamFailed):
    """The upstream's answer ended without content, and without a reason for that."""

    elsewhere = True

    def __init__(self, who: str) -> None:
        super().__init__(
            say(
                "{upstream} sent an empty answer: no text, and no reason why there is none.",
                upstream=who,
            )
        )


class UpstreamUnavailable(GatewayError):
    """The upstream reports that it is overloaded or down, or no target is left."""

    status, type, code = 503, "upstream_error", "upstream_unavailable"
    retryable = True
    outage = True


class TargetBusy(UpstreamUnavailable):
    """The agent has all its slots in use and its queue full."""

    code = "agent_busy"
    retryable = False  # the call has already waited
    elsewhere = True
    outage = False


class CircuitOpen(UpstreamUnavailable):
    """The agent failed so often that the gateway skips it for a moment."""

    code = "circuit_open"
    retryable = False
    elsewhere = True
    outage = False


class Stopping(GatewayError):
    """This process is stopping; another one, or the next, will answer."""

    status, type, code = 503, "server_error", "shutting_down"
    should_retry = True

    def __init__(
        self,
        message: str = say("The gateway is being restarted; ask again."),
        should_retry: bool | None = None,
    ) -> None:
        super().__init__(message, retry_after_s=1.0, should_retry=should_retry)


class UpstreamTimeout(GatewayError):
    """The upstream was silent for too long."""

    status, type, code = 504, "upstream_error", "upstream_timeout"
    outage = True


class UpstreamConnectTimeout(UpstreamTimeout):
    """The connection to the upstream timed out, so no request was sent."""

    retryable = True


def openai_body(error: GatewayError, language: Language = "en") -> dict[str, Any]:
    """The body every OpenAI SDK understands: `{"error": {message, type, param, code}}`."""
    return {
        "error": {
            "message": in_language(error.message, language),
            "type": error.type,
            "param": error.param,
            "code": error.code,
        }
    }


def api_body(error: GatewayError, language: Language = "en") -> dict[str, Any]:
    """The envelope of `/api/v1/*`: `{code, msg, detail}` with the HTTP status as `code`."""
    detail = {"error": error.code, "param": error.param}
    if error.detail is not None:
        detail["info"] = error.detail
    return {"code": error.status, "msg": in_language(error.message, language), "detail": detail}


def headers(error: GatewayError) -> dict[str, str]:
    """The headers that clients and SDKs read in addition to the body."""
    out = {}
    if isinstance(error, MethodNotAllowed):
        out["Allow"] = error.allowed
    if error.retry_after_s is not None:
        seconds = max(1, int(-(-error.retry_after_s // 1)))
        out["Retry-After"] = str(seconds)
        out["retry-after-ms"] = str(int(error.retry_after_s * 1000) or 1)
    if error.should_retry is not None:
        out["x-should-retry"] = "true" if error.should_retry else "false"
    return out


class _KeyShapes:
    """What is redacted: upstreams repeat the key that they refuse. Each kind of upstream adds its
    own shapes. What `accounts.credentials.masked` leaves of our own key stays: its id finds the key
    and is no secret."""

    def __init__(self) -> None:
        self._prefixes = [r"sk(?!-gw-[a-z0-9]{12}-\*{4})"]
        self._shapes: list[str] = [
            r"(?<![a-z0-9_\-])(?-i:eyJ)[a-z0-9_\-]{8,}(?:\.[a-z0-9_\-]+)*",
            r"(?<=[_\-])(?-i:eyJ)[a-z0-9_\-]{8,}(?:\.[a-z0-9_\-]+)+",  # else an id of ours
            r"bearer(?:\s|%20|\+)+[^\s\"',]{8,}",
        ]
        self._compile()

    def add(self, shapes: Iterable[str], prefixes: Iterable[str]) -> None:
        """Raises re.error."""
        bare = [prefix.rstrip("-_") for prefix in prefixes]
        names = [re.escape(name) for name in bare if name != "sk"]  # which is there, but for ours
        before = self._prefixes, self._shapes
        self._prefixes = list(dict.fromkeys([*self._prefixes, *names]))
        self._shapes = list(dict.fromkeys([*self._shapes, *shapes]))
        try:
            self._compile()
        except re.error:
            self._prefixes, self._shapes = before
            raise

    def _compile(self) -> None:
        prefixed = (
            rf"(?:{'|'.join(self._prefixes)})"
            r"(?:[-_]|%2d|%5f|\\u002d|\\u005f)[a-z0-9_\-.%\\]{8,}"
        )
        self.pattern = re.compile("|".join([prefixed, *self._shapes]), re.IGNORECASE | re.ASCII)


_KEYS = _KeyShapes()
add_key_shapes = _KEYS.add
_URL_PASSWORD = re.compile(r"//[^/\s@]*@")
_MAX_TEXT = 2000  # characters of an upstream's message that are examined
MAX_MESSAGE = 500  # characters of a message that a caller gets


def clean(text: object, limit: int = _MAX_TEXT) -> str:
    """An upstream's message, made safe to forward: no known form of key, no control characters.

    The text is cut before it is searched, so its length costs nothing.
    """
    message = str(text)[: limit + 100]
    message = "".join(c if c.isprintable() else " " for c in message)
    return shorten(_KEYS.pattern.sub("***", " ".join(message.split())), limit)


def looks_like_key(text: str) -> bool:
    """Whether the text has a known form of key at a word's start; `task-12345678` has none."""
    return any(
        found.start() == 0 or not text[found.start() - 1].isalnum()
        for found in _KEYS.pattern.finditer(text)
    )


def why(error: GatewayError) -> str:
    """The reason of a failure for the log and the record: its message and the underlying fault."""
    message, cause = clean(error.message, MAX_MESSAGE), error.cause
    return shorten(f"{message} ({cause})") if cause else message


def describe_fault(fault: BaseException) -> str:
    """A driver's or the system's own message, cleaned; its class name if it has none."""
    message = clean(_URL_PASSWORD.sub("//***@", str(fault)), MAX_MESSAGE)
    return message or (
        "no answer in time" if isinstance(fault, TimeoutError) else type(fault).__name__
    )


def shorten(text: str, limit: int = MAX_MESSAGE) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def retry_after(headers: Mapping[str, str], default: float | None = None) -> float | None:
    """Seconds to wait by an upstream's `Retry-After`; `default` if it names none.

    An HTTP date counts as none: clocks differ, and none of the platforms sends one.
    """
    raw = headers.get("Retry-After", "")
    try:
        seconds = float(raw)
    except ValueError:
        return default
    return min(seconds, 86_400.0) if seconds >= 0 else default
