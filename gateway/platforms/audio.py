"""What the audio endpoints of platforms share: parts of long texts, voices, formats and limits."""

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import Field

from gateway.config.models import Agent
from gateway.config.values import OptionalText
from gateway.errors import (
    AudioTooLarge,
    AudioTypeNotTaken,
    EmptyAnswer,
    GatewayError,
    InvalidRequest,
    UpstreamFailed,
)
from gateway.language.sentences import say
from gateway.platforms.base import Decoder, Step
from gateway.protocol.audio import FORMATS, MAX_TEXT, OPENAI_VOICES, Recording, Speech, split_text
from gateway.protocol.exchange import UpstreamReply, UpstreamRequest
from gateway.protocol.messages import ChatRequest, Delta, Failed, Finish, Raw, Text, Usage
from gateway.protocol.sse import SHOWN, Life
from gateway.protocol.wav import WavJoiner

FRESH_S = 300.0
T = TypeVar("T")


class VoiceOptions(Agent):
    """`voices` maps the names of voices that callers send to the platform's own. `voice` is the
    platform's voice for callers who name none, or one of OpenAI's that `voices` lacks."""

    voice: OptionalText = None
    voices: dict[str, str] = Field({})


@dataclass(frozen=True, slots=True)
class Manner:
    """How the platform speaks a text: its voice ("" is its own choice), the format by OpenAI's name
    ("" is unknown), its speed, and the caller's options that are not followed."""

    voice: str
    format: str
    speed: float | None
    changed: tuple[str, ...]


class SpeechEndpoint(ABC):
    """Speaks texts; a long one in several requests, whose answers are joined."""

    platform: ClassVar[str]
    formats: ClassVar[Mapping[str, str]] = {}  # OpenAI's names to the platform's; empty: no choice
    format = ""  # OpenAI's name of the format if the caller's is not among them
    speeds: ClassVar[tuple[float, float] | None] = None  # the slowest and the fastest
    own_voice = ""  # for callers who choose none; "" is the platform's own choice
    most = MAX_TEXT  # of one request, by `measure`
    options: frozenset[str] | None = frozenset(("voice", "response_format", "speed"))
    restarts = False

    def __init__(self, agent: VoiceOptions) -> None:
        self._voice = agent.voice or self.own_voice
        self._voices = {name.lower(): voice for name, voice in agent.voices.items()}

    @abstractmethod
    def request(self, text: str, manner: Manner, chat: ChatRequest) -> Step:
        """The request that speaks one part of the text."""

    @abstractmethod
    def recover(self, reply: UpstreamReply, chat: ChatRequest) -> Step:
        """See `Endpoint.recover`."""

    @staticmethod
    def measure(text: str) -> int:
        return len(text)

    def prepare(self, chat: ChatRequest) -> Step:
        return self._ask(self._parts(chat)[0], chat)

    def decoder(self, chat: ChatRequest) -> Decoder:
        rest = deque(self._parts(chat)[1:])
        return SpeechDecoder(
            self.platform, self.manner(speech_of(chat)), rest, partial(self._ask, chat=chat)
        )

    def as_stream(self, reply: UpstreamReply) -> bytes:
        return b""

    def stop(self, chat: ChatRequest, decoder: Decoder) -> UpstreamRequest | None:
        return None

    def _parts(self, chat: ChatRequest) -> list[str]:
        return split_text(speech_of(chat).text, self.most, self.measure)

    def _ask(self, text: str, chat: ChatRequest) -> Step:
        return self.request(text, self.manner(speech_of(chat)), chat)

    def manner(self, speech: Speech) -> Manner:
        """The nearest that the platform can do to what the caller asks for."""
        changed, name = [], speech.voice.lower()
        voice = self._voices.get(name, speech.voice)
        if name in OPENAI_VOICES and name not in self._voices:
            voice = ""
            changed.append("voice")
        format_ = speech.format if speech.format in self.formats else self.format
        if format_ != speech.format:
            changed.append("response_format")
        speed = speech.speed
        if speed is not None:
            speed = None if self.speeds is None else min(max(speed, self.speeds[0]), self.speeds[1])
            if speed != speech.speed:
                changed.append("speed")
        return Manner(voice or self._voice, format_, speed, tuple(changed))


def speech_of(chat: ChatRequest) -> Speech:
    assert isinstance(chat.audio, Speech)
    return chat.audio


# The first bytes of audio files.
_MARKS = (
    (b"ID3", "mp3"), (b"\xff\xfb", "mp3"), (b"\xff\xf3", "mp3"), (b"\xff\xf2", "mp3"),
    (b"RIFF", "wav"), (b"OggS", "opus"), (b"fLaC", "flac"), (b"\xff\xf1", "aac"),
    (b"\xff\xf9", "aac"),
)  # fmt: skip
_UNKNOWN = "application/octet-stream"


