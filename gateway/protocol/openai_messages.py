"""OpenAI's `messages` as turns of the neutral form, and back."""

from collections.abc import Iterator
from typing import Any

from gateway.errors import FileNotFound, InvalidRequest
from gateway.language.sentences import say
from gateway.protocol.messages import Media, Message, Role

MAX_MESSAGES = 5000
MAX_PARTS = 1000  # of one message
MAX_ALL_PARTS = 10_000
MAX_MEDIA = 500  # files of all messages; each may need a look-up, a fetch or an upload

# As clients of OpenAI and of other APIs write them; compared in lower case.
_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
_NAMED = ("system", "developer", "user", "assistant", "tool", "function")
_MEDIA = frozenset(
    (
        "image_url",
        "video_url",
        "input_image",
        "input_audio",
        "file",
        "file_url",
        "input_file",
        "image",
        "document",
    )
)
_GEMINIS = ("inline_data", "inlineData", "file_data", "fileData")
_NO_MEDIA: tuple[Media, ...] = ()


def require_few(messages: Any) -> None:
    """Raises InvalidRequest if all messages together have too many parts or files. The gateway
    examines them even if the upstream validates the messages."""
    if not isinstance(messages, list):
        return
    contents = [_content_of(item) for item in messages if isinstance(item, dict)]
    lists = [content for content in contents if isinstance(content, list)]
    if not lists:
        return
    if sum(map(len, lists)) > MAX_ALL_PARTS:
        message = say("'messages' has more than {most} parts.", most=MAX_ALL_PARTS)
        raise InvalidRequest(message, param="messages")
    parts = (part for parts in lists for part in parts if isinstance(part, dict))
    if sum(map(_is_file, parts)) > MAX_MEDIA:
        message = say("'messages' has more than {most} files.", most=MAX_MEDIA)
        raise InvalidRequest(message, param="messages")


def _is_file(part: dict[str, Any]) -> bool:
    kind = part.get("type")
    if kind is None:
        return any(name in part for name in _GEMINIS)
    return isinstance(kind, str) and kind in _MEDIA


def read_turns(value: Any, *, skips: bool = False) -> tuple[Message, ...]:
    """The turns; the last one is the question.

    Unreadable content of an earlier turn is dropped: the client has it in its history and would
    send it with every question. Only the question itself is refused, unless `skips` ignores unknown
    parts there as well. Raises InvalidRequest that names the message or part.
    """
    if not isinstance(value, list) or not value:
        raise InvalidRequest("'messages' must be a non-empty array.", param="messages")
    if len(value) > MAX_MESSAGES:
        raise InvalidRequest(
            say("'messages' has more than {most} items.", most=MAX_MESSAGES), param="messages"
        )
    if plain := plain_turns(value):
        return plain
    turns = _arranged(value)
    if not skips:
        _require_turn(value[-1], len(value) - 1)
    if not turns:
        raise InvalidRequest("'messages' holds no message.", param="messages")
    question = turns[-1][0]
    return tuple([_turn(value[i], i, role, skips or i != question) for i, role in turns])


def plain_turns(items: Any) -> tuple[Message, ...] | None:
    """The turns of a list in the most common form: plain text of known roles. The result equals
    that of the full path in `read_turns`. None or () for any other list."""
    if type(items) is not list or len(items) > MAX_MESSAGES:
        return None
    out, role = [], None
    for item in items:
        if type(item) is not dict:
            return None
        raw_role, text, call = item.get("role"), item.get("content"), item.get("tool_call_id")
        role = _ROLES.get(raw_role) if type(raw_role) is str else None
        if role is None or type(text) is not str or call is not None:
            return None
        if (role == "assistant" or "parts" in item) and not text.strip():
            return None
        out.append(Message(role, text))
    return None if role == "system" else tuple(out)


