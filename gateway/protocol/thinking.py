"""Split thinking from the answer where a platform sends both as one text.

Models write `<think>…</think>` before their reply, and Dify 0.15 turns that into a `<details>`
element. Tags may be split anywhere. Only a tag at the very start counts (of the reply, or of a
workflow node's text): later it is the user's subject, not the model's thinking.
"""

import re

from gateway.protocol.messages import Delta, Reasoning, Text

_THINK = "<think>"
_DETAILS = re.compile(r"<details[^>]*>\s*<summary>\s*Thinking\.\.\.\s*</summary>")
_DETAILS_LIMIT = 300  # characters; Dify's opening has 123


def without_thinking(text: str) -> str:
    """The answer in a text that may begin with thinking."""
    splitter = ThinkingSplitter()
    deltas = splitter.feed(text) + splitter.close()
    return "".join(delta.text for delta in deltas if isinstance(delta, Text))


class ThinkingSplitter:
    """Feed text in pieces of any size; get Text and Reasoning deltas."""

    __slots__ = ("_close", "_held", "_state")

    def __init__(self, answering: bool = False) -> None:
        """`answering`: the answer has begun, so no thinking is expected."""
        # start, opened, thinking, after, answer; white space in the second and fourth is dropped
        self._state = "answer" if answering else "start"
        self._close = ""
        self._held = ""

    @property
    def passes_all(self) -> bool:
        """True once all further text is answer, so `feed` need not be called."""
        return self._state == "answer"

    def restart(self) -> list[Delta]:
        """Another node begins to speak: its text may begin with thinking of its own."""
        out = self.close()
        self._state = "start"
        return out

    def feed(self, text: str) -> list[Delta]:
        out: list[Delta] = []
        self._held += text
        while self._step(out):
            pass
        return out

    def close(self) -> list[Delta]:
        """The text that was held back, since none follows."""
        held, self._held = self._held, ""
        if not held or self._state in ("opened", "after"):
            return []
        return [Reasoning(held) if self._state == "thinking" else Text(held)]

    def _step(self, out: list[Delta]) -> bool:
        """Advance by one state; False if more text is needed."""
        if self._state == "answer":
            if self._held:
                out.append(Text(self._held))
            self._held = ""
            return False
        if self._state == "after":
            self._held = self._held.lstrip()
            if self._held:
                self._state = "answer"
            return bool(self._held)
        if self._state == "opened":
            self._held = self._held.lstrip()
            if self._held:
                self._state = "thinking"
            return bool(self._held)
        return self._open() if self._state == "start" else self._think(out)

    def _open(self) -> bool:
        start = self._held.lstrip()
        if start.startswith(_THINK):
            self._begin(start[len(_THINK) :], "</think>")
        elif match := _DETAILS.match(start):
            self._begin(start[match.end() :], "</details>")
        elif self._may_become_tag(start):
            return False
        else:
            self._state = "answer"
        return True

    def _may_become_tag(self, start: str) -> bool:
        if _THINK.startswith(start):
            return True
        return ("<details".startswith(start) or start.startswith("<details")) and (
            len(start) < _DETAILS_LIMIT and "</summary>" not in start
        )

    def _begin(self, rest: str, close: str) -> None:
        self._state, self._close, self._held = "opened", close, rest

    def _think(self, out: list[Delta]) -> bool:
        before, found, after = self._held.partition(self._close)
        if found:
            if before.rstrip():
                out.append(Reasoning(before.rstrip()))
            self._state, self._held = "after", after
            return True
        # Hold back a possible beginning of the closing tag, and white space in front of it.
        keep = next(
            (n for n in range(len(self._close) - 1, 0, -1) if before.endswith(self._close[:n])), 0
        )
        ready = before[: len(before) - keep].rstrip()
        if ready:
            out.append(Reasoning(ready))
        self._held = before[len(ready) :]
        return False
