"""`data:` URLs."""

import base64
import binascii
from urllib.parse import unquote_to_bytes

from gateway.errors import InvalidRequest

MAX_ESCAPED = 100_000  # characters of a URL that is percent-encoded


def read_data(url: str) -> tuple[str, bytes]:
    """(media type, content) of a `data:` URL. Raises InvalidRequest."""
    head, comma, body = url.partition(",")
    mime = head[5:].partition(";")[0].strip().lower()
    if not comma:
        raise InvalidRequest("A data: URL has no comma, so no data.", param="files")
    if not head.lower().endswith(";base64"):
        if len(body) > MAX_ESCAPED:
            raise InvalidRequest("A data: URL of that length must be base64.", param="files")
        return mime or "text/plain", unquote_to_bytes(body)
    body = "".join(body.split()).translate(_URL_SAFE).rstrip("=")
    try:
        data = base64.b64decode(body + "=" * (-len(body) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest("A data: URL is not valid base64.", param="files") from None
    if not data:
        raise InvalidRequest("A data: URL is empty.", param="files")
    return mime or "application/octet-stream", data


_URL_SAFE = str.maketrans("-_", "+/")
