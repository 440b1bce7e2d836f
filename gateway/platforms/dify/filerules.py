"""Which files a Dify app accepts, and how to send them."""

from dataclasses import dataclass, replace
from typing import Any

from gateway.filetypes import KINDS, MediaKind, extension_of, kind_of, mime_of
from gateway.platforms.base import (
    as_list,
    as_object,
    as_text,
)
from gateway.protocol.messages import (
    Media,
)

_TYPES: dict[str, MediaKind] = {
    "image": "image", "document": "file", "audio": "audio", "video": "video", "custom": "file",
}  # fmt: skip


def file(media: Media, rules: "FileRules") -> dict[str, Any]:
    kind = rules.type_of(media)
    if media.uploaded:
        return {"type": kind, "transfer_method": "local_file", "upload_file_id": media.uploaded}
    return {"type": kind, "transfer_method": "remote_url", "url": media.url}


@dataclass(frozen=True, slots=True)
class FileRules:
    """An app's rules for files; the defaults, before the app is asked, accept all files."""

    kinds: frozenset[MediaKind] = frozenset(KINDS)
    takes_links: bool = True
    takes_uploads: bool = True
    types: frozenset[str] = frozenset()  # Dify's names of types; empty if unknown
    endings: frozenset[str] = frozenset()  # extensions of `custom` files, without dots

    def type_of(self, media: Media) -> str:
        """Dify's type for a file: Dify refuses it under any type but the one the app allows."""
        own = "document" if media.kind == "file" else media.kind
        if own == "document" and own in self.types:
            ending = _ending(media)
            is_custom = ending in self.endings and ending not in _DOCUMENTS
            return "custom" if "custom" in self.types and is_custom else own
        return "custom" if "custom" in self.types and own not in self.types else own


# The extensions that Dify itself treats as documents: some versions refuse them as `custom`.
_DOCUMENTS = frozenset((
    "csv", "doc", "docx", "eml", "epub", "html", "markdown", "md", "mdx", "msg", "pdf", "ppt",
    "pptx", "properties", "txt", "vtt", "xls", "xlsx", "xml",
))  # fmt: skip

FORM_FILE = ("file", "file-list")


def _ending(media: Media) -> str:
    if media.is_data and not media.name:
        return ""
    path = media.name or media.url.partition("?")[0].partition("#")[0]
    return extension_of(path.rpartition("/")[2])


def file_rules(
    parameters: dict[str, Any], mode: str | None, form: list[dict[str, Any]]
) -> FileRules:
    """The rules in `/parameters`: a workflow's are in its form field for files, other apps' in
    `file_upload`, which apps made before 0.10 have for pictures only."""
    if mode == "workflow":
        name = field(form, FORM_FILE, "")
        rules = next((f for f in form if name and f.get("variable") == name), {})
        is_on = bool(rules)
    else:
        rules = as_object(parameters.get("file_upload"))
        is_on = rules.get("enabled") is True
        image = as_object(rules.get("image"))
        if not is_on and image.get("enabled") is True:
            methods = image.get("transfer_methods")
            rules = {"allowed_file_types": ["image"], "allowed_file_upload_methods": methods}
            is_on = True
    if "file_upload" not in parameters and mode != "workflow":
        return FileRules()  # unknown
    return read_rules(rules) if is_on else replace(read_rules(rules), kinds=frozenset())


def read_rules(rules: dict[str, Any]) -> FileRules:
    """The rules in a field for files, or in `file_upload`."""
    types = [t for t in as_list(rules.get("allowed_file_types")) if isinstance(t, str)]
    kinds = frozenset(_TYPES[t] for t in types if t in _TYPES) if types else frozenset(KINDS)
    listed = map(as_text, as_list(rules.get("allowed_file_extensions")))
    endings = frozenset(ending.lower().removeprefix(".") for ending in listed)
    if "custom" in types:
        kinds |= {kind_of(mime_of(ending)) for ending in endings}
    methods = as_list(rules.get("allowed_file_upload_methods")) or ["remote_url", "local_file"]
    return FileRules(
        kinds,
        "remote_url" in methods,
        "local_file" in methods,
        frozenset(types),
        endings,
    )


def field(form: list[dict[str, Any]], kinds: tuple[str, ...], otherwise: str = "query") -> str:
    """The form's required field of one of `kinds`, else its first, else `otherwise`."""
    fields = [field for field in form if field["kind"] in kinds]
    fields.sort(key=lambda field: field.get("required") is not True)
    return next(filter(None, (as_text(field.get("variable")) for field in fields)), otherwise)
