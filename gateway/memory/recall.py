"""The memory of one process: recalls the thread of a call's history, and remembers its turn."""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from gateway.config.models import Memory as Settings
from gateway.ids import new_id
from gateway.memory.canonical import Hasher
from gateway.memory.judgement import Found, Kind, Verdict, judge
from gateway.memory.thread import History, Thread, Turn, keys_of, path_of, read_history, tail
from gateway.protocol.messages import ChatRequest

log = logging.getLogger("gateway")

BRIEF_S = 86_400.0  # how long a conversation of one turn is kept
_WARN_S = 60.0
MAX_TEXT = 1024 * 1024  # bytes of an answer; a longer one gets no fingerprint


class Store(Protocol):
    """Where threads are kept. Every method may raise, and ends within 50 ms; a scope and a key are
    of hexadecimal digits."""

    async def find(self, scope: str, keys: Sequence[str]) -> list[Found]: ...

    async def claim(self, scope: str, thread: Thread, holder: str, lease_s: float) -> bool:
        """Reserve the thread for one call; False if another one has it, or has continued it."""

    async def release(self, scope: str, id_: str, holder: str) -> None: ...

    async def save(
        self, scope: str, thread: Thread, keys: Sequence[str], keep_s: float, holder: str
    ) -> None:
        """Keep the thread under these keys, and release it."""

    def missed(self, scope: str) -> None:
        """A thread of that scope could not be saved."""

    async def close(self) -> None: ...


class Recall:
    """What is known of one call: the verdict on its history, and its question.

    The history itself is not kept: a stream may last for minutes.
    """

    __slots__ = (
        "_question", "_turns", "call_id", "is_claimed", "is_over", "resent", "scope",
        "verdict",
    )  # fmt: skip

    def __init__(self, chat: ChatRequest, history: History, verdict: Verdict, hasher: Hasher):
        self.scope, self.call_id = chat.scope, chat.call_id
        self._question = history.question
        self.verdict = verdict
        self._turns = _turns(history, verdict, hasher)
        self.resent = 0  # the number of first messages that the platform does not keep
        if verdict.kind == "continue" and verdict.thread is not None:
            seeded = max(verdict.thread.seeded - verdict.start, 0)
            places = [exchange.at for exchange in history.exchanges] + [len(chat.messages) - 1]
            self.resent = places[min(seeded, len(places) - 1)] if seeded else 0
        self.is_claimed = False
        self.is_over = False  # the turn is remembered, or there is nothing to remember

    @property
    def kind(self) -> Kind:
        return self.verdict.kind

    def apply(self, chat: ChatRequest) -> None:
        """Ask in the conversation that the call continues, if it does."""
        thread = self.verdict.thread
        if self.kind == "continue" and thread is not None:
            chat.continue_at(thread.agent, thread.conversation, self.resent)

    def kind_at(self, agent: str, conversation: str) -> Kind:
        """What the call has become at the agent that answers: a platform that has forgotten the
        conversation, or another agent, was given the whole history."""
        thread = self.verdict.thread
        is_there = thread is not None and (thread.agent, thread.conversation) == (
            agent,
            conversation,
        )
        return "seed" if self.kind == "continue" and not is_there else self.kind

    def thread(
        self,
        agent: str,
        conversation: str,
        texts: Sequence[str] | None,
        *,
        cut: bool,
        drops_cut: bool,
    ) -> Thread | None:
        """The thread with this call's turn; None if there is nothing to keep. `texts` are the
        pieces of the answer, None if it is too long. `cut`: the client may not have received all of
        it."""
        before, hasher = self.verdict.thread, self._hasher()
        answer = None if texts is None else hasher.fingerprint("".join(texts), cut)
        turn = (Turn(self._question, answer),) if answer else ()
        # Without a turn to keep, the platform may know a question that the client will not show.
        is_open = bool(turn) and not (cut and drops_cut)
        if before is not None and self.kind_at(agent, conversation) == "continue":
            is_open = is_open and before.is_open
            path = path_of([each.user for each in turn], hasher, before.path)
            return replace(before, turns=before.turns + turn, path=path, is_open=is_open)
        turns = self._turns + turn
        if not turns:
            return None
        id_ = new_id(16)
        tree = before.tree if before is not None else id_
        path = path_of([each.user for each in turns], hasher)
        return Thread(id_, tree, agent, conversation, turns, path, len(self._turns), is_open)

    def keys(self, thread: Thread) -> list[str]:
        return keys_of(thread, self._hasher())

    def _hasher(self) -> Hasher:
        return Hasher(self.scope.encode())


