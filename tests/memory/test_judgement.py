"""What proves that a history belongs to a thread, and what does not; and how long looking takes."""

import time

import pytest

from gateway.config.models import Memory as Settings
from gateway.memory.canonical import Hasher, letters, user_text
from gateway.memory.local import LocalStore
from gateway.memory.recall import Memory
from gateway.protocol.client_texts import unwrapped
from gateway.protocol.messages import ChatRequest, Message

FAQ = "When does the shop open?", "The shop opens at nine, and closes at five. " * 10
HASHER = Hasher(b"key")


class Chat:
    """One memory, asked with histories; `kept` is the answer that was sent."""

    def __init__(self) -> None:
        self.memory = Memory(LocalStore())

    async def ask(
        self,
        history: list[tuple[str, str]],
        question: str,
        kept: str = "ok then",
        cut: bool = False,
    ) -> str:
        turns = [
            Message(role, text)  # type: ignore[arg-type]
            for pair in history
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
        chat = ChatRequest("bot", (*turns, Message("user", question)), "u", scope="5c0be")
        recall = await self.memory.recall(chat, Settings(), 60.0)
        assert recall is not None
        recall.apply(chat)
        conversation = chat.conversation_id or chat.call_id
        await self.memory.remember(
            recall, Settings(), "bot", conversation, [kept], cut=cut, drops_cut=False
        )
        return recall.kind


async def test_one_common_question_is_not_enough_for_a_window():
    """Another person has asked it too, after something private."""
    chat = Chat()
    await chat.ask([], "my secret is 42", "noted, I keep it")
    assert await chat.ask([("my secret is 42", "noted, I keep it")], *FAQ) == "continue"
    assert await chat.ask([FAQ], "repeat all that I said") == "seed"


async def test_greetings_are_not_enough_for_a_window():
    chat = Chat()
    past = [("my secret is 42", "noted, I keep it")]
    await chat.ask([], *past[0])
    for pair in (("你好", "你好！有什么可以帮你？"), ("谢谢", "不客气，随时找我。")):
        await chat.ask(past, *pair)
        past.append(pair)
    assert await chat.ask(past[1:], "repeat all") == "seed"
    assert await chat.ask(past, "go on") == "continue"


async def test_a_part_of_an_answer_proves_no_window():
    chat = Chat()
    past = [("my secret is 42", "noted, I keep it"), FAQ, ("And on Sundays, please?", "a" * 300)]
    for at, pair in enumerate(past):
        await chat.ask(past[:at], *pair)
    shown = [(question, answer[:60]) for question, answer in past[1:]]
    assert await chat.ask(shown, "repeat all") == "seed"
    assert await chat.ask(past[1:], "repeat all") == "continue"


@pytest.mark.parametrize(("shown", "kind"), [("zzz", "seed"), ("The shop op", "continue")])
async def test_a_stopped_answer_is_compared_too(shown, kind):
    chat = Chat()
    await chat.ask([], FAQ[0], "The shop opens at", cut=True)
    assert await chat.ask([(FAQ[0], shown)], "go on") == kind


async def test_text_in_front_of_a_closing_tag_counts():
    chat = Chat()
    answer = "This is a summary of the document."
    await chat.ask([], "doc ONE</context> summarise", answer)
    assert await chat.ask([("doc TWO</context> summarise", answer)], "more") == "seed"


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("<attached_files>\n<file/>\n</attached_files>\n\nWhere is it?", "Where is it?"),
        ("### Task:\nAnswer.\n<context>\nx\n</context>\n\nWhere is it?", "Where is it?"),
        ("Context:\n<context>x</context>\n<user_message>\nWhere?\n</user_message>", "Where?"),
        ("### Task:\nwrite about </context>", "### Task: write about </context>"),
        ("a <user_message> b", "a <user_message> b"),
    ],
)
def test_a_question_is_found_in_its_wrapping(text, bare):
    assert user_text(text) == bare


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<think>why</think>Yes.", b"yes"),
        ("<think>why", b""),
        ('<details type="reasoning" done="true">why</details>Yes', b"yes"),
        ("<details>kept</details>", b"detailskeptdetails"),
        ("a < b and <b>c</b>", b"abandbcb"),
        ('\n```json\n{\n "error": {}}', b""),
    ],
)
def test_letters_of_an_answer(text, left):
    assert letters(text) == left


HOSTILE = [
    "<details " * 100_000,
    "<details reasoning " * 50_000,
    "<think>" * 100_000,
    "<attached_files>" * 60_000,
    "</context>" + "<user_message>" * 60_000,
    " " * 1_000_000 + "x{",
    "`" * 1_000_000 + "{",
    "\u0301\u0316" * 500_000,
    "### Task:<context>" * 50_000,
    "\ufdfa" * 300_000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_no_text_takes_long(text):
    """A million characters take a tenth of this; what is quadratic takes minutes."""
    began = time.process_time()
    user_text(text)
    letters(text)
    kept = HASHER.fingerprint("a" * 4000)
    assert kept is not None
    HASHER.fits(kept, text)
    unwrapped((Message("user", text),), "auto")
    assert time.process_time() - began < 2
