"""JSON as it is really sent, read at a bounded cost."""

import json
import math

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol import loosejson
from gateway.protocol.loosejson import (
    MAX_ESCAPES,
    MAX_MENDS,
    MAX_SEARCHED,
    NotJson,
    join_halves,
    mend,
)


@pytest.mark.parametrize(
    ("sent", "value"),
    [
        (b'{"a":1}', {"a": 1}),
        (b'\xef\xbb\xbf{"a":1}', {"a": 1}),
        (b"[NaN, Infinity,-Infinity]", [None, None, None]),
        (b'["NaN", "\\"Infinity", "a\\\\", NaN]', ["NaN", '"Infinity', "a\\", None]),
        (b'{"NaN":NaN}', {"NaN": None}),
        (b'[1e400, -1E+999, "1e400", 1e-400]', [None, None, "1e400", 0.0]),
        (b"[%b, %b.5, 1e308]" % (b"9" * 400, b"9" * 400), [None, None, 1e308]),
        (b'["\\ud83d"]', ["\ufffd"]),
        (b'["\\uDE00x"]', ["\ufffdx"]),
        (b'["\\ud83d\\ude00"]', ["😀"]),
        (b'["\\ud83d\\ud83d\\ude00\\ude00"]', ["\ufffd😀\ufffd"]),
        (b'["\\\\ud83d"]', ["\\ud83d"]),
        (b'["\\\\ud83d\\ude00"]', ["\\ud83d\ufffd"]),
        (b'["\\\\\\ud83d"]', ["\\\ufffd"]),
        (b'["a\xff"]', ["a\ufffd"]),
        (b'["\\ud83d", NaN, "\xe4"]', ["\ufffd", None, "\ufffd"]),
    ],
)
def test_what_strict_readers_refuse_is_read(sent, value):
    assert loosejson.loads(sent) == value
    assert orjson.loads(mend(sent)) == value


@pytest.mark.parametrize(
    "sent",
    [b"", b"{", b"NaN x", b"[nan]", b'["NaN', b"NaNs", b'{"a":\\ud83d}', b"[" * 5000, b"\xff",
     b"-NaN-", b"[+Infinity]", b"data: {}"],
)  # fmt: skip
def test_what_is_no_json_is_refused(sent):
    with pytest.raises(NotJson):
        loosejson.loads(sent)


@pytest.mark.parametrize(
    "sent",
    [
        b'["' + b"\\ud83d" * (MAX_MENDS + 1) + b'"]',
        b"[NaN" + b",NaN" * MAX_MENDS + b"]",
        b"[NaN" + b',"a"' * (MAX_MENDS + 1) + b"]",
        b'["\\ud83d' + b"\\n" * (MAX_ESCAPES + 1) + b'"]',
        b'[NaN,"' + b"x" * MAX_SEARCHED + b'"]',
    ],
    ids=["halves", "constants", "strings", "escapes", "size"],
)
def test_expensive_repairs_are_refused_before_they_start(sent, monkeypatch):
    class Untried:
        def sub(self, *given):
            raise AssertionError

    monkeypatch.setattr(loosejson, "_PAIR", Untried())
    monkeypatch.setattr(loosejson, "_STRING_OR_CONSTANT", Untried())
    with pytest.raises(NotJson):
        loosejson.loads(sent)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats() | st.text(
        st.characters() | st.sampled_from("\ud83d\ude00\\\"")
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=15,
)  # fmt: skip


def strict(value):
    """The value without anything that strict JSON cannot express."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list):
        return [strict(item) for item in value]
    if isinstance(value, dict):
        return {strict(name): strict(inner) for name, inner in value.items()}
    return value


@given(JSON, st.booleans())
def test_json_of_python_and_javascript_is_read_as_strict(value, is_ascii):
    sent = json.dumps(value, ensure_ascii=is_ascii).encode("utf-8", "surrogatepass")
    if is_ascii or "\\ud" not in json.dumps(value):  # else the surrogates are invalid UTF-8
        assert loosejson.loads(sent) == strict(value)
    orjson.loads(mend(sent))


def test_only_a_half_that_ends_text_is_kept_back():
    half = b"\\ud83d"
    assert join_halves(b'{"content":"ok \\ud83d"}', b"") == (b'{"content":"ok "}', half, False)
    assert join_halves(b'{"content": "\\ud83d" }', b"") == (b'{"content": "" }', half, False)
    replaced = b'{"id":"ok \\ufffd"}'
    assert join_halves(b'{"id":"ok \\ud83d"}', b"") == (replaced, b"", False)
    assert join_halves(b'{"content":"\\ud83d!"}', b"") == (b'{"content":"\\ufffd!"}', b"", False)


def test_a_half_is_joined_to_one_that_begins_text():
    joined = (b'{"content":"\\ud83d\\ude00!"}', b"", True)
    assert join_halves(b'{"content":"\\ude00!"}', b"\\ud83d") == joined
    lost = (b'{"content":"a\\ufffd"}', b"", False)
    assert join_halves(b'{"content":"a\\ude00"}', b"\\ud83d") == lost
