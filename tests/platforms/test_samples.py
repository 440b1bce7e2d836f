"""Every sample of every platform, whole, in small pieces, and without its last event.

To add one: put `hello.sse` and `hello.json` into `samples/<platform>/`. The JSON has the caller's
view of it, and under `without_last_event` the error or finish reason of the shortened stream.
"""

import json
from pathlib import Path

import pytest
from decoding import decoder_for, feed, raw_bytes, summary

from gateway.platforms.openai_compatible import explain_error
from gateway.protocol.messages import Failed, Finish
from gateway.protocol.passthrough import PassThrough

SAMPLES = sorted((Path(__file__).parent / "samples").glob("*/*.sse"))
IDS = [f"{path.parent.name}/{path.stem}" for path in SAMPLES]
LINE_ENDS = {"lf": b"\n", "crlf": b"\r\n", "cr": b"\r"}


@pytest.fixture(params=SAMPLES, ids=IDS)
def sample(request):
    return request.param


def expected(sample: Path) -> dict:
    return json.loads(sample.with_suffix(".json").read_text("utf-8"))


@pytest.mark.parametrize("size", [None, 1, 3, 7, 97])
def test_pieces_of_any_size_give_the_same_answer(sample, size):
    want = expected(sample)
    want.pop("without_last_event")
    got = summary(feed(decoder_for(sample.parent.name, sample.stem), sample.read_bytes(), size))
    assert got == want


@pytest.mark.parametrize("end", ["crlf", "cr"])
def test_other_line_ends_give_the_same_answer(sample, end):
    want = expected(sample)
    want.pop("without_last_event")
    raw = sample.read_bytes().replace(b"\n", LINE_ENDS[end])
    assert summary(feed(decoder_for(sample.parent.name, sample.stem), raw, 5)) == want


def test_a_stream_without_its_last_event_ends_as_the_sample_says(sample):
    blocks = sample.read_bytes().rstrip(b"\n").split(b"\n\n")
    short = b"".join(block + b"\n\n" for block in blocks[:-1])
    got = summary(feed(decoder_for(sample.parent.name, sample.stem), short))
    assert (got.get("error") or got.get("finish")) == expected(sample)["without_last_event"]


def test_a_stream_cut_at_any_byte_ends_exactly_once(sample):
    raw = sample.read_bytes()
    for at in range(0, len(raw), max(1, len(raw) // 150)):
        deltas = feed(decoder_for(sample.parent.name, sample.stem), raw[:at])
        ends = [delta for delta in deltas if isinstance(delta, Finish | Failed)]
        assert len(ends) == 1
        assert deltas[-1] is ends[0]


OPENAI = [path for path in SAMPLES if path.parent.name == "openai"]


@pytest.mark.parametrize("path", OPENAI, ids=[path.stem for path in OPENAI])
@pytest.mark.parametrize("end", LINE_ENDS)
@pytest.mark.parametrize("size", [None, 1, 3, 50])
def test_an_openai_stream_passes_through_byte_for_byte(path, end, size):
    raw = path.read_bytes().replace(b"\n", LINE_ENDS[end])
    deltas = feed(PassThrough(lambda error: explain_error("It", error)), raw, size)
    if isinstance(deltas[-1], Failed):  # the bytes before the error, without the error itself
        assert raw.startswith(raw_bytes(deltas))
        assert b'"error"' not in raw_bytes(deltas)
    else:
        assert raw_bytes(deltas) == raw
        want = expected(path)["usage"]
        usage = deltas[-1].usage
        assert (usage and [usage.prompt, usage.completion, usage.total]) == want
