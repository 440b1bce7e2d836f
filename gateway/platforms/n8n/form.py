"""A question with files, as a form: the JSON's members as fields, and a part `files` for each."""

import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from gateway.filetypes import extension_for
from gateway.platforms.base import dump
from gateway.protocol.data_url import read_data
from gateway.protocol.messages import Media

_MIME = re.compile(r"[\w.+-]+/[\w.+-]+", re.ASCII)
_ESCAPES = str.maketrans({'"': "%22", "\r": "%0D", "\n": "%0A"})  # as browsers write names


def encode(members: Mapping[str, Any], files: Sequence[Media]) -> tuple[str, bytes]:
    """(content type, body). Text stays as it is, other values are JSON. `files` have `data:` URLs.

    Raises InvalidRequest if a URL cannot be read.
    """
    # Unguessable: the sender of a file could else close the form and add fields.
    boundary = f"gateway-{secrets.token_hex(16)}"
    parts = []
    for name, value in members.items():
        content = value.encode("utf-8", "replace") if isinstance(value, str) else dump(value)
        parts.append((f'name="{name.translate(_ESCAPES)}"', content))
    for media in files:
        mime, content = read_data(media.url)
        mime = mime if _MIME.fullmatch(mime) else "application/octet-stream"
        name = (media.name or f"{media.kind}.{extension_for(mime) or 'bin'}").translate(_ESCAPES)
        parts.append((f'name="files"; filename="{name}"\r\nContent-Type: {mime}', content))
    body = []
    for head, content in parts:
        start = f"--{boundary}\r\nContent-Disposition: form-data; {head}\r\n\r\n"
        body += [start.encode("utf-8", "replace"), content, b"\r\n"]
    body.append(f"--{boundary}--\r\n".encode())
    return f"multipart/form-data; boundary={boundary}", b"".join(body)
