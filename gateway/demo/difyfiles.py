"""Dify's rules for files: which uploads it accepts, and which files a question may refer to, as of
1.16."""

import mimetypes
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.demo.base import Form, Upload, new_id
from gateway.demo.difysettings import Settings
from gateway.demo.script import file_name

TENANT = "b83c41fd-f8c3-4802-a4f9-017785ed5cbd"
DEFAULT_USER = "DEFAULT-USER"
_EXTENSIONS = {
    "image": ("jpg", "jpeg", "png", "webp", "gif", "svg"),
    "video": ("mp4", "mov", "mpeg", "webm"),
    "audio": ("mp3", "m4a", "wav", "amr", "mpga"),
    "document": (
        "txt", "md", "mdx", "markdown", "pdf", "html", "htm", "xlsx", "xls", "docx", "csv", "vtt",
        "properties",
    ),
}  # fmt: skip
_TYPES = (*_EXTENSIONS, "custom")


class RefusedInput(Exception):
    """An input or a file that a question may not have; the text is Dify's."""


def extension(name: str) -> str:
    """The extension in lower case and without its dot; empty if there is none."""
    stem, dot, tail = name.rpartition(".")
    return tail.lower() if dot and stem else ""


def kind_of(name: str, mime: str) -> str:
    """Dify's type of a file: by its extension, else by its media type."""
    for kind, extensions in _EXTENSIONS.items():
        if extension(name) in extensions:
            return kind
    for kind in ("image", "video", "audio"):
        if kind in mime:
            return kind
    return "document" if "text" in mime or "pdf" in mime else "custom"


def owner(upload: Upload) -> str:
    return upload.fields.get("user") or DEFAULT_USER


def media_type(upload: Upload) -> str:
    return upload.mime.partition(";")[0].strip().lower()


def upload_problem(form: Form, limits_mb: Mapping[str, int]) -> tuple[int, str, str] | None:
    """(status, code, message), if Dify rejects the form's file."""
    files = dict(reversed(form.files))  # of two of the same name, Dify sees the first
    if "file" not in files:
        return 400, "no_file_uploaded", "Please upload your file."
    if len(files) > 1:
        return 400, "too_many_files", "Only one file is allowed."
    file = files["file"]
    if not media_type(file):
        return 415, "unsupported_file_type", "File type not allowed."
    if not file.name:
        message = "The specified filename does not exist."
        return 400, "filename_not_exists_error", message
    if "/" in file.name or "\\" in file.name:
        return 400, "invalid_param", "Filename contains invalid characters"
    limit_mb = limits_mb.get(kind_of(file.name, ""), limits_mb["other"])
    if file.size > limit_mb << 20:
        # The braces are Dify's: it does not fill them in.
        return 413, "file_too_large", "File size exceeded. {message}"
    return None


def upload_answer(upload: Upload, origin: str) -> dict[str, Any]:
    return {
        "id": upload.id, "reference": None, "name": upload.name, "size": upload.size,
        "extension": extension(upload.name), "mime_type": media_type(upload),
        "created_by": str(uuid.uuid5(uuid.NAMESPACE_OID, owner(upload))),
        "created_at": upload.created_at, "preview_url": None,
        "source_url": _preview_url(upload, origin), "original_url": None, "user_id": None,
        "tenant_id": TENANT, "conversation_id": None, "file_key": None,
    }  # fmt: skip


def _preview_url(upload: Upload, origin: str) -> str:
    signed = f"timestamp={int(time.time())}&nonce={uuid.uuid4().hex}&sign=ZGVtbw%3D%3D"
    return f"{origin}/files/{upload.id}/file-preview?{signed}"


