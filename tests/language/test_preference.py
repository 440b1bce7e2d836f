import time

import pytest

from gateway.language.preference import MOST, preferred


@pytest.mark.parametrize(
    "header",
    ["zh", "zh-CN", "ZH-cn", "zh-Hant", "zh-Hans-CN", "zh-TW,zh;q=0.9", "zh-CN,zh;q=0.9,en;q=0.8",
     "zh;q=0.5, en;q=0.4", "en;q=0.4, zh;q=0.5", "zh, en", "fr, zh;q=0.1", "zh;q=0.001", " zh ; q=1.000 , en",
     "en;q=0, zh;q=0.1", "*;q=0.1, zh;q=0.2", "xx-@@, zh", ", ,zh"],
)  # fmt: skip
def test_chinese_is_preferred(header):
    assert preferred(header) == "zh"


@pytest.mark.parametrize(
    "header",
    ["", "*", "en", "en-US,en;q=0.9,zh;q=0.8", "en, zh", "zh;q=0.4, en;q=0.5", "fr", "fr, de;q=0.5", "zh;q=0",
     "zh;q=0, *", "*, zh;q=0.5", "*, zh", "zha", "zhuang", "zh;q=2", "zh;q=-1", "zh;q=0.1234", "zh;q=abc", "zh;q=",
     "zh;level=1", "中文", "\x00", "zh_CN", "q=zh", ";;;", "x" * 10_000],
)  # fmt: skip
def test_english_is_preferred(header):
    assert preferred(header) == "en"


def test_only_the_beginning_of_a_long_header_is_read():
    assert preferred("xx," * (MOST // 3 - 2) + "zh," + "xx," * 1000) == "zh"
    assert preferred("xx," * MOST + "zh") == "en"


def test_an_entry_that_is_cut_does_not_count():
    start = "xx," * ((MOST - 4) // 3)
    entry = "zh;q=0" + " " * MOST
    assert preferred(start + entry) == "en"


def test_the_longest_header_costs_next_to_nothing():
    began = time.thread_time()
    for header in ("zh-" + "a-" * 4000, "," * 8000, "zh;q=0." + "0" * 8000, " " * 8000):
        for _ in range(100):
            preferred(header)
    assert time.thread_time() - began < 0.4  # 1 ms each, on a slow machine
