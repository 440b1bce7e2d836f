"""Removes the marks that RAGFlow writes into an answer for its own page, while the text streams.

`[ID:3]`, or `##3$$` up to 0.19.0, cites a chunk of the `reference` at the end of the answer: chats
count from zero and agents use hashes. The gateway numbers citations in order of appearance, from
`[1]`. Deep research reports its steps between `<retrieving>` and `</retrieving>`. A failure is the
text `**ERROR**: `, see `failures`.
"""

import re
from functools import reduce

from gateway.platforms.ragflow.failures import CLASSES, ERROR
from gateway.protocol.messages import Note, Text

_OPEN, _CLOSE = "<retrieving>", "</retrieving>"
_CITE = r"[\[【]ID:((?: ?[0-9]{1,9}){1,8}) ?[\]】]|##([0-9]{1,4})\$\$"
_MARK = re.compile(rf"{_CITE}|({_OPEN})|({re.escape(ERROR)}(?:{'|'.join(CLASSES)}) - )")
_STEP_ENDS = re.compile(r"<br\s?/?>|\n")
_MAX_PIECE = 100  # characters; the longest incomplete mark
_MAX_STEP = 4000


def _beginning(literal: str) -> str:
    """A pattern that matches every non-empty prefix of `literal`."""
    return reduce(lambda rest, sign: f"{re.escape(sign)}(?:{rest})?", reversed(literal), "")


_PIECE = re.compile(
    rf"(?:{_beginning(_OPEN)}|{_beginning(ERROR)}|{re.escape(ERROR)}[A-Z_]{{1,24}}(?: -?)?"
    rf"|[\[【](?:{_beginning('ID:')}|ID:[0-9 ]{{1,82}})?|#(?:#[0-9]{{0,4}}\$?)?)\Z"
)
_CITATION = re.compile(rf"\s*(?:{_CITE})")


def may_hold_mark(text: str) -> bool:
    """Whether `text` has a character that begins a mark."""
    return not _PLAIN.fullmatch(text)


_PLAIN = re.compile(r"[^\[【#<*]*")


def without_citations(text: str) -> str:
    return _CITATION.sub("", text)


class Marks:
    """Removes marks from text that is fed in pieces of any size. `numbers` maps RAGFlow's numbers
    of citations to the gateway's.

    `error` is the text of a failure, once its mark has arrived; it includes all text after the
    mark.
    """

    __slots__ = ("_has_begun", "_held", "_is_step", "error", "numbers")

    def __init__(self) -> None:
        self.error = ""
        self.numbers: dict[int, int] = {}
        self._held = ""
        self._is_step = False
        self._has_begun = False

    @property
    def is_plain(self) -> bool:
        """Whether no text is held back, so that text without marks need not be fed."""
        return self._has_begun and not (self._held or self._is_step or self.error)

    def restart(self) -> list[Text | Note]:
        """Begin another text: the answer after its reasoning, or a replacement of the answer."""
        out = self.close()
        self._has_begun = False
        return out

    def feed(self, text: str) -> list[Text | Note]:
        out: list[Text | Note] = []
        if text.startswith("\n" + ERROR) and not self._is_step:  # the server sends it in one piece
            self._say(out)
            self.error = self.error or text
        elif self.error:
            self.error += text
        else:
            self._held += text
            while self._step(out):
                pass
        return out

    def close(self) -> list[Text | Note]:
        """The text held back, since no more text follows."""
        out: list[Text | Note] = []
        if self._is_step:
            self._tell(self._held, out)
            self._held, self._is_step = "", False
        self._say(out)
        return out

    def _step(self, out: list[Text | Note]) -> bool:
        """Process the text up to the next mark; False if more text is needed."""
        if self._is_step:
            return self._retrieve(out)
        if not self._has_begun:
            start = self._held.lstrip()
            if start.startswith(ERROR):
                self.error, self._held = self._held, ""
                return False
            if ERROR.startswith(start) and len(self._held) <= _MAX_PIECE:  # also for ""
                return False
        found = _MARK.search(self._held)
        if found is None:
            tail = self._held[-_MAX_PIECE:]
            piece = _PIECE.search(tail)
            keep = piece[0] if piece else ""
            self._held = self._held[: len(self._held) - len(keep)]
            self._say(out)
            self._held = keep
            return False
        behind, self._held = self._held[found.end() :], self._held[: found.start()]
        cited, cited_before, opened, failed = found.groups()
        if opened or failed:
            self._say(out)
            self._is_step = bool(opened)
            self.error = failed + behind if failed else ""
            self._held = behind if opened else ""
            return bool(opened)
        self._held += "".join(f"[{n}]" for n in map(self._number, (cited or cited_before).split()))
        self._say(out)
        self._held = behind
        return bool(behind)

    def _number(self, own: str) -> int:
        return self.numbers.setdefault(int(own), len(self.numbers) + 1)

    def _retrieve(self, out: list[Text | Note]) -> bool:
        before, closed, behind = self._held.partition(_CLOSE)
        if closed:
            self._tell(before, out)
            self._held, self._is_step = behind, False
            return bool(behind)
        *steps, self._held = _STEP_ENDS.split(self._held)
        if len(self._held) > _MAX_STEP:
            steps, self._held = [*steps, self._held[: -len(_CLOSE)]], self._held[-len(_CLOSE) :]
        self._tell("\n".join(steps), out)
        return False

    def _tell(self, steps: str, out: list[Text | Note]) -> None:
        for step in filter(None, map(str.strip, _STEP_ENDS.split(steps))):
            shown = {"node": "retrieval", "title": step, "status": "running"}
            out.append(Note("progress", [shown]))

    def _say(self, out: list[Text | Note]) -> None:
        if self._held:
            self._has_begun = True
            out.append(Text(self._held))
        self._held = ""
