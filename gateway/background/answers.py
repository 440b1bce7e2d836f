"""The answers to background calls that need no model, in the form that the client reads."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import orjson

from gateway.background.tasks import Kind, Task

_MOST_SIGNS, _MOST_TERMS = 24, 6  # of a title: Chinese characters, or terms of other scripts
_LONGEST = 80  # characters of a title in any script
_QUESTION = 400  # characters of a query

_BLOCK = re.compile(
    r"<(attached_files|system_reminder|context|user_message)>.*?(?:</\1>|\Z)|```.*?(?:```|\Z)",
    re.DOTALL,
)
_IMAGE = re.compile(r"!\[[^\]]*\]\([^)]*\)")
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
_MARKS = re.compile(r"^[ \t]*(?:#{1,6}|>|[-*+]|\d+[.)])[ \t]+|[*_`~|]+", re.MULTILINE)
_SENTENCE = re.compile(r"[。！？；\n]|[.!?;](?=\s|\Z)")
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_EDGES = " \t\"'“”‘’「」《》.,:;!?，。：；！？、…"

# The language by script; the first one that occurs wins.
_SCRIPTS = (
    (re.compile(r"[\u3040-\u30ff]"), "ja-JP"),
    (re.compile(r"[\uac00-\ud7af]"), "ko-KR"),
    (re.compile(r"[\u3400-\u9fff]"), "zh-CN"),
    (re.compile(r"[\u0400-\u04ff]"), "ru-RU"),
    (re.compile(r"[\u0600-\u06ff]"), "ar"),
)


def answer(task: Task, suggestions: Sequence[str] = ()) -> str | None:
    """The text of the answer; None if only a model can answer, or a platform (a probe).
    `suggestions` are the next questions, as the platform suggests them."""
    make = _LOCAL.get(task.kind)
    if make is None:
        return None
    value = list(suggestions) if task.kind == "follow_ups" else make(task)
    if task.key:
        return orjson.dumps({task.key: value}).decode()
    return "\n".join(value) if isinstance(value, list) else str(value)


def title(text: str) -> str:
    """A title from a user's turn: its first clause, without files and markdown, of 24 characters or
    6 terms; "New chat" if nothing is left."""
    clause = next(filter(None, (_trimmed(part) for part in _SENTENCE.split(_plain(text)))), "")
    if _CJK.search(clause):
        if len(clause) > _MOST_SIGNS:
            cut = clause[:_MOST_SIGNS]
            comma = max(cut.rfind("，"), cut.rfind("、"), cut.rfind(","))
            clause = cut[:comma] if comma >= _MOST_TERMS else cut
    else:
        clause = " ".join(clause.split()[:_MOST_TERMS])
    return _trimmed(clause[:_LONGEST]) or "New chat"


def _plain(text: str) -> str:
    text = _LINK.sub(r"\1", _IMAGE.sub("", _BLOCK.sub("\n", text)))
    return _MARKS.sub("", text)


def _trimmed(text: str) -> str:
    return " ".join(text.split()).strip(_EDGES)


def _queries(task: Task) -> list[str]:
    question = " ".join(_BLOCK.sub(" ", task.last).split())
    return [question[:_QUESTION]] if question else []


def _language(task: Task) -> str:
    return next((name for script, name in _SCRIPTS if script.search(task.last)), "en-US")


_LOCAL: dict[Kind, Callable[[Task], Any]] = {
    "title": lambda task: title(task.first),
    "tags": lambda task: ["General"],
    "follow_ups": lambda task: [],
    "queries": _queries,
    "autocomplete": lambda task: "",
    "emoji": lambda task: "💬",
    "language": _language,
}
