"""Which language a caller prefers, by its header `Accept-Language` (RFC 9110, 12.5.4)."""

import re

from gateway.language.sentences import Language

MOST = 500  # characters of the header that are read; browsers send some fifty
_RANGE = re.compile(r"(zh|en|\*)(?:-[a-z0-9-]+)?(?:;q=(0(?:\.\d{0,3})?|1(?:\.0{0,3})?))?")


def preferred(header: str) -> Language:
    """Of Chinese and English the one with the higher weight, or the first of two with the same one.

    `*` means English, and so does a header that names neither.
    """
    if len(header) > MOST:
        header = header[:MOST].rpartition(",")[0]
    best, name = 0.0, "en"
    for entry in header.lower().split(","):
        found = _RANGE.fullmatch("".join(entry.split()))
        weight = float(found[2] or 1) if found else 0.0
        if found and weight > best:
            best, name = weight, found[1]
    return "zh" if name == "zh" else "en"
