"""Which thread a history continues, if that is proven. A wrong guess would show one person's
conversation to another, and a missed one costs some tokens: what is not proven begins anew."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from gateway.memory.canonical import Hasher
from gateway.memory.thread import History, Thread, Turn

Kind = Literal["new", "continue", "branch", "seed"]

_PROOF = 200  # bytes of one answer that prove a history whose beginning is missing
_PROOF_OF_TWO = 12  # of each of two answers that do


class Found(NamedTuple):
    """The threads known under one key, newest first. `is_whole`: there are no others that were
    forgotten."""

    threads: Sequence[Thread] = ()
    is_whole: bool = True


class Verdict(NamedTuple):
    """`thread` is continued or branched off; `depth` of its turns are also in the history, of which
    `start` turns of the thread are not (they come before it)."""

    kind: Kind
    thread: Thread | None = None
    depth: int = 0
    start: int = 0

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The thread's turns up to the question."""
        return self.thread.turns[: self.start + self.depth] if self.thread else ()


def judge(history: History, path: Found, tail: Found, hasher: Hasher) -> Verdict:
    """`path` has the threads that begin with all of the history's questions, `tail` those that
    contain its last ones."""
    if not history.exchanges:
        return Verdict("seed" if history.is_cut else "new")
    if not history.is_cut and (verdict := _whole(history, path, hasher)):
        return verdict
    return _window(history, tail, hasher)


def _whole(history: History, path: Found, hasher: Hasher) -> Verdict | None:
    """The verdict on a history that begins with the first turn of known threads."""
    size = len(history.exchanges)
    depths = [(thread, _depth(thread, 0, history, hasher)) for thread in path.threads]
    matching = [thread for thread, depth in depths if depth == size]
    if matching:
        return _pick(matching, path.is_whole, size, lambda thread: 0)
    best = max(depths, key=lambda each: each[1], default=None)
    if best is None:
        return None
    return Verdict("branch", best[0], best[1]) if best[1] else Verdict("seed")


def _window(history: History, tail: Found, hasher: Hasher) -> Verdict:
    """The verdict on a history whose beginning is missing."""
    size = len(history.exchanges)
    starts = {thread.id: _start(thread, history, hasher) for thread in tail.threads}
    matching = [thread for thread in tail.threads if starts[thread.id] >= 0]
    if not matching:
        return Verdict("seed")
    thread = matching[0]
    weights = [turn.answer.weight for turn in thread.turns[starts[thread.id] :][:size]]
    is_proven = max(weights) >= _PROOF or sum([w >= _PROOF_OF_TWO for w in weights]) >= 2
    if not is_proven:
        return Verdict("seed")
    return _pick(matching, tail.is_whole, size, lambda thread: starts[thread.id])


def _pick(
    matching: list[Thread], is_whole: bool, size: int, start: Callable[[Thread], int]
) -> Verdict:
    """The newest of the threads that end with the history, else a branch of the newest one. Threads
    of different trees may be those of two people with the same words."""
    if not is_whole or len({thread.tree for thread in matching}) > 1:
        return Verdict("seed")
    for thread in matching:
        if len(thread.turns) == start(thread) + size and thread.is_open:
            return Verdict("continue", thread, size, start(thread))
    return Verdict("branch", matching[0], size, start(matching[0]))


def _depth(thread: Thread, start: int, history: History, hasher: Hasher) -> int:
    """How many of the history's exchanges the thread has in their order, from `start` on."""
    turns = thread.turns[start:]
    for depth, (exchange, turn) in enumerate(zip(history.exchanges, turns, strict=False)):
        if turn.user != exchange.user or not hasher.fits(turn.answer, exchange.shown):
            return depth
    return min(len(turns), len(history.exchanges))


def _start(thread: Thread, history: History, hasher: Hasher) -> int:
    """The last place in the thread where the whole history stands; -1 if there is none."""
    size = len(history.exchanges)
    for start in range(len(thread.turns) - size, -1, -1):
        if _depth(thread, start, history, hasher) == size:
            return start
    return -1
