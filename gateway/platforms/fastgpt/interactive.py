"""Questions that a FastGPT bot waits on: what they ask, and which answers they accept."""

from typing import Any

from gateway.platforms.base import as_list, as_object, as_text
from gateway.platforms.pauses import Field, Pause


def innermost(asked: dict[str, Any]) -> dict[str, Any]:
    """The question itself: tools, sub-apps and loops wrap it, possibly several times."""
    for _ in range(20):
        inner = as_object(as_object(asked.get("params")).get("childrenResponse"))
        if not inner:
            break
        asked = inner
    return asked


def _options(params: dict[str, Any]) -> list[str]:
    choices = as_list(params.get("userSelectOptions")) or as_list(params.get("options"))
    return [as_text(choice) or as_text(as_object(choice).get("value")) for choice in choices]


def pause_in(params: dict[str, Any]) -> Pause:
    fields = []
    for entry in map(as_object, as_list(params.get("inputForm"))):
        key, label = as_text(entry.get("key")), as_text(entry.get("label"))
        fields.append(Field(key, label, entry.get("valueType") == "number"))
    return Pause(tuple(_options(params)), tuple(fields))


def stored_pause(records: dict[str, Any]) -> Pause | None:
    """The pause of the latest stored answer, or None."""
    stored = [as_object(item) for item in as_list(as_object(records.get("data")).get("list"))]
    if not stored or stored[-1].get("obj") != "AI":
        return None
    for part in map(as_object, as_list(stored[-1].get("value"))):
        if asked := as_object(part.get("interactive")):
            return pause_in(as_object(innermost(asked).get("params")))
    return None


def interactive_text(params: dict[str, Any]) -> str:
    lines = [as_text(params.get("description")) or as_text(params.get("content"))]
    lines += [f"{i}. {option}" for i, option in enumerate(_options(params), 1)]
    for entry in as_list(params.get("inputForm")):
        lines.append(f"- {as_text(as_object(entry).get('label'))}")
    return "\n".join(line for line in lines if line)
