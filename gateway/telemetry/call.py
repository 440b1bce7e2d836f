"""One call of the record: filled in while it runs, a row when it is over."""

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache
from hashlib import blake2b
from operator import itemgetter
from typing import Any, Literal

from gateway.accounts.credentials import Caller
from gateway.errors import shorten
from gateway.ids import new_id
from gateway.protocol.messages import Finish, Usage
from gateway.telemetry.traces import NO_TRACE, CallTrace

Surface = Literal["chat", "openai", "passthrough", "audio"]
# The gateway itself, `background.model`, the agent that was asked, or none of them.
AnsweredBy = Literal["gateway", "model", "agent", ""]

# Columns of `calls`, in the order of `Call.row`.
COLUMNS = (
    "id", "request_id", "began_ms", "day", "caller", "key_id", "user_id", "agent", "surface",
    "status", "streamed", "prompt_tokens", "completion_tokens", "total_tokens", "usage",
    "first_delta_ms", "total_ms", "client_gone", "error", "reason", "end_user", "task",
)  # fmt: skip
_NUMBERS = frozenset((
    "began_ms", "status", "streamed", "prompt_tokens", "completion_tokens", "total_tokens",
    "first_delta_ms", "total_ms", "client_gone",
))  # fmt: skip
_COLUMNS_BEFORE = len(COLUMNS) - 1  # of versions without `task`
_LONGEST_USER = 256  # characters of an end user's name
_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_LONGEST = 4096  # characters of a column
_ERROR = COLUMNS.index("error")
_DAY_AT, _FIRST_DELTA_AT = COLUMNS.index("day"), COLUMNS.index("first_delta_ms")
_numbers_of = itemgetter(*map(COLUMNS.index, sorted(_NUMBERS - {"first_delta_ms"})))
_texts_of = itemgetter(*(at for at, name in enumerate(COLUMNS) if name not in _NUMBERS))
Row = tuple[Any, ...]


class Capture:
    """The raw request and answer of a call, each cut at `limit` bytes but counted in full."""

    def __init__(self, limit: int, request: bytes) -> None:
        self._limit = limit
        self.request = request[:limit]
        self.request_size = len(request)
        self.answer = bytearray()
        self.answer_size = 0

    def add(self, frames: bytes) -> None:
        self.answer_size += len(frames)
        if len(self.answer) < self._limit:
            self.answer += frames[: self._limit - len(self.answer)]


