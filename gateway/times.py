"""Time: milliseconds since the epoch inside, ISO 8601 outside.

The API uses UTC; the log uses the machine's own time zone (TZ) with its offset.
"""

import re
import time
from datetime import UTC, datetime
from email.utils import formatdate
from functools import lru_cache

LATEST_MS = 253_370_764_800_000  # 9999-01-01, near the end of Python's calendar


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def iso(ms: int | None) -> str | None:
    """ISO 8601, or None for no time and for one out of range."""
    if ms is None or not 0 <= ms < LATEST_MS:
        return None
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="seconds")


def stamp(now_s: float) -> str:
    """The time of a log line, with milliseconds, since many lines share a second."""
    second = int(now_s)
    date, offset = _second(second)
    return f"{date}.{int((now_s - second) * 1000):03d}{offset}"


def local_second(second: int) -> str:
    """The same without milliseconds, for people: `2026-11-28 20:19:07+08:00`."""
    date, offset = _second(second)
    return f"{date.replace('T', ' ')}{offset}"


@lru_cache(maxsize=2)
def _second(number: int) -> tuple[str, str]:
    text = datetime.fromtimestamp(number, UTC).astimezone().isoformat(timespec="seconds")
    return text[:19], text[19:]


def http_date(now_s: float) -> str:
    """The value of the header `Date`."""
    return _http_second(int(now_s))


@lru_cache(maxsize=2)
def _http_second(number: int) -> str:
    return formatdate(number, usegmt=True)


def read_iso(text: str) -> int:
    """Milliseconds since the epoch; without an offset it is UTC. Raises ValueError.

    An unencoded `+` in a query arrives as a space, so a space before an offset counts as a plus.
    """
    moment = datetime.fromisoformat(re.sub(r"(T.*) (\d\d:?\d\d)$", r"\1+\2", text.strip()))
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    try:
        ms = int(moment.timestamp() * 1000)
    except OverflowError:
        raise ValueError("out of reach") from None
    if not 0 <= ms < LATEST_MS:
        raise ValueError("out of reach")
    return ms
