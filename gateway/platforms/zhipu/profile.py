"""The profile of an application on Zhipu's platform: its variables. It tells nothing else."""

from typing import Any

from gateway.filetypes import MediaKind
from gateway.platforms.base import as_list, as_object, as_text
from gateway.protocol import profile as neutral
from gateway.protocol.profile import FileNeeds, Form, Profile

_FILES: dict[str, MediaKind] = {
    "upload_file": "file", "upload_image": "image", "upload_video": "video",
    "upload_audio": "audio",
}  # fmt: skip
_ITEMS = ("selection_list", *_FILES)


def application_profile(variables: list[Any], files: FileNeeds) -> Profile:
    """From the data of `/v2/application/{app_id}/variables`. No variable is marked as required."""
    form = Form()
    for each in map(as_object, variables):
        form.add(each.get("name"), _kind(each), description=each.get("tips"))
    return Profile(inputs=form.schema(), files=files)


def item_types(variables: list[Any]) -> dict[str, str]:
    """The type of the item that sets a variable in a question, by name; all others are `input`."""
    known = [each for each in map(as_object, variables) if _control(each) in _ITEMS]
    return {as_text(each.get("name")): _control(each) for each in known}


def _control(variable: dict[str, Any]) -> str:
    return as_text(variable.get("type")).lower()


def _kind(each: dict[str, Any]) -> dict[str, Any]:
    control = _control(each)
    if control in _FILES:
        items = {"type": "string"}
        return {"type": "array", "items": items, **neutral.file_control(kinds=[_FILES[control]])}
    if control == "selection_list":
        template = as_object(each.get("input_template"))
        listed = as_list(each.get("allowed_values")) or as_list(template.get("options"))
        return {"type": "string", **neutral.options(listed)}
    return {"type": "string"} if control == "input" else {"x-control": neutral.words(control, 50)}
