"""Answers that are copied: each chunk as it is, and the usage near the end."""

import pytest

from gateway.protocol.messages import Finish, Raw
from gateway.protocol.verbatim import Verbatim

EMBEDDING = b'{"data":[0.1,0.2],"usage":{"prompt_tokens":3,"total_tokens":3}}'
STREAM = (
    b'data: {"usage":{"input_tokens":1,"output_tokens":1,"total_tokens":2}}\n\n'
    b'data: {"usage": {"input_tokens":5,"input_tokens_details":{"cached_tokens":4},'
    b'"output_tokens":2,"total_tokens":7}}\n\n'
)


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize(
    ("body", "total"), [(EMBEDDING, 3), (STREAM, 7), (b"RIFF\0\xff" * 900, None), (b"", None)]
)
def test_the_chunks_are_the_answer_and_the_last_usage_counts(body, total, size):
    decoder = Verbatim()
    chunks = [body[at : at + size] for at in range(0, len(body), size)]
    deltas = [delta for chunk in chunks for delta in decoder.feed(chunk)]
    assert deltas == [Raw(chunk) for chunk in chunks]
    (end,) = decoder.close()
    assert isinstance(end, Finish)
    assert (end.usage and end.usage.total) == total


def test_usage_far_from_the_end_is_not_looked_for():
    decoder = Verbatim()
    decoder.feed(EMBEDDING)
    decoder.feed(b" " * 10_000)
    assert decoder.usage_so_far() is None


def test_a_cut_answer_never_counts_as_whole():
    """Only HTTP tells its end, so a broken connection fails it."""
    assert Verbatim().ends_with_connection
    assert not Verbatim().ending
