"""No user's question ever reaches a conversation of another, whatever several people do under one key
with the same questions, and whatever the bot answers to them."""

import asyncio
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config.models import Memory as Settings
from gateway.ids import new_id
from gateway.memory.local import LocalStore
from gateway.memory.recall import Memory, Store
from gateway.protocol.messages import ChatRequest, Message

WORDS = st.sampled_from(["hi", "你好", "and then?", "继续", "thanks"])
ANSWERS = st.sampled_from(["OK", "Hello! How can I help?", "当然可以。" * 60, "", "👍"])
PEOPLE = st.integers(0, 3)
ACTIONS = st.sampled_from(["ask", "ask", "ask", "regenerate", "edit", "stop", "clear", "fail"])


@dataclass
class Person:
    """A client that shows `turns`, and sends the last `window` of them."""

    name: int
    window: int
    turns: list[tuple[str, str]] = field(default_factory=list)


class World:
    """A platform that knows who has asked in which conversation."""

    def __init__(self, store: Store) -> None:
        self.use(store)
        self.owners: dict[str, int] = {}
        self.joined = 0

    def use(self, store: Store) -> None:
        """Go on with another process."""
        self.store, self.memory = store, Memory(store)

    async def ask(
        self, person: Person, words: str, answer: str, action: str, scope: str = "5c0be"
    ) -> None:
        shown = person.turns[-person.window :]
        messages = [
            Message(role, text)  # type: ignore[arg-type]
            for user, said in shown
            for role, text in (("user", user), ("assistant", said))
        ]
        question = Message("user", words)
        chat = ChatRequest("bot", (*messages, question), "u", scope=scope)
        recall = await self.memory.recall(chat, Settings(), 60.0)
        assert recall is not None
        recall.apply(chat)
        conversation = chat.conversation_id
        self.joined += conversation is not None
        conversation = conversation or new_id(16)
        assert self.owners.setdefault(conversation, person.name) == person.name
        is_cut = action in ("stop", "fail")
        seen = "" if action == "fail" else answer[: len(answer) // 2] if is_cut else answer
        known = "" if action == "fail" else conversation
        await self.memory.remember(
            recall, Settings(), "bot", known, [answer], cut=is_cut, drops_cut=False
        )
        person.turns.append((words, seen))


Step = tuple[int, str, str, str, int]


def people() -> list[Person]:
    return [Person(0, 100), Person(1, 100), Person(2, 2), Person(3, 1)]


async def act(world: World, persons: list[Person], step: Step, scope: str) -> None:
    who, action, words, answer, at = step
    person = persons[who]
    if action == "clear":
        person.turns.clear()
    elif action == "edit" and person.turns:
        del person.turns[at % len(person.turns) :]
    elif action == "regenerate" and person.turns:
        words, _ = person.turns.pop()
    await world.ask(person, words, answer, action, scope)


def play(steps: list[Step], store: Store) -> World:
    async def run() -> World:
        world, persons = World(store), people()
        for step in steps:
            await act(world, persons, step, "5c0be")
        return world

    return asyncio.run(run())


STEPS = st.lists(
    st.tuples(PEOPLE, ACTIONS, WORDS, ANSWERS, st.integers(0, 5)), min_size=1, max_size=40
)


@given(STEPS)
@settings(max_examples=300, deadline=None)
def test_nobody_joins_a_conversation_of_another(steps):
    play(steps, LocalStore())


def test_one_person_alone_is_joined():
    steps = [(0, "ask", f"question {n}", f"an answer of some length {n}", 0) for n in range(10)]
    assert play(steps, LocalStore()).joined == 9
