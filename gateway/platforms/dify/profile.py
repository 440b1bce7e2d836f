"""The profile of a Dify app, from `/info`, `/parameters` and `/site`."""

from collections.abc import Collection
from typing import Any

from gateway.filetypes import MediaKind
from gateway.platforms.base import as_list, as_object, as_text
from gateway.platforms.dify.filerules import FORM_FILE, FileRules, field, read_rules
from gateway.protocol import profile as neutral
from gateway.protocol.profile import FileNeeds, Form, Profile, words

_MB = 1 << 20
_SIZES: dict[MediaKind, str] = {
    "image": "image_file_size_limit", "audio": "audio_file_size_limit",
    "video": "video_file_size_limit", "file": "file_size_limit",
}  # fmt: skip
_SWITCHES = {
    "suggestions": "suggested_questions_after_answer",
    "citations": "retriever_resource",
    "speech_to_text": "speech_to_text",
    "text_to_speech": "text_to_speech",
}


def read_profile(
    info: dict[str, Any],
    parameters: dict[str, Any],
    site: dict[str, Any],
    inputs: dict[str, Any],
    files: FileNeeds,
) -> Profile:
    on = [
        name
        for name, member in _SWITCHES.items()
        if as_object(parameters.get(member)).get("enabled") is True
    ]
    return Profile(
        title=words(info.get("name"), neutral.MAX_TITLE)
        or words(site.get("title"), neutral.MAX_TITLE),
        description=words(info.get("description")) or words(site.get("description")),
        icon=_icon(site),
        opening=words(parameters.get("opening_statement")),
        suggestions=neutral.suggestions(parameters.get("suggested_questions")),
        inputs=inputs,
        files=files,
        features=frozenset(on),
    )


def _icon(site: dict[str, Any]) -> dict[str, str] | None:
    if site.get("icon_type") == "emoji" and (emoji := words(site.get("icon"), 20)):
        background = words(site.get("icon_background"), 20)
        return {"emoji": emoji, **({"background": background} if background else {})}
    return neutral.icon_link(site.get("icon_url"))


def schema(
    form: list[dict[str, Any]], asked_in: Collection[str], filled: Collection[str]
) -> dict[str, Any]:
    """The form's inputs without those of `asked_in`, which the gateway fills with the question and
    its files."""
    out = Form(filled)
    for each in form:
        name, control = each.get("variable"), as_text(each.get("kind"))
        kind = _kind(control, each)
        if name in asked_in or kind is None:
            continue
        is_hidden = {"x-hidden": True} if each.get("hide") is True else {}
        out.add(
            name,
            kind | is_hidden,
            title=each.get("label"),
            description=each.get("description") or each.get("hint"),
            default=each.get("default"),
            required=each.get("required"),
        )
    return out.schema()


def _kind(control: str, each: dict[str, Any]) -> dict[str, Any] | None:
    """The schema of a control; None for what Dify fills by itself."""
    most = neutral.limit(each.get("max_length"))
    if control == "text-input":
        return neutral.text_schema(most)
    if control == "paragraph":
        return {**neutral.text_schema(most), "x-control": "textarea"}
    if control == "select":
        return {"type": "string", **neutral.options(as_list(each.get("options")))}
    if control in FORM_FILE:
        return _file_kind(control, each, most)
    if control == "json_object":
        members = neutral.object_schema(each.get("json_schema"))
        return {"type": "object", **members, "x-control": control}
    if control == "external_data_tool":
        return None
    plain = {"number": "number", "checkbox": "boolean"}
    if control in plain:
        return {"type": plain[control]}
    return {"x-control": words(control, 50)}


def _file_kind(control: str, each: dict[str, Any], most: int | None) -> dict[str, Any]:
    rules, is_list = read_rules(each), control == "file-list"
    ways = (("url", rules.takes_links), ("upload", rules.takes_uploads))
    has_ways = bool(as_list(each.get("allowed_file_upload_methods")))
    about = neutral.file_control(
        control,
        kinds=rules.kinds if rules.types else (),
        extensions=rules.endings,
        max_files=most if is_list else 1,
        transfer=(way for way, is_open in ways if is_open and has_ways),
    )
    if not is_list:
        return {"type": "object", **about}
    limit = {"maxItems": most} if most else {}
    return {"type": "array", "items": {"type": "object"}, **limit, **about}


def file_needs(
    parameters: dict[str, Any], mode: str, form: list[dict[str, Any]], rules: FileRules
) -> FileNeeds:
    """Limits in addition to the rules: the number of files, and the server's sizes."""
    if not rules.kinds:
        return FileNeeds()
    upload = as_object(parameters.get("file_upload"))
    most = upload.get("number_limits") or as_object(upload.get("image")).get("number_limits")
    if mode == "workflow":
        name = field(form, FORM_FILE, "")
        own: dict[str, Any] = next((f for f in form if f.get("variable") == name), {})
        most = own.get("max_length") if own.get("kind") == "file-list" else 1
    sizes = as_object(parameters.get("system_parameters"))
    limits = {kind: neutral.limit(sizes.get(_SIZES[kind])) for kind in rules.kinds}
    ways = (("url", rules.takes_links), ("upload", rules.takes_uploads))
    return FileNeeds(
        neutral.kinds_in_order(rules.kinds),
        neutral.limit(most),
        {kind: mb * _MB for kind, mb in sorted(limits.items()) if mb},
        tuple(way for way, is_open in ways if is_open),
    )
