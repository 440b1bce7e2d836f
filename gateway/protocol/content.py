"""The content of one message or delta: text, a list of parts, pictures.

OpenAI-compatible servers differ most in this. Mistral sends thinking as parts, FastGPT wraps a
part's text in an object, OpenRouter and LiteLLM put pictures into `images`, speech models put the
transcript into `audio`, and old servers put the answer into `text`.
"""

import re
from collections.abc import Iterator
from typing import Any

from gateway.protocol.messages import Delta, Note, Reasoning, Text

MAX_PARTS = 1000  # of one message
_THINKING = ("thinking", "reasoning", "reasoning_text", "summary_text", "think")
_PICTURES = ("image_url", "image", "output_image", "input_image")
_FILES = ("file", "file_url", "audio", "audio_url", "video", "video_url")
_LINK = re.compile(r"(?i:https?://|data:)")


def read_message(choice: dict[str, Any]) -> list[Delta]:
    """The deltas of a choice's content, in whichever member it is; without `reasoning_content`,
    `images` and tool calls."""
    message = message_of(choice)
    audio = message.get("audio")
    spoken = audio.get("transcript") if isinstance(audio, dict) else None
    for value in (
        message.get("content"), message.get("refusal"), spoken, message.get("text"),
        choice.get("text"),
    ):  # fmt: skip
        if deltas := read_content(value):
            return deltas
    return []


def message_of(choice: dict[str, Any]) -> dict[str, Any]:
    """A choice's `delta`, or its `message` in a whole answer."""
    for name in ("delta", "message"):
        message = choice.get(name)
        if isinstance(message, dict) and message:
            return message
    return {}


_LABELS = ("role", "content", "text", "type", "id", "name", "object")


def says_something(choice: dict[str, Any]) -> bool:
    """Whether a choice has text, thinking, calls or any other content."""
    message = message_of(choice)
    role = message.get("role")
    values = (value for name, value in message.items() if name not in _LABELS)
    return any(value and value != role for value in values) or bool(read_message(choice))


def read_content(value: Any) -> list[Delta]:
    """The deltas of a `content`: a string, a number, one part, or a list of parts."""
    if isinstance(value, str):
        return [Text(value)] if value else []
    if isinstance(value, int | float) and not isinstance(value, bool):
        return [Text(str(value))]
    out: list[Delta] = []
    for part in _parts(value):
        out += _read_part(part)
    return out


def plain_text(value: Any) -> str:
    """The text in a `content`, without thinking and pictures."""
    return "".join(delta.text for delta in read_content(value) if isinstance(delta, Text))


def read_pictures(value: Any) -> list[Delta]:
    """The deltas of an `images` member: parts or plain URLs."""
    return [
        delta
        for part in _parts(value)
        for delta in _read_file("image", {"url": part} if isinstance(part, str) else part)
    ]


def files_note(files: list[dict[str, str]]) -> Note:
    """A note with the bot's files, each {type, url, name}, and with links for text-only clients."""
    return Note("files", files, markdown(files))


def markdown(files: list[dict[str, str]]) -> str:
    """Markdown links to files, and images that most front ends display; "" for none."""
    return "\n\n".join(
        f"{'!' if file['type'] == 'image' else ''}[{_label(file)}]({_address(file['url'])})"
        for file in files
        if _LINK.match(file["url"])
    )


def _parts(value: Any, depth: int = 0) -> list[Any]:
    """The parts of a list, which may hold lists."""
    if not isinstance(value, list) or depth > 3:
        return [value]
    out: list[Any] = []
    for item in value[:MAX_PARTS]:
        out += _parts(item, depth + 1)
        if len(out) >= MAX_PARTS:
            break
    return out[:MAX_PARTS]


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
    elif not kind:
        yield from _read_file(_kind_of(part), part)


def _kind_of(part: dict[str, Any]) -> str:
    """The kind of a file in a part without a type: Gemini's `inline_data` and `file_data`."""
    inner = next((value for value in part.values() if isinstance(value, dict)), part)
    kind = _media_type(inner).partition("/")[0]
    return kind if kind in ("image", "audio", "video") else "file"


def _media_type(part: dict[str, Any]) -> str:
    names = ("media_type", "mime_type", "mimeType")
    return next((part[name] for name in names if isinstance(part.get(name), str)), "")


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
    """A file's URL: a link, or a `data:` URL made from its base64 bytes."""
    for name in (
        "url",
        "file_url",
        "image_url",
        "image",
        "file",
        "audio_url",
        "video_url",
        "source",
        "inline_data",
        "inlineData",
        "file_data",
        "fileData",
        "file_uri",
        "fileUri",
    ):
        inner = part.get(name)
        if isinstance(inner, str) and _LINK.match(inner):
            return inner
        if isinstance(inner, dict) and depth < 3 and (url := _url(inner, depth + 1)):
            return url
    data = part.get("b64_json") or part.get("data")
    if isinstance(data, str) and data:
        return f"data:{_media_type(part) or 'image/png'};base64,{data}"
    return ""


def _label(file: dict[str, str]) -> str:
    return re.sub(r"[\[\]\\\n\r]", " ", file["name"])[:200] or file["type"]


def _address(url: str) -> str:
    return url.replace(" ", "%20").replace("(", "%28").replace(")", "%29").replace("\n", "")
