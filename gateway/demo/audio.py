"""Audio of the simulators: speech is a tone as long as its text, transcripts name what arrived."""

import asyncio
import math
import struct
from functools import cache

from aiohttp import web

from gateway.demo.base import Demo, Upload
from gateway.demo.script import speak

_RATE = 24_000  # samples per second, of 16 bits, mono
_BLOCK_S = 0.1  # of sound for each character
_TYPES = {"mp3": "audio/mpeg", "wav": "audio/wav", "pcm": "audio/pcm", "ogg_opus": "audio/ogg"}
# One frame of MP3: MPEG 1, layer III, 128 kbit/s, 44.1 kHz. Its sound is silence.
_MP3_FRAME = b"\xff\xfb\x90\xc4" + bytes(413)


def fault_in(text: str) -> str:
    """The fault that the text asks for."""
    return speak("", text, []).fault


async def spoken(
    demo: Demo, request: web.Request, text: str, form: str = "mp3", declared: str = ""
) -> web.StreamResponse:
    """The text as a sound, in a chunk for each character; `declared` replaces the usual type."""
    kind = declared or _TYPES[form]
    response = web.StreamResponse(headers={"Content-Type": kind})
    await response.prepare(request)
    characters = len(text) or 1
    if form == "wav":
        await response.write(_wav_head(characters * len(_samples())))
    fault = fault_in(text)
    if fault == "slow":
        await asyncio.sleep(demo.silence_s)
    for i in range(characters):
        await asyncio.sleep(demo.pace_s)
        if i == 5 and fault in ("cut", "break"):
            if request.transport is not None:
                request.transport.abort()
            return response
        await response.write(_samples() if form in ("wav", "pcm") else _MP3_FRAME)
    await response.write_eof()
    return response


def transcript(demo: Demo, upload: Upload) -> str:
    """The text of a recording; what was received is all that a demo knows of it."""
    return f"{demo.platform} 演示（demo）：{upload.name}，{upload.mime}，{upload.size} bytes"


@cache
def _samples() -> bytes:
    count = int(_RATE * _BLOCK_S)
    tone = (int(3000 * math.sin(2 * math.pi * 440 * i / _RATE)) for i in range(count))
    return struct.pack(f"<{count}h", *tone)


def _wav_head(size: int) -> bytes:
    form = struct.pack("<IHHIIHH", 16, 1, 1, _RATE, _RATE * 2, 2, 16)
    return (
        b"RIFF"
        + struct.pack("<I", 36 + size)
        + b"WAVEfmt "
        + form
        + b"data"
        + struct.pack("<I", size)
    )
