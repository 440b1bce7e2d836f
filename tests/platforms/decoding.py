"""Feed a decoder and summarize its deltas, for the tests of all platforms."""

import json
from pathlib import Path
from typing import Any

from gateway.config import kinds
from gateway.platforms.base import Decoder
from gateway.protocol.messages import (
    Begin,
    ChatRequest,
    Delta,
    Failed,
    Finish,
    Message,
    Note,
    Raw,
    Reasoning,
    Replace,
    Text,
    ToolCall,
)

SAMPLES = Path(__file__).parent / "samples"


def decoder_for(platform: str, name: str) -> Decoder:
    """A new decoder for the sample `name`, as an agent would get it whose options are those in
    `samples/<platform>/options.json` under the longest beginning of that name."""
    file = SAMPLES / platform / "options.json"
    by_beginning = json.loads(file.read_text("utf-8")) if file.exists() else {}
    beginning = max((b for b in by_beginning if name.startswith(b)), key=len, default="")
    kind = kinds.find(platform)
    assert kind is not None
    options = kind.options(platform=platform, **by_beginning.get(beginning, {}))
    adapter = kind.adapter(platform, options, "http://upstream.example.com")
    question = (Message("user", "hi"),)
    ids = {"conversation_id": "chat-1", "call_id": "c" * 32}
    chat = ChatRequest(platform, question, "u", stream=True, detail=True, **ids)
    decoder: Decoder = adapter.decoder(chat)
    return decoder


def feed(decoder: Decoder, raw: bytes, size: int | None = None) -> list[Delta]:
    """All deltas of `raw`, fed in pieces of `size` bytes, and of the end of the body."""
    out: list[Delta] = []
    for at in range(0, len(raw), size or len(raw) or 1):
        out += decoder.feed(raw[at : at + (size or len(raw))])
        if decoder.done:
            break
    return out + decoder.close()


def summary(deltas: list[Delta]) -> dict[str, Any]:
    """The caller's view of these deltas. `text` is that of a whole answer."""
    text, reasoning, notes = "", "", {}
    out: dict[str, Any] = {}
    calls: dict[int, list[str]] = {}
    for delta in deltas:
        if isinstance(delta, Text):
            text += delta.text
        elif isinstance(delta, Replace):
            text = delta.text
        elif isinstance(delta, Reasoning):
            reasoning += delta.text
        elif isinstance(delta, ToolCall):
            call = calls.setdefault(delta.index, ["", "", ""])
            call[0], call[1] = call[0] or delta.id, call[1] or delta.name
            call[2] += delta.arguments
        elif isinstance(delta, Note) and delta.data:
            merged = (
                notes.get(delta.name, []) + delta.data
                if isinstance(delta.data, list)
                else delta.data
            )
            notes[delta.name] = merged
        elif isinstance(delta, Begin):
            out["conversation_id"] = delta.conversation_id
        elif isinstance(delta, Finish):
            usage = delta.usage
            out["finish"] = delta.reason
            out["usage"] = [usage.prompt, usage.completion, usage.total] if usage else None
        elif isinstance(delta, Failed):
            out["error"] = type(delta.error).__name__
            out["status"] = delta.error.status
    return {
        **out,
        "text": text,
        **({"reasoning": reasoning} if reasoning else {}),
        **({"tool_calls": list(calls.values())} if calls else {}),
        **({"notes": notes} if notes else {}),
    }


def raw_bytes(deltas: list[Delta]) -> bytes:
    return b"".join(delta.data for delta in deltas if isinstance(delta, Raw))
