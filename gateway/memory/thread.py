"""A thread, which is one conversation at a platform with its turns; and a client's history."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import orjson

from gateway.memory.canonical import Fingerprint, Hasher, has_letters
from gateway.protocol.messages import Message

MAX_TURNS = 500  # of a history; a longer one is not looked up


class Turn(NamedTuple):
    """A question with the answer that the platform gave. `user` is the question's hash."""

    user: str
    answer: Fingerprint


@dataclass(frozen=True, slots=True)
class Thread:
    """One conversation. `tree` is common to a thread and its branches. The first `seeded` of its
    turns were sent with its first question. `is_open` is false once the platform's memory differs
    from what the client shows."""

    id: str
    tree: str
    agent: str
    conversation: str
    turns: tuple[Turn, ...]
    path: str  # stands for all questions, in order
    seeded: int = 0
    is_open: bool = True

    def dump(self) -> bytes:
        turns = [[turn.user, *turn.answer] for turn in self.turns]
        head = [
            self.id,
            self.tree,
            self.agent,
            self.conversation,
            self.path,
            self.seeded,
            self.is_open,
        ]
        return orjson.dumps([*head, turns])


def load(data: bytes) -> Thread:
    *head, turns = orjson.loads(data)
    id_, tree, agent, conversation, path, seeded, is_open = head
    read = tuple([Turn(user, Fingerprint(*answer)) for user, *answer in turns])
    return Thread(id_, tree, agent, conversation, read, path, seeded, is_open)


class Exchange(NamedTuple):
    """A question of the client's history with the answer shown to it. `at` is the place of the
    question among the messages, `question` its text as it was sent."""

    user: str
    shown: str
    at: int
    question: str


@dataclass(frozen=True, slots=True)
class History:
    """What a client sends before its question: the answered questions, in order. `is_cut`: it
    begins with an answer, so its beginning is missing."""

    exchanges: tuple[Exchange, ...]
    question: str
    is_cut: bool


def read_history(messages: tuple[Message, ...], hasher: Hasher) -> History | None:
    """The history; None if it cannot be looked up: there are too many turns, or no question.

    Left out are system turns, tools' turns, and questions without an answer: they failed, and some
    clients send them again while others do not.
    """
    question = hasher.user(messages[-1]) if messages[-1].role == "user" else ""
    if not question or len(messages) > 2 * MAX_TURNS:
        return None
    out: list[Exchange] = []
    user, at, shown, is_cut = "", 0, "", False

    def close() -> None:
        if user and has_letters(shown):
            out.append(Exchange(user, shown, at, messages[at].text))

    for place, turn in enumerate(messages[:-1]):
        if turn.role == "user":
            close()
            user, at, shown = hasher.user(turn), place, ""
        elif turn.role == "assistant" and turn.text:
            if not user:
                is_cut = True
            shown = f"{shown}\n{turn.text}" if shown else turn.text
    close()
    return History(tuple(out), question, is_cut)


def path_of(users: Iterable[str], hasher: Hasher, before: str = "") -> str:
    """A key for all of these questions in their order, after those of the path `before`."""
    for user in users:
        before = hasher.text(f"{before}/{user}")
    return before


def tail(users: Sequence[str], hasher: Hasher) -> str:
    """A key for the last two questions, or the only one."""
    return hasher.text("tail:" + "/".join(users[-2:]))


def keys_of(thread: Thread, hasher: Hasher) -> list[str]:
    """The keys under which the thread is found by its newest turn: by its whole path, and by the
    end of a history whose beginning is missing."""
    users = [turn.user for turn in thread.turns[-2:]]
    return [thread.path, tail(users, hasher), tail(users[-1:], hasher)]
