"""Feed a decoder and summarize its deltas, for the tests of all platforms."""

from typing import Any

from gateway.platforms.base import Decoder
from gateway.platforms.coze.adapter import CozeDecoder
from gateway.platforms.dify.adapter import DifyDecoder
from gateway.platforms.fastgpt.adapter import FastGPTDecoder
from gateway.platforms.openai_compatible import ChunkDecoder
from gateway.platforms.zhipu.adapter import ApplicationDecoder, GlmsDecoder, ModelDecoder
from gateway.protocol.messages import (
    Begin,
    Delta,
    Failed,
    Finish,
    Note,
    Raw,
    Reasoning,
    Replace,
    Text,
    ToolCall,
)


def decoder_for(platform: str, name: str) -> Decoder:
    """A new decoder of the kind that would get the sample `name`."""
    if platform == "fastgpt":
        return FastGPTDecoder("chat-1", detail=True)
    if platform == "dify":
        return DifyDecoder("workflow" if name.startswith("workflow") else "chat")
    if platform == "coze":
        return CozeDecoder()
    if platform == "zhipu":
        kinds = {"glms": GlmsDecoder, "app": ApplicationDecoder}
        return kinds.get(name.partition("-")[0], ModelDecoder)()
    return ChunkDecoder()


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
