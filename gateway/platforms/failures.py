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
from gateway.platforms.failure_table import ROWS, Kind, patterns
from gateway.platforms.failure_words import bare, codes_in, inner, status_in, without_names
from gateway.protocol.exchange import UpstreamReply

# `Retry-After` in seconds for refusals without one.
RETRY_AFTER_S = Guess(5.0)

MAX_READ = 64 * 1024  # bytes of a body to parse as JSON
_MAX_SEARCHED = 4096  # characters of text
_MAX_DEPTH = 6
_MAX_MEMBERS = 200
_MAX_TOLD = 3  # messages of one body
_MAX_CODE = 100  # characters


@dataclass(slots=True)
class Said:
    """The content of a failure's body. `words` is its message, `codes` are `member:value`, `status`
    is the HTTP status that the body contains, else 0."""

    words: str = ""
    codes: list[str] = field(default_factory=list)
    status: int = 0
    param: str = ""


_MODEL = re.compile(r"(?<![/\w])models?\b|模型", re.IGNORECASE)  # but no part of a path


def explain_http(
    platform: str,
    reply: UpstreamReply,
    words: str = "",
    *,
    own_request: bool = False,
    own_model: bool = False,
) -> GatewayError:
    """The error for a reply that is a refusal, or not an answer at all.

    `words` is the upstream's message if the platform knows where it is. `own_request` means that
    the caller's own body was forwarded, so a bad request is the caller's error; `own_model` means
    that the caller chose the upstream's model.
    """
    said = read(reply)
    status = said.status if said.status and reply.status < 300 else reply.status
    words = words or said.words
    kind = classify(words, said.codes) or _BY_STATUS.get(status)
    if kind == "rate" and status == 413:  # waiting does not help
        kind = "request_over_limit"
    is_of_model = said.param == "model" or _MODEL.search(words[:_MAX_SEARCHED])
    if kind is None and status == 404 and own_request and is_of_model:
        kind = "model"
    about = _About(platform, status, clean(words), said.param)
    if kind == "model" and own_model:
        return InvalidRequest(f"{platform} does not offer this model.{about.told}", param="model")
    if kind is not None:
        wait_s = retry_after(reply.headers) or _wait_in(words)
        return _ERRORS[kind](about, Guess(RETRY_AFTER_S) if wait_s is None else wait_s)
    if own_request and status in (400, 409, 422):
        param = clean(said.param, 100) or None
        return InvalidRequest(f"{platform} does not accept the request.{about.told}", param=param)
    if status < 300 and said.codes:  # a refusal with 200 is not a proxy's page
        return _unknown(about)
    return _by_status(about, reply)


def explain_words(platform: str, words: str) -> GatewayError:
    """The error for a failed run that is known by the platform's message only.

    Agent platforms forward the message of the bot's model without its status or code.
    """
    status = status_in(words[:_MAX_SEARCHED])
    kind = classify(words, ())
    if kind is None and status in _TOLD_BY_MODELS:  # 403 and 404 may come from any step's own call
        kind = _BY_STATUS[status]
    about = _About(platform, status, clean(words), "")
    if kind is None:
        return _unknown(about)
    error = _ERRORS[kind](about, _wait_in(words) or RETRY_AFTER_S)
    return error.replace(retryable=False)  # the run has begun


def explain_member(platform: str, error: Any, *, own_request: bool = False) -> GatewayError:
    """The error for the `error` member, or the whole body, of a reply with status 200."""
    body = error if isinstance(error, dict | list) else {"message": str(error or "")}
    try:
        data = orjson.dumps(body)
    except orjson.JSONEncodeError:
        data = b""
    said = read(UpstreamReply(200, {}, data))
    if not said.status and not classify(said.words, said.codes):
        if any(code.endswith(":invalid_request_error") for code in said.codes):
            said.status = 400
        else:
            return explain_words(platform, said.words)
    return explain_http(
        platform, UpstreamReply(said.status or 200, {}, data), own_request=own_request
    )


