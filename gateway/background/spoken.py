"""What a user said in a conversation that a prompt quotes as text."""

import json
import re

_OPENED = re.compile(r"<chat_?history>\s*", re.IGNORECASE)
_CLOSED = re.compile(r"</chat_?history>", re.IGNORECASE)
_USER = re.compile(r"^[ \t]*(?:user|human|用户)\s*[:：][ \t]*", re.IGNORECASE | re.MULTILINE)
_ANY = re.compile(
    r"^[ \t]*(?:user|human|用户|assistant|ai|助手)\s*[:：]", re.IGNORECASE | re.MULTILINE
)
_TAGGED = re.compile(r"<user>(.*?)</user>", re.IGNORECASE | re.DOTALL)
_JSON = re.compile(
    r'"role"\s*:\s*"user"[^{}]*?"(?:mainText|content)"\s*:\s*("(?:[^"\\]|\\.)*")', re.DOTALL
)
_FENCED = re.compile(r"\n```\n(.*?)(?:\n-{5,}\n|\n```|\Z)", re.DOTALL)


def spoken(head: str, tail: str) -> tuple[str, str]:
    """The user's first and last turn; `head` and `tail` are the ends of the prompt's text."""
    if opened := list(_OPENED.finditer(head)):
        head = head[opened[-1].end() :]
    first, last = _turns(head), _turns(_CLOSED.split(tail)[0])
    if not first:
        fenced = _FENCED.search(head)
        return (fenced[1].strip(), "") if fenced else ("", "")
    return first[0], last[-1] if last else first[-1]


def _turns(text: str) -> list[str]:
    if quoted := _JSON.findall(text):
        return [_string(one) for one in quoted]
    if tagged := _TAGGED.findall(text):
        return [one.strip() for one in tagged]
    return [_until_next(text, found.end()) for found in _USER.finditer(text)]


def _until_next(text: str, start: int) -> str:
    end = _ANY.search(text, start)
    turn = text[start : end.start() if end else len(text)]
    return _CLOSED.split(turn)[0].strip()


def _string(quoted: str) -> str:
    try:
        return str(json.loads(quoted, strict=False))
    except ValueError:
        return ""