def _arranged(items: list[Any]) -> list[tuple[int, Role]]:
    """The indices and roles of the messages that are turns, with the question last.

    User interfaces append an empty answer to fill in later; it is not a turn. Some programs end a
    list with a system turn. After a question it is an instruction for the answer; else it is the
    question itself: clients request summaries and titles of chats that way.
    """
    out = [(i, role) for i, item in enumerate(items) if (role := _role(item)) is not None]
    while out and out[-1][1] == "assistant" and _is_empty(items, out[-1][0]):
        out.pop()
    if out and out[-1][1] == "system":
        trailing = next(
            (n for n, turn in enumerate(reversed(out)) if turn[1] != "system"), len(out)
        )
        at = len(out) - trailing - 1  # of the last other turn before them
        if at >= 0 and out[at][1] == "user":
            out.append(out.pop(at))
        else:
            out[-1] = (out[-1][0], "user")
    return out


def _is_empty(items: list[Any], number: int) -> bool:
    if items[number].get("tool_calls") or items[number].get("function_call"):
        return False
    turn = _turn(items[number], number, "assistant", skips=True)
    return not (turn.text.strip() or turn.media)


def _role(item: Any) -> Role | None:
    raw_role = item.get("role") if isinstance(item, dict) else None
    if not isinstance(raw_role, str):
        return None
    return _ROLES.get(raw_role) or _ROLES.get(raw_role[:20].strip().lower())


def _require_turn(item: Any, number: int) -> None:
    path = f"messages[{number}]"
    if not isinstance(item, dict):
        raise InvalidRequest(say("{path} must be an object.", path=path), param=path)
    if _role(item) is None:
        path += ".role"
        raise InvalidRequest(
            say("{path} must be one of {allowed}.", path=path, allowed=", ".join(_NAMED)),
            param=path,
        )


def _turn(item: dict[str, Any], number: int, role: Role, skips: bool) -> Message:
    text, media = _content_of(item), _NO_MEDIA
    if not isinstance(text, str):
        text, media = _content(text, f"messages[{number}].content", skips)
    call = item.get("tool_call_id")
    return Message(role, text, media, call if isinstance(call, str) else "")


def _content_of(item: dict[str, Any]) -> Any:
    content = item.get("content")
    if content is None or content == "":
        content = item.get("parts", content)  # the AI SDK's own messages, and Gemini's
    return [content] if isinstance(content, dict) else content


def _content(value: Any, path: str, skips: bool) -> tuple[str, tuple[Media, ...]]:
    if value is None:
        return "", ()
    if not isinstance(value, list):
        if skips:
            return "", ()
        raise InvalidRequest(
            say("{path} must be a string or an array of parts.", path=path), param=path
        )
    if len(value) > MAX_PARTS:
        raise InvalidRequest(
            say("{path} has more than {most} parts.", path=path, most=MAX_PARTS), param=path
        )
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


_TEXTS = ("text", "input_text", "output_text", "refusal")
_THOUGHTS = ("thinking", "redacted_thinking", "reasoning", "reasoning_content", "step-start")


def _part(part: Any, path: str) -> str | Media:
    """The text of a part ("" if it holds none for the platform), or its file."""
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise InvalidRequest(say("{path} must be an object.", path=path), param=path)
    kind = part.get("type")
    if kind in _TEXTS or (kind is None and "text" in part):
        text = part.get("refusal" if kind == "refusal" else "text")
        if isinstance(text, dict):  # OpenAI's threads, and FastGPT
            text = text.get("value", text.get("content"))
        return "" if text is None else _string(text, f"{path}.text")
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
    if kind in _THOUGHTS:
        return ""
    if kind == "document" and (text := _text_of_document(part)):
        return text
    if foreign := _foreign_file(part, kind, path):
        return foreign
    if kind in ("file", "file_url", "input_file"):
        return _file(part, kind, path)
    raise InvalidRequest(
        say(
            "{path}.type {type!r} is not understood; use text, image_url, input_audio, "
            "video_url or file.",
            path=path,
            type=str(kind)[:40],
        ),
        param=f"{path}.type",
    )


