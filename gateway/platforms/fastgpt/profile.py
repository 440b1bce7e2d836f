"""The profile of a FastGPT app, from `/core/chat/init`."""

import re
from collections.abc import Collection
from typing import Any

from gateway.filetypes import MediaKind
from gateway.platforms.base import as_list, as_object, as_text
from gateway.protocol import profile as neutral
from gateway.protocol.profile import FileNeeds, Form, Profile, words

_SWITCHES: dict[str, MediaKind] = {
    "canSelectImg": "image", "canSelectFile": "file", "canSelectAudio": "audio",
    "canSelectVideo": "video",
}  # fmt: skip
# Values that the caller sets: FastGPT shows its users no field for them.
_HIDDEN = ("custom", "external", "internal")


# Inputs of a plugin that its workflow connects by itself.
_INNER = ("hidden", "custom")
_VALUE_TYPES = {
    "string": "string", "number": "number", "boolean": "boolean", "object": "object",
}  # fmt: skip
# A line that FastGPT's own page shows as a button, which asks the question.
_BUTTON = re.compile(r"[ \t]*(?:[-*] +)?\[([^\[\]\n]{1,500})\][ \t]*")


def app_profile(app: dict[str, Any], files: FileNeeds, filled: Collection[str]) -> Profile:
    """`files` are the platform's own rules, for an app that says nothing."""
    config = as_object(app.get("chatConfig"))
    guide = config.get("questionGuide")
    on = {
        "citations": True,  # they are in the node results of every app
        "suggestions": guide is True or as_object(guide).get("open") is True,
        "speech_to_text": as_object(config.get("whisperConfig")).get("open") is True,
        "text_to_speech": as_object(config.get("ttsConfig")).get("type") == "model",
    }
    selected = as_object(config.get("fileSelectConfig"))
    if selected:
        kinds = [kind for name, kind in _SWITCHES.items() if selected.get(name) is True]
        most = neutral.limit(selected.get("maxFiles"))
        files = FileNeeds(tuple(kinds), most, {}, files.transfer) if kinds else FileNeeds()
    opening, buttons = _opening(as_text(config.get("welcomeText")))
    plugin = as_list(app.get("pluginInputs"))
    inputs = _plugin_schema(plugin, filled) if plugin else _schema(config, filled)
    return Profile(
        title=words(app.get("name"), neutral.MAX_TITLE),
        description=words(app.get("intro")),
        icon=neutral.icon_link(app.get("avatar")),
        opening=words(opening),
        suggestions=neutral.suggestions(buttons),
        inputs=inputs,
        files=files,
        features=frozenset(name for name, is_on in on.items() if is_on),
    )


def _opening(text: str) -> tuple[str, list[str]]:
    """The opening words, and the questions on their buttons."""
    lines = [(line, _BUTTON.fullmatch(line)) for line in text[: neutral.MAX_WORDS].split("\n")]
    buttons = [found[1] for _, found in lines if found]
    return "\n".join(line for line, found in lines if not found), buttons


def _schema(config: dict[str, Any], filled: Collection[str]) -> dict[str, Any]:
    form = Form(filled)
    for each in map(as_object, as_list(config.get("variables"))):
        control = as_text(each.get("type"))
        if control not in _HIDDEN:
            _add(form, each, _kind(control, each))
    return form.schema()


def _plugin_schema(inputs: list[Any], filled: Collection[str]) -> dict[str, Any]:
    """The inputs of a plugin, which takes no question. Its author may offer several controls for
    one; the selected one counts."""
    form = Form(filled)
    for each in map(as_object, inputs):
        controls, at = as_list(each.get("renderTypeList")), each.get("selectedTypeIndex")
        place = at if isinstance(at, int) and 0 <= at < len(controls) else 0
        control = as_text(controls[place]) if controls else ""
        if control not in _INNER:
            _add(form, each, _plugin_kind(control, each))
    return form.schema()


def _add(form: Form, each: dict[str, Any], schema: dict[str, Any]) -> None:
    form.add(
        each.get("key"),
        schema,
        title=each.get("label"),
        description=each.get("description"),
        default=each.get("defaultValue"),
        required=each.get("required"),
    )


def _plugin_kind(control: str, each: dict[str, Any]) -> dict[str, Any]:
    """By its control, else by the type of its value."""
    if control == "fileSelect":
        return _kind("file", each)
    schema = _kind(control, each)
    if "type" in schema:
        return schema
    value_type = as_text(each.get("valueType"))
    if value_type.startswith("array"):
        return {"type": "array", **schema}
    kind = _VALUE_TYPES.get(value_type)
    return {"type": kind, **schema} if kind else schema


def _kind(control: str, each: dict[str, Any]) -> dict[str, Any]:
    text = neutral.text_schema(each.get("maxLength"))
    listed = as_list(each.get("list")) or as_list(each.get("enums"))
    values = neutral.options(as_object(option).get("value") for option in listed)
    if control == "numberInput":
        limits = {"minimum": neutral.number(each.get("min"))}
        limits["maximum"] = neutral.number(each.get("max"))
        return {"type": "number", **{k: v for k, v in limits.items() if v is not None}}
    kinds: dict[str, dict[str, Any]] = {
        "input": text,
        "textarea": {**text, "x-control": "textarea"},
        "select": {"type": "string", **values},
        "multipleSelect": {"type": "array", "items": {"type": "string", **values}},
        "switch": {"type": "boolean"},
        "password": {**text, "writeOnly": True},
        "timePointSelect": {"type": "string", "format": "date-time"},
        "timeRangeSelect": {"type": "array", "items": {"type": "string"}, "maxItems": 2},
        "file": {"type": "array", "items": {"type": "string"}, **_file_control(each)},
        "llmSelect": {"type": "string", "x-control": "llmSelect"},
        "datasetSelect": {"type": "array", "x-control": "datasetSelect"},
    }
    return kinds.get(control, {"x-control": words(control, 50)})


def _file_control(each: dict[str, Any]) -> dict[str, Any]:
    kinds = [kind for name, kind in _SWITCHES.items() if each.get(name) is True]
    most = neutral.limit(each.get("maxFiles"))
    return neutral.file_control(kinds=kinds, max_files=most, transfer=("url",))
