"""Checks the variables of a question against the JSON Schema of a bot's inputs.

This covers the part of JSON Schema that `profile.Form` writes, at its first level: a platform
checks the members of its own objects. Platforms read many values as the type that they want, so a
value that one of their servers would read passes. Empty text and null mean that a value is not set.
"""

import json
from collections.abc import Mapping
from typing import Any

import orjson

from gateway.errors import InvalidVariable
from gateway.language.sentences import Sentence, say

MAX_NAMED = 20  # options that an error lists
MAX_SHOWN = 60  # characters of each

_TRUTHS = frozenset(("true", "1", "yes", "on", "false", "0", "no", "off"))


def check_variables(
    inputs: Mapping[str, Any], variables: Mapping[str, Any], *, needs_all: bool, is_strict: bool
) -> InvalidVariable | None:
    """The first problem of the variables; None if they fit. Names without an input are ignored.

    `needs_all`: the required ones must be there, unless they have a default. `is_strict`: a text
    must be a string; else any value is sent as text.
    """
    for name, schema in inputs["properties"].items():
        value = variables.get(name)
        if value is None:
            is_needed = needs_all and name in inputs["required"] and "default" not in schema
            problem = _missing(name, schema) if is_needed else None
        else:
            problem = None if _fits(schema, value, is_strict) else _wrong(name, schema)
        if problem is not None:
            return InvalidVariable(problem, param=f"variables.{name}")
    return None


def _missing(name: str, schema: Mapping[str, Any]) -> Sentence:
    return say(
        "The variable {name!r} is missing: it must be {expected}.",
        name=name,
        expected=expected(schema),
    )


def _wrong(name: str, schema: Mapping[str, Any]) -> Sentence:
    return say("The variable {name!r} must be {expected}.", name=name, expected=expected(schema))


def _fits(schema: Mapping[str, Any], value: Any, is_strict: bool) -> bool:
    kind = schema.get("type")
    if value == "":
        return True
    if kind == "string":
        return _is_text(schema, value, is_strict)
    if kind in ("number", "integer"):
        return _is_number(schema, value)
    if kind == "boolean":
        return _is_truth(value)
    if kind == "object":
        return _is_object(schema, value)
    if kind == "array":
        return _is_array(schema, value, is_strict)
    return True


def _is_text(schema: Mapping[str, Any], value: Any, is_strict: bool) -> bool:
    if not isinstance(value, str):
        if is_strict:
            return False
        value = json.dumps(value, ensure_ascii=False)
    most = schema.get("maxLength")
    return (most is None or len(value) <= most) and value in schema.get("enum", (value,))


def _is_number(schema: Mapping[str, Any], value: Any) -> bool:
    """Also text that Python, in which most of the platforms are written, reads as a number."""
    if isinstance(value, str):
        if not value.strip():
            return True
        try:
            value = float(value)
        except ValueError:
            return False
    elif not isinstance(value, int | float):
        return False
    is_whole = schema.get("type") == "number" or value == value // 1
    least, most = schema.get("minimum", value), schema.get("maximum", value)
    return bool(is_whole and not value < least and not value > most)


def _is_truth(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip().lower() in _TRUTHS
    return isinstance(value, int | float) and value in (0, 1)


def _is_object(schema: Mapping[str, Any], value: Any) -> bool:
    """An object. Other than a file it may also be JSON text, and an empty value is not set."""
    if isinstance(value, dict):
        return True
    if schema.get("x-control") == "file":
        return False
    return not value or (isinstance(value, str) and isinstance(_parsed(value), dict))


def _parsed(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None


def _is_array(schema: Mapping[str, Any], value: Any, is_strict: bool) -> bool:
    """A list whose items fit. Text is left to a platform that is not strict."""
    if not isinstance(value, list):
        return isinstance(value, str) and not is_strict
    if len(value) > schema.get("maxItems", len(value)):
        return False
    items = schema.get("items", {})
    return all(_fits(items, each, is_strict) for each in value)


def expected(schema: Mapping[str, Any]) -> Sentence:
    """What a value must be, for the end of a sentence."""
    if "enum" in schema:
        return say("one of: {allowed}", allowed=_listed(schema["enum"]))
    kind = schema.get("type")
    if kind == "string":
        most = schema.get("maxLength")
        return say("text of at most {most} characters", most=most) if most else say("text")
    if kind in ("number", "integer"):
        return _expected_number(schema)
    if kind == "boolean":
        return say("true or false")
    if kind == "object":
        is_file = schema.get("x-control") == "file"
        return say("an object that describes a file") if is_file else say("a JSON object")
    return _expected_list(schema) if kind == "array" else say("a value")


def _expected_number(schema: Mapping[str, Any]) -> Sentence:
    what = say("a whole number") if schema["type"] == "integer" else say("a number")
    least, most = schema.get("minimum"), schema.get("maximum")
    if least is not None and most is not None:
        return say("{what} from {least} to {most}", what=what, least=least, most=most)
    if least is not None:
        return say("{what} of at least {least}", what=what, least=least)
    return say("{what} of at most {most}", what=what, most=most) if most is not None else what


def _expected_list(schema: Mapping[str, Any]) -> Sentence:
    items, most = schema.get("items", {}), schema.get("maxItems")
    if "enum" in items:
        return say("a list of: {allowed}", allowed=_listed(items["enum"]))
    if schema.get("x-control") in ("file", "file-list"):
        what = say("a list of files")
    else:
        what = say("a list")
    return say("{what} with at most {most} items", what=what, most=most) if most else what


def _listed(options: list[str]) -> str:
    shown = [each if len(each) <= MAX_SHOWN else f"{each[:MAX_SHOWN]}…" for each in options]
    return ", ".join(map(repr, shown[:MAX_NAMED])) + (", …" if len(shown) > MAX_NAMED else "")
