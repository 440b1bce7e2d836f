"""A bot's profile: what a front end shows before the first question, whatever the platform.

Texts of a platform are the bot's author's: they are cleaned and bounded here.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import orjson

from gateway.filetypes import KINDS, MediaKind

MAX_TITLE = 200  # characters
MAX_WORDS = 8000  # characters of a description, the opening words or a default value
MAX_OPTION = 500
MAX_LINK = 2000
MAX_SUGGESTIONS = 50
MAX_INPUTS = 100
MAX_OPTIONS = 500
MAX_PICTURE = 100_000  # characters of an icon that is embedded
MAX_SCHEMA = 20_000  # bytes of the schema of an object
MAX_DEPTH = 8  # levels of it
_MAX_LIMIT = 10**12

FEATURES = ("suggestions", "citations", "speech_to_text", "text_to_speech")
_PICTURE = re.compile(r"data:image/(?:png|jpeg|gif|webp);base64,[A-Za-z0-9+/]+=*")
_TYPES = frozenset(("string", "number", "integer", "boolean", "object", "array", "null"))
_BOUNDS = ("minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems")
_JOINER = "\u200d"  # in emoji; not printable by itself


@dataclass(frozen=True, slots=True)
class FileNeeds:
    """Which files a question may have. `max_files` None: unknown. `max_bytes` has the known limits
    by kind. `transfer`: "url" if the platform fetches links, "upload" if it takes the bytes."""

    kinds: tuple[MediaKind, ...] = ()
    max_files: int | None = None
    max_bytes: Mapping[str, int] = field(default_factory=dict)
    transfer: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Profile:
    """What a platform says of its bot; all members have a value for a platform that says nothing.

    `icon` is {"url"} or {"emoji", "background"}. `inputs` is the JSON Schema of `variables`.
    `features` are those of FEATURES that the bot's author has switched on.
    """

    title: str = ""
    description: str = ""
    icon: Mapping[str, str] | None = None
    opening: str = ""
    suggestions: tuple[str, ...] = ()
    inputs: Mapping[str, Any] = field(default_factory=lambda: Form().schema())
    files: FileNeeds = FileNeeds()
    features: frozenset[str] = frozenset()

    def data(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "title": self.title,
            "description": self.description,
            "icon": self.icon,
            "opening": self.opening,
            "suggestions": list(self.suggestions),
            "inputs": self.inputs,
            "files": {
                "kinds": sorted(self.files.kinds),
                "max_files": self.files.max_files,
                "max_bytes": self.files.max_bytes,
                "transfer": list(self.files.transfer),
            },
            "features": {name: name in self.features for name in FEATURES},
        }


class Form:
    """The inputs of a bot, collected to a JSON Schema. `filled` are the names that config.yaml
    gives a value: the caller may leave them out."""

    def __init__(self, filled: Iterable[str] = ()) -> None:
        self._filled = frozenset(filled)
        self._properties: dict[str, dict[str, Any]] = {}
        self._required: list[str] = []

    def add(
        self,
        name: Any,
        schema: dict[str, Any],
        *,
        title: Any = "",
        description: Any = "",
        default: Any = None,
        required: Any = False,
    ) -> None:
        """Add an input of any type; one whose name cannot be shown as it is, is left out."""
        is_shown = isinstance(name, str) and name and words(name, MAX_TITLE) == name
        if not is_shown or len(self._properties) >= MAX_INPUTS:
            return
        texts = {"title": words(title, MAX_TITLE), "description": words(description)}
        out = {**schema, **{key: text for key, text in texts.items() if text}}
        if (value := _default(schema, default)) is not None:
            out["default"] = value
        self._properties[name] = out
        if required is True and name not in self._filled and name not in self._required:
            self._required.append(name)

    def schema(self) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": self._properties,
            "required": self._required,
        }


def _default(schema: Mapping[str, Any], value: Any) -> Any:
    """The default value in the schema's type; None if it has none that fits."""
    kind, is_number = schema.get("type"), type(value) in (int, float)
    if kind == "string" and isinstance(value, str) and value and words(value) == value:
        most = schema.get("maxLength", MAX_WORDS)
        return value if len(value) <= most and value in schema.get("enum", (value,)) else None
    if kind in ("number", "integer"):
        if isinstance(value, str) and len(value) <= 20 and value.lstrip("-").isdecimal():
            return int(value)
        return value if is_number and abs(value) < _MAX_LIMIT else None
    if kind == "boolean":
        return value if isinstance(value, bool) else None
    return None


