"""What stays of a call: titles, kept turns, and the history that a model is given."""

import pytest

from gateway.conversations import draft as module
from gateway.conversations.draft import CLEARED, draft_of, earlier, title_of
from gateway.conversations.register import Owner
from gateway.protocol.messages import ChatRequest, Media, Message, Usage

OWNER = Owner("key-app", "alice")


def kept(question: str, **options) -> module.Draft:
    chat = ChatRequest("gpt", (Message("user", question, **options),), "alice")
    return draft_of(OWNER, chat, is_titled=True, kept_at=("gpt",), has_tasks=False)


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("How do I clean a bicycle?", "How do I clean a bicycle?"),
        ("  two\nlines\t here ", "two lines here"),
        ("字" * 61, "字" * 59 + "…"),
        ("a\x00b\u202ec", "a b c"),
        ("", ""),
    ],
)
def test_a_title_is_one_printable_line(text, title):
    assert title_of([Message("system", "be kind"), Message("user", text)]) == title


def test_a_turn_has_what_was_asked_and_said():
    draft = kept("look", media=(Media("image", "https://a/b.png", "b.png"),))
    notes = {"citations": [{"title": "t"}], "files": [{"type": "image", "url": "https://c/d"}]}
    body = draft.turn(["a", "b"], ["hm"], notes, Usage(1, 2, 3), status="completed")
    assert (body["question"], body["answer"], body["reasoning"]) == ("look", "ab", "hm")
    assert [file["belongs_to"] for file in body["files"]] == ["question", "answer"]
    assert body["citations"] == [{"title": "t"}]
    assert body["usage"]["total_tokens"] == 3


def test_a_kept_turn_has_a_bound(monkeypatch):
    monkeypatch.setattr(module, "MAX_QUESTION", 10)
    monkeypatch.setattr(module, "MAX_ANSWER", 20)
    draft = kept("q" * 1000)
    body = draft.turn(["a" * 15] * 9, ["b" * 50], {}, None, status="completed")
    assert [len(body[name]) for name in ("question", "answer", "reasoning")] == [10, 20, 20]


def said(question: str, answer: str = "yes", status: str = "completed") -> dict[str, str]:
    return {"question": question, "answer": answer, "status": status}


def test_a_model_is_given_the_latest_turns_that_fit(monkeypatch):
    monkeypatch.setattr(module, "MAX_HISTORY", 25)
    turns = [said(f"{number}" * 10, "a") for number in range(5)]
    assert [turn.text for turn in earlier(turns)] == ["3" * 10, "a", "4" * 10, "a"]


def test_a_turn_without_an_answer_is_left_out():
    turns = [said("one"), said("two", "", "failed"), said("three", "half", "stopped")]
    assert [turn.text for turn in earlier(turns)] == ["one", "yes", "three", "half"]


def test_nothing_before_a_mark_is_given_to_a_model():
    turns = [said("one"), said("", "", CLEARED), said("two")]
    assert [turn.text for turn in earlier(turns)] == ["two", "yes"]


@pytest.mark.parametrize(
    "text",
    ["### Task:\nAnswer.\n<context>\n<source>notes</source>\n</context>\n\n\n\nWhere is it?",
     "<attached_files>\n<file id='1'/>\n</attached_files>\n\nWhere is it?",
     "<context>notes</context>\n<user_message>\nWhere is it?\n</user_message>", " Where\nis it? "],
)  # fmt: skip
def test_a_title_is_the_question_without_its_clients_prompt(text):
    assert title_of([Message("system", "x"), Message("user", text)]) == "Where is it?"