class SpeechDecoder:
    """Gives the bytes of speech as they come. After the end of one request's answer `next_part` is
    the request for the next part of the text."""

    conversation_id = ""
    done = ending = False
    life: Life = SHOWN
    ends_with_connection = True
    pause: dict[str, Any] | None = None

    __slots__ = ("_ask", "_format", "_head", "_joiner", "_platform", "_rest", "changed")

    def __init__(
        self, platform: str, manner: Manner, rest: deque[str], ask: Callable[[str], Step]
    ) -> None:
        self._platform = platform
        self._format = manner.format
        self.changed = manner.changed
        self._rest = rest
        self._ask = ask
        self._joiner = WavJoiner() if rest and manner.format == "wav" else None
        self._head = b""  # the first bytes of the part

    def feed(self, chunk: bytes) -> list[Delta]:
        if len(self._head) < 4:
            self._head = (self._head + chunk)[:4]
        data = chunk if self._joiner is None else self._joiner.feed(chunk)
        return [Raw(data)] if data else []

    def next_part(self) -> Step | None:
        """None after the last part. Raises EmptyAnswer if the part that ends here was empty."""
        if not self._rest:
            return None
        if not self._head:
            raise EmptyAnswer(self._platform)
        self._head = b""
        if self._joiner is not None:
            self._joiner.next_file()
        return self._ask(self._rest.popleft())

    def close(self) -> list[Delta]:
        return [Finish("")] if self._head else [Failed(EmptyAnswer(self._platform))]

    def media_type(self, declared: str) -> str:
        """The type of the answer that has begun; what platforms declare may be anything."""
        if declared.lower().startswith("audio/"):
            return declared
        found = next((name for mark, name in _MARKS if self._head.startswith(mark)), self._format)
        return FORMATS.get(found, _UNKNOWN)

    def usage_so_far(self) -> Usage | None:
        return None

    def pattern(self, chunk: bytes, delta: Delta) -> None:
        return None


class TranscriptionEndpoint(ABC):
    """Transcribes recordings. The platform's limits are checked before anything is sent."""

    platform: ClassVar[str]
    types: ClassVar[Mapping[str, str]]  # extensions of files, with the types to declare for them
    most_mb: ClassVar[int]
    options: frozenset[str] | None = frozenset()
    restarts = False

    @abstractmethod
    def request(self, recording: Recording, mime: str, chat: ChatRequest) -> Step:
        """The request that sends the recording."""

    @abstractmethod
    def text(self, reply: UpstreamReply) -> str:
        """The transcript. Raises the error in a reply that has none."""

    def prepare(self, chat: ChatRequest) -> Step:
        recording = chat.audio
        assert isinstance(recording, Recording)
        self.require_limits(recording)
        return self.request(recording, self.declared(recording), chat)

    def declared(self, recording: Recording) -> str:
        """The media type to declare for the recording."""
        return self.types[recording.extension]

    def require_limits(self, recording: Recording) -> None:
        if recording.extension not in self.types:
            shown = f"'.{recording.extension}'" if recording.extension else say("without an ending")
            raise AudioTypeNotTaken(
                say(
                    "{platform} transcribes no files {ending}; send one of these: {types}.",
                    platform=self.platform,
                    ending=shown,
                    types=", ".join(self.types),
                ),
                param="file",
            )
        self.require_size(recording.size)

    def require_size(self, size: int) -> None:
        """Raises AudioTooLarge for a recording of so many bytes."""
        if size > self.most_mb << 20:
            raise AudioTooLarge(
                say(
                    "The audio file is larger than {most} MB, which is the most that {platform} "
                    "transcribes; send it in parts.",
                    most=self.most_mb,
                    platform=self.platform,
                ),
                param="file",
            )

    def decoder(self, chat: ChatRequest) -> Decoder:
        return TranscriptDecoder(self.text)

    def recover(self, reply: UpstreamReply, chat: ChatRequest) -> Step:
        self.text(reply)
        raise UpstreamFailed("The upstream's answer could not be understood.")

    def as_stream(self, reply: UpstreamReply) -> bytes:
        try:
            self.text(reply)
        except GatewayError:
            return b""
        return reply.body

    def stop(self, chat: ChatRequest, decoder: Decoder) -> UpstreamRequest | None:
        return None


class TranscriptDecoder:
    """Reads a whole reply; `text` is its transcript, or raises the error in it."""

    conversation_id = ""
    done = ending = False
    life: Life = SHOWN
    ends_with_connection = False
    pause: dict[str, Any] | None = None
    changed: tuple[str, ...] = ()

    __slots__ = ("_body", "_text")

    def __init__(self, text: Callable[[UpstreamReply], str]) -> None:
        self._body = bytearray()
        self._text = text

    def feed(self, chunk: bytes) -> list[Delta]:
        self._body += chunk
        return []

    def close(self) -> list[Delta]:
        try:
            text = self._text(UpstreamReply(200, {}, bytes(self._body)))
        except GatewayError as error:
            return [Failed(error)]
        return [Text(text), Finish()]

    def usage_so_far(self) -> Usage | None:
        return None

    def pattern(self, chunk: bytes, delta: Delta) -> None:
        return None


class Remembered(Generic[T]):
    """What a platform has told, for FRESH_S seconds; None before and after."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.now = clock
        self._value: T | None = None
        self._until = 0.0

    def get(self) -> T | None:
        return self._value if self.now() < self._until else None

    def keep(self, value: T | None) -> None:
        self._value, self._until = value, self.now() + FRESH_S


def require_text(speech: Speech) -> None:
    """Raises InvalidRequest for a text that is empty or too long."""
    if not speech.text.strip():
        raise InvalidRequest("'input' is missing: put the text to speak there.", param="input")
    if len(speech.text) > MAX_TEXT:
        raise InvalidRequest(
            say("'input' is longer than {most} characters; send it in parts.", most=MAX_TEXT),
            param="input",
        )