@dataclass(frozen=True)
class GivenFile:
    """A file attached to a question."""

    name: str
    kind: str
    url: str = ""  # of a remote file
    upload: Upload | None = None

    def shown(self, origin: str) -> dict[str, Any]:
        """The file's entry in `message_end`; of a remote file Dify knows only the name."""
        id_, upload = new_id(), self.upload
        return {
            "related_id": id_,
            "extension": f".{extension(self.name)}" if extension(self.name) else "",
            "filename": self.name,
            "size": upload.size if upload else 0,
            "mime_type": media_type(upload) if upload else "application/octet-stream",
            "transfer_method": "local_file" if upload else "remote_url",
            "type": self.kind,
            "url": _preview_url(upload, origin) if upload else self.url,
            "upload_file_id": upload.id if upload else id_,
            "remote_url": self.url,
        }


@dataclass(frozen=True)
class FileCheck:
    """Checks a question's file items."""

    settings: Settings
    find: Callable[[Any], Upload | None]
    user: str

    def all(self, items: Any) -> list[GivenFile]:
        """The files of a `files` list. Items without content are dropped, as Dify does."""
        objects = [item for item in items or [] if isinstance(item, dict)]
        files = [self.one(item) for item in objects if _says_something(item)]
        images = sum(file.kind == "image" for file in files)
        limit = self.settings.file_limit
        if self.settings.is_easy and images > limit:  # an easy app counts images separately
            raise RefusedInput(f"Number of image files exceeds the maximum limit {limit}")
        if len(files) > limit:
            raise RefusedInput(f"Number of files exceeds the maximum limit {limit}")
        return files

    def one(self, item: dict[str, Any]) -> GivenFile:
        method = item.get("transfer_method")
        if not method:
            raise RefusedInput("transfer_method is required in file mapping")
        if method == "local_file":
            file = self._local(item)
        elif method == "remote_url":
            file = self._remote(item)
        else:
            raise RefusedInput(f"'{method}' is not a valid FileTransferMethod")
        if item.get("type", "custom") not in self.settings.file_types:
            raise RefusedInput(f"File validation failed for file: {file.name}")
        return file

    def _local(self, item: dict[str, Any]) -> GivenFile:
        id_ = item.get("upload_file_id")
        if not id_:
            raise RefusedInput("Invalid upload file id")
        if not _is_uuid(id_):
            raise RefusedInput("Invalid upload file id format")
        upload = self.find(id_)
        if upload is None or owner(upload) != self.user:
            raise RefusedInput("Invalid upload file")
        kind = self._kind(item.get("type", "custom"), kind_of(upload.name, media_type(upload)))
        return GivenFile(upload.name, kind, upload=upload)

    def _remote(self, item: dict[str, Any]) -> GivenFile:
        url = str(item.get("url") or item.get("remote_url") or "")
        if not url:
            raise RefusedInput("Invalid file url")
        if not url.startswith(("http://", "https://")):
            raise RefusedInput(
                f"Reached maximum retries (3) for URL {url}"
            )  # Dify could not fetch it either
        name, type_ = file_name(url), item.get("type")
        guessed = mimetypes.guess_type(name)[0] or ""
        # Dify would ask the URL for its media type if the name does not show it.
        detected = kind_of(name, guessed) if extension(name) else str(type_)
        return GivenFile(name, self._kind(type_, detected), url)

    def _kind(self, specified: Any, detected: str) -> str:
        # A workflow requires the type that it detects; the other apps accept the caller's.
        is_strict = self.settings.mode == "workflow"
        if is_strict and specified and specified != detected:
            message = (
                "Detected file type does not match the specified type. Please verify the file."
            )
            raise RefusedInput(message)
        if not specified or specified == "custom":
            return detected
        if specified not in _TYPES:
            raise RefusedInput(f"'{specified}' is not a valid FileType")
        return str(specified)


def _says_something(item: dict[str, Any]) -> bool:
    if item.get("transfer_method") == "remote_url":
        return bool(item.get("url") or item.get("remote_url"))
    return bool(item.get("transfer_method"))


def _is_uuid(value: Any) -> bool:
    try:
        uuid.UUID(str(value))
    except ValueError:
        return False
    return True
