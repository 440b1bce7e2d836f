"""Ids of requests and calls: unique, and not secret."""

import random

# Seeded by the system once: asking it for each id costs a system call.
_bits = random.Random().getrandbits  # noqa: S311


def new_id(digits: int) -> str:
    """`digits` random hexadecimal digits."""
    return "%0*x" % (digits, _bits(4 * digits))  # noqa: UP031 - half the time
