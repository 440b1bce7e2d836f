"""The profile of a Coze bot or workflow. The bot's prompt comes with it, and is never read."""

from typing import Any

from gateway.filetypes import MediaKind
from gateway.platforms.base import as_list, as_object, as_text
from gateway.protocol import profile as neutral
from gateway.protocol.profile import FileNeeds, Form, Profile, words

_TYPES = frozenset(("string", "integer", "number", "boolean", "object", "array"))
_FILES: dict[str, tuple[MediaKind, ...]] = {
    "file": (), "image": ("image",), "svg": ("image",), "audio": ("audio",), "voice": ("audio",),
    "video": ("video",), "doc": ("file",), "txt": ("file",), "excel": ("file",), "ppt": ("file",),
    "code": ("file",), "zip": ("file",),
}  # fmt: skip
_MAX_DEPTH = 3
_OWN = ("USER_INPUT", "CONVERSATION_NAME")  # Coze fills them with the question


def bot_profile(data: dict[str, Any], files: FileNeeds) -> Profile:
    """From the data of `/v1/bots/{id}`."""
    onboarding = as_object(data.get("onboarding_info"))
    mode = as_text(as_object(data.get("suggest_reply_info")).get("reply_mode"))
    on = {
        "suggestions": mode not in ("", "disable"),
        "text_to_speech": bool(as_list(data.get("voice_info_list"))),
    }
    return Profile(
        title=words(data.get("name"), neutral.MAX_TITLE),
        description=words(data.get("description")),
        icon=neutral.icon_link(data.get("icon_url")),
        opening=words(onboarding.get("prologue")),
        suggestions=neutral.suggestions(onboarding.get("suggested_questions")),
        inputs=_variables(as_list(data.get("variables"))),
        files=files,
        features=frozenset(name for name, is_on in on.items() if is_on),
    )


def _variables(variables: list[Any]) -> dict[str, Any]:
    """A bot's variables are strings, and a question may leave out any of them."""
    form = Form()
    for each in map(as_object, variables):
        if each.get("enable") is not False and each.get("channel") in (None, "", "custom"):
            form.add(
                each.get("keyword"),
                neutral.text_schema(),
                description=each.get("description"),
                default=each.get("default_value"),
            )
    return form.schema()


def workflow_profile(data: dict[str, Any], files: FileNeeds) -> Profile:
    """From the data of `/v1/workflows/{id}`. Coze Studio has a `role` and no inputs."""
    detail, role = as_object(data.get("workflow_detail")), as_object(data.get("role"))
    onboarding = as_object(role.get("onboarding_info"))
    form = Form()
    for name, each in as_object(as_object(data.get("input")).get("parameters")).items():
        if name not in _OWN:
            about = as_object(each)
            form.add(
                name,
                _schema(about, 0),
                description=about.get("description"),
                default=about.get("default_value"),
                required=about.get("required"),
            )
    title = words(role.get("name"), neutral.MAX_TITLE)
    return Profile(
        title=title or words(detail.get("workflow_name"), neutral.MAX_TITLE),
        description=words(role.get("description")) or words(detail.get("description")),
        icon=neutral.icon_link(detail.get("icon_url")),
        opening=words(onboarding.get("prologue")),
        suggestions=neutral.suggestions(onboarding.get("suggested_questions")),
        inputs=form.schema(),
        files=files,
    )


def _schema(about: dict[str, Any], depth: int) -> dict[str, Any]:
    """Coze names types as JSON Schema does; a file goes as a string with its id."""
    kind = as_text(about.get("type"))
    if depth < _MAX_DEPTH and kind == "array" and (items := as_object(about.get("items"))):
        return {"type": "array", "items": _schema(items, depth + 1)}
    if depth < _MAX_DEPTH and kind == "object":
        return _object(as_object(about.get("properties")), depth)
    if kind in _TYPES:
        return {"type": kind}
    if kind in _FILES:
        return {"type": "string", **neutral.file_control(words(kind, 50), kinds=_FILES[kind])}
    return {"type": "string", "x-control": words(kind, 50)}


def _object(properties: dict[str, Any], depth: int) -> dict[str, Any]:
    form = Form()
    for name, each in properties.items():
        about = as_object(each)
        form.add(
            name,
            _schema(about, depth + 1),
            description=about.get("description"),
            required=about.get("required"),
        )
    return form.schema() if properties else {"type": "object"}
