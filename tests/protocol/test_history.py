"""Past turns: readers of members of any type, and the JSON form."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol import history
from gateway.protocol.history import Feedback, Page, PastTurn
from gateway.protocol.messages import Usage

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(ANYTHING)
def test_no_reader_raises_whatever_the_type(value):
    history.passage(value)
    history.answer_and_reasoning(value)
    history.problem(value)
    history.seconds(value)
    history.next_questions(value)
    file = history.past_file("answer", value, value, value, value, value)
    assert file.kind in ("image", "audio", "video", "file")
    assert orjson.dumps(file.data())


@pytest.mark.parametrize(
    ("value", "moment"),
    [
        (1795312801, 1795312801),
        ("1795312801", 1795312801),
        (1795312801.9, 1795312801),
        (1795312801000, 1795312801),
        ("2026-11-22T02:00:01.000Z", 1795312801),
        ("2026-11-22T02:00:01", 1795312801),
        ("2026-11-22T10:00:01+08:00", 1795312801),
        (0, None),
        (-5, None),
        (True, None),
        (float("nan"), None),
        ("", None),
        ("yesterday", None),
        ("0001-01-01T00:00:00+23:59", None),
        (10**30, None),
        (None, None),
    ],
)
def test_seconds_of_any_form_of_time(value, moment):
    assert history.seconds(value) == moment


def test_a_passage_keeps_lines_and_wide_spaces():
    text = "\r\n一\u3000二\r\n\tthree\x00\x1b[31m \ud83d👨\u200d👩\u200d👧 "
    assert history.passage(text) == "一\u3000二\n\tthree[31m 👨\u200d👩\u200d👧"


def test_a_passage_is_bounded():
    text = history.passage("字" * (history.MAX_TEXT + 9))
    assert len(text) == history.MAX_TEXT
    assert text.endswith("字…")


@pytest.mark.parametrize(
    "text",
    [
        "<think>\n先看手册。\n</think>\n\n十天。",
        '<details style="color:gray" open> <summary> Thinking... </summary>先看手册。</details>十天。',
    ],
)
def test_thinking_in_a_stored_answer_is_reasoning(text):
    assert history.answer_and_reasoning(text) == ("十天。", "先看手册。")


def test_a_tag_in_the_middle_is_the_answer():
    assert history.answer_and_reasoning("a <think>b</think>") == ("a <think>b</think>", "")


def test_a_files_link_is_http_or_none():
    urls = ("https://x.test/a.png?sig=1", "data:image/png;base64,AA", "/files/a", "javascript:1")
    links = [history.past_file("question", "image", url, "a.png").url for url in urls]
    assert links == ["https://x.test/a.png?sig=1", "", "", ""]


def test_what_is_unknown_stays_unknown():
    assert PastTurn("a").data() == {
        "id": "a", "created": None, "question": "", "answer": "", "reasoning": "", "files": [],
        "citations": [], "feedback": None, "status": "completed", "error": "", "usage": None,
    }  # fmt: skip


def test_a_page_as_json():
    usage, opinion = Usage(1, 2, 3), Feedback("dislike", "没有写病假。", ("不够详细",))
    page = Page((PastTurn("a", 5, usage=usage, feedback=opinion),), "a").data()
    turn = page["turns"][0]
    assert page["before"] == "a"
    assert turn["usage"] == {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    assert turn["feedback"] == {
        "rating": "dislike", "text": "没有写病假。", "reasons": ["不够详细"],
    }  # fmt: skip
    assert opinion.comment == "不够详细\n没有写病假。"


def test_citations_keep_their_form_with_bounded_texts():
    found = history.cited([{"title": "手册\x00.pdf", "text": "十天", "score": 0.5}] * 300)
    assert len(found) == history.MAX_CITATIONS
    assert found[0] == {"title": "手册.pdf", "text": "十天", "score": 0.5}
