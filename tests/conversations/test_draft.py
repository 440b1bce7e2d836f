"""What is kept of a call's conversation."""

import pytest

from gateway.conversations.draft import title_of
from gateway.protocol.messages import Message


@pytest.mark.parametrize(
    "text",
    ["### Task:\nAnswer.\n<context>\n<source>notes</source>\n</context>\n\n\n\nWhere is it?",
     "<attached_files>\n<file id='1'/>\n</attached_files>\n\nWhere is it?",
     "<context>notes</context>\n<user_message>\nWhere is it?\n</user_message>", " Where\nis it? "],
)  # fmt: skip
def test_a_title_is_the_question_without_its_clients_prompt(text):
    assert title_of([Message("system", "x"), Message("user", text)]) == "Where is it?"
