"""Recorded threads of real clients, replayed: each turn reaches the conversation that its user
would expect, also if all clients are one caller and all get the same answers."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.config.models import Memory as Settings
from gateway.ids import new_id
from gateway.memory.judgement import Kind
from gateway.memory.local import LocalStore
from gateway.memory.recall import Memory
from gateway.protocol.messages import ChatRequest
from gateway.protocol.openai_messages import read_turns

STEPS: list[dict[str, Any]] = json.loads(Path(__file__).with_name("threads.json").read_text())
# What each relation to the thread before has to become, if the steps before are known.
EXPECTED: dict[str, Kind] = {
    "new": "new", "continue": "continue", "trimmed": "continue", "summary": "continue",
    "regenerate": "branch", "edit": "branch", "unknown-prefix": "seed",
}  # fmt: skip


class Replay:
    """Asks through one memory, and notes which conversations each thread has used."""

    def __init__(self) -> None:
        self.memory = Memory(LocalStore())
        self.owners: dict[str, str] = {}  # of conversations: the thread that began it

    async def ask(self, step: dict[str, Any], scope: str, thread: str) -> Kind:
        messages = read_turns(step["messages"])
        chat = ChatRequest("bot", messages, "u", scope=scope)
        recall = await self.memory.recall(chat, Settings(), 60.0)
        assert recall is not None
        recall.apply(chat)
        conversation = chat.conversation_id or new_id(16)
        assert self.owners.setdefault(conversation, thread) == thread
        answered = step["answered"]
        if answered["status"] == 200:
            was_stopped = answered.get("stopped_by_client", False)
            await self.memory.remember(
                recall,
                Settings(),
                "bot",
                conversation,
                [answered["content"]],
                cut=was_stopped,
                drops_cut=False,
            )
        else:
            await self.memory.remember(recall, Settings(), "bot", "", [], cut=True, drops_cut=False)
        return recall.kind


def threads() -> dict[str, list[dict[str, Any]]]:
    out: dict[str, list[dict[str, Any]]] = {}
    for step in STEPS:
        out.setdefault(f"{step['client']}-{step['thread']}", []).append(step)
    return out


def answers(step: dict[str, Any]) -> list[str]:
    """The answers in the history, without errors that the client shows as answers."""
    texts = [turn["content"] for turn in step["messages"] if turn["role"] == "assistant"]
    return [text for text in texts if '"error"' not in text]


def expected(steps: list[dict[str, Any]]) -> list[Kind]:
    """What a person would expect: a step is continued if the gateway answered the one before it."""
    out: list[Kind] = []
    is_known, last = False, 0
    for step in steps:
        relation = step["relation"]
        is_known = is_known and step["step"] == last + 1
        is_first = all(turn["role"] == "system" for turn in step["messages"][:-1])
        if is_first:
            out.append("new")
        elif relation == "trimmed" and len(answers(step)) < 2:
            out.append("seed")  # one short answer proves nothing
        else:
            out.append(EXPECTED[relation] if is_known else "seed")
        is_known, last = is_known or step["answered"]["status"] == 200, step["step"]
    return out


@pytest.mark.parametrize("name", threads())
async def test_each_turn_finds_its_conversation(name):
    replay, steps = Replay(), threads()[name]
    found = [await replay.ask(step, "scope", name) for step in steps]
    assert found == expected(steps)


def interleaved(seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """All threads, each in its order, mixed."""
    rest = {name: list(steps) for name, steps in threads().items()}
    chosen = random.Random(seed)
    while rest:
        name = chosen.choice(sorted(rest))
        yield name, rest[name].pop(0)
        if not rest[name]:
            del rest[name]


@pytest.mark.parametrize("seed", range(20))
async def test_no_thread_joins_another_one(seed):
    replay = Replay()
    for name, step in interleaved(seed):
        await replay.ask(step, "scope", name)
