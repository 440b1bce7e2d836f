"""The profile of a FastGPT app, from `/core/chat/init`."""

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
    return Profile(
        title=words(app.get("name"), neutral.MAX_TITLE),
        description=words(app.get("intro")),
        icon=neutral.icon_link(app.get("avatar")),
        opening=words(config.get("welcomeText")),
        inputs=_schema(as_list(config.get("variables")), filled),
        files=files,
        features=frozenset(name for name, is_on in on.items() if is_on),
    )


def _schema(variables: list[Any], filled: Collection[str]) -> dict[str, Any]:
    form = Form(filled)
    for each in map(as_object, variables):
        control = as_text(each.get("type"))
        if control not in _HIDDEN:
            form.add(
                each.get("key"),
                _kind(control, each),
                title=each.get("label"),
                description=each.get("description"),
                default=each.get("defaultValue"),
                required=each.get("required"),
            )
    return form.schema()


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
        "file": {"type": "array", "items": {"type": "string"}, "x-control": "file"},
        "llmSelect": {"type": "string", "x-control": "llmSelect"},
        "datasetSelect": {"type": "array", "x-control": "datasetSelect"},
    }
    return kinds.get(control, {"x-control": words(control, 50)})
