"""Ids of requests and calls: unique, and not secret."""

import random

_random = random.Random()  # noqa: S311 - seeded by the system; asking it each time costs a syscall


def new_id(digits: int) -> str:
    """`digits` random hexadecimal digits."""
    return f"{_random.getrandbits(4 * digits):0{digits}x}"
