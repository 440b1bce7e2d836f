"""What a model says in one message or delta: text, a list of parts, pictures.

Servers that speak OpenAI's protocol differ in this most of all. Mistral sends its thinking as
parts, FastGPT wraps a part's text in an object, OpenRouter and LiteLLM put pictures into `images`.
"""

import re
from collections.abc import Iterator
from typing import Any

from gateway.messages import Delta, Note, Reasoning, Text

MAX_PARTS = 1000  # of one message
_THINKING = ("thinking", "reasoning", "reasoning_text", "summary_text", "think")
_PICTURES = ("image_url", "image", "output_image", "input_image")
_FILES = ("file", "file_url", "audio", "audio_url", "video", "video_url")
_LINK = re.compile(r"(?i:https?://|data:)")


def read_content(value: Any) -> list[Delta]:
    """The deltas of a `content`: a string, one part, or a list of parts."""
    if isinstance(value, str):
        return [Text(value)] if value else []
    out: list[Delta] = []
    for part in _parts(value):
        out += _read_part(part)
    return out


def plain_text(value: Any) -> str:
    """The text in a `content`, without thinking and pictures."""
    return "".join(delta.text for delta in read_content(value) if isinstance(delta, Text))


def read_pictures(value: Any) -> list[Delta]:
    """The deltas of an `images`: parts, or addresses alone."""
    return [
        delta
        for part in _parts(value)
        for delta in _read_file("image", {"url": part} if isinstance(part, str) else part)
    ]


def files_note(files: list[dict[str, str]]) -> Note:
    """Files of the bot, each {type, url, name}, also for callers who are shown text alone."""
    return Note("files", files, markdown(files))


def markdown(files: list[dict[str, str]]) -> str:
    """Links to files, and pictures that most front ends show: "" for none."""
    return "\n\n".join(
        f"{'!' if file['type'] == 'image' else ''}[{_label(file)}]({_address(file['url'])})"
        for file in files
        if _LINK.match(file["url"])
    )


def _parts(value: Any) -> list[Any]:
    return value[:MAX_PARTS] if isinstance(value, list) else [value]


def _read_part(part: Any) -> Iterator[Delta]:
    if isinstance(part, str):
        part = {"text": part}
    if not isinstance(part, dict):
        return
    kind = part.get("type")
    if kind in _THINKING:
        if text := _text(part.get(kind)) or _text(part):
            yield Reasoning(text)
    elif kind in _PICTURES or kind in _FILES:
        yield from _read_file("image" if kind in _PICTURES else kind.removesuffix("_url"), part)
    elif text := _text(part):
        yield Text(text)


def _text(value: Any, depth: int = 0) -> str:
    """The text in a part, which may be wrapped."""
    if isinstance(value, str) or depth > 3:
        return value if isinstance(value, str) else ""
    if isinstance(value, list):
        return "".join(_text(item, depth + 1) for item in value[:MAX_PARTS])
    if not isinstance(value, dict):
        return ""
    names = ("text", "content", "value", "refusal")
    return next((text for name in names if (text := _text(value.get(name), depth + 1))), "")


def _read_file(kind: str, part: Any) -> Iterator[Delta]:
    if not isinstance(part, dict):
        return
    name = part.get("name") or part.get("filename")
    if url := _url(part):
        yield files_note(
            [{"type": kind, "url": url, "name": name if isinstance(name, str) else ""}]
        )


def _url(part: dict[str, Any], depth: int = 0) -> str:
    """Where a file is: a link, or a `data:` URL made of its bytes in base64."""
    for name in (
        "url",
        "file_url",
        "image_url",
        "image",
        "file",
        "audio_url",
        "video_url",
        "source",
    ):
        inner = part.get(name)
        if isinstance(inner, str) and _LINK.match(inner):
            return inner
        if isinstance(inner, dict) and depth < 3 and (url := _url(inner, depth + 1)):
            return url
    data = part.get("b64_json") or part.get("data")
    if isinstance(data, str) and data:
        media_type = part.get("media_type") or part.get("mime_type")
        return f"data:{media_type if isinstance(media_type, str) else 'image/png'};base64,{data}"
    return ""


def _label(file: dict[str, str]) -> str:
    return re.sub(r"[\[\]\\\n\r]", " ", file["name"])[:200] or file["type"]


def _address(url: str) -> str:
    return url.replace(" ", "%20").replace("(", "%28").replace(")", "%29").replace("\n", "")
