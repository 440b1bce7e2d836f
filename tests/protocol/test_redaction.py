"""An operator's credentials never leave the gateway in forwarded bytes."""

import base64
import json
import re
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.redaction import Scrubber, masked

KEY = "sk-operators-own/key-1"


def fed(secrets, *chunks: bytes) -> bytes:
    scrubber = Scrubber(secrets)
    return b"".join(map(scrubber.feed, chunks)) + scrubber.end()


@pytest.mark.parametrize("at", range(len(KEY) + 8))
def test_a_key_is_masked_wherever_it_is_cut(at):
    text = f"key {KEY}.".encode() + b"..."
    assert fed([KEY], text[:at], text[at:]) == b"key ***...."


def test_a_key_is_masked_byte_by_byte_and_as_json_writes_it():
    text = f'{{"a": "{KEY}", "b": "{KEY.replace("/", chr(92) + "/")}"}}'.encode()
    assert fed([KEY], *[text[i : i + 1] for i in range(len(text))]) == b'{"a": "***", "b": "***"}'


def test_only_what_may_begin_a_key_waits():
    scrubber = Scrubber([KEY])
    assert scrubber.feed(b"data: sk-o") == b"data: "
    assert scrubber.feed(b"k\n\n") == b"sk-ok\n\n"
    assert scrubber.feed(b"data: s") == b"data: "
    assert scrubber.end() == b"s"


FORMS = [
    r"sk\u002doperators\u002down\u002fkey\u002d1", r"sk-operators-own\u002Fkey-1", r"sk-operators-own\/key-1",
    quote(KEY), quote(KEY, safe=""), "sk%2doperators%2down%2fkey%2d1", base64.b64encode(KEY.encode()).decode(),
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_key_is_masked_in_every_form_wherever_it_is_cut(form):
    for at in range(len(form)):
        out = fed([KEY], f"a {form[:at]}".encode(), f"{form[at:]} b".encode())
        assert re.fullmatch(rb"a \*\*\*.{0,3} b", out)  # base64's last characters reveal nothing
    assert re.fullmatch(r"a \*\*\*.{0,3} b", masked(f"a {form.upper()} b", [KEY]))


@pytest.mark.parametrize("before", ["", "x", "xy", "user:"])
def test_a_key_is_masked_inside_other_base64(before):
    coded = base64.b64encode(f"{before}{KEY} and more".encode())
    assert b"***" in fed([KEY], coded)
    assert base64.b64encode(KEY.encode())[4:20] not in fed([KEY], coded)


def test_what_json_reads_as_the_key_is_masked_in_any_script():
    key = 'sk-"密钥"-1234-\\-/'
    assert fed([key], json.dumps(key).encode()) == b'"***"'


def test_a_word_is_masked_in_an_error_as_it_is_alone():
    assert masked("Ollama wants ollama", ["ollama"]) == "Ollama wants ***"


@pytest.mark.parametrize("word", ["", "none", "EMPTY", "ollama", "lm-studio", "not-needed"])
def test_placeholders_for_a_key_are_not_masked(word):
    text = f"{word} is a word".encode()
    assert fed([word], text) == text


@given(
    st.lists(st.text("ab1", min_size=8, max_size=12), max_size=3),
    st.lists(st.text("ab1", max_size=20), max_size=8),
)
def test_no_secret_gets_through_and_nothing_else_is_lost(secrets, pieces):
    whole = "".join(pieces).encode()
    out = fed(secrets, *(piece.encode() for piece in pieces))
    telling = [s for s in secrets if "1" in s or len(s) >= 12]
    assert not any(secret.encode() in out for secret in telling)
    if not any(re.search(secret.encode(), whole) for secret in telling):
        assert out == whole
