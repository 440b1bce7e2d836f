"""One classifier of upstream failures: maps any body and status to one of the gateway's errors.

The body takes precedence over the status: providers send "no credit" with 400, 402, 403, 429 and
200. `failure_table` defines the meaning of codes and phrases. Every message quotes the upstream,
whatever the format of its body; `Target.explain` redacts the agent's secrets in it.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from gateway.errors import (
    BodyTooLarge,
    ContentRefused,
    ContextTooLong,
    GatewayError,
    Guess,
    InvalidRequest,
    QuotaExhausted,
    RateLimited,
    UnsupportedMediaType,
    UpstreamFailed,
    UpstreamMisconfigured,
    UpstreamTimeout,
    UpstreamUnavailable,
    clean,
    retry_after,
)
from gateway.language.sentences import say
from gateway.platforms.failure_message import bare, codes_in, inner, status_in, without_names
from gateway.platforms.failure_table import ROWS, Kind, patterns
from gateway.protocol.exchange import UpstreamReply

# `Retry-After` in seconds for refusals without one.
RETRY_AFTER_S = Guess(5.0)

MAX_READ = 64 * 1024  # bytes of a body to parse as JSON
_MAX_SEARCHED = 4096  # characters of text
_MAX_DEPTH = 6
_MAX_MEMBERS = 200
_MAX_MESSAGES = 3  # messages of one body
_MAX_CODE = 100  # characters


@dataclass(slots=True)
class Reported:
    """A failure's body. `codes` are `member:value`, `status` is the HTTP status that the body
    contains, else 0."""

    message: str = ""
    codes: list[str] = field(default_factory=list)
    status: int = 0
    param: str = ""


_MODEL = re.compile(r"(?<![/\w])models?\b|模型", re.IGNORECASE)  # but no part of a path


def explain_http(
    platform: str,
    reply: UpstreamReply,
    message: str = "",
    *,
    own_request: bool = False,
    own_model: bool = False,
) -> GatewayError:
    """The error for a reply that is a refusal, or not an answer at all.

    `message` is the upstream's message if the platform knows where it is. `own_request` means that
    the caller's own body was forwarded, so a bad request is the caller's error; `own_model` means
    that the caller chose the upstream's model.
    """
    reported = read(reply)
    status = reported.status if reported.status and reply.status < 300 else reply.status
    message = message or reported.message
    kind = classify(message, reported.codes) or _BY_STATUS.get(status)
    if kind == "rate" and status == 413:  # waiting does not help
        kind = "request_over_limit"
    is_of_model = reported.param == "model" or _MODEL.search(message[:_MAX_SEARCHED])
    if kind is None and status == 404 and own_request and is_of_model:
        kind = "model"
    about = _About(platform, status, clean(message), reported.param)
    if kind == "model" and own_model:
        return InvalidRequest(
            say(
                "{platform} does not offer this model.{quote}",
                platform=platform,
                quote=about.quoted,
            ),
            param="model",
        )
    if kind is not None:
        wait_s = retry_after(reply.headers) or _wait_in(message)
        return _ERRORS[kind](about, Guess(RETRY_AFTER_S) if wait_s is None else wait_s)
    if own_request and status in (400, 409, 422):
        param = clean(reported.param, 100) or None
        return InvalidRequest(
            say(
                "{platform} does not accept the request.{quote}",
                platform=platform,
                quote=about.quoted,
            ),
            param=param,
        )
    if status < 300 and reported.codes:  # a refusal with 200 is not a proxy's page
        return _unknown(about)
    return _by_status(about, reply)


def explain_message(platform: str, message: str) -> GatewayError:
    """The error for a failed run that is known by the platform's message only.

    Agent platforms forward the message of the bot's model without its status or code.
    """
    status = status_in(message[:_MAX_SEARCHED])
    kind = classify(message, ())
    # 403 and 404 may come from any step's own call.
    if kind is None and status in _REPORTED_BY_MODELS:
        kind = _BY_STATUS[status]
    about = _About(platform, status, clean(message), "")
    if kind is None:
        return _unknown(about)
    error = _ERRORS[kind](about, _wait_in(message) or RETRY_AFTER_S)
    return error.replace(retryable=False)  # the run has begun


def explain_member(platform: str, error: Any, *, own_request: bool = False) -> GatewayError:
    """The error for the `error` member, or the whole body, of a reply with status 200."""
    body = error if isinstance(error, dict | list) else {"message": str(error or "")}
    try:
        data = orjson.dumps(body)
    except orjson.JSONEncodeError:
        data = b""
    reported = read(UpstreamReply(200, {}, data))
    if not reported.status and not classify(reported.message, reported.codes):
        if any(code.endswith(":invalid_request_error") for code in reported.codes):
            reported.status = 400
        else:
            return explain_message(platform, reported.message)
    return explain_http(
        platform, UpstreamReply(reported.status or 200, {}, data), own_request=own_request
    )


def classify(message: str, codes: list[str] | tuple[str, ...]) -> Kind | None:
    """The kind in the first matching row of the table, or None."""
    whole, more = inner(message[:_MAX_SEARCHED])
    exact = {code.lower() for code in (*codes, *more)}
    values = [code.partition(":")[2] for code in exact]
    text = "\n".join((without_names(whole).lower(), *values))
    names = [bare(value) for value in values]
    tokens = codes_in(whole)
    for row, pattern in zip(ROWS, patterns(), strict=True):
        if (
            not exact.isdisjoint(row.codes)
            or not tokens.isdisjoint(row.names)
            or any(part in name for name in names for part in row.names)
            or (pattern and pattern.search(text))
        ):
            return row.kind
    return None


# From a body to its message and codes.

_MESSAGES = frozenset((
    "message", "msg", "detail", "error", "errormsg", "errmsg", "errormessage", "statusmsg",
    "errordescription", "description", "title", "errorinfo", "err", "cause", "raw", "errors",
    "hint", "info", "lasterror",
))  # fmt: skip
_CODES = frozenset((
    "code", "type", "status", "errorcode", "errcode", "errno", "statuscode", "httpcode", "reason",
    "quotaid", "errortype",
))  # fmt: skip
_INSIDE = _MESSAGES | {
    "details", "baseresp", "response", "data", "metadata", "innererror", "result", "body",
    "violations", "errordetail", "lasterror", "output", "fault", "faultstring",
}  # fmt: skip


def read(reply: UpstreamReply) -> Reported:
    """The message and codes of a body in any format that upstreams use."""
    value = reply.json() if len(reply.body) <= MAX_READ else None
    reported = read_value(value)
    if isinstance(value, dict | list):
        if not reported.message and value and not (reply.status < 300 and not reported.codes):
            reported.message = reply.text[:300]
    elif not isinstance(value, str):
        reported.message = _plain(reply)
    return reported


def read_value(value: Any) -> Reported:
    """The message and codes of an event's or a member's JSON."""
    reported = Reported()
    messages: list[str] = []
    if isinstance(value, str):
        _add_message(value, reported, messages, 0, [_MAX_MEMBERS])
    else:
        _walk(value, reported, messages, 0, [_MAX_MEMBERS])
    reported.message = ": ".join(dict.fromkeys(messages[:_MAX_MESSAGES]))
    return reported


def message_of(*values: Any) -> str:
    """The message of the first of `values` that has one. A code that is not a number is better than
    no message."""
    for value in values:
        reported = read_value(value)
        if reported.message:
            return reported.message
        for code in reported.codes:
            if code.startswith(("code:", "errorcode:")) and not code.rpartition(":")[2].isdigit():
                return code.partition(":")[2]
    return ""


_FAILURE = ("message", "msg", "detail", "error_msg", "error_message", "errmsg")
_GOOD = (0, "0", 200, "200")


def is_failure(event: dict[str, Any]) -> bool:
    """Whether an event outside its platform's protocol reports a failure."""
    if event.get("error") or event.get("errors"):
        return True
    code = event.get("code") or event.get("error_code") or 0
    is_good = "code" in event and code in _GOOD
    return code not in _GOOD or (not is_good and any(map(event.get, _FAILURE)))