@dataclass(slots=True)
class Call:
    """One call. The record gives all anonymous callers one common name instead of their addresses.
    `first_delta_at` is on the monotonic clock."""

    request_id: str
    caller: Caller
    surface: Surface
    end_user: str = ""  # as the caller, or its token, names it
    began_ns: int = field(default_factory=time.time_ns)  # since the epoch
    began: float = field(default_factory=time.monotonic)
    agent: str = ""  # that answered, or was asked last
    model: str = ""  # the requested agent or route, by its name in config.yaml
    provider: str = ""  # the agent's platform
    was_asked: bool = True  # False if the agent was busy or skipped: that uses no quota
    finish: str = ""  # the finish reason, once the answer is complete
    conversation_id: str = ""
    memory: str = ""  # what became of the client's history: new, continue, branch, seed
    task: str = ""  # the kind of background call; "" for a chat
    answered_by: AnsweredBy = ""  # of a background call
    streamed: bool = False
    usage: Usage | None = None
    is_whole: bool = False  # the answer is complete
    first_delta_at: float | None = None
    client_gone: bool = False
    fallbacks: int = 0  # agents of the route that were skipped
    failures: Sequence[tuple[str, str]] = ()  # (agent, code) of each failed attempt
    retries: Sequence[str] = ()  # the agent of each retry
    capture: Capture | None = None
    capture_always: bool = False
    trace: CallTrace = NO_TRACE

    def first_delta(self) -> None:
        """Note that the answer has begun."""
        if self.first_delta_at is None:
            self.first_delta_at = time.monotonic()

    def finished(self, finish: Finish) -> None:
        """Note that the answer is complete."""
        self.usage, self.finish, self.is_whole = finish.usage, finish.reason, True

    def row(self, status: int, error: str, reason: str = "") -> Row:
        """The row of a finished call. Its kind of usage is exact if the platform counted the
        complete answer, partial if it counted an interrupted one, unknown if it counted nothing."""
        usage = self.usage or Usage()
        kind = "unknown" if not usage.total else "exact" if self.is_whole else "partial"
        first = self.first_delta_at
        began_ms = self.began_ns // 1_000_000
        return (
            first_id(self.began_ns) + new_id(8),
            self.request_id,
            began_ms,
            _day(began_ms // 86_400_000),
            "anonymous" if self.caller.is_anonymous else self.caller.id,
            self.caller.key_id,
            self.caller.user_id,
            self.agent if self.was_asked else "",
            self.surface,
            status,
            int(self.streamed),
            usage.prompt,
            usage.completion,
            usage.total,
            kind,
            None if first is None else int((first - self.began) * 1000),
            int((time.monotonic() - self.began) * 1000),
            int(self.client_gone),
            error and _plain(error),
            reason and _plain(shorten(reason)),
            self.end_user and kept_user(self.end_user),
            self.task,
        )

    def bodies(self, row: Row) -> Row | None:
        """(call id, began_ms, request, answer, their sizes), if they are to be stored."""
        kept = self.capture
        if kept is None or not (self.capture_always or row[_ERROR]):
            return None
        texts = (_plain(bytes(b).decode("utf-8", "replace")) for b in (kept.request, kept.answer))
        return (row[0], row[2], *texts, kept.request_size, kept.answer_size)


def read_row(value: Any) -> Row | None:
    """A row that this version or the previous one stored as JSON; None if it is not valid."""
    if not isinstance(value, list):
        return None
    if len(value) == _COLUMNS_BEFORE:
        value = [*value, ""]
    if len(value) != len(COLUMNS):
        return None
    first_delta = value[_FIRST_DELTA_AT]
    numbers = (*_numbers_of(value), 0 if first_delta is None else first_delta)
    texts = _texts_of(value)
    # Checked by C code: every row passes here on its way to the database.
    if set(map(type, numbers)) != {int} or set(map(type, texts)) != {str}:
        return None
    if max(map(abs, numbers)) >= 1 << 62 or max(map(len, texts)) > _LONGEST:
        return None
    return tuple(value) if value[0] and _DAY.fullmatch(value[_DAY_AT]) else None


def read_bodies(value: Any, row: Row) -> Row | None:
    """The bodies that belong to a row, or None if they are not valid."""
    kinds = (str, int, str, str, int, int)
    if not isinstance(value, list) or tuple(map(type, value)) != kinds or value[0] != row[0]:
        return None
    return tuple(value) if all(abs(value[i]) < 1 << 62 for i in (1, 4, 5)) else None


@lru_cache(maxsize=4)
def _day(number: int) -> str:
    """The date YYYY-MM-DD that is `number` days after 1970-01-01."""
    return date.fromordinal(date(1970, 1, 1).toordinal() + number).isoformat()


def first_id(began_ns: int) -> str:
    """The least id of a call that began at that time or later."""
    return f"{began_ns:016x}"


def kept_user(name: str) -> str:
    """An end user's name in the form that the record stores: other users have other forms."""
    if len(name) <= _LONGEST_USER and name.isprintable():
        return name
    name = _plain(name)
    if len(name) > _LONGEST_USER:
        mark = blake2b(name.encode("utf-8", "replace"), digest_size=8).hexdigest()
        name = f"{name[: _LONGEST_USER - 17]}…{mark}"
    return name


def _plain(text: str) -> str:
    """PostgreSQL stores no NUL."""
    return text.replace("\x00", "\ufffd")


def scopes(row: Row) -> Iterator[tuple[str, str]]:
    """The (scope, period) pairs of `usage_totals` in which a row counts; period "" is ever."""
    _, _, _, day, _, key_id, user_id, agent, *_ = row
    if not agent:  # refused before an agent was asked
        return
    if key_id:
        yield f"key:{key_id}", ""
    if user_id:
        yield f"user:{user_id}", ""
        yield f"user:{user_id}", day[:7]
