"""Take an operator's credentials out of what is passed on, however it is cut into chunks."""

from collections.abc import Iterable

_MASK = b"***"
_SHORTEST = 8  # characters; what is shorter is a word of some language
_WORD = 12  # from here on without a digit in it as well


class Scrubber:
    """`feed` gives chunks with each of `secrets` masked; what may be the beginning of one at a
    chunk's end waits for the next chunk, or for `end`."""

    def __init__(self, secrets: Iterable[str]) -> None:
        forms = {form for secret in secrets if _is_telling(secret) for form in _forms(secret)}
        self._secrets = sorted(forms, key=len, reverse=True)
        self._held = b""

    def feed(self, chunk: bytes) -> bytes:
        if not self._secrets:
            return chunk
        data = self._held + chunk
        for secret in self._secrets:  # a search for plain bytes costs next to nothing
            data = data.replace(secret, _MASK)
        whole = len(data) - max(_begun(secret, data) for secret in self._secrets)
        self._held = data[whole:]
        return data[:whole]

    def end(self) -> bytes:
        held, self._held = self._held, b""
        return held


def _is_telling(secret: str) -> bool:
    """Not a stand-in such as `none` or `ollama`, which answers may well speak of."""
    has_digit = any(c.isdigit() for c in secret)
    return len(secret) >= (_SHORTEST if has_digit else _WORD)


def _forms(secret: str) -> set[bytes]:
    """As it is, and as JSON may write it."""
    escaped = secret.replace("\\", "\\\\").replace('"', '\\"')
    return {form.encode() for form in (secret, escaped, escaped.replace("/", "\\/"))}


def _begun(secret: bytes, data: bytes) -> int:
    """How many bytes at the end of `data` are the beginning of `secret`, not all of it."""
    start = max(0, len(data) - len(secret) + 1)
    while (start := data.find(secret[:1], start)) >= 0:
        if secret.startswith(data[start:]):
            return len(data) - start
        start += 1
    return 0
