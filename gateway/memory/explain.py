"""`memory explain`: what the memory makes of requests, asked one after another."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from gateway.config.models import Memory as Settings
from gateway.memory.canonical import Hasher, letters, user_text
from gateway.memory.local import LocalStore
from gateway.memory.recall import Memory
from gateway.memory.thread import read_history
from gateway.protocol.messages import ChatRequest, Message
from gateway.protocol.openai_messages import read_turns

_SCOPE = "0" * 32
_UNKNOWN = "(not shown)"
_SHOWN = 60  # characters


async def explain(bodies: Sequence[Any]) -> list[str]:
    """Lines about each request body of /v1/chat/completions. The answer to one is taken from the
    history in the next one. Raises InvalidRequest for a body without usable messages."""
    memory, lines = Memory(LocalStore()), []
    for number, body in enumerate(bodies):
        turns = read_turns(body.get("messages") if isinstance(body, dict) else None)
        after = bodies[number + 1] if number + 1 < len(bodies) else None
        lines += [f"request {number + 1}:", *await _explain(memory, turns, _answer(turns, after))]
    return lines


async def _explain(memory: Memory, turns: tuple[Message, ...], answer: str) -> list[str]:
    chat = ChatRequest("agent", turns, "", scope=_SCOPE)
    recall = await memory.recall(chat, Settings(), 1.0)
    if recall is None:
        return ["  not looked up: the last message is no question, or there are too many"]
    recall.apply(chat)
    conversation = chat.conversation_id or chat.call_id
    await memory.remember(
        recall, Settings(), "agent", conversation, [answer], cut=True, drops_cut=False
    )
    return [*_history(turns), f"  {recall.kind}; depth={recall.verdict.depth}"]


def _history(turns: tuple[Message, ...]) -> Iterator[str]:
    history = read_history(turns, Hasher(_SCOPE.encode()))
    assert history is not None  # else there is no verdict
    compared = {exchange.at: exchange for exchange in history.exchanges}
    for place, turn in enumerate(turns[:-1]):
        if exchange := compared.get(place):
            yield f"  compared  user: {user_text(turn.text)[:_SHOWN]}"
            yield f"            answer: {letters(exchange.shown).decode()[:_SHOWN]}"
        elif turn.role != "assistant":
            why = "has no answer" if turn.role == "user" else f"role {turn.role}"
            yield f"  left out  {why}: {' '.join(turn.text.split())[:_SHOWN]}"
    if history.is_cut:
        yield "  the history begins with an answer: its beginning is missing"
    yield f"  question  {user_text(turns[-1].text)[:_SHOWN]}"


def _answer(turns: tuple[Message, ...], after: Any) -> str:
    """What the next request shows as the answer to this one's question; any text if it does not."""
    if not isinstance(after, dict):
        return _UNKNOWN
    later, question = read_turns(after.get("messages")), user_text(turns[-1].text)
    for asked, answer in reversed(list(pairwise(later))):
        if (asked.role, answer.role) == ("user", "assistant") and user_text(asked.text) == question:
            return answer.text
    return _UNKNOWN
