"""Which of our errors an upstream's failure is, where its own codes do not say."""

import re

from gateway.errors import (
    BodyTooLarge,
    ContentRefused,
    ContextTooLong,
    GatewayError,
    Guess,
    QuotaExhausted,
    RateLimited,
    UnsupportedMediaType,
    UpstreamFailed,
    UpstreamMisconfigured,
    UpstreamTimeout,
    clean,
    retry_after,
)
from gateway.exchange import UpstreamReply

# Told to callers when an upstream refuses without saying for how long.
RETRY_AFTER_S = Guess(5.0)

_TOO_LONG = ("context length", "context_length", "maximum context", "too long", "超出最大长度")
_BUSY = ("rate limit", "rate_limit", "too many requests", "请求过于频繁")
_BUSY_STATUS = re.compile(r"(?<![\w.])429(?![\w.])")
_NO_MONEY = (
    "insufficient_quota",
    "insufficient quota",
    "insufficient balance",
    "exceeded your current quota",
    "quota has been exhausted",
    "quota is not enough",
    "余额不足",
    "insufficient_user_quota",
    "额度不足",
)
_FILTERED = ("content_filter", "content management policy")
_MODEL_KEY = ("incorrect api key", "invalid api key", "invalid_api_key", "status code 401")


def explain_words(platform: str, words: str) -> GatewayError:
    """The error for a failed run of which only the platform's words are known.

    Agent platforms pass on what the model behind the bot said, so the words are all there is.
    """
    low, said = words.lower(), clean(words)
    message = f"{platform} could not finish the answer: {said or 'it did not say why.'}"
    if any(mark in low for mark in _NO_MONEY):
        return QuotaExhausted(message)
    if any(mark in low for mark in _BUSY) or _BUSY_STATUS.search(low):
        return RateLimited(message, retry_after_s=RETRY_AFTER_S)
    if any(mark in low for mark in _FILTERED):
        return ContentRefused(message)
    if any(mark in low for mark in _TOO_LONG):
        return ContextTooLong(message)
    if any(mark in low for mark in _MODEL_KEY):
        return UpstreamMisconfigured(f"{message} (Set the model's key in {platform}.)")
    return UpstreamFailed(message)


def explain_http(platform: str, reply: UpstreamReply, words: str = "") -> GatewayError:
    """The error for an HTTP status that the platform's own codes did not explain."""
    status, said = reply.status, clean(words)
    stop = "" if said.endswith((".", "!", "?", "。", "！", "？", "…")) else "."
    told = f" {platform} says: {said}{stop}" if said else ""
    wait = retry_after(reply.headers, RETRY_AFTER_S)
    if status in (401, 403, 434):
        return UpstreamMisconfigured(
            f"{platform} refused the gateway's credentials ({status}).{told}"
            " Check api_key in config.yaml."
        )
    if status == 429:
        return RateLimited(
            f"{platform} is limiting calls; try again in {wait:g} s.{told}",
            retry_after_s=wait,
            retryable=True,
        )
    if status == 413:
        return BodyTooLarge(f"{platform} refused the request as too large.{told}")
    if status == 415:
        return UnsupportedMediaType(f"{platform} does not take this kind of content.{told}")
    if 300 <= status < 400:
        return UpstreamMisconfigured(
            f"{platform} answered with a redirect ({status}), which is not followed with a key."
            " Put the final address into base_url."
        )
    if status in (404, 405) or 200 <= status < 300:
        return UpstreamMisconfigured(
            f"{platform} answered {status} without an API answer; check base_url."
            f"{told or ' (' + _sort_of(reply) + ')'}",
            should_retry=False,
        )
    if status in (408, 504, 524):
        return UpstreamTimeout(
            f"{platform} did not answer in time ({status}).{told}", retryable=status == 504
        )
    error = UpstreamFailed(
        f"{platform} failed with status {status}.{told}", retry_after_s=retry_after(reply.headers)
    )
    error.retryable = error.outage = status in (502, 503)  # a proxy found nobody to ask
    error.elsewhere = status >= 500
    return error


def _sort_of(reply: UpstreamReply) -> str:
    kind = reply.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if "html" in kind or reply.body[:200].lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "it sent a web page"
    return f"it sent {kind or 'something without a content type'}"[:80]
