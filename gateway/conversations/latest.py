"""The latest answers of each owner, in this process.

A client that asks for the next questions names only the last one that it has sent.
"""

from collections import OrderedDict, deque
from collections.abc import Container
from typing import NamedTuple

from gateway.conversations.register import Owner
from gateway.protocol.client_texts import question_of

MAX_OWNERS = 5000
_EACH = 16
_HEAD = 200  # characters of a question


class Answered(NamedTuple):
    """An answer. `question` is the beginning of its question, see `head`; `suggestions` came with
    the answer."""

    question: str
    agent: str
    conversation: str
    platform_user: str
    message_id: str
    suggestions: tuple[str, ...] = ()


class Latest:
    """Beyond `MAX_OWNERS` the owners that asked longest ago are dropped."""

    def __init__(self) -> None:
        self._answers: OrderedDict[Owner, deque[Answered]] = OrderedDict()

    def note(self, owner: Owner, answered: Answered) -> None:
        known = self._answers.pop(owner, None) or deque(maxlen=_EACH)
        known.append(answered)
        self._answers[owner] = known
        if len(self._answers) > MAX_OWNERS:
            self._answers.popitem(last=False)

    def find(self, owner: Owner, agents: Container[str], question: str) -> Answered | None:
        """The latest answer of one of the agents to that question."""
        wanted = head(question)
        for one in reversed(self._answers.get(owner, ())):
            if wanted and one.question == wanted and one.agent in agents:
                return one
        return None


def head(question: str) -> str:
    """Its beginning, the same for a question with its files and without them."""
    return " ".join(question_of(question)[: 4 * _HEAD].split())[:_HEAD]
