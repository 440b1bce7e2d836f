"""Reads Coze's stored messages: a chat has a question and any number of answers."""

from typing import Any

from gateway.platforms.base import as_id, as_list, as_object, as_text
from gateway.platforms.coze.decoder import answer_usage
from gateway.protocol import history, loosejson
from gateway.protocol.history import PastFile, PastTurn, Side, Status
from gateway.protocol.messages import Usage

Message = dict[str, Any]

_STATUS: dict[str, Status] = {
    "created": "running", "in_progress": "running", "completed": "completed",
    "requires_action": "waiting", "required_action": "waiting", "canceled": "stopped",
    "cancelled": "stopped", "conversation.chat.cancelled": "stopped",
}  # fmt: skip


def is_answer(message: Message) -> bool:
    """Whether it is the bot's answer. Messages written by hand may have no type."""
    kind = message.get("type")
    return kind == "answer" or (not kind and message.get("role") == "assistant")


def has_id(message: Message, id_: str) -> bool:
    """Whether it is an answer with that id, or of the chat with that id."""
    return is_answer(message) and id_ in (as_id(message.get("id")), as_id(message.get("chat_id")))


def rated(answers: list[Message]) -> Message:
    """The answer that feedback is for: Coze takes it only for text."""
    texts = [message for message in answers if message.get("content_type") != "object_string"]
    return (texts or answers)[-1]


def _is_question(message: Message) -> bool:
    kind = message.get("type")
    return kind == "question" or (not kind and message.get("role") == "user")


def older_than(listed: list[Message], oldest: str) -> list[Message]:
    """The messages before the one with the id `oldest`; new ones may have moved it from the page.
    Later ids are larger."""
    if not oldest:
        return listed
    ids = [as_id(message.get("id")) for message in listed]
    if oldest in ids:
        return listed[: ids.index(oldest)]
    if not _number(oldest):
        return listed
    return [each for each, id_ in zip(listed, ids, strict=True) if _number(id_) < _number(oldest)]


def _number(id_: str) -> int:
    return int(id_) if id_.isascii() and id_.isdigit() and len(id_) <= 20 else 0


def into_turns(listed: list[Message]) -> list[list[Message]]:
    """The questions and answers of each chat. Those of no chat are paired by their order."""
    turns: dict[str, list[Message]] = {}
    by_hand = ""  # the key of the turn to which an answer without a chat belongs
    for n, message in enumerate(listed):
        key = as_id(message.get("chat_id"))
        if not (is_answer(message) or _is_question(message)):
            continue
        if key in ("", "0"):
            key = by_hand if by_hand and is_answer(message) else f"#{n}"
            by_hand = key if _is_question(message) else ""
        turns.setdefault(key, []).append(message)
    return list(turns.values())


def read_turn(turn: list[Message]) -> PastTurn:
    """A turn. One without an answer has failed, for all that the messages tell."""
    asked = [message for message in turn if not is_answer(message)]
    said = [message for message in turn if is_answer(message)]
    question, answer = ([_text(message) for message in part] for part in (asked, said))
    text, thinking = history.answer_and_reasoning("\n\n".join(filter(None, answer)))
    thoughts = [as_text(message.get("reasoning_content")) for message in said]
    files = [*_files(asked, "question"), *_files(said, "answer")]
    return PastTurn(
        _id(said) if said else "",
        history.seconds(turn[0].get("created_at")),
        history.passage("\n".join(filter(None, question))),
        text,
        history.passage("\n".join(filter(None, (*thoughts, thinking)))),
        tuple(files[: history.MAX_FILES]),
        status="completed" if said else "failed",
        usage=_usage(said),
    )


def _id(said: list[Message]) -> str:
    """The id of the chat, as the stream of an answer gives it: feedback is kept under that one. An
    answer written by hand has only its own."""
    answer = rated(said)
    chat = as_id(answer.get("chat_id"))
    return as_id(answer.get("id")) if chat in ("", "0") else chat


def chat_status(chat: dict[str, Any]) -> tuple[Status, str]:
    """(status, error) of a chat's record."""
    status = _STATUS.get(as_text(chat.get("status")), "failed")
    error = history.problem(as_object(chat.get("last_error")).get("msg"))
    return status, error if status == "failed" else ""


def _usage(said: list[Message]) -> Usage | None:
    """The tokens that Coze Studio tells with an answer."""
    return next(filter(None, (answer_usage(as_object(m.get("meta_data"))) for m in said)), None)


def _items(message: Message) -> list[dict[str, Any]]:
    """The parts of an `object_string`."""
    if message.get("content_type") != "object_string":
        return []
    try:
        parts = loosejson.loads(as_text(message.get("content")).encode("utf-8", "replace"))
    except loosejson.NotJson:
        return []
    return [as_object(part) for part in as_list(parts)]


def _text(message: Message) -> str:
    if message.get("content_type") != "object_string":
        return as_text(message.get("content"))
    texts = [as_text(item.get("text")) for item in _items(message) if item.get("type") == "text"]
    return "\n".join(filter(None, texts))


def _files(listed: list[Message], side: Side) -> list[PastFile]:
    """Files that were uploaded have an id and no link, except in Coze Studio."""
    return [
        history.past_file(
            side,
            item.get("type"),
            item.get("file_url") or item.get("url"),
            item.get("name") or item.get("file_name"),
        )
        for message in listed
        for item in _items(message)
        if item.get("type") not in ("text", None)
    ]
