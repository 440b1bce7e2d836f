"""The profile of a RAGFlow assistant or agent. Its prompts come with it, and are never read."""

from collections.abc import Collection
from typing import Any

from gateway.platforms.base import as_list, as_object, as_text
from gateway.protocol import loosejson
from gateway.protocol import profile as neutral
from gateway.protocol.profile import FileNeeds, Form, Profile, words

_KNOWLEDGE = "knowledge"  # RAGFlow fills it with what it has retrieved


def chat_profile(data: dict[str, Any], files: FileNeeds, filled: Collection[str]) -> Profile:
    """From an assistant: newer servers have `icon` and `prompt_config`, older ones `avatar` and
    `prompt`."""
    newer = as_object(data.get("prompt_config"))
    prompt = newer or as_object(data.get("prompt"))
    parameters = as_list(prompt.get("parameters")) or as_list(prompt.get("variables"))
    form = Form(filled)
    for each in map(as_object, parameters):
        if each.get("key") != _KNOWLEDGE:
            is_needed = each.get("optional") is False
            form.add(each.get("key"), neutral.text_schema(), required=is_needed)
    on = {
        "citations": prompt.get("quote", prompt.get("show_quote")) is not False,
        "text_to_speech": prompt.get("tts") is True,
    }
    return Profile(
        title=words(data.get("name"), neutral.MAX_TITLE),
        description=words(data.get("description")),
        icon=neutral.picture(data.get("icon") or data.get("avatar")),
        opening=words(prompt.get("prologue") or prompt.get("opener")),
        inputs=form.schema(),
        files=files,
        features=frozenset(name for name, is_on in on.items() if is_on),
    )


def agent_profile(data: dict[str, Any], files: FileNeeds, filled: Collection[str]) -> Profile:
    """From an agent, whose Begin component has the opening words and the inputs."""
    begin = _begin(data.get("dsl"))
    opens = begin.get("enablePrologue") is not False
    return Profile(
        title=words(data.get("title"), neutral.MAX_TITLE),
        description=words(data.get("description")),
        icon=neutral.picture(data.get("avatar")),
        opening=words(begin.get("prologue")) if opens else "",
        inputs=_inputs(begin, filled),
        files=files,
        features=frozenset(("citations",)),
    )


def _begin(dsl: Any) -> dict[str, Any]:
    """The parameters of the Begin component. Some versions send the graph as JSON text."""
    if isinstance(dsl, str):
        try:
            dsl = loosejson.loads(dsl.encode("utf-8", "replace"))
        except loosejson.NotJson:
            return {}
    for component in as_object(as_object(dsl).get("components")).values():
        about = as_object(as_object(component).get("obj"))
        if as_text(about.get("component_name")).lower() == "begin":
            return as_object(about.get("params"))
    return {}


def _inputs(begin: dict[str, Any], filled: Collection[str]) -> dict[str, Any]:
    """`inputs` by name; before 0.20 the list `query`."""
    form = Form(filled)
    named = list(as_object(begin.get("inputs")).items())
    listed = [(as_object(each).get("key"), each) for each in as_list(begin.get("query"))]
    for name, each in named or listed:
        about = as_object(each)
        title = about.get("name")
        form.add(
            name,
            _kind(about),
            title="" if title == name else title,
            default=about.get("value"),
            required=about.get("optional") is False,
        )
    return form.schema()


def _kind(about: dict[str, Any]) -> dict[str, Any]:
    control = as_text(about.get("type"))
    if control == "paragraph":
        return {"type": "string", "x-control": "textarea"}
    if control == "options":
        return {"type": "string", **neutral.options(as_list(about.get("options")))}
    simple = {"line": "string", "integer": "number", "boolean": "boolean"}
    if control in simple:
        return {"type": simple[control]}
    return neutral.file_control() if control == "file" else {"x-control": words(control, 50)}
