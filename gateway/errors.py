"""Every error of the gateway, and the only place that shapes one into a body.

    GatewayError
    ├── the caller's:     InvalidRequest ContextTooLong ContentRefused Unauthorized
    │                     WrongPassword InvalidToken TokenExpired Forbidden
    │                     NotFound AgentNotFound ConversationNotFound
    │                     MethodNotAllowed ConversationBusy Conflict BodyTooLarge
    │                     UnsupportedMediaType RateLimited TooManyAtOnce ShareTaken CallsUsedUp
    │                     KindNotTaken OptionNotFollowed FileNotFound SenderTooSlow
    │                     UriTooLong HeadersTooLarge
    ├── the operator's:   UpstreamMisconfigured QuotaExhausted
    ├── the upstream's:   UpstreamFailed UpstreamUnreachable UpstreamCut UpstreamTimeout
    │                     UpstreamConnectTimeout UpstreamUnavailable TargetBusy CircuitOpen
    │                     EmptyAnswer
    └── ours:             InternalError DatabaseUnavailable Overloaded StorageUnavailable
                          StorageFull Stopping

Classes carry a status, a code and a message; they draw nothing. `openai_body` and `api_body` do.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar


class Guess(float):
    """Seconds of ours where an upstream has told none: for callers, and not for us to wait for."""


class StartError(Exception):
    """The gateway cannot run as it is set up, and waiting will not change that."""


class GatewayError(Exception):
    """Something to tell the caller. `message` is plain text that says what to do about it.

    `retry_after_s` becomes `Retry-After`. `should_retry` becomes `x-should-retry`, which the OpenAI
    SDKs obey before anything else. The rest is for ourselves: `retryable` is True only if no
    upstream has accepted the call, so that asking again cannot run an agent twice; `elsewhere` says
    that this target is of no use, but the next one of a route may well answer; `outage` that the
    upstream itself is down, which the circuit breaker counts.
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
    ) -> None:
        super().__init__(message)
        self.message = message
        self.cause: str | None = None  # for operators: the fault behind it, in its own words
        self.param = param
        self.detail = detail
        self.retry_after_s = retry_after_s
        if should_retry is not None:
            self.should_retry = should_retry
        if retryable is not None:
            self.retryable = retryable

    def rename(self, agent: str, route: str) -> None:
        """Speak of the route where an agent's name is not for the caller."""
        self.message = self.message.replace(repr(agent), repr(route))


class InvalidRequest(GatewayError):
    """The caller's request cannot be understood or served as it is."""

    status, type, code = 400, "invalid_request_error", "invalid_value"


class ContextTooLong(InvalidRequest):
    """The conversation does not fit the model behind the agent."""

    code = "context_length_exceeded"


class ContentRefused(InvalidRequest):
    """The platform's moderation refused the question."""

    code = "content_filter"


class KindNotTaken(InvalidRequest):
    """The agent cannot take a file of that kind; another target of the route may well."""

    code = "unsupported_file_kind"
    elsewhere = True


class OptionNotFollowed(InvalidRequest):
    """The agent cannot do what an option demands; another target of the route may well."""

    code = "unsupported_parameter"
    elsewhere = True


class Unauthorized(GatewayError):
    """The caller's own key is missing or wrong. Never used for an upstream's key."""

    status, type, code = 401, "invalid_request_error", "invalid_api_key"


class WrongPassword(Unauthorized):
    """No account has that name, or not that password; which of the two is not told."""

    code = "invalid_credentials"


class InvalidToken(Unauthorized):
    """A login's or a page's token is forged, or what it stands for is gone."""

    code = "invalid_token"


class TokenExpired(Unauthorized):
    """A token was good, and its time is over."""

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


class FileNotFound(NotFound):
    """No such file, or it is another caller's."""

    code = "file_not_found"


class MethodNotAllowed(GatewayError):
    """The path exists, but not with this method. `allowed` are those that it has."""

    status, type, code = 405, "invalid_request_error", "method_not_allowed"

    def __init__(self, method: str, allowed: Iterable[str]) -> None:
        self.allowed = ", ".join(sorted(allowed))
        super().__init__(f"{method[:16]} is not possible here; use {self.allowed}.")


