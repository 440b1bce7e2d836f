"""Earlier turns as text, for platforms whose question is a single string."""

import re

from gateway.errors import InvalidRequest
from gateway.messages import ChatRequest, Role

_LABELS: dict[Role, str] = {
    "system": "System",
    "user": "User",
    "assistant": "Assistant",
    "tool": "Tool result",
}

# A line within a turn that reads as the label of another one, also behind quotes and bullets.
# Models take more for the end of a line than `^` does.
_ENDS = r"\n\r\v\f\x1c-\x1e\x85\u2028\u2029"
_FORGED = re.compile(
    rf"(\A|[{_ENDS}])(?=[^\w{_ENDS}]*(?:{'|'.join(_LABELS.values())})[^\w{_ENDS}]*[:：])",
    re.IGNORECASE,
)


def require_question(chat: ChatRequest) -> None:
    """Agent platforms answer a user; a list that ends otherwise has no question in it."""
    if chat.question.role != "user":
        raise InvalidRequest(
            f"The last message must be the user's question (it is of role {chat.question.role!r}).",
            param="messages",
        )
    if not chat.question.text.strip() and not chat.question.media:
        raise InvalidRequest("The question is empty.", param="messages")


def as_prompt(chat: ChatRequest) -> str:
    """The question alone if the platform knows the conversation, else all turns with labels.

    System text leads. A platform that holds the conversation has its own prompt and its own
    history, so neither is sent again: doubled history is the commonest fault of bridges. A turn's
    own lines that read as a label are quoted, so that nobody's words become another's turn.
    """
    question = chat.question.text
    earlier = chat.messages[:-1]
    if chat.conversation_id or not earlier:
        return question
    lines = [message.text for message in earlier if message.role == "system" and message.text]
    turns = [message for message in earlier if message.role != "system" and message.text]
    if turns:
        lines += [_labelled(message.role, message.text) for message in turns]
        lines.append(_labelled("user", question))
    else:
        lines.append(question)
    return "\n\n".join(lines)


def _labelled(role: Role, text: str) -> str:
    return f"{_LABELS[role]}: {_FORGED.sub(_quote, text)}"


def _quote(found: re.Match[str]) -> str:
    return f"{found[1]}> "
