"""OpenAI's `messages` as turns of the neutral form, and back."""

from collections.abc import Iterator
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


_NO_MEDIA: tuple[Media, ...] = ()


def read_turns(value: Any, *, skips: bool = False) -> tuple[Message, ...]:
    """Raises InvalidRequest that names the message or part which cannot be understood, unless it
    `skips` parts of unknown types."""
    if not isinstance(value, list) or not value:
        raise InvalidRequest("'messages' must be a non-empty array.", param="messages")
    if len(value) > MAX_MESSAGES:
        raise InvalidRequest(f"'messages' has more than {MAX_MESSAGES} items.", param="messages")
    return tuple([_turn(item, i, skips) for i, item in enumerate(value)])


def _turn(item: Any, number: int, skips: bool) -> Message:
    if not isinstance(item, dict):
        path = f"messages[{number}]"
        raise InvalidRequest(f"{path} must be an object.", param=path)
    given = item.get("role")
    role = _ROLES.get(given) if isinstance(given, str) else None
    if role is None:
        path = f"messages[{number}].role"
        raise InvalidRequest(f"{path} must be one of {', '.join(_ROLES)}.", param=path)
    text, media = item.get("content"), _NO_MEDIA
    if not isinstance(text, str):
        text, media = _content(text, f"messages[{number}].content", skips)
    call = item.get("tool_call_id")
    return Message(role, text, media, call if isinstance(call, str) else "")


def _content(value: Any, path: str, skips: bool) -> tuple[str, tuple[Media, ...]]:
    if value is None:
        return "", ()
    if not isinstance(value, list):
        raise InvalidRequest(f"{path} must be a string or an array of parts.", param=path)
    if len(value) > MAX_PARTS:
        raise InvalidRequest(f"{path} has more than {MAX_PARTS} parts.", param=path)
    texts: list[str] = []
    media: list[Media] = []
    for i, part in enumerate(value):
        try:
            read = _part(part, f"{path}[{i}]")
        except InvalidRequest:
            if not skips:
                raise
            continue
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
    if kind == "file_url":  # FastGPT's own form, or Zhipu's
        name, given = part.get("name"), part.get("file_url")
        url = part.get("url") or (given.get("url") if isinstance(given, dict) else given)
        return Media("file", _url(url, f"{path}.url"), name if isinstance(name, str) else "")
    file = part.get("file")
    file = file if isinstance(file, dict) else {}
    name = file.get("filename")
    if file.get("file_id"):
        id_ = _string(file["file_id"], f"{path}.file.file_id")
        return Media("file", "", name if isinstance(name, str) else "", uploaded=id_)
    url = file.get("file_data") or file.get("file_url") or file.get("url")
    return Media("file", _url(url, f"{path}.file.file_data"), name if isinstance(name, str) else "")


def media_part(media: Media) -> dict[str, Any]:
    """The part of a message that carries a file."""
    if media.kind in ("image", "video"):
        kind = f"{media.kind}_url"
        return {"type": kind, kind: {"url": media.url}}
    if media.uploaded:
        return {"type": "file", "file": {"file_id": media.uploaded}}
    if media.kind == "audio" and media.is_data:
        head, _, data = media.url.partition(",")
        subtype = head[5:].partition(";")[0].rpartition("/")[2]
        format_ = {"mpeg": "mp3", "x-wav": "wav", "wave": "wav"}.get(subtype, subtype)
        return {"type": "input_audio", "input_audio": {"data": data, "format": format_}}
    return {"type": "file", "file": {"filename": media.name or "file", "file_data": media.url}}


def put_back(messages: list[Any], turns: tuple[Message, ...]) -> list[Any]:
    """A caller's own messages with those files replaced that are another thing in `turns`, which
    were read from them."""
    out = []
    for item, turn in zip(messages, turns, strict=True):
        if turn.media:
            media = iter(turn.media)
            item = {**item, "content": [_put_back(part, media) for part in item["content"]]}
        out.append(item)
    return out


def _put_back(part: Any, media: Iterator[Media]) -> Any:
    try:
        was = _part(part, "")
    except InvalidRequest:
        return part  # of a kind that only the upstream knows
    if not isinstance(was, Media):
        return part
    now = next(media)
    if (now.url, now.uploaded) == (was.url, was.uploaded):
        return part
    new = media_part(now)
    kind = new["type"]
    if part.get("type") == kind and isinstance(part.get(kind), dict):  # keep `detail` and the like
        kept = {k: v for k, v in part[kind].items() if k not in ("file_id", "file_data")}
        new[kind] = {**kept, **new[kind]}
    return {**{k: v for k, v in part.items() if k == "cache_control"}, **new}


def _string(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f"{path} must be a string.", param=path)
    return value


def _url(value: Any, path: str) -> str:
    url = _string(value, path).strip()
    if not url.lower().startswith(("http://", "https://", "data:")):
        raise InvalidRequest(f"{path} must be an http(s) or data: URL.", param=path)
    return url
