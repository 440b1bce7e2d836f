"""A bot's pauses for input in the middle of a run, and how to read a person's reply as that input.

A pause is shown as text: a choice as numbered options, a form as the labels of its fields.
Platforms require the exact text of an option or the JSON of the form, and treat any other input as
a wrong answer.
"""

import re
import unicodedata
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

# The text for a question that cannot be shown as text.
WAITS = "机器人在等待你的回答。/ The bot is waiting for your answer."

MAX_PAUSES = 2000
# Limits of one pause; larger ones are not remembered.
MAX_WORDS = 400
MAX_CHARACTERS = 4000
_NUMERALS = {"两": 2} | {
    f"{tens}{digit}": at + i
    for at, tens in ((0, ""), (10, "十"), (20, "二十"))
    for i, digit in enumerate(("", *"一二三四五六七八九"))
}
# The number of an option, optionally with text around it, and the rest of the reply.
_WORD = r"(?:我?要?选(?:择|项)?|答案|option|choice|answer|number|no|nr|#)"
_CHOICE = re.compile(
    rf"({_WORD}?[\s.:]*第\s?|{_WORD}[\s.:]*)?[\[(]?"
    r"(\d{1,3}(?!\d)|二?十[一二三四五六七八九]?|[一二三四五六七八九两])[\])]*"
    r"(?(1)\s?(?:[个项号条种](?:选项)?)?)[\s.,:、)-]*(.*)",
    re.DOTALL,
)
_NUMBER = re.compile(r"-?\d{1,15}(\.\d{1,15})?")
# Markdown, quotes, brackets and punctuation at the end of a sentence.
_MARKS = " \t*_~`\"'“”‘’「」『』《》〈〉【】[](){}<>.,。、!?;:…\u20e3"
_PIECE = re.compile(r"[,，;；]?[^,，;；]*")
_LABELLED = re.compile(r"([^:：=＝]{1,500})[:：=＝](.*)", re.DOTALL)
_LISTED = re.compile(r"\A\d{1,3}[.)、]\s?")


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a form. `is_number` means that the platform requires a number."""

    key: str
    label: str
    is_number: bool = False

    def value(self, value: Any) -> Any:
        if not (self.is_number and isinstance(value, str)):
            return value
        text = unicodedata.normalize("NFKC", value[:50]).strip()
        found = _NUMBER.fullmatch(text) if len(value) <= 50 else None
        if not found:
            return value
        return float(text) if found[1] else int(text)


@dataclass(frozen=True, slots=True)
class Pause:
    """A choice has `options`, a form has `fields`; other pauses have neither. `state` is what the
    platform needs to go on, if it is more than the reply."""

    options: tuple[str, ...] = ()
    fields: tuple[Field, ...] = ()
    state: Mapping[str, Any] | None = None

    def answer(self, reply: str) -> str:
        """`reply` in the platform's format; unchanged if it already is, or cannot be read."""
        if self.options:
            return self._chosen(reply)
        return self._filled(reply) if self.fields else reply

    def _chosen(self, reply: str) -> str:
        """The option that `reply` names by its text, its number, or the line shown for it."""
        if reply in self.options or len(reply) > MAX_CHARACTERS:
            return reply
        for read in (_plain, _bare):
            meant = read(reply)
            for option in self.options:
                if meant and meant == read(option):
                    return option
        number, rest = _numbered(reply)
        if 1 <= number <= len(self.options):
            option = self.options[number - 1]
            return option if rest in ("", _bare(option)) else reply
        return reply

    def _filled(self, reply: str) -> str:
        """The form's JSON, from JSON or lines of `label: value`; other text fills the only
        field."""
        names: dict[str, Field] = {}
        for read in (str.strip, _bare):
            for field in self.fields:
                names.setdefault(read(field.label), field)
                names.setdefault(read(field.key), field)
        names.pop("", None)
        values = _members(reply, names) or _entries(reply, names)
        if not values and len(self.fields) == 1:
            values = {self.fields[0].key: reply.strip()}
        filled = {f.key: f.value(values[f.key]) for f in self.fields if f.key in values}
        try:
            return orjson.dumps(filled).decode() if filled else reply
        except orjson.JSONEncodeError:
            return reply


def _members(reply: str, names: dict[str, Field]) -> dict[str, Any]:
    """Values by the fields' keys, from a JSON object, which may be in a Markdown code block."""
    try:
        values = orjson.loads(reply[max(reply.find("{"), 0) : reply.rfind("}") + 1])
    except orjson.JSONDecodeError:
        return {}
    members = values.items() if isinstance(values, dict) else ()
    return {field.key: value for name, value in members if (field := _find(name, names))}


def _entries(reply: str, names: dict[str, Field]) -> dict[str, Any]:
    """Values by the fields' keys, from labels at the start of a line or after a comma."""
    out: dict[str, list[str]] = {}
    for line in reply.splitlines():
        value: list[str] = []
        for piece in _PIECE.findall(line):
            found = _LABELLED.fullmatch(piece)
            field = _find(found[1], names) if found else None
            if found and field:
                value = out[field.key] = [found[2].strip().removeprefix("**")]
            else:
                value.append(piece)
    return {key: "".join(value).strip() for key, value in out.items()}


def _find(name: str, names: dict[str, Field]) -> Field | None:
    bare = _bare(name)
    return names.get(name.strip()) or names.get(bare) or names.get(_LISTED.sub("", bare))


def number_in(reply: str) -> int:
    """The number if `reply` is only a number; else 0."""
    number, rest = _numbered(reply)
    return 0 if rest else number


def _numbered(reply: str) -> tuple[int, str]:
    """The number of an option, 0 for none, and the text after it."""
    found = _CHOICE.fullmatch(_bare(reply)) if len(reply) <= MAX_CHARACTERS else None
    if not found:
        return 0, ""
    number = found[2]
    return int(number) if number.isdigit() else _NUMERALS[number], _bare(found[3])


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _bare(text: str) -> str:
    """The text in lower case, without Markdown, quotes, brackets and bullets around it."""
    text = unicodedata.normalize("NFKC", text[:MAX_CHARACTERS]).replace("\ufe0f", "")
    return _plain(text).strip(_MARKS).lstrip("-•> ").strip(_MARKS)


class Pauses:
    """The pauses of the latest conversations, by the platform's conversation id."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Pause] = OrderedDict()

    def get(self, conversation_id: str) -> Pause | None:
        return self._known.get(conversation_id)

    def begin(self, conversation_id: str, pause: Pause) -> None:
        names = [name for field in pause.fields for name in (field.key, field.label)]
        options = (*pause.options, *names)
        if len(options) > MAX_WORDS or sum(map(len, options)) > MAX_CHARACTERS:
            return
        self._known[conversation_id] = pause
        self._known.move_to_end(conversation_id)
        while len(self._known) > MAX_PAUSES:
            self._known.popitem(last=False)

    def end(self, conversation_id: str) -> None:
        """Forget the conversation's pause: its bot no longer waits."""
        self._known.pop(conversation_id, None)