class SenderTooSlow(GatewayError):
    """The caller stopped sending in the middle of its request."""

    status, type, code = 408, "invalid_request_error", "request_timeout"


class ConversationBusy(GatewayError):
    """Another answer is still running in that conversation."""

    status, type, code = 409, "upstream_error", "conversation_busy"


class Conflict(GatewayError):
    """What was asked for contradicts what is there: a name that is taken, the last admin."""

    status, type, code = 409, "invalid_request_error", "conflict"


class BodyTooLarge(GatewayError):
    """The request body is over the configured limit."""

    status, type, code = 413, "invalid_request_error", "request_too_large"


class UriTooLong(GatewayError):
    """The request's path or query is longer than any of ours can be."""

    status, type, code = 414, "invalid_request_error", "uri_too_long"


class HeadersTooLarge(GatewayError):
    """The request's headers are more, or longer, than anybody needs."""

    status, type, code = 431, "invalid_request_error", "headers_too_large"


class UnsupportedMediaType(GatewayError):
    """The body or a file is of a type we do not take."""

    status, type, code = 415, "invalid_request_error", "unsupported_media_type"


class RateLimited(GatewayError):
    """Too many calls: ours to the caller, or the upstream's to us."""

    status, type, code = 429, "rate_limit_error", "rate_limit_exceeded"


class TooManyAtOnce(RateLimited):
    """The caller has as many calls under way as it may."""

    code = "concurrency_limit_exceeded"


class ShareTaken(TooManyAtOnce):
    """The caller has its share of an agent's places; another target of the route may have room."""

    elsewhere = True


class CallsUsedUp(RateLimited):
    """The calls of a key, or of a user for this month, are used up; waiting seconds is no use."""

    type, code = "insufficient_quota", "call_quota_exceeded"
    should_retry = False


class QuotaExhausted(GatewayError):
    """Money or plan is used up behind the agent; trying again will not help."""

    status, type, code = 429, "insufficient_quota", "insufficient_quota"
    should_retry = False
    elsewhere = True


class InternalError(GatewayError):
    """A bug of ours."""


class DatabaseUnavailable(GatewayError):
    """The database does not answer, and without it this cannot be told or done."""

    status, type, code = 503, "server_error", "database_unavailable"

    def __init__(self, message: str = "The database does not answer; try again shortly.") -> None:
        super().__init__(message, retry_after_s=2.0)


class StorageUnavailable(GatewayError):
    """Where files are kept does not answer, or does not let us in."""

    status, type, code = 503, "server_error", "storage_unavailable"

    def __init__(self, message: str = "The file store does not answer; try again shortly.") -> None:
        super().__init__(message, retry_after_s=2.0)


class StorageFull(GatewayError):
    """There is no room left where files are kept."""

    status, type, code = 507, "server_error", "insufficient_storage"

    def __init__(self) -> None:
        super().__init__("The file store is full; tell the operator.")


class Overloaded(GatewayError):
    """More of something costly is waiting than the gateway takes on."""

    status, type, code = 503, "server_error", "overloaded"


class UpstreamFailed(GatewayError):
    """The upstream broke, or sent something that is not its protocol."""

    status, type, code = 502, "upstream_error", "upstream_failed"


class UpstreamMisconfigured(UpstreamFailed):
    """The operator's key, app or address for an upstream is wrong; the caller can do nothing."""

    code = "upstream_auth_failed"
    should_retry = False
    elsewhere = True


class UpstreamUnreachable(UpstreamFailed):
    """No connection to the upstream could be made, so nothing has been asked yet."""

    code = "upstream_unreachable"
    retryable = True
    outage = True


class UpstreamCut(UpstreamFailed):
    """The upstream's answer ended without its end."""

    code = "upstream_cut"
    outage = True


class EmptyAnswer(UpstreamFailed):
    """The upstream's answer ended without a word, and without a reason for it."""

    elsewhere = True

    def __init__(self, who: str) -> None:
        super().__init__(f"{who} sent an empty answer: no text, and no reason why there is none.")


