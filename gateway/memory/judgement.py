"""Which thread a history continues, if that is proven. A wrong guess would show one person's
conversation to another, and a missed one costs some tokens: what is not proven begins a new
conversation."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from gateway.memory.canonical import Hasher, user_text
from gateway.memory.thread import History, Thread, Turn

Kind = Literal["new", "continue", "branch", "seed"]

# What proves a history whose beginning is missing: two whole answers of so many bytes, to questions
# of so many bytes in all.
_PROOF, _ASKED = 12, 20
_MOST_STARTS = 3  # places in one thread that are compared


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


class _Match(NamedTuple):
    """A thread that has all of the history's exchanges, from its turn `start` on."""

    thread: Thread
    start: int


def judge(
    history: History, path: Found, tail: Found, hasher: Hasher, *, needs_whole: bool = False
) -> Verdict:
    """`path` has the threads that begin with all of the history's questions, `tail` those that
    contain its last ones. With `needs_whole` a history whose beginning is missing is not enough.

    Both count for a history that seems to be whole: it may be the end of another one. Threads of
    different trees may be those of two people who say the same, and then neither is continued.
    """
    size = len(history.exchanges)
    if not size:
        return Verdict("seed" if history.is_cut else "new")
    begun = [] if history.is_cut else path.threads
    depths = [(thread, _depth(thread, 0, history, hasher)) for thread in begun]
    whole = [_Match(thread, 0) for thread, depth in depths if depth == size]
    seen = {match.thread.id for match in whole}
    others = [thread for thread in tail.threads if thread.id not in seen]
    starts = [_Match(thread, _start(thread, history, hasher)) for thread in others]
    ends = [match for match in starts if match.start >= 0]
    if whole or ends:
        if not (path.is_whole and tail.is_whole):
            return Verdict("seed")
        if len({match.thread.tree for match in (*whole, *ends)}) > 1:
            return Verdict("seed")
        if not whole and (needs_whole or not _is_proven(ends[0], history, hasher)):
            return Verdict("seed")
        return _pick(whole or ends, size)
    thread, depth = max(depths, key=lambda each: each[1], default=(None, 0))
    return Verdict("branch", thread, depth) if depth else Verdict("seed")


def _is_proven(match: _Match, history: History, hasher: Hasher) -> bool:
    """Whether a history whose beginning is missing says enough: many people ask a bot the same, and
    get the same answer."""
    turns = match.thread.turns[match.start :]
    pairs = zip(history.exchanges, turns, strict=False)
    proofs = [
        len(user_text(exchange.question).encode("utf-8", "surrogatepass"))
        for exchange, turn in pairs
        if turn.answer.size >= _PROOF and hasher.same(turn.answer, exchange.shown)
    ]
    return len(proofs) >= 2 and sum(proofs) >= _ASKED


def _pick(matches: list[_Match], size: int) -> Verdict:
    """The newest thread that ends with the history, else a branch of the newest one."""
    for thread, start in matches:
        if len(thread.turns) == start + size and thread.is_open:
            return Verdict("continue", thread, size, start)
    thread, start = matches[0]
    return Verdict("branch", thread, size, start)


def _depth(thread: Thread, start: int, history: History, hasher: Hasher) -> int:
    """How many of the history's exchanges the thread has in their order, from `start` on."""
    turns = thread.turns[start:]
    for depth, (exchange, turn) in enumerate(zip(history.exchanges, turns, strict=False)):
        if turn.user != exchange.user or not hasher.fits(turn.answer, exchange.shown):
            return depth
    return min(len(turns), len(history.exchanges))


def _start(thread: Thread, history: History, hasher: Hasher) -> int:
    """The last place in the thread that has the whole history; -1 if there is none."""
    asked = tuple([exchange.user for exchange in history.exchanges])
    users = tuple([turn.user for turn in thread.turns])
    size, tries = len(asked), 0
    for start in range(len(users) - size, -1, -1):
        if users[start] == asked[0] and users[start : start + size] == asked:
            tries += 1
            if _depth(thread, start, history, hasher) == size:
                return start
            if tries == _MOST_STARTS:
                break
    return -1
