"""Dify's rules for the inputs of a question, as of 1.16."""

from collections.abc import Callable
from typing import Any

from gateway.demo.difyfiles import RefusedInput

_TEXTS = ("text-input", "paragraph", "select")
_TRUTHS = ("true", "1", "yes", "on", "false", "0", "no", "off")


def check_inputs(form: list[dict[str, Any]], inputs: dict[str, Any]) -> None:
    """Raises RefusedInput for the first input that does not fit its field. Inputs without a field
    are dropped silently."""
    for entry in form:
        for control, field in entry.items():
            _check(control, field, inputs.get(field["variable"]))


def _check(control: str, field: dict[str, Any], value: Any) -> None:
    name = field["variable"]
    if value is None:
        if field["required"]:
            raise RefusedInput(f"{name} is required in input form")
        return
    if control in _TEXTS and not isinstance(value, str):
        raise RefusedInput(f"(type '{control}') {name} in input form must be a string")
    if rule := _RULES.get(control):
        rule(field, value)


def _refuse(field: dict[str, Any], words: str) -> None:
    raise RefusedInput(f"{field['variable']} in input form must be {words}")


def _check_length(field: dict[str, Any], value: str) -> None:
    most = field.get("max_length")
    if most and len(value) > most:
        _refuse(field, f"less than {most} characters")


def _check_option(field: dict[str, Any], value: str) -> None:
    if value not in field["options"]:
        _refuse(field, f"one of the following: {field['options']}")


def _check_number(field: dict[str, Any], value: Any) -> None:
    if not isinstance(value, str):
        if not isinstance(value, int | float):
            _refuse(field, "a valid number")
    elif value.strip():
        try:
            (float if "." in value else int)(value)
        except ValueError:
            _refuse(field, "a valid number")


def _check_box(field: dict[str, Any], value: Any) -> None:
    if isinstance(value, str):
        is_known = value.strip().lower() in _TRUTHS
    else:
        is_known = isinstance(value, int | float) and value in (0, 1)
    if not is_known and value != "":
        _refuse(field, "a boolean value")


def _check_object(field: dict[str, Any], value: Any) -> None:
    if value and not isinstance(value, dict):
        _refuse(field, "a dict")


def _check_file(field: dict[str, Any], value: Any) -> None:
    is_unset = value == "" and not field["required"]
    if not is_unset and not isinstance(value, dict):
        _refuse(field, "a file")


def _check_files(field: dict[str, Any], value: Any) -> None:
    if value == "" and not field["required"]:
        return
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        _refuse(field, "a list of files")
    most = field.get("max_length")
    if most and len(value) > most:
        _refuse(field, f"less than {most} files")


_RULES: dict[str, Callable[[dict[str, Any], Any], None]] = {
    "text-input": _check_length, "paragraph": _check_length, "select": _check_option,
    "number": _check_number, "checkbox": _check_box, "json_object": _check_object,
    "file": _check_file, "file-list": _check_files,
}  # fmt: skip
