"""What chat clients add to a conversation by themselves, which no user has written."""

from dataclasses import replace
from typing import Literal

from gateway.protocol.messages import Message

# Open WebUI describes the files of a question in its text, in addition to the files themselves.
FILES, FILES_END = "<attached_files>", "</attached_files>"
# NextChat names a vendor, a model and the time. Three of these marks are needed.
_MADE_UP = ("Knowledge cutoff:", "Current model:", "Current time:", "Latex inline:")


def unwrapped(
    messages: tuple[Message, ...], system: Literal["forward", "drop", "auto"]
) -> tuple[Message, ...]:
    """The turns as their users wrote them. `system` says what happens to system texts: `auto` drops
    those that a client has made up."""
    out = [_unwrapped(turn) for turn in messages if not _is_dropped(turn, system)]
    return tuple(out) if out else messages


def question_of(text: str) -> str:
    """The question in the forms in which Open WebUI and LangBot send it with the files or the
    knowledge for it; another text as it is."""
    stripped = text.strip()
    if stripped.endswith("</user_message>"):
        begin = stripped.rfind("<user_message>")
        return text if begin < 0 else stripped[begin + 14 : -15]
    if stripped.startswith("### Task:") and "<context>" in stripped:
        ends = ("</context>", FILES_END)
    elif stripped.startswith((FILES, "<system_reminder>")):
        ends = (FILES_END, "</system_reminder>")
    else:
        return text
    places = [stripped.rfind(end) + len(end) for end in ends if end in stripped]
    after = max(places, default=0)
    return stripped[after:] if stripped[after:].strip() else text


def _unwrapped(turn: Message) -> Message:
    if turn.role != "user" or FILES not in turn.text:
        return turn
    text = _without_files(turn.text)
    return replace(turn, text=text) if text.strip() or turn.media else turn


def _is_dropped(turn: Message, system: str) -> bool:
    if turn.role != "system" or system == "forward":
        return False
    return system == "drop" or sum([mark in turn.text for mark in _MADE_UP]) >= 3


def _without_files(text: str) -> str:
    """The text without complete blocks that describe files."""
    out, at = [], 0
    while (begin := text.find(FILES, at)) >= 0 and (end := text.find(FILES_END, begin)) >= 0:
        out.append(text[at:begin])
        at = end + len(FILES_END)
    return ("".join(out) + text[at:]).strip() if out else text