def _turns(history: History, verdict: Verdict, hasher: Hasher) -> tuple[Turn, ...]:
    """The turns of the history, with which a new conversation begins."""
    if verdict.depth == len(history.exchanges):
        return verdict.turns
    made = [(each.user, hasher.fingerprint(each.shown)) for each in history.exchanges]
    return tuple([Turn(user, answer) for user, answer in made if answer])


class Memory:
    """Never fails a call, and never holds it up for longer than the store's time limit: what cannot
    be found becomes a new conversation."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._releasing: set[asyncio.Task[None]] = set()
        self._warned = float("-inf")  # when, by the monotonic clock

    async def recall(self, chat: ChatRequest, settings: Settings, lease_s: float) -> Recall | None:
        """The verdict on the history in `chat`; None if it cannot have one. `chat.scope` is not
        empty. `lease_s` is how long the call may take."""
        hasher = Hasher(chat.scope.encode())
        history = read_history(chat.messages, hasher)
        if history is None:
            return None
        verdict = Verdict("seed")
        try:
            verdict = await self._verdict(chat.scope, history, hasher, settings)
            is_claimed = await self._claim(chat, verdict, lease_s)
        except Exception as error:
            self._failed(error)
            verdict, is_claimed = Verdict("seed"), False
        if verdict.kind == "continue" and not is_claimed:  # another call continues it just now
            verdict = verdict._replace(kind="branch")
        recall = Recall(chat, history, verdict, hasher)
        recall.is_claimed = is_claimed
        return recall

    async def _claim(self, chat: ChatRequest, verdict: Verdict, lease_s: float) -> bool:
        thread = verdict.thread
        if verdict.kind != "continue" or thread is None:
            return False
        try:
            return await self._store.claim(chat.scope, thread, chat.call_id, lease_s)
        except BaseException:  # the client has left, or no answer came: it may be claimed
            self._release_later(chat.scope, thread.id, chat.call_id)
            raise

    def _release_later(self, scope: str, id_: str, holder: str) -> None:
        """Release what may be claimed; if that fails, the claim ends with its lease."""
        task = asyncio.ensure_future(self._store.release(scope, id_, holder))
        self._releasing.add(task)
        task.add_done_callback(self._released)

    def _released(self, task: asyncio.Task[None]) -> None:
        self._releasing.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.debug("A claim could not be released: %s", error)

    async def _verdict(
        self, scope: str, history: History, hasher: Hasher, settings: Settings
    ) -> Verdict:
        users = [exchange.user for exchange in history.exchanges]
        if not users:
            return judge(history, Found(), Found(), hasher)
        keys = [path_of(users, hasher), tail(users, hasher)]
        path, end = await self._store.find(scope, keys)
        needs_whole = settings.mode == "strict" or settings.window == "client"
        return judge(history, path, end, hasher, needs_whole=needs_whole)

    async def remember(
        self,
        recall: Recall,
        settings: Settings,
        agent: str,
        conversation: str,
        texts: Sequence[str] | None,
        *,
        cut: bool,
        drops_cut: bool,
    ) -> None:
        """Keep the call's turn, before its last bytes are sent. Without a conversation nothing
        is kept."""
        recall.is_over = True
        thread = None
        if conversation:
            thread = recall.thread(agent, conversation, texts, cut=cut, drops_cut=drops_cut)
        try:
            if thread is not None and thread.turns:
                keep_s = settings.keep if len(thread.turns) > 1 else min(settings.keep, BRIEF_S)
                await self._store.save(
                    recall.scope, thread, recall.keys(thread), keep_s, recall.call_id
                )
            before = recall.verdict.thread
            if recall.is_claimed and before is not None and before.id != (thread and thread.id):
                await self._store.release(recall.scope, before.id, recall.call_id)
        except asyncio.CancelledError:
            self._store.missed(recall.scope)
            raise
        except Exception as error:
            self._store.missed(recall.scope)
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        """Say so, at most once a minute: all calls of an outage fail alike."""
        now = time.monotonic()
        if now >= self._warned + _WARN_S:
            self._warned = now
            why = type(error).__name__
            log.warning("Memory: the store fails (%s); bots get whole histories instead", why)

    async def close(self) -> None:
        if self._releasing:
            await asyncio.wait(self._releasing, timeout=1.0)
        await self._store.close()
