"""A conversation's past turns as a platform keeps them, whatever the platform.

Texts and links of a platform are cleaned and bounded here, and a member of an unexpected type
counts as missing.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Literal

from gateway.errors import InvalidRequest, clean
from gateway.filetypes import MediaKind
from gateway.language.sentences import say
from gateway.protocol.messages import Reasoning, Text, Usage
from gateway.protocol.profile import MAX_OPTION, icon_link, suggestions, words
from gateway.protocol.thinking import ThinkingSplitter
from gateway.protocol.usage import as_count, usage_body

MAX_TEXT = 200_000  # characters of a question, an answer or its reasoning
MAX_FILES = 100  # of one turn
MAX_CITATIONS = 200
MAX_NEXT = 10  # next questions
# Bytes of a platform's page of turns: RAGFlow sends a session whole, with all that it quotes, and
# FastGPT keeps pictures as `data:` URLs. Parsing them blocks the loop for about 50 ms.
MAX_REPLY = 16 << 20
_LAST_S = 1e11  # later times are in milliseconds

Status = Literal["completed", "failed", "stopped", "running", "waiting"]
Rating = Literal["like", "dislike"]
Side = Literal["question", "answer"]


@dataclass(frozen=True, slots=True)
class Feedback:
    """A person's opinion of an answer. `rating` None takes an earlier one back."""

    rating: Rating | None = None
    text: str = ""
    reasons: tuple[str, ...] = ()

    @property
    def comment(self) -> str:
        """The reasons and the text, for a platform that takes one text."""
        return "\n".join(part for part in (*self.reasons, self.text) if part)

    def data(self) -> dict[str, Any]:
        """As JSON."""
        return {"rating": self.rating, "text": self.text, "reasons": list(self.reasons)}


@dataclass(frozen=True, slots=True)
class PastFile:
    """A file of a turn. `url` is "" if there is no http(s) link to it; links may expire."""

    name: str
    kind: MediaKind
    url: str = ""
    mime_type: str = ""
    size: int | None = None  # bytes
    belongs_to: Side = "question"

    def data(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "name": self.name,
            "type": "document" if self.kind == "file" else self.kind,  # as answers say
            "url": self.url,
            "mime_type": self.mime_type,
            "size": self.size,
            "belongs_to": self.belongs_to,
        }


@dataclass(frozen=True, slots=True)
class PastTurn:
    """A question and its answer. `id` is the answer's, which feedback and suggestions need; "" if
    the platform has none. `created` is in unix seconds. `citations` are those of `Note`."""

    id: str
    created: int | None = None
    question: str = ""
    answer: str = ""
    reasoning: str = ""
    files: tuple[PastFile, ...] = ()
    citations: tuple[dict[str, Any], ...] = ()
    feedback: Feedback | None = None
    status: Status = "completed"
    error: str = ""
    usage: Usage | None = None

    def data(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "id": self.id,
            "created": self.created,
            "question": self.question,
            "answer": self.answer,
            "reasoning": self.reasoning,
            "files": [file.data() for file in self.files],
            "citations": list(self.citations),
            "feedback": self.feedback and self.feedback.data(),
            "status": self.status,
            "error": self.error,
            "usage": self.usage and usage_body(self.usage),
        }


@dataclass(frozen=True, slots=True)
class Page:
    """Turns, the oldest first. `before` leads to the page of older ones; "" if there is none. A
    page may have fewer turns than asked for although there are older ones."""

    turns: tuple[PastTurn, ...] = ()
    before: str = ""

    def data(self) -> dict[str, Any]:
        """As JSON."""
        return {"turns": [turn.data() for turn in self.turns], "before": self.before}


def bad_cursor() -> InvalidRequest:
    """The error for a `before` that no page of the conversation gave, or whose turn is gone."""
    return InvalidRequest(
        say("This place in the conversation does not exist: begin with the latest page again."),
        param="before",
    )


# Readers of a platform's values, which may be of any type.

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def passage(value: Any) -> str:
    """A question or an answer without control characters and white space around it."""
    if not isinstance(value, str):
        return ""
    text = _CONTROLS.sub("", value[: MAX_TEXT + 1].replace("\r\n", "\n")).strip()
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def answer_and_reasoning(value: Any) -> tuple[str, str]:
    """The answer and the thinking in a text that may begin with thinking."""
    if not isinstance(value, str):
        return "", ""
    splitter = ThinkingSplitter()
    deltas = splitter.feed(value) + splitter.close()
    answer = "".join(delta.text for delta in deltas if isinstance(delta, Text))
    reasoning = "".join(delta.text for delta in deltas if isinstance(delta, Reasoning))
    return passage(answer), passage(reasoning)


def problem(value: Any) -> str:
    """Why a turn failed, in the platform's text."""
    return clean(value, MAX_OPTION) if isinstance(value, str) else ""


def seconds(value: Any) -> int | None:
    """Unix seconds, from a number or digits in seconds or milliseconds, or from ISO 8601."""
    if isinstance(value, str) and not (value.isascii() and value.isdigit()):
        try:
            moment = datetime.fromisoformat(value[:40])
        except ValueError:
            return None
        return _sensible((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    if type(value) is float:
        return _sensible(value)
    count = as_count(value)
    return _sensible(count / 1000 if count > _LAST_S else count)


def _sensible(value: float) -> int | None:
    return int(value) if 0 < value < _LAST_S else None


def past_file(
    side: Side, kind: Any, url: Any, name: Any = "", mime_type: Any = "", size: Any = None
) -> PastFile:
    """A file from a platform's members; a kind that the gateway does not know is `file`."""
    link = icon_link(url)
    known: MediaKind = kind if kind in ("image", "audio", "video") else "file"
    return PastFile(
        words(name, MAX_OPTION),
        known,
        link["url"] if link else "",
        words(mime_type, MAX_OPTION),
        as_count(size) or None,
        side,
    )


def cited(citations: Iterable[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Citations as the answer's stream had them, with bounded texts."""
    return tuple(
        {name: words(value) if name in ("title", "text") else value for name, value in each.items()}
        for each in islice(citations, MAX_CITATIONS)
    )


def next_questions(value: Any) -> tuple[str, ...]:
    """The questions that a platform suggests."""
    return suggestions(value)[:MAX_NEXT]