def _text_of_document(part: dict[str, Any]) -> str:
    """The text of a part that Anthropic's API calls a document; "" if it is a file."""
    source = part.get("source")
    if not isinstance(source, dict) or source.get("type") not in ("text", "content"):
        return ""
    text: Any = source.get("data") or source.get("content")
    if isinstance(text, list):
        texts = (inner.get("text") for inner in text[:MAX_PARTS] if isinstance(inner, dict))
        text = "\n".join(inner for inner in texts if isinstance(inner, str))
    title = part.get("title")
    lines = (title, text) if text else ()
    return "\n".join(line for line in lines if isinstance(line, str) and line)


def _foreign_file(part: dict[str, Any], kind: Any, path: str) -> Media | None:
    """A file in the form of Anthropic's API (`source`), the AI SDK (`image`, `data`) or Gemini
    (`inline_data`, `file_data`); None in any other form."""
    inside = next(filter(None, map(part.get, ("source", *_GEMINIS))), None)
    about: dict[str, Any] = inside if isinstance(inside, dict) else part
    links = (about.get(name) for name in ("data", "url", "file_uri", "fileUri"))
    source = next(filter(None, links), part.get("image"))
    if kind not in ("image", "document", "file", None) or not isinstance(source, str):
        return None
    names = ("media_type", "mime_type", "mimeType", "mediaType")
    mime = next((about[name] for name in names if isinstance(about.get(name), str)), "")
    if "://" not in source[:12] and source[:5].lower() != "data:":
        source = f"data:{mime or 'image/png'};base64,{source}"
    is_image = kind == "image" or mime.startswith("image/")
    name = part.get("filename") or part.get("title")
    url = _url(source, f"{path}.source")
    return Media("image" if is_image else "file", url, name if isinstance(name, str) else "")


def tidy(messages: list[Any]) -> list[dict[str, Any]]:
    """A caller's messages in the form that OpenAI's clients write, in the order of `read_turns`:
    some upstreams refuse a whole list because of one part. Function calls and their results, the
    older form, become tool calls."""
    out = []
    waiting: list[str] = []  # ids of the calls that have no result yet
    for i, role in _arranged(messages):
        content = _content_of(messages[i])
        if isinstance(content, list):
            content = [part for item in content if (part := _tidy_part(item))] or ""
        turn = {name: value for name, value in messages[i].items() if name not in _OLD}
        turn |= {"role": role, "content": content}
        if role == "assistant":
            waiting = _name_calls(turn, messages[i].get("function_call"), f"call_{i}")
        elif role == "tool":
            _name_result(turn, waiting)
        out.append(turn)
    return out


_OLD = ("parts", "function_call")


