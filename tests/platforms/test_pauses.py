"""A person's reply to a bot's question becomes the answer that its platform expects."""

import pytest

from gateway.platforms.pauses import (
    MAX_CHARACTERS,
    MAX_PAUSES,
    MAX_WORDS,
    Field,
    Pause,
    Pauses,
    number_in,
)

CHOICE = Pause(options=("人事部", "财务部 💰", "IT Help"))
FORM = Pause(
    fields=(Field("reason", "原因"), Field("days", "天数", is_number=True), Field("kind", "类型"))
)


@pytest.mark.parametrize(
    ("reply", "option"),
    [
        ("2", "财务部 💰"), (" 2. ", "财务部 💰"), ("２", "财务部 💰"), ("（2）", "财务部 💰"), ("#1", "人事部"),
        ("2. 财务部 💰", "财务部 💰"), ("财务部 💰", "财务部 💰"), ("it  help\n", "IT Help"),
        ("二", "财务部 💰"), ("②", "财务部 💰"), ("选2", "财务部 💰"), ("选项2", "财务部 💰"), ("选择：二", "财务部 💰"),
        ("第二个", "财务部 💰"), ("第2个", "财务部 💰"), ("我选第 2 项。", "财务部 💰"), ("两", "财务部 💰"), ("No. 2", "财务部 💰"),
        ("№ 2", "财务部 💰"), ("option 2", "财务部 💰"), ("**2**", "财务部 💰"), ("2️⃣", "财务部 💰"), ("【2】", "财务部 💰"),
        ("3) IT help", "IT Help"), ("3、it help", "IT Help"), ("3.IT Help", "IT Help"), ("选3：IT Help", "IT Help"),
        ("IT Help。", "IT Help"), ("“IT help”", "IT Help"), ("**IT Help**!", "IT Help"), ("ＩＴ　Ｈｅｌｐ", "IT Help"),
        ("- 人事部", "人事部"), ("2) IT Help", "2) IT Help"), ("第四个", "第四个"), ("2个", "2个"), ("二手房", "二手房"),
        ("1234", "1234"), ("2024", "2024"), ("?!", "?!"), ("2 3", "2 3"), ("no", "no"),
        ("4", "4"), ("0", "0"), ("财务", "财务"), ("2 天", "2 天"), ("1.5", "1.5"),
    ],
)  # fmt: skip
def test_a_number_or_the_text_chooses_an_option(reply, option):
    assert CHOICE.answer(reply) == option


def test_an_option_that_is_a_number_matches_its_text():
    assert Pause(options=("3", "2", "1")).answer("1") == "1"
    assert Pause(options=("三个", "二", "一")).answer("一。") == "一"


def test_signs_that_distinguish_options_are_kept():
    assert Pause(options=("C", "C!")).answer("c!") == "C!"


def test_chinese_numerals_reach_past_twenty():
    many = Pause(options=tuple(f"option {chr(96 + i)}" for i in range(1, 25)))
    for reply, option in {"十": "j", "十一": "k", "第二十个": "t", "二十一": "u", "⑳": "t"}.items():
        assert many.answer(reply) == f"option {option}"


def test_a_long_reply_is_left_alone():
    long = "( " * MAX_CHARACTERS + "2"
    assert CHOICE.answer(long) == long


@pytest.mark.parametrize(
    ("reply", "sent"),
    [
        ("原因：回家 🏠\n天数: 3\n类型：年假", '{"reason":"回家 🏠","days":3,"kind":"年假"}'),
        ("- 原因: a: b\n- 天数: 1.5", '{"reason":"a: b","days":1.5}'),
        ('{"原因": "回家", "days": 3}', '{"reason":"回家","days":3}'),
        ('{"reason": "回家", "天数": "3"}', '{"reason":"回家","days":3}'),
        ("天数: 三", '{"days":"三"}'),
        ("**原因**: 回家\n**天数**: 3", '{"reason":"回家","days":3}'),
        ("**原因：** 回家\n**天数：** 3", '{"reason":"回家","days":3}'),
        ("1. 原因: 回家\n2. 天数: 3", '{"reason":"回家","days":3}'),
        ("* 原因: 回家\n• 天数: 3", '{"reason":"回家","days":3}'),
        ("原因=回家\n天数＝３", '{"reason":"回家","days":3}'),
        ("REASON: 回家\nDays: 3", '{"reason":"回家","days":3}'),
        ("原因：回家，看父母，天数：3；类型：年假", '{"reason":"回家，看父母","days":3,"kind":"年假"}'),
        ("原因: a, b\n\n谢谢, 再见", '{"reason":"a, b"}'),
        ('```json\n{"reason":"回家","Days":3}\n```', '{"reason":"回家","days":3}'),
        ('我填好了：{"原因":"回家"}', '{"reason":"回家"}'),
        ('{"x": 1}', '{"x": 1}'),
        ("我想请假", "我想请假"),
        ("[1]", "[1]"),
    ],
)  # fmt: skip
def test_lines_of_labels_fill_a_form(reply, sent):
    assert FORM.answer(reply) == sent


def test_labels_that_differ_in_a_sign_are_distinguished():
    form = Pause(fields=(Field("a", "电话"), Field("b", "电话*"), Field("c", "")))
    assert form.answer("电话*: 2\n电话: 1\n**: 3") == '{"a":"1","b":"2"}'


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