def _walk(value: Any, reported: Reported, messages: list[str], depth: int, left: list[int]) -> None:
    if depth > _MAX_DEPTH:
        return
    if isinstance(value, list):
        for item in value[:10]:
            if isinstance(item, str):
                _add_message(item, reported, messages, depth, left)
            else:
                _walk(item, reported, messages, depth + 1, left)
    elif isinstance(value, dict):
        for member, inner in value.items():
            left[0] -= 1
            if left[0] < 0:
                return
            name = str(member)[:40].lower().replace("_", "").replace("-", "")
            if isinstance(inner, str) and name in _MESSAGES:
                where = "".join(f"{step}." for step in _loc(value)) if name == "msg" else ""
                _add_message(
                    f"{where.rstrip('.')}: {inner}" if where else inner,
                    reported,
                    messages,
                    depth,
                    left,
                )
            elif isinstance(inner, dict | list) and name in _INSIDE:
                _walk(inner, reported, messages, depth + 1, left)
            elif name in _CODES and isinstance(inner, str | int) and inner is not True:
                _note_code(name, str(inner)[:_MAX_CODE], reported)
            elif name == "param" and isinstance(inner, str):
                reported.param = reported.param or inner[:_MAX_CODE]


def _loc(value: dict[str, Any]) -> Iterator[str]:
    """The path in one of FastAPI's validation errors."""
    loc = value.get("loc")
    for step in loc[:8] if isinstance(loc, list) else ():
        if isinstance(step, str | int):
            yield str(step)[:40]


