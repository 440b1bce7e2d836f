"""Redact an operator's credentials in forwarded bytes, wherever chunks are split."""

import base64
import json
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any
from urllib.parse import quote

_MASK = b"***"
_SHORTEST = 8  # characters; a shorter secret may be an ordinary word
_WORD = 12  # from this length a secret needs no digit
_SHORTEST_WORD = 6  # for a secret that is masked in short error messages


class Scrubber:
    """`feed` returns chunks with each of `secrets` masked; a possible beginning of one at a chunk's
    end is held until the next chunk, or until `end`."""

    def __init__(self, secrets: Iterable[str]) -> None:
        self._secrets = _in_bytes(frozenset(secrets))
        self._held = b""

    def feed(self, chunk: bytes) -> bytes:
        if not self._secrets:
            return chunk
        data = self._held + chunk
        for secret in self._secrets:  # a search for plain bytes costs almost nothing
            data = data.replace(secret, _MASK)
        whole = len(data) - max(_begun(secret, data) for secret in self._secrets)
        self._held = data[whole:]
        return data[:whole]

    def end(self) -> bytes:
        held, self._held = self._held, b""
        return held


def _is_real_secret(secret: str) -> bool:
    """Whether it is a real secret and not a placeholder such as `none` or `ollama`, which answers
    may mention."""
    has_digit = any(c.isdigit() for c in secret)
    return len(secret) >= (_SHORTEST if has_digit else _WORD)


# The forms are computed once per agent, not for each answer.


@lru_cache(maxsize=256)
def _in_bytes(secrets: frozenset[str]) -> tuple[bytes, ...]:
    forms = {form for secret in secrets if _is_real_secret(secret) for form in _forms(secret)}
    return tuple(sorted((form.encode() for form in forms), key=len, reverse=True))


def masked(text: str, secrets: Iterable[str]) -> str:
    """A short text without `secrets`, in any encoding and case; a possible word only in its exact
    form."""
    return _pattern(frozenset(secrets)).sub("***", text)


@lru_cache(maxsize=256)
def _pattern(secrets: frozenset[str]) -> re.Pattern[str]:
    forms = {
        form: f"(?i:{re.escape(form)})" if _is_real_secret(secret) else re.escape(form)
        for secret in secrets
        if len(secret) >= _SHORTEST_WORD
        for form in (_forms(secret) if _is_real_secret(secret) else (secret,))
    }
    longest_first = sorted(forms, key=len, reverse=True)
    return re.compile("|".join(forms[form] for form in longest_first) or "(?!)")


def _forms(secret: str) -> set[str]:
    """The secret itself, and its forms in JSON, URLs and base64."""
    escaped = {json.dumps(secret, ensure_ascii=is_plain)[1:-1] for is_plain in (True, False)}
    out = {secret, quote(secret), *escaped, *_in_base64(secret)}
    out |= {form.replace("/", "\\/") for form in escaped}
    # the characters that writers escape; "" means all non-word characters
    for also in ("/", "-_", "+/=<>&'", ""):
        for form in ("\\u{:04x}", "\\u{:04X}", "%{:02x}", "%{:02X}"):
            out.add("".join(_coded(c, form) if _is_coded(c, also) else c for c in secret))
    return out


def _is_coded(character: str, also: str) -> bool:
    return character in also if also else not character.isalnum()


def _coded(character: str, form: str) -> str:
    units = character.encode("utf-8" if form[0] == "%" else "utf-16-be", "replace")
    if form[0] == "%":
        return "".join(form.format(unit) for unit in units)
    pairs = zip(units[::2], units[1::2], strict=True)
    return "".join(form.format(high << 8 | low) for high, low in pairs)


def _in_base64(secret: str) -> set[str]:
    """The base64 characters that depend only on the secret, for each of its three possible offsets
    in the encoded bytes."""
    raw, out = secret.encode("utf-8", "replace"), set[str]()
    for before in range(3):
        coded = base64.b64encode(b"\0" * before + raw).decode()
        own = coded[-(-before * 8 // 6) : (before + len(raw)) * 8 // 6]
        out |= {own, own.translate(_URL_SAFE), own.replace("/", "\\/")}
    return out


_URL_SAFE = str.maketrans("+/", "-_")


def _begun(secret: bytes, data: bytes) -> int:
    """How many bytes at the end of `data` are an incomplete beginning of `secret`."""
    start = max(0, len(data) - len(secret) + 1)
    while (start := data.find(secret[:1], start)) >= 0:
        if secret.startswith(data[start:]):
            return len(data) - start
        start += 1
    return 0


def masked_in(value: Any, secrets: set[str]) -> Any:
    """The JSON value with each secret in its texts masked."""
    if isinstance(value, str):
        return masked(value, secrets)
    if isinstance(value, dict):
        return {masked(key, secrets): masked_in(each, secrets) for key, each in value.items()}
    if isinstance(value, list):
        return [masked_in(each, secrets) for each in value]
    return value
