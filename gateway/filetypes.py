"""File types, by the extension of a name and by a file's first bytes."""

import mimetypes
from collections.abc import Collection
from typing import Any, Literal

from gateway.errors import UnsupportedMediaType
from gateway.language.sentences import say

MediaKind = Literal["image", "file", "audio", "video"]
KINDS: tuple[MediaKind, ...] = ("image", "file", "audio", "video")

HEAD = 8192  # bytes at a file's beginning that identify its type

_TYPES = {
    "jpg": "image/jpeg", "jpeg": "image/jpeg", "png": "image/png", "gif": "image/gif",
    "webp": "image/webp", "svg": "image/svg+xml", "bmp": "image/bmp",
    "pdf": "application/pdf", "doc": "application/msword", "txt": "text/plain",
    "md": "text/markdown", "csv": "text/csv",
    "docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    "pptx": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    "mp3": "audio/mpeg", "wav": "audio/wav", "ogg": "audio/ogg", "flac": "audio/flac",
    "m4a": "audio/mp4",
    "mp4": "video/mp4", "avi": "video/x-msvideo", "mov": "video/quicktime",
    "wmv": "video/x-ms-wmv", "webm": "video/webm",
    "zip": "application/zip", "rar": "application/vnd.rar", "7z": "application/x-7z-compressed",
}  # fmt: skip
DEFAULT_EXTENSIONS = tuple(ending for ending in _TYPES if ending not in ("bmp", "webm"))

_EXTENSIONS = {mime: ending for ending, mime in reversed(_TYPES.items())}
_EXTENSIONS |= {"audio/x-wav": "wav", "audio/wave": "wav", "image/jpg": "jpg", "audio/mp3": "mp3"}
# Python's own table, not the machine's: the same file must have the same type everywhere.
_OTHERS = mimetypes.MimeTypes(filenames=())
_ZIPPED = {"docx", "xlsx", "pptx", "odt", "ods", "odp", "epub"}
_PAGES = (b"<!doctype html", b"<html", b"<head", b"<body", b"<script", b"<iframe", b"<?php", b"#!")
_CONTROL = bytes(set(range(32)) - {9, 10, 12, 13, 27})
# Types that browsers display without running anything in them.
_HARMLESS = ("image/", "audio/", "video/", "text/plain", "application/pdf")


def extension_of(name: str) -> str:
    """The extension in lower case without its dot, or ""."""
    stem, dot, ending = name.rpartition(".")
    ending = ending.lower()
    return ending if dot and stem and ending.isascii() and ending.isalnum() else ""


def mime_of(extension: str) -> str:
    """The media type for files with that extension."""
    known = _TYPES.get(extension) or _OTHERS.guess_type(f"x.{extension}")[0]
    return known or "application/octet-stream"


def served_as(mime: str) -> str:
    """The `Content-Type` for a file. Text is declared as UTF-8, which nearly all of it is; without
    a charset browsers would guess a Western one."""
    return f"{mime}; charset=utf-8" if mime.startswith("text/") else mime


def extension_for(mime: str) -> str:
    """The usual extension for a media type, or ""."""
    mime = mime.partition(";")[0].strip().lower()
    return _EXTENSIONS.get(mime) or (_OTHERS.guess_extension(mime) or "").removeprefix(".")


def kind_of(mime: str) -> MediaKind:
    """The kind of file that platforms use for a media type."""
    family = mime.partition("/")[0].strip().lower()
    return next((kind for kind in KINDS if kind == family), "file")


def is_shown(mime: str) -> bool:
    """Whether a browser may display it under the gateway's address; SVG and HTML can run
    scripts."""
    return mime.startswith(_HARMLESS) and mime != "image/svg+xml"


def checked(name: str, head: bytes, allowed: Collection[str]) -> str:
    """The extension to store a file under, from its name and its first bytes.

    Raises UnsupportedMediaType for an extension, or a content, that is not in `allowed`. An image
    with another image format's extension gets the right one.
    """
    extension = extension_of(name)
    if extension not in allowed:
        shown = f"'.{extension}'" if extension else say("without an ending")
        known = ", ".join(allowed)
        raise UnsupportedMediaType(
            say(
                "Files {ending} are not taken here. Allowed: {allowed}.",
                ending=shown,
                allowed=known,
            ),
            param="file",
        )
    family = mime_of(extension).partition("/")[0]
    found = None if _is_text(head) else _guess(head)
    if found is not None:
        if found.mime.startswith("image/") and family == "image" and found.extension in allowed:
            return extension if (extension, found.extension) == ("jpeg", "jpg") else found.extension
        if not _fits(extension, family, found):
            raise _not_what_it_seems(extension, found.mime)
    elif family == "image" and extension in _TYPES and extension != "svg":
        raise _not_what_it_seems(extension, say("no picture"))
    elif (family == "text" or extension == "svg") and not _is_text(head):
        raise _not_what_it_seems(extension, say("not text"))
    elif family not in ("image", "text") and head.lstrip().lower().startswith(_PAGES):
        raise _not_what_it_seems(extension, say("a page or a script"))
    return extension


def _guess(head: bytes) -> Any:
    import filetype  # takes a megabyte: imported at the first upload

    return filetype.guess(head)


def _fits(extension: str, family: str, found: Any) -> bool:
    """Whether content of the type `found` may have that extension. Audio and video share
    containers."""
    if family in ("audio", "video"):
        return str(found.mime).startswith(("audio/", "video/"))
    boxes = {"zip", *_ZIPPED}
    return bool(found.extension == extension) or {extension, found.extension} <= boxes


def _is_text(head: bytes) -> bool:
    """Text in any encoding has no control characters but the usual ones; UTF-16 has, but begins
    with a byte order mark."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return True
    return len(head) == len(head.translate(None, _CONTROL))


def _not_what_it_seems(extension: str, found: str) -> UnsupportedMediaType:
    return UnsupportedMediaType(
        say(
            "The file is named '.{extension}' but its content is {content}.",
            extension=extension,
            content=found,
        ),
        param="file",
    )
