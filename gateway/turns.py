"""OpenAI's `messages` as turns of the neutral form."""

from typing import Any

from gateway.errors import InvalidRequest
from gateway.messages import Media, Message, Role

MAX_MESSAGES = 5000
MAX_PARTS = 1000  # of one message

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}


def read_turns(value: Any) -> tuple[Message, ...]:
    """Raises InvalidRequest that names the message or part which cannot be understood."""
    if not isinstance(value, list) or not value:
        raise InvalidRequest("'messages' must be a non-empty array.", param="messages")
    if len(value) > MAX_MESSAGES:
        raise InvalidRequest(f"'messages' has more than {MAX_MESSAGES} items.", param="messages")
    return tuple(_turn(item, f"messages[{i}]") for i, item in enumerate(value))


def _turn(item: Any, path: str) -> Message:
    if not isinstance(item, dict):
        raise InvalidRequest(f"{path} must be an object.", param=path)
    given = item.get("role")
    role = _ROLES.get(given) if isinstance(given, str) else None
    if role is None:
        known = ", ".join(_ROLES)
        raise InvalidRequest(f"{path}.role must be one of {known}.", param=f"{path}.role")
    text, media = _content(item.get("content"), f"{path}.content")
    call = item.get("tool_call_id")
    return Message(role, text, media, call if isinstance(call, str) else "")


def _content(value: Any, path: str) -> tuple[str, tuple[Media, ...]]:
    if value is None:
        return "", ()
    if isinstance(value, str):
        return value, ()
    if not isinstance(value, list):
        raise InvalidRequest(f"{path} must be a string or an array of parts.", param=path)
    if len(value) > MAX_PARTS:
        raise InvalidRequest(f"{path} has more than {MAX_PARTS} parts.", param=path)
    texts: list[str] = []
    media: list[Media] = []
    for i, part in enumerate(value):
        read = _part(part, f"{path}[{i}]")
        if isinstance(read, Media):
            media.append(read)
        elif read:
            texts.append(read)
    return "\n".join(texts), tuple(media)


def _part(part: Any, path: str) -> str | Media:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise InvalidRequest(f"{path} must be an object.", param=path)
    kind = part.get("type")
    if kind in ("text", "input_text", "output_text", "refusal"):
        return _string(part.get("refusal" if kind == "refusal" else "text"), f"{path}.text")
    if kind in ("image_url", "video_url", "input_image"):
        url = part.get("image_url" if kind == "input_image" else kind)
        url = url.get("url") if isinstance(url, dict) else url
        return Media("video" if kind == "video_url" else "image", _url(url, f"{path}.{kind}.url"))
    if kind == "input_audio":
        audio = part.get("input_audio")
        audio = audio if isinstance(audio, dict) else {}
        data = _string(audio.get("data"), f"{path}.input_audio.data")
        format_ = "mpeg" if audio.get("format") == "mp3" else "wav"
        return Media("audio", f"data:audio/{format_};base64,{data}")
    if kind in ("file", "file_url"):
        return _file(part, kind, path)
    raise InvalidRequest(
        f"{path}.type {str(kind)[:40]!r} is not understood; use text, image_url, input_audio,"
        " video_url or file.",
        param=f"{path}.type",
    )


def _file(part: dict[str, Any], kind: str, path: str) -> Media:
    if kind == "file_url":  # FastGPT's own form
        name = part.get("name")
        return Media(
            "file", _url(part.get("url"), f"{path}.url"), name if isinstance(name, str) else ""
        )
    file = part.get("file")
    file = file if isinstance(file, dict) else {}
    if file.get("file_id"):
        raise InvalidRequest(
            f"{path}.file.file_id: uploaded files cannot be referred to by id here; send file_data"
            " or a URL.",
            param=f"{path}.file.file_id",
        )
    name = file.get("filename")
    url = file.get("file_data") or file.get("file_url") or file.get("url")
    return Media("file", _url(url, f"{path}.file.file_data"), name if isinstance(name, str) else "")


def _string(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f"{path} must be a string.", param=path)
    return value


def _url(value: Any, path: str) -> str:
    url = _string(value, path).strip()
    if not url.lower().startswith(("http://", "https://", "data:")):
        raise InvalidRequest(f"{path} must be an http(s) or data: URL.", param=path)
    return url