def classify(words: str, codes: list[str] | tuple[str, ...]) -> Kind | None:
    """The kind in the first matching row of the table, or None."""
    told, more = inner(words[:_MAX_SEARCHED])
    exact = {code.lower() for code in (*codes, *more)}
    values = [code.partition(":")[2] for code in exact]
    text = "\n".join((without_names(told).lower(), *values))
    names = [bare(value) for value in values]
    tokens = codes_in(told)
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

_WORDS = frozenset((
    "message", "msg", "detail", "error", "errormsg", "errmsg", "errormessage", "statusmsg",
    "errordescription", "description", "title", "errorinfo", "err", "cause", "raw", "errors",
    "hint", "info", "lasterror",
))  # fmt: skip
_CODES = frozenset((
    "code", "type", "status", "errorcode", "errcode", "errno", "statuscode", "httpcode", "reason",
    "quotaid", "errortype",
))  # fmt: skip
_INSIDE = _WORDS | {
    "details", "baseresp", "response", "data", "metadata", "innererror", "result", "body",
    "violations", "errordetail", "lasterror", "output", "fault", "faultstring",
}  # fmt: skip


def read(reply: UpstreamReply) -> Said:
    """The message and codes of a body in any format that upstreams use."""
    value = reply.json() if len(reply.body) <= MAX_READ else None
    said = read_value(value)
    if isinstance(value, dict | list):
        if not said.words and value and not (reply.status < 300 and not said.codes):
            said.words = reply.text[:300]
    elif not isinstance(value, str):
        said.words = _plain(reply)
    return said


def read_value(value: Any) -> Said:
    """The message and codes of an event's or a member's JSON."""
    said = Said()
    told: list[str] = []
    if isinstance(value, str):
        _tell(value, said, told, 0, [_MAX_MEMBERS])
    else:
        _walk(value, said, told, 0, [_MAX_MEMBERS])
    said.words = ": ".join(dict.fromkeys(told[:_MAX_TOLD]))
    return said


def words_of(*values: Any) -> str:
    """The message of the first of `values` that has one. A code that is not a number is better than
    no message."""
    for value in values:
        said = read_value(value)
        if said.words:
            return said.words
        for code in said.codes:
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


def _walk(value: Any, said: Said, told: list[str], depth: int, left: list[int]) -> None:
    if depth > _MAX_DEPTH:
        return
    if isinstance(value, list):
        for item in value[:10]:
            if isinstance(item, str):
                _tell(item, said, told, depth, left)
            else:
                _walk(item, said, told, depth + 1, left)
    elif isinstance(value, dict):
        for given, inner in value.items():
            left[0] -= 1
            if left[0] < 0:
                return
            name = str(given)[:40].lower().replace("_", "").replace("-", "")
            if isinstance(inner, str) and name in _WORDS:
                where = "".join(f"{step}." for step in _loc(value)) if name == "msg" else ""
                _tell(f"{where.rstrip('.')}: {inner}" if where else inner, said, told, depth, left)
            elif isinstance(inner, dict | list) and name in _INSIDE:
                _walk(inner, said, told, depth + 1, left)
            elif name in _CODES and isinstance(inner, str | int) and inner is not True:
                _note_code(name, str(inner)[:_MAX_CODE], said)
            elif name == "param" and isinstance(inner, str):
                said.param = said.param or inner[:_MAX_CODE]


def _loc(value: dict[str, Any]) -> Iterator[str]:
    """The path in one of FastAPI's validation errors."""
    loc = value.get("loc")
    for step in loc[:8] if isinstance(loc, list) else ():
        if isinstance(step, str | int):
            yield str(step)[:40]


def _tell(text: str, said: Said, told: list[str], depth: int, left: list[int]) -> None:
    """Add a message; some gateways send the provider's JSON as a string."""
    text = text.strip()
    if text[:1] in "{[" and text:
        try:
            inner = orjson.loads(text[:MAX_READ])
        except orjson.JSONDecodeError:
            inner = None
        before = len(told)
        _walk(inner, said, told, depth + 1, left)
        if len(told) > before:
            return
    if text:
        told.append(text)


def _note_code(name: str, code: str, said: Said) -> None:
    if not code or code == "0":
        return
    said.codes.append(f"{name}:{code}")
    if len(code) == 3 and code.isascii() and code.isdigit() and "400" <= code < "600":
        said.status = said.status or int(code)


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


