"""The form in which turns are compared: what a client changes when it sends a turn again is left
out, and only keyed hashes are kept.

A user's text comes back as it was sent, except for what some clients wrap around it. An answer
comes back changed by nearly every client: blanks removed, reasoning quoted in front of it, cut
where its reader pressed stop. So a user's turn has one hash, and an answer has a `print`, which can
be compared with a part of it.
"""

import re
import unicodedata
from functools import partial
from hashlib import blake2b
from typing import NamedTuple
from zlib import crc32

from gateway.protocol.messages import Media, Message

VERSION = b"v1"  # of this form; another one finds nothing that was stored before
HASH = 12  # bytes of a hash
_EDGE = 65536  # characters of an embedded file that are hashed, at each end
BLOCK, MAX_BLOCKS = 32, 64  # bytes per block of a print, and blocks

# What clients put in front of a question; the question follows the last of them.
_WRAPPED = re.compile(
    r"\A.*</(?:attached_files|context|system_reminder)>\s*(?=\S)", re.DOTALL | re.IGNORECASE
)
_BARE = re.compile(r"<user_message>(.*)</user_message>", re.DOTALL | re.IGNORECASE)
_THINKING = re.compile(
    r"<think>.*?(?:</think>|\Z)|<details[^>]*reasoning[^>]*>.*?(?:</details>|\Z)",
    re.DOTALL | re.IGNORECASE,
)
_MARKS = bytes(code for code in range(128) if not chr(code).isalnum())
# An error that a client has put into the chat as if it were an answer.
_ERROR = re.compile(r'\A[\s`]*(?:json)?\s*\{\s*"(?:error|code)"\s*:')


def user_text(text: str) -> str:
    """The text of a user's turn, without what a client has wrapped around them."""
    if "</" in text:
        text = _WRAPPED.sub("", text, count=1)
        if found := _BARE.search(text):
            text = found[1]
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.split())


def letters(text: str) -> bytes:
    """An answer in lower case without ASCII's blanks and marks, in UTF-8; b"" for an error shown as
    an answer."""
    if "{" in text and _ERROR.match(text):
        return b""
    if "<" in text:
        text = _THINKING.sub("", text)
    return text.casefold().encode("utf-8", "surrogatepass").translate(None, _MARKS)


def has_letters(text: str) -> bool:
    """Whether `letters` are any, without computing all of them."""
    if "<" in text or "{" in text:
        return bool(letters(text))
    return bool(letters(text[:80]) or letters(text))


class Print(NamedTuple):
    """What is known of an answer: `exact` is a hash of the text as it was sent, `whole` of its
    letters, `size` their bytes, and `blocks` are checksums of the first blocks of bytes. `cut`: the
    client may have received less."""

    exact: str
    whole: str
    size: int
    blocks: str
    cut: bool = False


class Hasher:
    """Hashes with the key of one scope: equal turns of two scopes have different hashes."""

    __slots__ = ("_hash", "_salt")

    def __init__(self, key: bytes) -> None:
        self._hash = partial(blake2b, digest_size=HASH, key=key)
        self._salt = crc32(key)

    def text(self, text: str) -> str:
        return self._hash(text.encode("utf-8", "surrogatepass")).hexdigest()

    def user(self, turn: Message) -> str:
        """The hash of a user's turn; "" if it has neither text nor files."""
        text = user_text(turn.text)
        if not (text or turn.media):
            return ""
        if turn.media:
            text = "\0".join([text, *map(_medium, turn.media)])
        return self.text(text)

    def print(self, text: str, cut: bool = False) -> Print | None:
        """The print of an answer; None if it has no letters, which means that there was none."""
        found = letters(text)
        if not found:
            return None
        whole = self._hash(found).hexdigest()
        return Print(self.text(text.strip()), whole, len(found), self._blocks(found), cut)

    def fits(self, kept: Print, shown: str) -> bool:
        """Whether the text that a client shows as the answer is the kept answer, as far as clients
        change it: a beginning of it, or the whole of it with something around."""
        if self.text(shown.strip()) == kept.exact:
            return True
        found = letters(shown)
        size = len(found)
        if size == kept.size:
            return self._hash(found).hexdigest() == kept.whole
        if size < kept.size:
            return self._begins(kept, found)
        return self._holds(kept, found)

    def _begins(self, kept: Print, found: bytes) -> bool:
        """Whether the kept answer begins with `found`, as far as there are whole blocks of it."""
        blocks = self._blocks(found)
        return kept.blocks.startswith(blocks) if blocks else kept.cut

    def _holds(self, kept: Print, found: bytes) -> bool:
        """Whether `found` ends with, begins with or contains the kept answer."""
        size = kept.size
        for part in (found[-size:], found[:size]):
            if self._hash(part).hexdigest() == kept.whole:
                return True
        if size < BLOCK or len(found) > BLOCK * MAX_BLOCKS * 4:
            return False
        first = int(kept.blocks[:8], 16)
        return any(
            crc32(found[at : at + BLOCK], self._salt) == first
            and self._hash(found[at : at + size]).hexdigest() == kept.whole
            for at in range(1, len(found) - size)
        )

    def _blocks(self, found: bytes) -> str:
        salt, end = self._salt, min(len(found) // BLOCK, MAX_BLOCKS) * BLOCK
        sums = [crc32(found[at : at + BLOCK], salt) for at in range(0, end, BLOCK)]
        return ("%08x" * len(sums)) % tuple(sums)


def _medium(media: Media) -> str:
    """What identifies a file: its id, its name in the store, its content or its address. Signed
    links change in their query."""
    if media.uploaded or media.stored:
        return media.uploaded or media.stored
    if not media.is_data:
        return media.url.partition("?")[0]
    content = media.url.partition(",")[2]
    ends = content if len(content) <= 2 * _EDGE else content[:_EDGE] + content[-_EDGE:]
    return f"{len(content)}:{blake2b(ends.encode(), digest_size=HASH).hexdigest()}"
