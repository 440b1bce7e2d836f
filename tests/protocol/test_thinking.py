import pytest

from gateway.protocol.messages import Reasoning, Text
from gateway.protocol.thinking import ThinkingSplitter

DETAILS = '<details style="color:gray;" open> <summary> Thinking... </summary>'


def split(text: str, size: int) -> tuple[str, str]:
    """(reasoning, answer) of `text` fed in pieces."""
    splitter = ThinkingSplitter()
    deltas = [d for i in range(0, len(text), size) for d in splitter.feed(text[i : i + size])]
    deltas += splitter.close()
    join = "".join
    return (
        join(d.text for d in deltas if isinstance(d, Reasoning)),
        join(d.text for d in deltas if isinstance(d, Text)),
    )


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("<think>\n想一想 🤔\n</think>\n\n答案", "想一想 🤔", "答案"),
        ("\n<think>a\n\nb</think>c", "a\n\nb", "c"),
        (f"{DETAILS}\n先想\n</details>\n答案", "先想", "答案"),
        ("没有标签 <think>不是</think>", "", "没有标签 <think>不是</think>"),
        ("<thin", "", "<thin"),
        ("<thinking> 是我的题目", "", "<thinking> 是我的题目"),
        ("<details>普通的折叠</details>", "", "<details>普通的折叠</details>"),
        ("<think>没有说完 </thi", "没有说完 </thi", ""),
        ("<think></think>答", "", "答"),
        ("", "", ""),
    ],
)
def test_thinking_at_the_start_is_split_off_in_any_pieces(text, reasoning, answer, size):
    assert split(text, size) == (reasoning, answer)


def test_another_node_may_think_again():
    splitter = ThinkingSplitter()
    splitter.feed("<think>a</think>b")
    deltas = splitter.restart() + splitter.feed("<think>c</think>d")
    assert deltas == [Reasoning("c"), Text("d")]
