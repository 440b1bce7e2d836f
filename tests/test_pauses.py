"""What a person replies to a bot's question becomes what its platform takes for an answer."""

import pytest

from gateway.pauses import MAX_CHARACTERS, MAX_PAUSES, MAX_WORDS, Field, Pause, Pauses, number_in

CHOICE = Pause(options=("人事部", "财务部 💰", "IT Help"))
FORM = Pause(
    fields=(Field("reason", "原因"), Field("days", "天数", is_number=True), Field("kind", "类型"))
)


@pytest.mark.parametrize(
    ("reply", "option"),
    [
        ("2", "财务部 💰"), (" 2. ", "财务部 💰"), ("２", "财务部 💰"), ("（2）", "财务部 💰"), ("#1", "人事部"),
        ("2. 财务部 💰", "财务部 💰"), ("财务部 💰", "财务部 💰"), ("it  help\n", "IT Help"),
        ("4", "4"), ("0", "0"), ("财务", "财务"), ("2 天", "2 天"), ("1.5", "1.5"),
    ],
)  # fmt: skip
def test_a_number_or_the_words_choose_an_option(reply, option):
    assert CHOICE.answer(reply) == option


def test_an_option_that_is_a_number_is_its_own_words():
    assert Pause(options=("3", "2", "1")).answer("1") == "1"


@pytest.mark.parametrize(
    ("reply", "sent"),
    [
        ("原因：回家 🏠\n天数: 3\n类型：年假", '{"reason":"回家 🏠","days":3,"kind":"年假"}'),
        ("- 原因: a: b\n- 天数: 1.5", '{"reason":"a: b","days":1.5}'),
        ('{"原因": "回家", "days": 3}', '{"reason":"回家","days":3}'),
        ('{"reason": "回家", "天数": "3"}', '{"reason":"回家","days":3}'),
        ("天数: 三", '{"days":"三"}'),
        ("我想请假", "我想请假"),
        ("[1]", "[1]"),
    ],
)
def test_lines_of_labels_fill_a_form(reply, sent):
    assert FORM.answer(reply) == sent


def test_prose_fills_the_only_field():
    assert Pause(fields=(Field("why", "原因"),)).answer(" 回家 ") == '{"why":"回家"}'


def test_what_json_cannot_carry_is_left_alone():
    assert Pause(fields=(Field("why", "原因"),)).answer("\ud83d") == "\ud83d"


def test_without_a_question_a_reply_is_what_it_is():
    assert Pause().answer("2") == "2"


@pytest.mark.parametrize(("reply", "number"), [("12.", 12), ("1234", 0), ("x", 0), ("", 0)])
def test_only_a_whole_reply_is_a_number(reply, number):
    assert number_in(reply) == number


def test_a_pause_is_remembered_until_it_ends():
    pauses = Pauses()
    pauses.begin("c", CHOICE)
    assert pauses.get("c") is CHOICE
    pauses.end("c")
    assert pauses.get("c") is None


def test_memory_has_a_bound():
    pauses = Pauses()
    for i in range(MAX_PAUSES + 1):
        pauses.begin(str(i), CHOICE)
    assert pauses.get("0") is None
    assert pauses.get("1") is CHOICE
    for huge in (("x" * (MAX_CHARACTERS + 1),), ("",) * (MAX_WORDS + 1)):
        pauses.begin("huge", Pause(options=huge))
        assert pauses.get("huge") is None