def words(value: Any, most: int = MAX_WORDS) -> str:
    """A text without control characters except line breaks; "" for another type."""
    if not isinstance(value, str):
        return ""
    text = value[: most + 1].replace("\r\n", "\n")
    text = "".join(c for c in text if c.isprintable() or c in ("\n", "\t", _JOINER)).strip()
    return text if len(text) <= most else text[: most - 1] + "…"


def suggestions(value: Any) -> tuple[str, ...]:
    """The non-empty texts of a list."""
    listed = value[:MAX_SUGGESTIONS] if isinstance(value, list) else ()
    return tuple(text for text in (words(each, MAX_OPTION) for each in listed) if text)


def options(values: Iterable[Any]) -> dict[str, Any]:
    """`enum` for a schema; {} if the values cannot be listed as they are, since a caller could not
    choose those that are missing."""
    listed = list(dict.fromkeys(value for value in values if not isinstance(value, dict | list)))
    is_whole = all(isinstance(value, str) and words(value, MAX_OPTION) == value for value in listed)
    return {"enum": listed} if 0 < len(listed) <= MAX_OPTIONS and is_whole else {}


def file_control(
    control: str = "file",
    *,
    kinds: Iterable[MediaKind] = (),
    extensions: Iterable[str] = (),
    max_files: int | None = None,
    transfer: Iterable[str] = (),
) -> dict[str, Any]:
    """`x-control` and `x-file` of an input for files; `x-file` has what is known of them."""
    about = {
        "kinds": sorted(kinds),
        "extensions": sorted(words(each, 20) for each in extensions)[:MAX_OPTIONS],
        "max_files": max_files,
        "transfer": list(transfer),
    }
    known = {name: value for name, value in about.items() if value}
    return {"x-control": control, **({"x-file": known} if known else {})}


def object_schema(value: Any) -> dict[str, Any]:
    """What a JSON Schema says of an object's members, as far as a form can show it. `value` may be
    JSON text; {} if it is too large, or none."""
    try:
        text = value.encode() if isinstance(value, str) else orjson.dumps(value)
        schema = orjson.loads(text) if len(text) <= MAX_SCHEMA else {}
    except (ValueError, TypeError):  # orjson's errors, and text that is no UTF-8
        return {}
    out = _cleaned(schema, 0) if isinstance(schema, dict) else {}
    return {name: out[name] for name in ("properties", "required") if name in out}


def _cleaned(schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
    """The schema's known keywords, with their texts cleaned."""
    if depth > MAX_DEPTH:
        return {}
    texts = {name: words(schema.get(name), MAX_OPTION) for name in ("title", "description")}
    out: dict[str, Any] = {name: text for name, text in texts.items() if text}
    kind, required, properties = (schema.get(n) for n in ("type", "required", "properties"))
    if isinstance(kind, str) and kind in _TYPES:
        out["type"] = kind
    if isinstance(required, list):
        out["required"] = [each for each in required if isinstance(each, str) and words(each)]
    if isinstance(properties, dict):
        out["properties"] = {
            name: _cleaned(each, depth + 1)
            for name, each in properties.items()
            if isinstance(each, dict) and words(name) == name
        }
    if isinstance(schema.get("items"), dict):
        out["items"] = _cleaned(schema["items"], depth + 1)
    if isinstance(schema.get("enum"), list):
        out |= options(schema["enum"])
    out |= {name: value for name in _BOUNDS if (value := number(schema.get(name))) is not None}
    return out


def text_schema(max_length: Any = None) -> dict[str, Any]:
    most = limit(max_length)
    return {"type": "string", **({"maxLength": most} if most else {})}


def limit(value: Any) -> int | None:
    """A positive whole number of a sensible size."""
    return value if type(value) is int and 0 < value <= _MAX_LIMIT else None


def number(value: Any) -> float | None:
    return value if type(value) in (int, float) and abs(value) <= _MAX_LIMIT else None


def icon_link(value: Any) -> dict[str, str] | None:
    """{"url"} of an http(s) link; None for anything else. The gateway never fetches it."""
    if not isinstance(value, str) or len(value) > MAX_LINK or not value.isprintable():
        return None
    try:
        parts = urlsplit(value)
        is_link = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        return None
    return {"url": value} if is_link and not parts.username and " " not in value else None


def picture(value: Any) -> dict[str, str] | None:
    """{"url"} of a link, or of a small picture that is embedded as a `data:` URL."""
    is_embedded = isinstance(value, str) and len(value) <= MAX_PICTURE
    return {"url": value} if is_embedded and _PICTURE.fullmatch(value) else icon_link(value)


def kinds_in_order(kinds: Iterable[MediaKind]) -> tuple[MediaKind, ...]:
    wanted = frozenset(kinds)
    return tuple(kind for kind in KINDS if kind in wanted)
