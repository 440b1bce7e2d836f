"""Reads FastGPT's stored items: a question and its answer are two, `Human` and `AI`."""

import re
from typing import Any

from gateway.platforms.base import as_id, as_list, as_object, as_text
from gateway.platforms.fastgpt.citations import CiteMarks
from gateway.platforms.fastgpt.failures import readable
from gateway.platforms.fastgpt.interactive import innermost, interactive_text
from gateway.platforms.fastgpt.nodes import citation, last_failure, quotes, tokens
from gateway.protocol import history
from gateway.protocol.history import Feedback, PastFile, PastTurn, Side, Status

NO_WORDS = "yes"  # FastGPT's feedback without a text
_OBJECT_ID = re.compile(r"[0-9a-f]{24}")  # begins with its time, 8 digits

Item = dict[str, Any]


def id_of(item: Item) -> str:
    return as_id(item.get("_id")) or as_id(item.get("dataId"))


def older_than(items: list[Item], oldest: str) -> list[Item]:
    """The items before the one with the id `oldest`, which new turns may have moved."""
    if not oldest:
        return items
    ids = [id_of(item) for item in items]
    if oldest in ids:
        return items[: ids.index(oldest)]
    are_dated = items and _OBJECT_ID.fullmatch(ids[0]) and _OBJECT_ID.fullmatch(oldest)
    return [] if are_dated and ids[0][:8] > oldest[:8] else items


def into_turns(items: list[Item]) -> list[list[Item]]:
    """The items of each turn: a question, an answer, or both. Other kinds of items are none."""
    turns: list[list[Item]] = []
    for item in items:
        if item.get("obj") == "AI" and turns and turns[-1][-1].get("obj") == "Human":
            turns[-1].append(item)
        elif item.get("obj") in ("AI", "Human"):
            turns.append([item])
    return turns


def is_whole(turn: list[Item]) -> bool:
    """Whether the turn has its question."""
    return turn[0].get("obj") == "Human"


def read_turn(turn: list[Item], is_latest: bool) -> PastTurn:
    """A turn of the conversation, which is the one under way only if it is the latest."""
    asked = turn[0] if is_whole(turn) else {}
    said = turn[-1] if turn[-1].get("obj") == "AI" else {}
    answer, reasoning = _answer(said)
    nodes = as_list(said.get("responseData"))
    failure = last_failure(nodes)
    error = history.problem(
        readable(as_text(said.get("errorMsg"))) or (failure and failure.message)
    )
    files = [*_files(asked, "question"), *_files(said, "answer")]
    listed = [citation(as_object(quote)) for quote in as_list(said.get("totalQuoteList"))]
    is_empty = not (answer or reasoning or any(map(_does, _parts(said))))
    return PastTurn(
        as_id(said.get("dataId")),
        _moment(asked) or _moment(said),
        _question(asked),
        answer,
        reasoning,
        tuple(files[: history.MAX_FILES]),
        history.cited(listed or quotes(nodes)),
        _feedback(said),
        _status(said, is_latest, bool(error) or is_empty),
        error,
        tokens(nodes),
    )


def _status(said: Item, is_latest: bool, has_failed: bool) -> Status:
    if not said:
        return "running" if is_latest else "failed"
    if is_latest and any(map(_waits, _parts(said))):
        return "waiting"
    return "failed" if has_failed else "completed"


def _parts(item: Item) -> list[Item]:
    value = item.get("value")
    if isinstance(value, str):  # of a version before 4.8
        return [{"text": {"content": value}}]
    return [as_object(part) for part in as_list(value)]


def _texts(item: Item, name: str) -> list[str]:
    texts = (as_text(as_object(part.get(name)).get("content")) for part in _parts(item))
    return [text for text in texts if text]


def _question(asked: Item) -> str:
    """The question; a hidden one is the app's own."""
    return (
        "" if asked.get("hideInUI") is True else history.passage("\n".join(_texts(asked, "text")))
    )


def _answer(said: Item) -> tuple[str, str]:
    """(answer, reasoning), with the bot's own questions as in the answer's stream."""
    marks = CiteMarks()
    text = marks.feed("\n".join(_texts(said, "text"))) + marks.close()
    answer, thinking = history.answer_and_reasoning(text)
    asked = (as_object(part.get("interactive")) for part in _parts(said))
    questions = (interactive_text(as_object(innermost(each).get("params"))) for each in asked)
    reasoning = history.passage("\n".join((*_texts(said, "reasoning"), thinking)))
    return history.passage("\n\n".join(filter(None, (answer, *questions)))), reasoning


def _does(part: Item) -> bool:
    """Whether a part without text is something, too."""
    return any(part.get(name) for name in ("tool", "tools", "interactive", "file"))


def _waits(part: Item) -> bool:
    """Whether the bot waits for the answer to a question of its own."""
    params = as_object(innermost(as_object(part.get("interactive"))).get("params"))
    return (
        bool(params) and not params.get("userSelectedVal") and params.get("submitted") is not True
    )


def _files(item: Item, side: Side) -> list[PastFile]:
    files = [as_object(part.get("file")) for part in _parts(item)]
    return [
        history.past_file(side, file.get("type"), file.get("url"), file.get("name"))
        for file in files
        if file
    ]


def _feedback(said: Item) -> Feedback | None:
    good, bad = as_text(said.get("userGoodFeedback")), as_text(said.get("userBadFeedback"))
    text = history.passage(good or bad)
    if not text:
        return None
    return Feedback("like" if good else "dislike", "" if text == NO_WORDS else text)


def _moment(item: Item) -> int | None:
    """When the item was made: before 4.8.20 only its id tells."""
    if moment := history.seconds(item.get("time")):
        return moment
    id_ = as_id(item.get("_id"))
    return int(id_[:8], 16) if _OBJECT_ID.fullmatch(id_) else None
