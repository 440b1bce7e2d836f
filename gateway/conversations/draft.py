"""What will stay of one call: its conversation in the register, and its turn if no platform keeps
it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.conversations.latest import head
from gateway.conversations.register import Owner
from gateway.protocol.client_texts import question_of
from gateway.protocol.history import PastFile, PastTurn, Status, past_file
from gateway.protocol.messages import ChatRequest, Message, Usage

MAX_TITLE = 60  # characters
MAX_QUESTION = 256 * 1024  # characters of a question that are kept
MAX_ANSWER = 1024 * 1024  # and of its answer, and of the reasoning
MAX_TURNS = 200  # of a conversation that a model is given
MAX_HISTORY = 400_000  # characters of them
_JOINERS = {0x200C: None, 0x200D: None}
CLEARED = "cleared"  # the status of a mark: what is before it is not given to a model


@dataclass(slots=True)
class Draft:
    """`question` is there if the gateway keeps the turn at one of the agents, `kept_at`. `head` is
    its beginning, if the client may ask for the next questions. A stream may last for minutes, so
    nothing else of the question is kept."""

    owner: Owner
    title: str
    head: str = ""
    question: str | None = None
    kept_at: tuple[str, ...] = ()
    files: tuple[PastFile, ...] = ()
    is_over: bool = False

    def turn(
        self,
        texts: Sequence[str],
        thoughts: Sequence[str],
        notes: Mapping[str, Any],
        usage: Usage | None,
        *,
        status: Status,
        error: str = "",
    ) -> dict[str, Any]:
        """The turn as JSON."""
        made = [
            past_file("answer", file.get("type"), file.get("url"), file.get("name"))
            for file in notes.get("files", ())
        ]
        turn = PastTurn(
            "",
            None,
            self.question or "",
            "".join(texts)[:MAX_ANSWER],
            "".join(thoughts)[:MAX_ANSWER],
            (*self.files, *made),
            tuple(notes.get("citations", ())),
            None,
            status,
            error,
            usage if usage is not None and usage.total else None,
        )
        return turn.data()


def is_shown(text: str) -> bool:
    """Whether a line may have it: no control characters, but the joiners of emoji and scripts."""
    return text.translate(_JOINERS).isprintable()


def title_of(messages: Sequence[Message]) -> str:
    """A title from the first question."""
    text = next((turn.text for turn in messages if turn.role == "user"), "")
    text = question_of(text)[:1000]
    text = " ".join("".join(c if is_shown(c) else " " for c in text).split())
    return text if len(text) <= MAX_TITLE else text[: MAX_TITLE - 1] + "…"


def draft_of(
    owner: Owner, chat: ChatRequest, *, is_titled: bool, kept_at: tuple[str, ...], has_tasks: bool
) -> Draft:
    """`is_titled`: the operator allows words of the question in the database. `kept_at`: the agents
    whose turns the gateway keeps. `has_tasks`: the client may send background calls about the
    answer."""
    draft = Draft(owner, title_of(chat.messages) if is_titled else "", kept_at=kept_at)
    if has_tasks:
        draft.head = head(chat.question.text)
    if kept_at:
        question = chat.question
        draft.question = question.text[:MAX_QUESTION]
        draft.files = tuple(
            past_file("question", media.kind, media.url, media.name) for media in question.media
        )
    return draft


def earlier(turns: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    """The latest of these turns as messages, as many as a model is given. One without an answer
    failed, and is left out."""
    out: list[Message] = []
    left = MAX_HISTORY
    for turn in reversed(turns):
        if turn["status"] == CLEARED:
            break
        question, answer = turn["question"], turn["answer"]
        left -= len(question) + len(answer)
        if left < 0:
            break
        if answer:
            out += (Message("assistant", answer), Message("user", question))
    return tuple(reversed(out))
