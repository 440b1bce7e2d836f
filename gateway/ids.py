"""Ids of requests and calls: unique, and not secret."""

import random
import time

# Seeded by the system once: asking it for each id costs a system call.
_bits = random.Random().getrandbits  # noqa: S311


def new_id(digits: int) -> str:
    """`digits` random hexadecimal digits."""
    return "%0*x" % (digits, _bits(4 * digits))  # noqa: UP031 - half the time


def new_request_id() -> str:
    """Begins with the time: new entries then go to the end of the record's index, however large it
    is."""
    return f"req-{time.time_ns() // 1_000_000:011x}{new_id(13)}"
