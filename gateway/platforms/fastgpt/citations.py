"""Removes the citation marks of a knowledge base from an answer while the text streams.

FastGPT asks its models for `[6881f0a1b2c3d4e5f6071829](QUOTE)`, later `(CITE)`; servers up to 4.9.7
leave the marks in the text. A mark has no meaning to a reader, and may be split across deltas.
"""

import re

_IN_PARENTHESES = r"\([^()\[【\n]{0,32}"  # longer text is a link, which is kept
_MARK = re.compile(rf"[\[【][0-9a-fA-F]{{24}}[\]】](?:{_IN_PARENTHESES}\)|(?!\())")
_PIECE = re.compile(rf"[\[【](?:[0-9a-fA-F]{{0,24}}|[0-9a-fA-F]{{24}}[\]】](?:{_IN_PARENTHESES})?)")


def may_hold_mark(text: str) -> bool:
    """Whether `text` has a character that opens a mark."""
    return "[" in text or "【" in text


class CiteMarks:
    """Removes marks from text that is fed in pieces of any size.

    `held` is an incomplete mark at the end of the text so far; it is never longer than a mark.
    """

    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held = ""

    def feed(self, text: str) -> str:
        text = self.held + text
        at = max(text.rfind("["), text.rfind("【"))
        is_piece = at >= 0 and _PIECE.fullmatch(text, at) is not None
        text, self.held = (text[:at], text[at:]) if is_piece else (text, "")
        return _MARK.sub("", text)

    def close(self) -> str:
        """The text held back, since no more text follows."""
        held, self.held = self.held, ""
        return _MARK.sub("", held)
