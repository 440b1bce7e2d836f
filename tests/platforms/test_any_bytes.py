"""Whatever an upstream sends, a decoder ends once and with one of the gateway's errors."""

import json

import orjson
import pytest
from decoding import SAMPLES, decoder_for, feed, summary
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config import kinds
from gateway.errors import GatewayError
from gateway.platforms.openai_compatible import ChunkDecoder, explain_error
from gateway.protocol.messages import Failed, Finish
from gateway.protocol.passthrough import PassThrough
from gateway.protocol.whole_body import WholeBody

# Each kind, and each beginning of a sample's name that has options of its own.
KINDS = [
    (kind, beginning)
    for kind in kinds.built_in()
    for beginning in (
        json.loads((SAMPLES / kind / "options.json").read_text("utf-8"))
        if (SAMPLES / kind / "options.json").exists()
        else [""]
    )
]
NAMES = st.sampled_from(
    "event data answer content choices delta message status type id code error usage metadata text"
    " reasoning_content tool_calls function arguments finish_reason conversation_id files outputs"
    " last_error required_action submit_tool_outputs quoteList interactive params msg".split()
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False),
    st.text(max_size=8), st.sampled_from(
        ["message", "message_end", "workflow_finished", "answer", "text", "failed", "stop", "finish"]
    ),
)  # fmt: skip
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=12,
)
EVENT_NAMES = st.sampled_from(
    ["", "answer", "flowResponses", "flowNodeStatus", "interactive", "error", "toolCall", "done",
     "conversation.message.delta", "conversation.message.completed", "conversation.chat.completed",
     "conversation.chat.failed", "conversation.chat.requires_action", "Message", "Error", "message"]
)  # fmt: skip


def frame(name: str, value: object) -> bytes:
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + orjson.dumps(value) + b"\n\n"


STREAMS = st.one_of(
    st.binary(max_size=300),
    st.lists(st.tuples(EVENT_NAMES, JSON), max_size=6).map(
        lambda pairs: b"".join(frame(name, value) for name, value in pairs)
    ),
)


def make(kind: tuple[str, str]):
    return decoder_for(*kind)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
@given(raw=STREAMS, size=st.integers(1, 50))
@settings(max_examples=150, deadline=None)
def test_a_decoder_never_raises_and_ends_once(kind, raw, size):
    deltas = feed(make(kind), raw, size)
    assert sum(isinstance(delta, Finish | Failed) for delta in deltas) == 1
    if isinstance(deltas[-1], Failed):
        assert isinstance(deltas[-1].error, GatewayError)
    else:
        assert isinstance(deltas[-1], Finish)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
@given(raw=STREAMS, size=st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_any_split_gives_the_same_answer(kind, raw, size):
    assert summary(feed(make(kind), raw, size)) == summary(feed(make(kind), raw))


def whole_body(explain):
    return WholeBody(explain, ChunkDecoder)


@pytest.mark.parametrize("make_decoder", [PassThrough, whole_body])
@given(raw=STREAMS, size=st.integers(1, 50))
@settings(max_examples=150, deadline=None)
def test_passing_through_never_raises_and_ends_once(make_decoder, raw, size):
    deltas = feed(make_decoder(lambda error: explain_error("It", str(error))), raw, size)
    assert sum(isinstance(delta, Finish | Failed) for delta in deltas) == 1


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_an_event_without_an_end_is_refused_at_a_megabyte(kind):
    decoder = make(kind)
    deltas, sent = [], 0
    while not deltas:
        deltas = decoder.feed(b"x" * 65_536)
        sent += 65_536
    assert sent <= (1 << 20) + 65_536
    assert isinstance(deltas[-1], Failed)
    assert deltas[-1].error.status == 502
