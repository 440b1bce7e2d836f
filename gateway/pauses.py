"""What a bot waits for in the middle of its run, and how a person's reply is read as that.

A pause is shown as text: a choice as numbered options, a form as the labels of its fields.
Platforms want the option's own words or the JSON of the form, and take anything else for a wrong
answer.
"""

import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import orjson

# For a question that cannot be shown as text.
WAITS = "机器人在等待你的回答。/ The bot is waiting for your answer."

MAX_PAUSES = 2000
# Of one pause; a longer one is not remembered.
MAX_WORDS = 400
MAX_CHARACTERS = 4000
_CHOICE = re.compile(r"[#(（]?(\d{1,3})[.、。)）]?")
_NUMBER = re.compile(r"-?\d{1,15}(\.\d{1,15})?")


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a form. `is_number`: the platform wants its value as a number."""

    key: str
    label: str
    is_number: bool = False

    def value(self, given: Any) -> Any:
        if not (self.is_number and isinstance(given, str)):
            return given
        found = _NUMBER.fullmatch(given)
        if not found:
            return given
        return float(given) if found[1] else int(given)


@dataclass(frozen=True, slots=True)
class Pause:
    """A choice has `options`, a form has `fields`; anything else has neither."""

    options: tuple[str, ...] = ()
    fields: tuple[Field, ...] = ()

    def answer(self, reply: str) -> str:
        """`reply` as the platform wants it; unchanged if it is that already, or nothing known."""
        if self.options:
            return self._chosen(reply)
        return self._filled(reply) if self.fields else reply

    def _chosen(self, reply: str) -> str:
        """The option that is meant by its words, its number, or the line that was shown for it."""
        if reply in self.options:
            return reply
        meant = _plain(reply)
        for i, option in enumerate(self.options, 1):
            if meant in (_plain(option), _plain(f"{i}. {option}")):
                return option
        number = number_in(reply)
        return self.options[number - 1] if 1 <= number <= len(self.options) else reply

    def _filled(self, reply: str) -> str:
        """The form's JSON, from JSON or lines of `label: value`; prose fills the only field."""
        given = _entries(reply)
        filled = {
            field.key: field.value(given[name])
            for field in self.fields
            for name in (field.label, field.key)
            if name in given
        }
        if not filled and len(self.fields) == 1:
            filled = {self.fields[0].key: self.fields[0].value(reply.strip())}
        try:
            return orjson.dumps(filled).decode() if filled else reply
        except orjson.JSONEncodeError:
            return reply


def _entries(reply: str) -> dict[str, Any]:
    try:
        given = orjson.loads(reply)
    except orjson.JSONDecodeError:
        given = None
    if isinstance(given, dict):
        return given
    lines = (line.replace("：", ":", 1).partition(":") for line in reply.splitlines())
    return {name.strip(" \t-"): value.strip() for name, colon, value in lines if colon}


def number_in(reply: str) -> int:
    """The number that is all of `reply`; 0 if it is something else."""
    found = _CHOICE.fullmatch(reply.strip())
    return int(found[1]) if found else 0


def _plain(words: str) -> str:
    return " ".join(words.split()).casefold()


class Pauses:
    """The pauses of the latest conversations, by the platform's id of each."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Pause] = OrderedDict()

    def get(self, conversation_id: str) -> Pause | None:
        return self._known.get(conversation_id)

    def begin(self, conversation_id: str, pause: Pause) -> None:
        names = [name for field in pause.fields for name in (field.key, field.label)]
        words = (*pause.options, *names)
        if len(words) > MAX_WORDS or sum(map(len, words)) > MAX_CHARACTERS:
            return
        self._known[conversation_id] = pause
        self._known.move_to_end(conversation_id)
        while len(self._known) > MAX_PAUSES:
            self._known.popitem(last=False)

    def end(self, conversation_id: str) -> None:
        """Whatever was said in that conversation, its bot waits no more."""
        self._known.pop(conversation_id, None)