def _add_message(
    text: str, reported: Reported, messages: list[str], depth: int, left: list[int]
) -> None:
    """Add a message; some gateways send the provider's JSON as a string."""
    text = text.strip()
    if text[:1] in "{[" and text:
        try:
            inner = orjson.loads(text[:MAX_READ])
        except orjson.JSONDecodeError:
            inner = None
        before = len(messages)
        _walk(inner, reported, messages, depth + 1, left)
        if len(messages) > before:
            return
    if text:
        messages.append(text)


def _note_code(name: str, code: str, reported: Reported) -> None:
    if not code or code == "0":
        return
    reported.codes.append(f"{name}:{code}")
    if len(code) == 3 and code.isascii() and code.isdigit() and "400" <= code < "600":
        reported.status = reported.status or int(code)


_HIDDEN = re.compile(r"<(script|style|head)\b.{0,20000}?</\1\s*>", re.DOTALL | re.IGNORECASE)
_TITLE = re.compile(r"<title[^<>]{0,200}>([^<]{1,300})", re.IGNORECASE)
_TAG = re.compile(r"<[^<>]{0,2000}>")


def _plain(reply: UpstreamReply) -> str:
    """The text of a plain body or a web page; for a page its title, else the beginning of its
    text."""
    text = reply.text[:2048].strip()
    kind = reply.headers.get("Content-Type", "").lower()
    if "html" not in kind and not text[:15].lower().startswith(("<!doctype", "<html")):
        return text if text.isprintable() or not reply.body.count(0) else ""
    if title := _TITLE.search(text):
        return " ".join(title[1].split())
    return " ".join(_TAG.sub(" ", _HIDDEN.sub(" ", text)).split())[:200]


_WAIT = re.compile(
    r"(?:again|retry|reset)\b.{0,10}?\b(?:in|after)\s{1,3}"
    r"(?:(\d{1,3})h)?(?:(\d{1,4})m(?!s))?(?:(\d{1,6}(?:\.\d{1,9})?)\s?(ms|s\b|sec|second))?",
    re.IGNORECASE,
)


def _wait_in(message: str) -> float | None:
    """Seconds to wait from a message such as "try again in 1m20.5s"; None if it has none."""
    for found in _WAIT.finditer(message[:_MAX_SEARCHED]):
        hours, minutes, seconds, unit = found.groups()
        if hours or minutes or seconds:
            wait_s = float(seconds or 0) / (1000 if unit == "ms" else 1)
            return min(wait_s + 60 * int(minutes or 0) + 3600 * int(hours or 0), 86_400.0)
    return None


# From a kind to an error.


@dataclass(frozen=True, slots=True)
class _About:
    platform: str
    status: int
    message: str
    param: str

    @property
    def quoted(self) -> str:
        """The upstream's message as a sentence to append to the gateway's."""
        if not self.message:
            return ""
        if self.message.endswith((".", "!", "?", "。", "！", "？", "…")):
            return say(" {platform} says: {message}", platform=self.platform, message=self.message)
        return say(" {platform} says: {message}.", platform=self.platform, message=self.message)


def _unknown(about: _About) -> GatewayError:
    why = about.message or say("it did not say why.")
    return UpstreamFailed(
        say("{platform} could not finish the answer: {reason}", platform=about.platform, reason=why)
    )


def _credit(about: _About, wait_s: float) -> GatewayError:
    return QuotaExhausted(
        say(
            "The account behind the agent at {platform} has no credit left, or its plan is used"
            " up.{quote}",
            platform=about.platform,
            quote=about.quoted,
        )
    )


def _rate(about: _About, wait_s: float) -> GatewayError:
    message = say(
        "{platform} is limiting calls; try again in {seconds:g} s.{quote}",
        platform=about.platform,
        seconds=wait_s,
        quote=about.quoted,
    )
    return RateLimited(message, retry_after_s=wait_s, retryable=True)