def _name_calls(turn: dict[str, Any], function: Any, id_: str) -> list[str]:
    """The ids of an answer's calls; a call in the older form without ids gets `id_`."""
    if isinstance(function, dict) and not turn.get("tool_calls"):
        turn["tool_calls"] = [{"id": id_, "type": "function", "function": function}]
    calls = turn.get("tool_calls")
    objects = [call for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    return [call["id"] for call in objects if isinstance(call.get("id"), str)]


def _name_result(turn: dict[str, Any], waiting: list[str]) -> None:
    """Assign a result without an id to the first open call; without one it becomes the
    user's turn."""
    id_ = turn.get("tool_call_id")
    if isinstance(id_, str) and id_:
        waiting[:] = [other for other in waiting if other != id_]
    elif waiting:
        turn["tool_call_id"] = waiting.pop(0)
    else:
        turn["role"] = "user"


_OPENAIS = ("text", "image_url", "video_url", "input_audio", "file", "file_url")


def _tidy_part(part: Any) -> dict[str, Any] | None:
    try:
        read = _part(part, "")
    except InvalidRequest:
        return None
    if isinstance(read, Media):
        is_foreign = part.get("type") not in _OPENAIS or "data" in part
        return media_part(read) if is_foreign else part
    if isinstance(part, dict) and part.get("type") == "text" and read and part["text"] == read:
        return part
    return {"type": "text", "text": read} if read else None


# OpenAI's documented members of a turn, except an answer's `audio`: its id refers to stored data.
_TURN = frozenset(
    ("role", "name", "refusal", "tool_calls", "tool_call_id", "function_call", "reasoning_content")
)
_FILE_IDS = frozenset(("fileid", "fileids", "uploadfileid"))


def narrowed(messages: Any) -> Any:
    """A caller's messages, reduced to what `read_turns` understands. For callers that act for a
    single user: other members might refer to data that the upstream keeps for another user.

    Raises FileNotFound for ids of files at the upstream, where they can be recognised.
    """
    if not isinstance(messages, list):
        return messages
    return [_narrowed_turn(turn) for turn in messages if isinstance(turn, dict)]


def _narrowed_turn(turn: dict[str, Any]) -> dict[str, Any]:
    audio = turn.get("audio")
    if isinstance(audio, dict) and audio.get("id"):
        raise _unknown_file("audio.id")
    content = _content_of(turn)
    if isinstance(content, list):
        content = [new for part in content if (new := _narrowed_part(part))] or ""
    elif not isinstance(content, str | None):
        content = ""
    out = {name: value for name, value in turn.items() if name in _TURN}
    return {**out, "content": content} if "content" in turn or content else out


def _narrowed_part(part: Any) -> dict[str, Any] | None:
    try:
        read = _part(part, "")
    except InvalidRequest:
        _require_no_file(part)
        return None
    if not isinstance(read, Media):
        return {"type": "text", "text": read} if read else None
    new, image_url = media_part(read), part.get("image_url")
    detail = image_url.get("detail") if isinstance(image_url, dict) else part.get("detail")
    if read.kind == "image" and isinstance(detail, str):
        new["image_url"]["detail"] = detail
    return new


def _require_no_file(part: Any) -> None:
    inside = part if isinstance(part, dict) else {}
    for about in (inside, *(value for value in inside.values() if isinstance(value, dict))):
        for name, value in about.items():
            if value and name.replace("_", "").lower() in _FILE_IDS:
                raise _unknown_file(name)


def _unknown_file(name: str) -> FileNotFound:
    return FileNotFound(
        say(
            "{name!r} names no file of this token's user; upload the file with the token "
            "and send {{'type': 'file', 'file': {{'file_id': …}}}}.",
            name=name[:100],
        ),
        param="messages",
    )


def _file(part: dict[str, Any], kind: str, path: str) -> Media:
    if kind == "file_url":  # FastGPT's own form, or Zhipu's
        name, file_url = part.get("name"), part.get("file_url")
        url = part.get("url") or (file_url.get("url") if isinstance(file_url, dict) else file_url)
        return Media("file", _url(url, f"{path}.url"), name if isinstance(name, str) else "")
    file = part if kind == "input_file" else part.get("file")
    file = file if isinstance(file, dict) else {}
    name = file.get("filename")
    if file.get("file_id"):
        id_ = _string(file["file_id"], f"{path}.file.file_id")
        return Media("file", "", name if isinstance(name, str) else "", uploaded=id_)
    url = file.get("file_data") or file.get("file_url") or file.get("url")
    return Media("file", _url(url, f"{path}.file.file_data"), name if isinstance(name, str) else "")


def media_part(media: Media) -> dict[str, Any]:
    """The part of a message that contains a file."""
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
    """A caller's messages, with the files replaced that differ in `turns`, which were read from
    them."""
    out = list(messages)
    for (i, _), turn in zip(_arranged(messages), turns, strict=True):
        if turn.media:
            media = iter(turn.media)
            content = [_put_back(part, media) for part in _content_of(messages[i])]
            out[i] = {**messages[i], "content": content}
    return out


def _put_back(part: Any, media: Iterator[Media]) -> Any:
    try:
        was = _part(part, "")
    except InvalidRequest:
        return part  # a kind that only the upstream knows
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
        raise InvalidRequest(say("{path} must be a string.", path=path), param=path)
    return value


def _url(value: Any, path: str) -> str:
    url = _string(value, path).strip()
    if not url.lower().startswith(("http://", "https://", "data:")):
        raise InvalidRequest(say("{path} must be an http(s) or data: URL.", path=path), param=path)
    return url
