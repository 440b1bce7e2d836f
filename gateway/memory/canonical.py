"""The form in which turns are compared: what a client changes when it sends a turn again is left
out, and only keyed hashes are kept.

A user's text comes back as it was sent, except for what some clients wrap around it. An answer
comes back changed by nearly every client: blanks removed, reasoning quoted in front of it, cut
where its reader pressed stop. So a user's turn has one hash, and an answer has a
fingerprint, which can be compared with a part of it.
"""

import unicodedata
from functools import partial
from hashlib import blake2b
from typing import NamedTuple
from zlib import crc32

from gateway.protocol.client_texts import question_of
from gateway.protocol.messages import Media, Message

VERSION = b"v1"  # of this form; another one finds nothing that was stored before
HASH = 12  # bytes of a hash
_EDGE = 65536  # characters of an embedded file that are hashed, at each end
# The ends of the beginnings of an answer that a fingerprint can tell, in bytes.
ENDS = (*range(4, 32, 4), *range(32, 1056, 32))
_BLOCK = ENDS.index(32)

_MARKS = bytes(code for code in range(128) if not chr(code).isalnum())
_NORMALIZED = 2000  # characters; marks that combine cost quadratic time
_LONGEST_TAG = 300


def user_text(text: str) -> str:
    """The text of a user's turn, without what a client has wrapped around it."""
    text = question_of(text)
    if not text.isascii() and len(text) <= _NORMALIZED:
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.split())


def letters(text: str) -> bytes:
    """An answer in lower case without ASCII's blanks and marks, in UTF-8; b"" for an error shown as
    an answer."""
    if "{" in text and _is_error(text):
        return b""
    text = text.casefold()
    if "<" in text:
        text = _without_thinking(text)
    return text.encode("utf-8", "surrogatepass").translate(None, _MARKS)


def has_letters(text: str) -> bool:
    """Whether `letters` are any, without computing all of them."""
    if "<" in text or "{" in text:
        return bool(letters(text))
    return bool(letters(text[:80]) or letters(text))


def _is_error(text: str) -> bool:
    """Whether a client has put an error into the chat as if it were an answer."""
    head = text.lstrip("` \t\r\n")[:80].removeprefix("json").lstrip()
    return head.startswith("{") and head[1:].lstrip().startswith(('"error"', '"code"'))


def _without_thinking(text: str) -> str:
    """The text, in lower case, without blocks of reasoning, also if they do not end."""
    out, at = [], 0
    while (begin := text.find("<", at)) >= 0:
        out.append(text[at:begin])
        end = _end_of_thinking(text, begin)
        if end < 0:
            return "".join(out)
        if end == begin:
            out.append("<")
        at = max(end, begin + 1)
    return "".join(out) + text[at:]


def _end_of_thinking(text: str, begin: int) -> int:
    """Where the block that begins there ends; `begin` if none does, -1 if it has no end."""
    if text.startswith("<think>", begin):
        close = "</think>"
    elif text.startswith("<details", begin):
        tag_end = text.find(">", begin, begin + _LONGEST_TAG)
        if tag_end < 0 or "reasoning" not in text[begin:tag_end]:
            return begin
        close = "</details>"
    else:
        return begin
    end = text.find(close, begin)
    return -1 if end < 0 else end + len(close)


class Fingerprint(NamedTuple):
    """What is known of an answer: `exact` is a hash of the text as it was sent, `whole` of its
    letters, `size` their bytes, and `blocks` are checksums of its beginnings, as long as `ENDS`
    says. `cut`: the client may have received less."""

    exact: str
    whole: str
    size: int
    blocks: str
    cut: bool = False


class Hasher:
    """Hashes with the key of one scope, of at most 62 bytes: equal turns of two scopes have
    different hashes."""

    __slots__ = ("_hash", "_salt")

    def __init__(self, key: bytes) -> None:
        # It lives for a question or an answer: a stream would hold it for minutes.
        self._hash = partial(blake2b, digest_size=HASH, key=VERSION + key)
        self._salt = crc32(VERSION + key)

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

    def fingerprint(self, text: str, cut: bool = False) -> Fingerprint | None:
        """The fingerprint of an answer; None if it has no letters: then there was none."""
        found = letters(text)
        if not found:
            return None
        whole = self._hash(found).hexdigest()
        return Fingerprint(self.text(text.strip()), whole, len(found), self._blocks(found), cut)

    def same(self, kept: Fingerprint, shown: str) -> bool:
        """Whether the text that a client shows is the whole kept answer."""
        if self.text(shown.strip()) == kept.exact:
            return True
        found = letters(shown)
        return len(found) == kept.size and self._hash(found).hexdigest() == kept.whole

    def fits(self, kept: Fingerprint, shown: str) -> bool:
        """Whether it is the kept answer as far as clients change it: a beginning of it, or the
        whole of it with something around."""
        if self.text(shown.strip()) == kept.exact:
            return True
        found = letters(shown)
        size = len(found)
        if size == kept.size:
            return self._hash(found).hexdigest() == kept.whole
        if size < kept.size:
            return self._begins(kept, found)
        return self._holds(kept, found)

    def _begins(self, kept: Fingerprint, found: bytes) -> bool:
        """Whether the kept answer begins with `found`; 32 bytes or more of it, if it was sent
        whole."""
        blocks = self._blocks(found)
        least = 8 if kept.cut else 8 * (_BLOCK + 1)
        return len(blocks) >= least and kept.blocks.startswith(blocks)

    def _holds(self, kept: Fingerprint, found: bytes) -> bool:
        """Whether `found` ends with, begins with or contains the kept answer."""
        size = kept.size
        for part in (found[-size:], found[:size]):
            if self._hash(part).hexdigest() == kept.whole:
                return True
        if size < 32 or len(found) > 8192:
            return False
        first = int(kept.blocks[8 * _BLOCK : 8 * _BLOCK + 8], 16)
        tries = 0
        for at in range(1, len(found) - size):
            if crc32(found[at : at + 32], self._salt) == first:
                tries += 1
                if self._hash(found[at : at + size]).hexdigest() == kept.whole:
                    return True
                if tries == 8:
                    break
        return False

    def _blocks(self, found: bytes) -> str:
        sums, at, last = [], 0, self._salt
        for end in ENDS:
            if end > len(found):
                break
            last = crc32(found[at:end], last)
            sums.append(last)
            at = end
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
