"""Multipart bodies, byte for byte."""

import io

import aiohttp

BOUNDARY = "----demo-boundary"
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
PNG = b"\x89PNG\r\n\x1a\n" + bytes(66)  # of the captures' size


def file(
    name: str | None = "红色方块.png",
    content: bytes = PNG,
    mime: str | None = "image/png",
    field: str = "file",
) -> bytes:
    """A part with a file. None omits its file name or its media type."""
    named = f'; filename="{name}"' if name is not None else ""
    typed = f"\r\nContent-Type: {mime}" if mime is not None else ""
    return f'Content-Disposition: form-data; name="{field}"{named}{typed}'.encode() + (
        b"\r\n\r\n" + content
    )


def value(field: str, text: str) -> bytes:
    return f'Content-Disposition: form-data; name="{field}"\r\n\r\n{text}'.encode()


def body(*parts: bytes) -> bytes:
    line = f"--{BOUNDARY}".encode()
    return b"".join(line + b"\r\n" + part + b"\r\n" for part in parts) + line + b"--\r\n"


async def send(url: str, *parts: bytes, key: str = "", data: bytes | None = None):
    """(status, JSON answer) of a form."""
    headers = {**FORM, "Authorization": f"Bearer {key}"}
    content = io.BytesIO(body(*parts) if data is None else data)
    async with (
        aiohttp.ClientSession() as client,
        client.post(url, data=content, headers=headers) as answer,
    ):
        return answer.status, await answer.json()
