"""Citation marks are removed from the text, wherever they are split, and nothing else is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.platforms.fastgpt.citations import CiteMarks, may_hold_mark

ID = "6881f0a1b2c3d4e5f6071829"


def without(*pieces: str) -> str:
    marks = CiteMarks()
    return "".join(map(marks.feed, pieces)) + marks.close()


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        (f"退货期限 7 天[{ID}](QUOTE)。", "退货期限 7 天。"),
        (f"a[{ID}](CITE)[{ID}](CITE) b", "a b"),
        (f"a[{ID}] b", "a b"),
        (f"a【{ID}】(CITE)", "a"),
        (f"a[{ID}]", "a"),
        (f"a[{ID.upper()}](CITE)", "a"),
        (f"[[{ID}](CITE)]", "[]"),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_a_mark_is_removed_however_it_is_cut(text, rest, size):
    assert without(*(text[i : i + size] for i in range(0, len(text), size))) == rest


@pytest.mark.parametrize(
    "text",
    [
        "see [the docs](https://example.com/a)",
        "items[0] = users[id]",
        f"[{ID}](https://example.com/a/rather/long/path)",
        f"[{ID}0](CITE)",
        f"[{ID[:-1]}](CITE)",
        f"[{ID[:9]}",
        "【重要】请看",
        "[",
        f"[{ID}",
        "a [[[[ b",
    ],
)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_what_is_no_mark_stays(text, size):
    assert without(*(text[i : i + size] for i in range(0, len(text), size))) == text


@given(st.lists(st.sampled_from(["[", "【", "]", "](", "(", ")", ID, ID[:7], "QUOTE", "x", "\n"])))
def test_pieces_come_to_the_same_as_the_whole(pieces):
    assert without(*pieces) == without("".join(pieces))


def test_what_is_held_is_never_longer_than_a_mark():
    marks = CiteMarks()
    for piece in ["[", ID, "]", "(", *"Q" * 1000]:
        marks.feed(piece)
        assert len(marks.held) <= 60


def test_ordinary_text_need_not_be_looked_at():
    assert not may_hold_mark("退货期限 7 天 (QUOTE)")
    assert may_hold_mark("a [")
    assert may_hold_mark("【")