class UpstreamUnavailable(GatewayError):
    """The upstream says that it is overloaded or down, or no target is left."""

    status, type, code = 503, "upstream_error", "upstream_unavailable"
    retryable = True
    outage = True


class TargetBusy(UpstreamUnavailable):
    """The agent has as many calls under way as it may, and as many waiting."""

    code = "agent_busy"
    retryable = False  # the waiting has been done
    elsewhere = True
    outage = False


class CircuitOpen(UpstreamUnavailable):
    """The agent failed so often that it is left alone for a moment."""

    code = "circuit_open"
    retryable = False
    elsewhere = True
    outage = False


class Stopping(GatewayError):
    """This process is being stopped; another one, or the next, will answer."""

    status, type, code = 503, "server_error", "shutting_down"
    should_retry = True

    def __init__(self, message: str = "The gateway is being restarted; ask again.") -> None:
        super().__init__(message, retry_after_s=1.0)


class UpstreamTimeout(GatewayError):
    """The upstream was silent for too long."""

    status, type, code = 504, "upstream_error", "upstream_timeout"
    outage = True


class UpstreamConnectTimeout(UpstreamTimeout):
    """No connection to the upstream in time, so nothing has been asked yet."""

    retryable = True


def openai_body(error: GatewayError) -> dict[str, Any]:
    """The body every OpenAI SDK understands: `{"error": {message, type, param, code}}`."""
    return {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
        }
    }


def api_body(error: GatewayError) -> dict[str, Any]:
    """The envelope of `/api/v1/*`: `{code, msg, detail}` with the HTTP status as `code`."""
    detail = {"error": error.code, "param": error.param}
    if error.detail is not None:
        detail["info"] = error.detail
    return {"code": error.status, "msg": error.message, "detail": detail}


def headers(error: GatewayError) -> dict[str, str]:
    """What clients and SDKs read beside the body."""
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
_MAX_WORDS = 2000  # characters of an upstream's words that are looked at
MAX_MESSAGE = 500  # characters of a message that a caller gets


def clean(text: object, limit: int = _MAX_WORDS) -> str:
    """An upstream's own words made fit to pass on: no known shape of key, no control characters.

    They are cut before anything is searched in them, so that their length costs nothing.
    """
    words = str(text)[: limit + 100]
    words = "".join(c if c.isprintable() else " " for c in words)
    return shorten(_KEYS.pattern.sub("***", " ".join(words.split())), limit)


def looks_like_key(text: str) -> bool:
    """Whether a word in it has a known shape of key; `task-12345678` has none."""
    return any(
        found.start() == 0 or not text[found.start() - 1].isalnum()
        for found in _KEYS.pattern.finditer(text)
    )


def why(error: GatewayError) -> str:
    """What the log and the record tell of a failure: its message, and the fault behind it.

    The fault is noted on the error, since its frames, and its cause with them, are let go early.
    """
    if error.cause is None and error.__cause__ is not None:
        error.cause = words_of(error.__cause__)
    words = clean(error.message, MAX_MESSAGE)
    return shorten(f"{words} ({error.cause})") if error.cause else words


def words_of(fault: BaseException) -> str:
    """A driver's or the system's own words, cleaned; its kind where it has none."""
    words = clean(_URL_PASSWORD.sub("//***@", str(fault)), MAX_MESSAGE)
    return words or (
        "no answer in time" if isinstance(fault, TimeoutError) else type(fault).__name__
    )


def shorten(text: str, limit: int = MAX_MESSAGE) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def retry_after(headers: Mapping[str, str], default: float | None = None) -> float | None:
    """Seconds to wait as an upstream's `Retry-After` tells them; `default` if it tells none.

    An HTTP date counts as none: clocks differ, and no platform of ours sends one.
    """
    raw = headers.get("Retry-After", "")
    try:
        seconds = float(raw)
    except ValueError:
        return default
    return min(seconds, 86_400.0) if seconds >= 0 else default