def _wait_in(words: str) -> float | None:
    """Seconds to wait from a message such as "try again in 1m20.5s"; None if it has none."""
    for found in _WAIT.finditer(words[:_MAX_SEARCHED]):
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
    said: str
    param: str

    @property
    def told(self) -> str:
        """The upstream's message as a sentence to append to the gateway's."""
        if not self.said:
            return ""
        stop = "" if self.said.endswith((".", "!", "?", "。", "！", "？", "…")) else "."
        return f" {self.platform} says: {self.said}{stop}"


def _unknown(about: _About) -> GatewayError:
    why = about.said or "it did not say why."
    return UpstreamFailed(f"{about.platform} could not finish the answer: {why}")


def _credit(about: _About, wait_s: float) -> GatewayError:
    words = f"The account behind the agent at {about.platform} has no credit left, or its plan is"
    return QuotaExhausted(f"{words} used up.{about.told}")


def _rate(about: _About, wait_s: float) -> GatewayError:
    words = f"{about.platform} is limiting calls; try again in {wait_s:g} s.{about.told}"
    return RateLimited(words, retry_after_s=wait_s, retryable=True)


def _over_limit(about: _About, wait_s: float) -> GatewayError:
    return RateLimited(
        f"The request is larger than {about.platform} takes from this account in a minute; send"
        f" less.{about.told}",
        should_retry=False,
        elsewhere=True,
    )


def _context(about: _About, wait_s: float) -> GatewayError:
    words = f"The conversation is too long for the model at {about.platform}; send less."
    return ContextTooLong(words + about.told, param="messages")


def _moderated(about: _About, wait_s: float) -> GatewayError:
    return ContentRefused(f"The moderation of {about.platform} refused the question.{about.told}")


def _model(about: _About, wait_s: float) -> GatewayError:
    words = f"{about.platform} does not offer the configured model to this account."
    return UpstreamMisconfigured(words + about.told)


def _key(about: _About, wait_s: float) -> GatewayError:
    status = f" ({about.status})" if about.status >= 400 else ""
    return UpstreamMisconfigured(
        f"{about.platform} refused the gateway's credentials{status}.{about.told} Check api_key in"
        " config.yaml, or the model's key in the platform."
    )


def _overloaded(about: _About, wait_s: float) -> GatewayError:
    words = f"{about.platform} is overloaded; try again shortly.{about.told}"
    return UpstreamUnavailable(words, retry_after_s=wait_s)


def _body(about: _About, wait_s: float) -> GatewayError:
    return BodyTooLarge(f"{about.platform} refused the request as too large.{about.told}")


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
_TOLD_BY_MODELS = (401, 402, 429, 451, 529)


def _by_status(about: _About, reply: UpstreamReply) -> GatewayError:
    """The error for an unknown body whose status has no kind in `_BY_STATUS`."""
    platform, status = about.platform, about.status
    if status == 415:
        words = f"{platform} does not take this kind of content.{about.told}"
        return UnsupportedMediaType(words)
    if 300 <= status < 400:
        return UpstreamMisconfigured(
            f"{platform} answered with a redirect ({status}), which is not followed with a key."
            " Put the final address into base_url."
        )
    if status in (404, 405) or 200 <= status < 300:
        return UpstreamMisconfigured(
            f"{platform} answered {status}, so the API is not at this address; check base_url."
            f"{about.told} ({_sort_of(reply)})",
            should_retry=False,
        )
    if status in (408, 504, 524):
        words = f"{platform} did not answer in time ({status}).{about.told}"
        return UpstreamTimeout(words, retryable=status == 504)
    words = f"{platform} failed with status {status}.{about.told}"
    return UpstreamFailed(
        words,
        retry_after_s=retry_after(reply.headers),
        retryable=status in (502, 503),  # a proxy reached no server
        outage=status in (502, 503),
    )


def _sort_of(reply: UpstreamReply) -> str:
    kind = reply.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if "html" in kind or reply.body[:200].lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "it sent a web page"
    return f"it sent {kind or 'something without a content type'}"[:80]
