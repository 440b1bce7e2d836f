"""Audio in the neutral form: a text to speak, and a recording to transcribe."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from gateway.protocol.exchange import UpstreamRequest

MAX_TEXT = 4096  # characters of a text to speak, as at OpenAI

# Formats of speech by OpenAI's names, with their media types.
FORMATS = {
    "mp3": "audio/mpeg", "opus": "audio/ogg", "aac": "audio/aac", "flac": "audio/flac",
    "wav": "audio/wav", "pcm": "audio/pcm",
}  # fmt: skip
# Extensions of recordings by media types, as browsers and phones declare them.
_EXTENSIONS = {
    "audio/mpeg": "mp3", "audio/mp3": "mp3", "audio/wav": "wav", "audio/x-wav": "wav",
    "audio/wave": "wav", "audio/mp4": "m4a", "audio/m4a": "m4a", "audio/x-m4a": "m4a",
    "audio/aac": "aac", "audio/ogg": "ogg", "audio/opus": "opus", "audio/webm": "webm",
    "audio/flac": "flac", "audio/amr": "amr", "video/mp4": "mp4", "video/webm": "webm",
}  # fmt: skip
# Voices by OpenAI's names. Clients send one of them to any model.
OPENAI_VOICES = frozenset(
    (
        "alloy", "ash", "ballad", "cedar", "coral", "echo", "fable", "marin", "nova", "onyx",
        "sage", "shimmer", "verse",
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Speech:
    """A text to speak. `format` is one of FORMATS; "" and None are what the caller leaves open."""

    text: str
    voice: str = ""
    format: str = ""
    speed: float | None = None


def extension_for(mime: str) -> str:
    """The extension of a recording of that media type, or ""."""
    return _EXTENSIONS.get(mime.partition(";")[0].strip().lower(), "")


class AsForm(Protocol):
    def __call__(
        self, url: str, headers: Mapping[str, str], fields: Mapping[str, str], mime: str
    ) -> UpstreamRequest:
        """The request that sends the `fields`, then the file as `mime` in the part `file`."""


@dataclass(frozen=True, slots=True)
class Recording:
    """An audio file to transcribe: its extension ("" if unknown), its size in bytes and the text
    fields of the caller's form."""

    extension: str
    size: int
    fields: Mapping[str, str]
    as_form: AsForm


# Where a text may be divided, the best place first: after a line, a sentence, a clause, a word.
_ENDS = tuple(
    re.compile(pattern)
    for pattern in (r"\n", r"[。！？!?；;…]+[”’」』）)\"']*|\.(?=\s)", r"[，、,：:]", r"\s")
)


def split_text(text: str, most: int, measure: Callable[[str], int] = len) -> list[str]:
    """The text in parts that measure at most `most` each, divided where a speaker would pause."""
    parts, rest = [], text.strip()
    while measure(rest) > most:
        head = _longest(rest, most, measure)
        ends = (_last_end(pattern, head) for pattern in _ENDS)
        at = next((end for end in ends if end), len(head))
        parts.append(rest[:at].strip())
        rest = rest[at:].strip()
    return [part for part in (*parts, rest) if part]


def _longest(text: str, most: int, measure: Callable[[str], int]) -> str:
    """The longest beginning that measures at most `most`; at least one character."""
    low, high = 1, min(len(text), most)
    while low < high:
        middle = (low + high + 1) // 2
        if measure(text[:middle]) <= most:
            low = middle
        else:
            high = middle - 1
    return text[:low]


def _last_end(pattern: re.Pattern[str], head: str) -> int:
    """Where the last match in the second half of `head` ends; 0 if there is none."""
    ends = [found.end() for found in pattern.finditer(head) if found.end() > len(head) // 2]
    return ends[-1] if ends else 0


def in_bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
