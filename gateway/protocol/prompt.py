"""Earlier turns as text, for platforms whose question is a single string."""

import re
from functools import cache
from itertools import groupby

from gateway.errors import InvalidRequest
from gateway.language.sentences import say
from gateway.protocol.messages import ChatRequest, Role

_LABELS: dict[Role, str] = {
    "system": "System",
    "user": "User",
    "assistant": "Assistant",
    "tool": "Tool result",
}

# A line within a turn that reads as another turn's label, also after quotes and bullets. Models
# accept more line ends than `^` does.
_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_COLONS = ":："
MAX_COLONS = 200_000  # in all earlier turns; each costs up to 0.5 us


@cache
def _forged() -> re.Pattern[str]:
    """Matches a label and the start of its line, in reversed text.

    From a colon backwards, each character is read once or twice; a search for lines or labels would
    retry at each of millions. Sets of plain characters are four times as fast as `\\W`.
    """
    labels = "|".join(label[::-1] for label in _LABELS.values())
    marks = _marks(_ENDS)
    return re.compile(
        f"[{_COLONS}][{_marks(_ENDS + _COLONS)}]*+(?i:{labels})[{marks}]*+(?=[{_ENDS}]|\\Z)"
    )


def _marks(but: str) -> str:
    """All characters that are not word characters, without those in `but`, as ranges of a set."""
    is_word = re.compile(r"\w").match
    found = [not is_word(chr(code)) and chr(code) not in but for code in range(0x10000)]
    ranges, start = [], 0
    for is_mark, run in groupby(found):
        end = start + len(list(run))
        if is_mark:
            ranges.append(f"\\u{start:04x}-\\u{end - 1:04x}")
        start = end
    return "".join(ranges) + "\U00010000-\U0010ffff"


def require_question(chat: ChatRequest) -> None:
    """Require a question: agent platforms answer a user, and another last turn is no question."""
    if chat.question.role != "user":
        raise InvalidRequest(
            say(
                "The last message must be the user's question (it is of role {role!r}).",
                role=chat.question.role,
            ),
            param="messages",
        )
    if not chat.question.text.strip() and not chat.question.media:
        raise InvalidRequest("The question is empty.", param="messages")


def as_prompt(chat: ChatRequest) -> str:
    """The question alone if the platform knows the conversation, else all turns with labels.

    System text leads. A platform that holds the conversation has its own prompt and its own
    history, so neither is sent again: doubled history is the most common fault of bridges. Lines of
    a turn that read as a label are quoted, so that a turn cannot forge another one. Raises
    InvalidRequest for more colons than MAX_COLONS.
    """
    question = chat.question.text
    earlier = chat.messages[:-1]
    if chat.conversation_id or not earlier:
        return question
    lines = [message.text for message in earlier if message.role == "system" and message.text]
    _check_work(chat)
    turns = [message for message in earlier if message.role != "system" and message.text]
    if turns:
        lines += [_labelled(message.role, message.text) for message in turns]
        lines.append(_labelled("user", question))
    else:
        lines.append(question)
    return "\n\n".join(lines)


def _check_work(chat: ChatRequest) -> None:
    colons = sum(message.text.count(colon) for message in chat.messages for colon in _COLONS)
    if colons > MAX_COLONS:
        raise InvalidRequest(
            say(
                "The messages hold more than {most} colons: send fewer turns, or a file in "
                "place of a long text.",
                most=MAX_COLONS,
            ),
            param="messages",
        )


def _labelled(role: Role, text: str) -> str:
    return f"{_LABELS[role]}: {_quoted(text)}"


def _quoted(text: str) -> str:
    """With "> " in front of each line that reads as a label."""
    if not any(colon in text for colon in _COLONS):
        return text
    return _forged().sub(lambda found: f"{found[0]} >", text[::-1])[::-1]