def _over_limit(about: _About, wait_s: float) -> GatewayError:
    return RateLimited(
        say(
            "The request is larger than {platform} takes from this account in a minute; "
            "send less.{quote}",
            platform=about.platform,
            quote=about.quoted,
        ),
        should_retry=False,
        elsewhere=True,
    )


def _context(about: _About, wait_s: float) -> GatewayError:
    message = say(
        "The conversation is too long for the model at {platform}; send less.{quote}",
        platform=about.platform,
        quote=about.quoted,
    )
    return ContextTooLong(message, param="messages")


def _moderated(about: _About, wait_s: float) -> GatewayError:
    return ContentRefused(
        say(
            "The moderation of {platform} refused the question.{quote}",
            platform=about.platform,
            quote=about.quoted,
        )
    )


def _model(about: _About, wait_s: float) -> GatewayError:
    return UpstreamMisconfigured(
        say(
            "{platform} does not offer the configured model to this account.{quote}",
            platform=about.platform,
            quote=about.quoted,
        )
    )


def _key(about: _About, wait_s: float) -> GatewayError:
    status = f" ({about.status})" if about.status >= 400 else ""
    return UpstreamMisconfigured(
        say(
            "{platform} refused the gateway's credentials{status}.{quote} Check api_key "
            "in config.yaml, or the model's key in the platform.",
            platform=about.platform,
            status=status,
            quote=about.quoted,
        )
    )


def _overloaded(about: _About, wait_s: float) -> GatewayError:
    message = say(
        "{platform} is overloaded; try again shortly.{quote}",
        platform=about.platform,
        quote=about.quoted,
    )
    return UpstreamUnavailable(message, retry_after_s=wait_s)


def _body(about: _About, wait_s: float) -> GatewayError:
    return BodyTooLarge(
        say(
            "{platform} refused the request as too large.{quote}",
            platform=about.platform,
            quote=about.quoted,
        )
    )


_ERRORS: dict[Kind, Callable[[_About, float], GatewayError]] = {
    "request_over_limit": _over_limit,
    "rate": _rate,
    "credit": _credit,
    "context": _context,
    "moderated": _moderated,
    "model": _model,
    "key": _key,
    "overloaded": _overloaded,
    "body": _body,
}
_BY_STATUS: dict[int, Kind] = {
    401: "key", 402: "credit", 403: "key", 413: "body", 429: "rate", 434: "key", 451: "moderated",
    529: "overloaded",
}  # fmt: skip
_REPORTED_BY_MODELS = (401, 402, 429, 451, 529)


def _by_status(about: _About, reply: UpstreamReply) -> GatewayError:
    """The error for an unknown body whose status has no kind in `_BY_STATUS`."""
    platform, status = about.platform, about.status
    if status == 415:
        message = say(
            "{platform} does not take this kind of content.{quote}",
            platform=platform,
            quote=about.quoted,
        )
        return UnsupportedMediaType(message)
    if 300 <= status < 400:
        return UpstreamMisconfigured(
            say(
                "{platform} answered with a redirect ({status}), which is not followed with "
                "a key. Put the final address into base_url.",
                platform=platform,
                status=status,
            )
        )
    if status in (404, 405) or 200 <= status < 300:
        return UpstreamMisconfigured(
            say(
                "{platform} answered {status}, so the API is not at this address; check "
                "base_url.{quote} ({sent})",
                platform=platform,
                status=status,
                quote=about.quoted,
                sent=_sort_of(reply),
            ),
            should_retry=False,
        )
    if status in (408, 504, 524):
        message = say(
            "{platform} did not answer in time ({status}).{quote}",
            platform=platform,
            status=status,
            quote=about.quoted,
        )
        return UpstreamTimeout(message, retryable=status == 504)
    message = say(
        "{platform} failed with status {status}.{quote}",
        platform=platform,
        status=status,
        quote=about.quoted,
    )
    return UpstreamFailed(
        message,
        retry_after_s=retry_after(reply.headers),
        retryable=status in (502, 503),  # a proxy reached no server
        outage=status in (502, 503),
    )


def _sort_of(reply: UpstreamReply) -> str:
    kind = reply.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if "html" in kind or reply.body[:200].lstrip().lower().startswith((b"<!doctype", b"<html")):
        return say("it sent a web page")
    if not kind:
        return say("it sent something without a content type")
    return say("it sent {content_type}", content_type=kind[:72])
