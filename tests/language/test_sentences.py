import logging

import orjson
import pytest

from gateway.errors import InvalidRequest, QuotaExhausted, api_body, openai_body
from gateway.language.sentences import CHINESE, Sentence, edited, in_language, say

EMPTY = "The question is empty."


def test_a_sentence_is_its_english_text():
    sentence = say("There is no file {id!r}.", id="a")
    assert sentence == "There is no file 'a'."
    assert isinstance(sentence, str)
    assert orjson.dumps([sentence]) == b"[\"There is no file 'a'.\"]"
    assert f"{sentence}" == "There is no file 'a'."
    assert logging.Formatter().format(logging.makeLogRecord({"msg": sentence})) == sentence


def test_a_sentence_has_a_chinese_form_with_its_values():
    sentence = say("The upstream has been silent for {seconds:g} s.", seconds=1.50)
    assert in_language(sentence, "zh") == "上游已经 1.5 秒没有发来数据。"
    assert in_language(sentence, "en") == "The upstream has been silent for 1.5 s."


def test_a_value_that_is_a_sentence_is_translated_too():
    inner = say("There is no file {id!r}.", id="a")
    outer = say("Agent {name!r}: {reason}", name="bot", reason=inner)
    assert in_language(outer, "zh") == "智能体 'bot'：没有文件 'a'。"


def test_other_values_stay_as_they_are():
    """Also text of an upstream or a caller that is the same as a sentence of ours."""
    sentence = say("Agent {name!r}: {reason}", name="token", reason=EMPTY)
    assert in_language(sentence, "zh") == f"智能体 'token'：{EMPTY}"


def test_values_are_never_taken_for_templates():
    sentence = say("There is no file {id!r}.", id="{seconds} {0.__class__}")
    assert in_language(sentence, "zh") == "没有文件 '{seconds} {0.__class__}'。"


def test_a_sentence_without_values_may_have_braces():
    assert say("{'a': 1}") == "{'a': 1}"
    assert in_language(say("{'a': 1}"), "zh") == "{'a': 1}"


def test_an_edit_applies_to_either_language():
    sentence = edited(
        say("There is no file {id!r}.", id="abc"), lambda text: text.replace("b", "*")
    )
    assert sentence == "There is no file 'a*c'."
    assert in_language(sentence, "zh") == "没有文件 'a*c'。"
    again = edited(sentence, lambda text: text[:5])
    assert (again, in_language(again, "zh")) == ("There", "没有文件 ")


def test_a_sentence_without_translation_stays_english():
    """Such as one of a platform from another package."""
    sentence = say("MiniMax has no {thing}.", thing="time")
    assert "MiniMax has no {thing}." not in CHINESE
    assert in_language(sentence, "zh") == "MiniMax has no time."


@pytest.mark.parametrize("value", [None, 3, "text", ["a"]])
def test_what_is_no_sentence_is_the_same_in_any_language(value):
    assert in_language(value, "zh") is value


class Kind(Sentence):
    """Like `platforms.base.Doubt`."""


def test_a_kind_of_sentence_keeps_its_translation():
    assert in_language(Kind(say(EMPTY)), "zh") == "问题是空的。"


def test_only_the_message_of_an_error_is_translated():
    for body in (openai_body, api_body):
        english = body(InvalidRequest(EMPTY, param="query"))
        chinese = body(InvalidRequest(EMPTY, param="query"), "zh")
        text = orjson.dumps(chinese).decode().replace("问题是空的。", EMPTY)
        assert orjson.loads(text) == english
        assert chinese != english


def test_an_upstreams_own_message_stays_as_it_is():
    assert openai_body(QuotaExhausted("no credit"), "zh")["error"]["message"] == "no credit"


def test_an_error_may_be_renamed_in_either_language():
    error = InvalidRequest(say("Agent {name!r}: {reason}", name="hidden", reason=say(EMPTY)))
    shown = error.renamed("hidden", "route").replace(param="query")
    assert shown.message == "Agent 'route': The question is empty."
    assert in_language(shown.message, "zh") == "智能体 'route'：问题是空的。"
