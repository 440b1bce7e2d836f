"""Long texts divided where a speaker would pause, and WAV files joined to one."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.audio import extension_for, in_bytes, split_text
from gateway.protocol.wav import WavJoiner

UNKNOWN = b"\xff\xff\xff\xff"


@pytest.mark.parametrize(
    ("text", "most", "parts"),
    [
        ("你好。", 10, ["你好。"]),
        ("一二三四。五六七八！九十", 10, ["一二三四。五六七八！", "九十"]),
        ("一二三四。五六七八！九十", 8, ["一二三四。", "五六七八！九十"]),
        ("他说：“走吧。”然后走了很远", 10, ["他说：“走吧。”", "然后走了很远"]),
        ("One two. Three.", 10, ["One two.", "Three."]),
        ("pi is 3.14 now", 10, ["pi is", "3.14 now"]),
        ("one, two three", 10, ["one, two", "three"]),
        ("one two, three", 10, ["one two,", "three"]),
        ("abcdefghijklmnop", 10, ["abcdefghij", "klmnop"]),
        ("first\nthe second", 10, ["first", "the second"]),
        ("  \n ", 10, []),
    ],
)
def test_a_text_is_divided_where_a_speaker_pauses(text, most, parts):
    assert split_text(text, most) == parts


@given(st.text(st.sampled_from("ab好。.!\n ,，😀")), st.integers(4, 30))
def test_parts_have_all_of_the_text_and_keep_the_limit(text, most):
    parts = split_text(text, most, in_bytes)
    assert "".join("".join(parts).split()) == "".join(text.split())
    assert all(part and in_bytes(part) <= most for part in parts)


def test_a_long_text_is_not_divided_early():
    """A full stop near the beginning would make a short part."""
    assert split_text("啊。" + "一" * 20, 10)[0] == "啊。" + "一" * 8


@pytest.mark.parametrize(
    ("mime", "extension"),
    [("audio/webm;codecs=opus", "webm"), ("Audio/X-M4A", "m4a"), ("text/plain", ""), ("", "")],
)
def test_a_nameless_recording_has_the_extension_of_its_type(mime, extension):
    assert extension_for(mime) == extension


def wav(samples: bytes, before: bytes = b"", after: bytes = b"", size: int | None = None) -> bytes:
    """A WAV file, with other chunks before and after the samples."""
    form = struct.pack("<IHHIIHH", 16, 1, 1, 24_000, 48_000, 2, 16)
    length = struct.pack("<I", len(samples) if size is None else size)
    body = b"WAVEfmt " + form + before + b"data" + length + samples + after
    return b"RIFF" + struct.pack("<I", len(body)) + body


LIST = b"LIST" + struct.pack("<I", 5) + b"INFOx\0"
FIRST, SECOND = wav(b"abcd" * 3, LIST), wav(b"efgh" * 2, after=LIST)


@given(st.integers(1, 80))
def test_two_files_become_one_however_they_are_cut(step):
    joiner, out = WavJoiner(), b""
    for i, file in enumerate((FIRST, SECOND)):
        if i:
            joiner.next_file()
        for start in range(0, len(file), step):
            out += joiner.feed(file[start : start + step])
    at = FIRST.index(b"data") + 8
    assert out[:4] + out[8 : at - 4] == FIRST[:4] + FIRST[8 : at - 4]
    assert out[4:8] == out[at - 4 : at] == UNKNOWN
    assert out[at:] == b"abcd" * 3 + b"efgh" * 2


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF])
def test_a_file_of_unknown_length_is_taken_to_its_end(size):
    joiner = WavJoiner()
    assert joiner.feed(wav(b"abcd", size=size) + b"efgh").endswith(UNKNOWN + b"abcdefgh")


@pytest.mark.parametrize(
    "file", [b"\xff\xfb" * 40, b"RIFX" + bytes(60), b"RIFF1234AVI " + bytes(60)]
)
def test_what_is_no_wav_file_is_given_as_it_is(file):
    assert WavJoiner().feed(file) == file
