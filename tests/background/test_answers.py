"""The local answers have the form that clients read."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_recognise import CALLS, named, request

from gateway.background.answers import answer, title
from gateway.background.recognise import recognise
from gateway.background.tasks import KINDS, Task


@pytest.mark.parametrize(
    ("client", "action", "expected"),
    [
        ("open-webui", "title", '{"title":"How do I clean a bicycle"}'),
        ("open-webui", "follow-ups", '{"follow_ups":[]}'),
        ("open-webui", "file-query-generation", '{"queries":["Where is the chain gauge?"]}'),
        ("open-webui", "autocomplete", '{"text":""}'),
        ("open-webui", "emoji", "💬"),
        ("open-webui", "merge-answers", None),
        ("nextchat", "title", "How do I clean a bicycle"),
        ("nextchat", "summary-call", None),
        ("lobechat", "title", "How do I clean a bicycle"),
        ("lobechat", "language-detect", "en-US"),
        ("lobechat", "rewrite-query", None),
        ("cherry-studio", "title", "How do I clean a bicycle"),
        ("chatbox-ce", "title", "How do I clean a bicycle"),
        ("obsidian-copilot", "title", "How do I clean a bicycle"),
    ],
)
def test_a_recorded_call_gets_this_answer(client, action, expected):
    assert answer(recognise(request(client, action))) == expected


@pytest.mark.parametrize("one", named(CALLS))
def test_an_object_has_the_member_that_the_client_reads(one):
    task = recognise(one["body"])
    if (text := answer(task)) is not None and task.key:
        assert list(json.loads(text)) == [task.key]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("怎么清洁自行车链条？要多久一次？", "怎么清洁自行车链条"),
        ("**Hello** `there`! How are you?", "Hello there"),
        ("# Bike care\nplease", "Bike care"),
        ("<attached_files>\n<file/>\n</attached_files>\n\nWhere is it?", "Where is it"),
        ("```py\nprint(1)\n```\nWhat does this print?", "What does this print"),
        ("![a](http://b/c.png) [This page](http://d) is slow.", "This page is slow"),
        (
            "我有一辆旧自行车，链条已经生锈了，前后变速也不灵，请问应该先修哪一个部分才好",
            "我有一辆旧自行车，链条已经生锈了",
        ),
        ("Version 2.5 of node.js fails", "Version 2.5 of node.js fails"),
        ("", "New chat"),
        ("???", "New chat"),
    ],
)
def test_a_title_is_the_first_clause_without_markup(text, expected):
    assert title(text) == expected


@given(st.text(max_size=300))
def test_a_title_of_any_text_is_short_and_on_one_line(text):
    made = title(text)
    assert made
    assert "\n" not in made
    assert len(made) <= 80
    if re.search(r"[\u4e00-\u9fff]", made):
        assert len(made) <= 24
    else:
        assert len(made.split()) <= 6


@given(st.sampled_from(KINDS), st.sampled_from(["", "title", "queries"]), st.text(), st.text())
def test_an_answer_is_text_or_json_with_its_key(kind, key, first, last):
    text = answer(Task(kind, key, first, last))
    if text is not None and key:
        assert list(json.loads(text)) == [key]


@given(st.text(max_size=200), st.text(max_size=200))
def test_any_words_in_the_history_leave_the_form_readable(user, bot):
    body = request("open-webui", "title")
    prompt = body["messages"][0]["content"]
    head = prompt[: prompt.index("USER:")]
    text = f"{head}USER: {user}\nASSISTANT: {bot}\n</chat_history>"
    task = recognise({**body, "messages": [{"role": "user", "content": text}]})
    assert list(json.loads(answer(task))) == ["title"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("你好", "zh-CN"), ("こんにちは", "ja-JP"), ("안녕하세요", "ko-KR"), ("Привет", "ru-RU"),
        ("مرحبا", "ar"), ("Bonjour", "en-US"),
    ],
)  # fmt: skip
def test_a_language_is_known_by_its_script(text, expected):
    assert answer(Task("language", last=text)) == expected
