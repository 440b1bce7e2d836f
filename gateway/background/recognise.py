"""Find out whether a request is a background call: `recognise`, and `marked` for callers that say
so themselves."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from gateway.background.rules import RULES, Rule, Shape
from gateway.background.spoken import spoken
from gateway.background.tasks import Kind, Task

# Characters of a text that are looked at: a bound on the work, whatever a request holds.
_HEAD, _TAIL, _OPENING = 8192, 4096, 600
_PARTS = 8  # parts of one turn

_SAMPLING = frozenset(("temperature", "top_p", "presence_penalty", "frequency_penalty", "seed"))


def _by_shape(*, streamed: bool) -> dict[Shape, tuple[Rule, ...]]:
    rules = [rule for rule in RULES if not (streamed and rule.whole)]
    return {
        shape: tuple([rule for rule in rules if rule.shape == shape])
        for shape in ("lone", "pair", "history", "closing")
    }


_RULES = {streamed: _by_shape(streamed=streamed) for streamed in (False, True)}


class _Turns(NamedTuple):
    """The texts of a request, by `Place`; `first` is the first user turn of a conversation."""

    head: str
    tail: str
    opening: str
    system: str
    before: str
    first: str


def recognise(body: Mapping[str, Any]) -> Task | None:
    """The background call that an OpenAI chat body is, or None: nearly always, so that an ordinary
    chat costs some tests of lengths and short texts only. A call with tools, or one that names its
    conversation, is a chat."""
    if body.get("tools") or body.get("functions"):
        return None
    if body.get("conversation_id") or body.get("chat_id"):
        return None
    messages = body.get("messages")
    if type(messages) is not list or not messages:
        return None
    shape = _shape(messages)
    text = _text(messages[-1]) if shape is not None else ""
    if not text:
        return None
    assert shape is not None
    system = ""
    if shape != "lone" and _role(messages[0]) == "system":
        system = _text(messages[0])[:_HEAD]
    stated = (system if shape == "pair" else text)[:_OPENING]  # where the task is stated
    terms: tuple[str, ...] = ()  # several rules in a row have the same ones
    has_term = False
    for rule in _RULES[body.get("stream") is True][shape]:
        if not (text.startswith(rule.begins) and text.endswith(rule.ends)):
            continue
        if not _allows(rule, body, text) or (rule.quotes and "\n" not in stated):
            continue
        if rule.terms and rule.terms is not terms:
            terms, has_term = rule.terms, _has_any(stated, rule.terms)
        if rule.terms and not has_term:
            continue
        turns = _turns(messages, text, system)
        if all([found(getattr(turns, place)) for place, found in rule.marks]):
            return _task(rule.kind, rule.key, turns)
    return None


def _allows(rule: Rule, body: Mapping[str, Any], text: str) -> bool:
    """Whether the request has the options and the length that the rule names."""
    if rule.longest is not None and len(text) > rule.longest:
        return False
    if rule.most_tokens is not None and not 0 < _most_tokens(body) <= rule.most_tokens:
        return False
    if rule.bare and not body.keys().isdisjoint(_SAMPLING):
        return False
    return not rule.schema or _schema_member(body) == rule.schema


def marked(kind: Kind, body: Mapping[str, Any]) -> Task:
    """The call as its caller declares it. A JSON object is the answer's form if the prompt has an
    example of one."""
    task = recognise(body)
    if task is not None and task.kind == kind:
        return task
    messages = body.get("messages")
    if type(messages) is not list or not messages:
        return Task(kind)
    turns = _turns(messages, _text(messages[-1]), "")
    key = _KEYS.get(kind, "")
    has_example = key and re.search(rf'\{{\s*"{key}"\s*:', turns.head)
    task = _task(kind, key if has_example else "", turns)
    asked = turns.head[:_OPENING]  # where the prompt quotes no conversation
    return task._replace(first=task.first or asked, last=task.last or asked)


_KEYS: dict[Kind, str] = {rule.kind: rule.key for rule in RULES if rule.key}


def _task(kind: Kind, key: str, turns: _Turns) -> Task:
    if kind == "language":
        return Task(kind, key, last=turns.head.strip("{}"))
    first, last = spoken(turns.head, turns.tail)
    return Task(kind, key, turns.first or first, last or turns.first)


def _shape(messages: list[Any]) -> Shape | None:
    role = _role(messages[-1])
    count = len(messages)
    if count == 1:
        return "lone" if role == "user" else None
    if role == "user":
        if count > 2:
            return "history"
        return "pair" if _role(messages[0]) == "system" else None
    if role == "system" and count > 2 and _role(messages[-2]) == "assistant":
        return "closing"
    return None


def _role(message: Any) -> str | None:
    role = message.get("role") if type(message) is dict else None
    return "system" if role == "developer" else role


def _text(message: Any) -> str:
    """The turn's text; "" if it has a file, since no background call has."""
    content = message.get("content") if type(message) is dict else None
    if type(content) is str:
        return content
    if type(content) is not list or len(content) > _PARTS:
        return ""
    texts = [part.get("text") if type(part) is dict else None for part in content]
    return "\n".join(texts) if all([type(text) is str for text in texts]) else ""  # type: ignore[arg-type]


def _turns(messages: list[Any], text: str, system: str) -> _Turns:
    before = first = ""
    if len(messages) > 2:
        before = _text(messages[-2])[:_OPENING]
        start = 1 if _role(messages[0]) == "system" else 0
        first = _text(messages[start])[:_OPENING] if _role(messages[start]) == "user" else ""
    return _Turns(text[:_HEAD], text[-_TAIL:], text[:_OPENING], system, before, first)


def _has_any(text: str, terms: tuple[str, ...]) -> bool:
    for term in terms:  # noqa: SIM110 - a generator costs more than the loop
        if term in text:
            return True
    return False


def _most_tokens(body: Mapping[str, Any]) -> int:
    """The limit of tokens, or 0."""
    most = body.get("max_tokens") or body.get("max_completion_tokens")
    return most if type(most) is int else 0


def _schema_member(body: Mapping[str, Any]) -> str:
    """The only member of the JSON that `response_format` asks for, or ""."""
    found: Any = body.get("response_format")
    for name in ("json_schema", "schema", "properties"):
        found = found.get(name) if type(found) is dict else None
    return next(iter(found)) if type(found) is dict and len(found) == 1 else ""
