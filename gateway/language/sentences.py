"""Sentences for callers: English where they are written, Chinese where a caller wants it.

As in gettext, the English sentence is the key of its translation. `zh.json` maps it to the Chinese
one, whose placeholders have the same names. A `Sentence` is English text for everyone who does not
ask for more: the log, the record and the command line.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Self

import orjson

Language = Literal["en", "zh"]

CHINESE: dict[str, str] = orjson.loads((Path(__file__).parent / "zh.json").read_bytes())


class Sentence(str):
    """English text that remembers how it was made; `say` and `edited` make one."""

    __slots__ = ("_edit", "_template", "_values")

    _edit: Callable[[str], str] | None
    _template: str
    _values: dict[str, Any]

    def __new__(
        cls,
        text: str,
        template: str = "{text}",
        values: dict[str, Any] | None = None,
        edit: Callable[[str], str] | None = None,
    ) -> Self:
        self = super().__new__(cls, text)
        self._template = template
        self._values = {"text": text} if values is None else values
        self._edit = edit
        return self

    def chinese(self) -> str:
        """The Chinese text; the English one if the catalogue lacks the sentence."""
        template = CHINESE.get(self._template, self._template)
        values = {name: in_language(value, "zh") for name, value in self._values.items()}
        text = template.format_map(values) if values else template
        return text if self._edit is None else self._edit(text)


def say(template: str, /, **values: Any) -> Sentence:
    """The sentence `template` with its placeholders filled as `str.format` does.

    A value that is itself a Sentence is translated with it; any other, such as the text of an
    upstream, stays as it is. Without values braces are plain characters.
    """
    return Sentence(template.format_map(values) if values else template, template, values)


def edited(text: str, edit: Callable[[str], str]) -> Sentence:
    """The text after `edit`, which is applied to the final text in either language."""
    return Sentence(edit(text), values={"text": text}, edit=edit)


def in_language(value: Any, language: Language) -> Any:
    """The value in that language, if it is a Sentence; else the value itself."""
    return value.chinese() if language == "zh" and isinstance(value, Sentence) else value
