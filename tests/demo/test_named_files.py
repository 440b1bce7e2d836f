"""Every simulator's answer names the files that it received."""

import json

import pytest
from test_dify_demo import ask

from gateway.demo.script import file_name, speak

PIXELS = "data:image/png;base64,iVBORw0KGgo="


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        ("看图", "我收到了 2 个文件：红.png、b.pdf。"),
        ("look", " I received 2 file(s): 红.png, b.pdf."),
        ("これは？", "ファイルを 2 件受け取りました：红.png、b.pdf。"),
    ],
)
def test_files_are_named_in_the_language_of_the_question(question, sentence):
    assert sentence in speak("Dify", question, [], ["红.png", "b.pdf"]).text


@pytest.mark.parametrize("question", ["看图", "look", "これは？"])
def test_nothing_is_said_about_files_that_were_not_given(question):
    text = speak("Dify", question, []).text
    assert "文件" not in text
    assert "file" not in text
    assert "ファイル" not in text


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://x.test/img/red.png", "red.png"),
        ("https://x.test/a/%E7%BA%A2.png?sign=a/b#c/d", "红.png"),
        ("https://x.test/a/", "a"),
        ("https://x.test", "x.test"),
        (PIXELS, "image/png (8 bytes)"),
        ("data:application/pdf;name=a.pdf;base64,JVBERi0=", "application/pdf (5 bytes)"),
        ("data:text/plain;charset=utf-8,%E7%BA%A2!", "text/plain (4 bytes)"),
        ("data:,a", "text/plain (1 bytes)"),
    ],
)
def test_a_url_gives_a_file_its_name(url, name):
    assert file_name(url) == name


PARTS = [
    ({"type": "image_url", "image_url": {"url": "https://x.test/a.png"}}, "a.png"),
    ({"type": "image_url", "image_url": "https://x.test/a.png"}, "a.png"),
    ({"type": "image_url", "image_url": {"url": PIXELS}}, "image/png (8 bytes)"),
    ({"type": "video_url", "video_url": {"url": "https://x.test/a.mp4"}}, "a.mp4"),
    ({"type": "file_url", "file_url": {"url": "https://x.test/a.pdf"}}, "a.pdf"),
    ({"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
     "audio/wav (4 bytes)"),
    ({"type": "file", "file": {"filename": "a.pdf", "file_data": "data:;base64,JVBERi0="}},
     "a.pdf"),
    ({"type": "file", "file": {"file_data": "data:application/pdf;base64,JVBERi0="}},
     "application/pdf (5 bytes)"),
    ({"type": "file", "file": {"file_id": "file-1"}}, "file-1"),
]  # fmt: skip
PATHS = {
    "openai": "/v1/chat/completions",
    "zhipu": "/api/paas/v4/chat/completions",
    "fastgpt": "/api/v1/chat/completions",
}


async def answer(served, platform: str, messages: list[dict]) -> str:
    """The text of a streamed answer."""
    body = {"model": "m", "stream": True, "messages": messages}
    status, _, raw = await ask(served.url, PATHS[platform], body)
    assert status == 200
    lines = [line[6:] for line in raw.decode().splitlines() if line.startswith("data: {")]
    deltas = [json.loads(line)["choices"][0]["delta"] for line in lines]
    return "".join(delta.get("content") or "" for delta in deltas)


def asked(*parts: dict) -> dict:
    return {"role": "user", "content": [{"type": "text", "text": "看图"}, *parts]}


@pytest.mark.parametrize("platform", PATHS)
@pytest.mark.parametrize(("part", "name"), PARTS, ids=[f"{p['type']}-{n}" for p, n in PARTS])
async def test_a_part_that_is_a_file_is_named(demo, platform, part, name):
    served = await demo(platform)
    text = await answer(served, platform, [asked(part)])
    assert "你问的是：“看图”" in text
    assert f"我收到了 1 个文件：{name}。" in text


@pytest.mark.parametrize("platform", PATHS)
async def test_several_files_are_named_in_their_order(demo, platform):
    served = await demo(platform)
    parts = [{"type": "image_url", "image_url": {"url": f"https://x.test/{i}.png"}} for i in "abc"]
    text = await answer(served, platform, [asked(*parts)])
    assert "我收到了 3 个文件：a.png、b.png、c.png。" in text


@pytest.mark.parametrize("platform", PATHS)
async def test_files_of_earlier_questions_are_not_named_again(demo, platform):
    served = await demo(platform)
    messages = [asked(PARTS[0][0]), {"role": "assistant", "content": "好"}, asked()]
    assert "文件" not in await answer(served, platform, messages)


async def test_fastgpt_takes_a_files_name_from_its_part(demo):
    served = await demo("fastgpt")
    part = {"type": "file_url", "name": "报告.pdf", "url": "https://x.test/1.bin"}
    text = await answer(served, "fastgpt", [asked(part)])
    assert "我收到了 1 个文件：报告.pdf。" in text
