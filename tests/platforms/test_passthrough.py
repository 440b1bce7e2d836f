"""Forwarded bytes depend on the upstream's bytes, not on how the network split them."""

from typing import Any

import pytest
from decoding import feed
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.platforms.openai_compatible import explain_error
from gateway.protocol.messages import Delta, Failed, Finish, Raw
from gateway.protocol.passthrough import PassThrough
from gateway.protocol.sse import MAX_LINES


def event(members: str) -> bytes:
    return b'data: {"id":"x",%b}\n\n' % members.encode()


CONTENT = event('"choices":[{"index":0,"delta":{"content":"你好"}}]')
FINISH = event('"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]')
USAGE = event('"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}')
LATER_USAGE = event('"choices":[],"usage":{"prompt_tokens":4,"completion_tokens":5}')
SAYS_DONE = event('"choices":[{"delta":{"content":"data: [DONE]"}}]')
NO_USAGE = event('"choices":[],"usage":null')
DONE_INSIDE = b'data: {"choices":[{"delta":{"content":"x"}}]}\ndata: [DONE]\n\n'
PIECES = [
    CONTENT,
    FINISH,
    USAGE,
    LATER_USAGE,
    SAYS_DONE,
    NO_USAGE,
    DONE_INSIDE,
    event('"choices":[{"delta":{"content":"an \\"error\\" in its \\"usage\\": {"}}]'),
    event('"choices":[],"x_groq":{"usage":{"prompt_tokens":7}}'),
    b'data: {"choices":[],\ndata: "usage":{"prompt_tokens":8}}\n\n',
    USAGE.replace(b"\n", b"\r\n"),
    USAGE.replace(b"\n", b"\r"),
    b"data: not JSON\n\n",
    b": a comment\n\n",
    b"id: 7\n\n",
    b"data:\n\n",
]
DONE = [
    b"data: [DONE]\n\n",
    b"data:[DONE]\n\n",
    b"data: [DONE]\r\n\r\n",
    b"id: 7\ndata: [DONE]\n\n",
]


def decode(raw: bytes, size: int | None = None, *, hides_usage: bool = False) -> list[Delta]:
    decoder = PassThrough(lambda error: explain_error("It", error or {}), hides_usage)
    return feed(decoder, raw, size)


def passed(raw: bytes, size: int | None = None, *, hides_usage: bool = False) -> tuple[bytes, Any]:
    """The bytes, and the usage or the error's message at their end."""
    deltas = decode(raw, size, hides_usage=hides_usage)
    end = deltas[-1]
    told = end.error.message if isinstance(end, Failed) else getattr(end, "usage", None)
    return b"".join(d.data for d in deltas if isinstance(d, Raw)), told


@given(
    pieces=st.lists(st.sampled_from(PIECES), max_size=5),
    ends=st.lists(st.sampled_from([*DONE, CONTENT]), max_size=2),
    size=st.integers(1, 200),
    hides_usage=st.booleans(),
)
@settings(max_examples=400, deadline=None)
def test_any_split_passes_the_same(pieces, ends, size, hides_usage):
    raw = b"".join([CONTENT, *pieces, *ends])
    whole = passed(raw, hides_usage=hides_usage)
    assert passed(raw, size, hides_usage=hides_usage) == whole


@pytest.mark.parametrize("done", DONE)
def test_an_answer_that_comes_in_one_read_is_whole_and_counted(done):
    raw = CONTENT + FINISH + USAGE + done
    data, usage = passed(raw + CONTENT)  # nothing follows the end
    assert data == raw
    assert (usage.prompt, usage.completion, usage.total) == (1, 2, 3)


def test_the_last_usage_counts():
    _, usage = passed(CONTENT + USAGE + LATER_USAGE + SAYS_DONE + NO_USAGE + DONE[0])
    assert (usage.prompt, usage.completion, usage.total) == (4, 5, 9)


def test_a_finished_answer_without_done_gets_one():
    assert passed(CONTENT + FINISH)[0] == CONTENT + FINISH + DONE[0]
    data, words = passed(CONTENT)
    assert data == CONTENT
    assert "ended before it was complete" in words


def test_the_end_is_an_event_even_after_a_single_line_end():
    assert [type(delta) for delta in decode(CONTENT + DONE[0])] == [Raw, Finish]
    want = CONTENT + DONE_INSIDE.replace(b"}\ndata", b"}\n\ndata")
    assert passed(CONTENT + DONE_INSIDE) == (want, None)


@pytest.mark.parametrize(
    "event",
    [b"event: error\ndata: the model has crashed\n\n", b'data: "error": the model has crashed\n\n',
     b'event: error\ndata: {"detail": "the model has crashed"}\n\n'],
)  # fmt: skip
def test_a_plain_text_error_keeps_its_text(event):
    decoder = PassThrough(lambda error: explain_error("It", error))
    failed = decoder.feed(event)[-1]
    assert isinstance(failed, Failed)
    assert "the model has crashed" in failed.error.message


@pytest.mark.parametrize("end", [b"\n", b"", DONE[0]])
@pytest.mark.parametrize("line", [b"data: xy\n", b'data: {"a":1}\ndata: xy\n'])
def test_an_event_of_too_many_lines_is_an_error(line, end):
    raw = line + b"data: xy\n" * (MAX_LINES + 1) + end
    deltas = decode(raw, 1 << 16)
    assert isinstance(deltas[-1], Failed)
    assert sum(isinstance(delta, Failed | Finish) for delta in deltas) == 1
