"""Bodies in charsets other than UTF-8, as Windows and servers in China send them."""

import re

# By the names that shells, programs and servers use.
_CODECS = {
    "gbk": "gb18030", "gb2312": "gb18030", "gb18030": "gb18030", "cp936": "gb18030",
    "x-gbk": "gb18030", "big5": "big5hkscs", "utf-16": "utf-16", "utf16": "utf-16",
    "utf-16le": "utf-16-le", "utf-16be": "utf-16-be", "utf-16-le": "utf-16-le",
    "utf-16-be": "utf-16-be", "unicode": "utf-16", "utf-32": "utf-32",
    "iso-8859-1": "cp1252", "latin1": "cp1252", "windows-1252": "cp1252", "cp1252": "cp1252",
}  # fmt: skip
_CHARSET = re.compile(r"charset\s*=\s*[\"']?([\w.\-]{1,20})", re.IGNORECASE)


def as_utf8(raw: bytes, kind: str) -> bytes:
    """A body in UTF-8, whatever its charset; its first bytes or its `Content-Type` name that."""
    if raw.startswith((b'{"', b"{\n", b"{ ")) and "charset" not in kind.lower():
        return raw  # nearly always
    if raw.startswith(b"\xef\xbb\xbf"):  # editors and shells on Windows add a byte order mark
        return raw[3:]
    codec = _codec(raw[:4], kind)
    # some servers declare Latin-1 and send UTF-8
    if codec is None or (codec == "cp1252" and _is_utf8(raw)):
        return raw
    halves = "replace" if codec.startswith("utf") else "strict"  # lone surrogates
    try:
        return raw.decode(codec, halves).removeprefix("\ufeff").encode()
    except UnicodeError:
        return raw  # it may be UTF-8 whatever it declares


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _codec(begin: bytes, kind: str) -> str | None:
    if begin.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    if b"\0" in begin[:2]:  # JSON begins with an ASCII character
        return "utf-16-be" if begin[:1] == b"\0" else "utf-16-le"
    if "charset" not in kind.lower():
        return None
    found = _CHARSET.search(kind)
    return _CODECS.get(found[1].lower()) if found else None
