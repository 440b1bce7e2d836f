"""Earlier turns as text, for platforms whose question is a single string."""

from gateway.errors import InvalidRequest
from gateway.messages import ChatRequest

_LABELS = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool result"}


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
    history, so neither is sent again: doubled history is the commonest fault of bridges.
    """
    question = chat.question.text
    earlier = chat.messages[:-1]
    if chat.conversation_id or not earlier:
        return question
    lines = [message.text for message in earlier if message.role == "system" and message.text]
    turns = [message for message in earlier if message.role != "system" and message.text]
    if turns:
        lines += [f"{_LABELS[message.role]}: {message.text}" for message in turns]
        lines.append(f"{_LABELS['user']}: {question}")
    else:
        lines.append(question)
    return "\n\n".join(lines)
