"""What the simulators keep of their conversations: titles, turns, feedback."""

import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from gateway.demo.script import Speech

MAX_TALKS = 1000
MAX_TURNS = 50


@dataclass
class Turn:
    """A question and as much of its answer as was said. `id` is the answer's."""

    id: str
    question: str
    question_id: str = ""
    run: str = ""  # the id of the whole turn, if it has one
    answer: str = ""
    reasoning: str = ""
    status: str = "running"  # then completed, failed or stopped
    error: str = ""
    more: list[tuple[str, str]] = field(default_factory=list)  # (id, text) of further answers
    files: list[Any] = field(default_factory=list)  # the question's, in the platform's own form
    feedback: dict[str, Any] | None = None
    created: float = field(default_factory=time.time)
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def say(self, kind: str, piece: str) -> None:
        if kind == "think":
            self.reasoning += piece
        else:
            self.answer += piece

    def finish(self, speech: Speech) -> None:
        """The whole answer was given."""
        self.answer, self.reasoning, self.status = speech.text, speech.thought, "completed"
        self.prompt_tokens = speech.prompt_tokens
        self.completion_tokens = speech.completion_tokens

    def fail(self, error: str) -> None:
        self.status, self.error = "failed", error


@dataclass
class Talk:
    """A conversation. `section` changes when its context is cleared."""

    title: str = ""
    section: int = 0
    turns: list[Turn] = field(default_factory=list)
    created: int = field(default_factory=lambda: int(time.time()))

    def turn(self, id_: str) -> Turn | None:
        return next((turn for turn in self.turns if turn.id == id_), None)


class Talks:
    """The latest conversations, by any key."""

    def __init__(self) -> None:
        self._talks: OrderedDict[str, Talk] = OrderedDict()

    def __getitem__(self, key: str) -> Talk:
        """The conversation, made if it is new."""
        talk = self._talks.setdefault(key, Talk())
        self._talks.move_to_end(key)
        while len(self._talks) > MAX_TALKS:
            self._talks.popitem(last=False)
        return talk

    def get(self, key: str) -> Talk | None:
        return self._talks.get(key)

    def items(self) -> list[tuple[str, Talk]]:
        return list(self._talks.items())

    def add(self, key: str, turn: Turn) -> Turn:
        talk = self[key]
        talk.turns = [*talk.turns, turn][-MAX_TURNS:]
        return turn

    def pop(self, key: str) -> Talk | None:
        return self._talks.pop(key, None)
