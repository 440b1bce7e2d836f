"""Markers that control a demo count in the last question only."""

import pytest

from gateway.demo.script import last_question, speak

EARLIER = "User: #fail\n\nAssistant: no\n\nUser: "


@pytest.mark.parametrize("mark", ["fail", "break", "cut", "slow", "limit"])
def test_a_fault_of_an_earlier_question_is_over(mark):
    prompt = f"User: #{mark}\n\nAssistant: sorry\n\nUser: and now?"
    assert speak("Dify", prompt, [f"#{mark}"]).fault == ""
    assert speak("Dify", f"{EARLIER}#{mark}", []).fault == mark
    assert speak("Dify", f"#{mark}", []).fault == mark


def test_thinking_and_length_count_in_the_last_question_too():
    long = speak("Dify", "User: #long #think\n\nAssistant: a\n\nUser: hi", [])
    assert not long.reasoning
    assert len(long.text) < 1000
    assert speak("Dify", f"{EARLIER}#think", []).reasoning


def test_the_demo_repeats_the_last_question_alone():
    assert last_question("Be brief.\n\nUser: one\n\nAssistant: two\n\nUser: three") == "three"
    assert 'You asked: "three"' in speak("Dify", "User: one\n\nUser: three", []).text


@pytest.mark.parametrize("model", ["dify", "fastgpt", "coze", "zhipu", "openai"])
async def test_a_chat_goes_on_after_a_fault(gateway, model):
    agent = {
        "platform": model,
        **{"coze": {"bot_id": "1"}, "openai": {"model": "m"}}.get(model, {}),
    }
    gw = await gateway(agents={model: agent})
    turns = [{"role": "user", "content": "#fail"}, {"role": "assistant", "content": "sorry"}]
    for question, status in (("and now?", 200), ("#fail", 502)):
        messages = [*turns, {"role": "user", "content": question}]
        async with gw.complete(model, messages=messages) as answer:
            assert answer.status == status, await answer.text()
