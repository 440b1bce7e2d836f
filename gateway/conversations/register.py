"""The register of conversations: who owns which, their titles, and turns that no platform keeps.

Platforms check only the operator's key, so an id is looked up here before it is sent to one. A call
waits for the database only if this process does not know the id, and at most `DEADLINE_S`. What a
call adds is written in batches; only a turn that the gateway keeps is waited for, so that the next
question finds it at any replica.
"""

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import orjson

from gateway.database import Database, ValueRefused, fetch
from gateway.errors import ConversationNotFound, DatabaseUnavailable, describe_fault
from gateway.ids import new_id
from gateway.times import now_ms

log = logging.getLogger("gateway")

_T = TypeVar("_T")
DEADLINE_S = 1.0  # for an answer without which the call fails
SETTLE_S = 0.05  # for a write that the call can do without
MAX_KNOWN = 50_000  # owners in memory; about 20 MB
MAX_PENDING = 10_000  # conversations that wait for the database
MAX_PENDING_BYTES = 64 << 20  # of their turns
_EVERY_S = 0.5  # between two batches
_BATCH = 500
_FAULT_S = 5.0  # after a failure that time may not mend
_SWEEP_S = 600.0
_WARN_S = 60.0
_FIRST_TURNS = 5  # half of those that are read first
MAX_READ = 4 << 20  # characters of the turns that are read together, save for the last ones
MAX_DELETED = 10_000  # that are remembered
_MOST_AGENTS = 1000  # that use the same id
_LATEST = "~"  # sorts after every place of a turn
_MAX_FEEDBACK = 1000  # of one conversation that are shown


class Owner(NamedTuple):
    """Who may use a conversation: one end user of one caller; "" is the caller itself."""

    caller: str
    user: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """A row. `id` is the platform's, `platform_user` the end user as the platform knows it, `model`
    the agent or route that was asked for. `title_by` is question, user or bot.
    `pause` has what the bot waits for, as it is `shown`, and the platform's `state`; {} if it does
    not wait."""

    agent: str
    id: str
    owner: Owner
    platform_user: str
    model: str
    title: str
    title_by: str
    is_kept: bool
    pause: dict[str, Any]
    created_ms: int
    updated_ms: int


_COLUMNS = (
    "agent", "id", "caller", "end_user", "platform_user", "model", "title", "title_by", "is_kept",
    "pause", "created_ms", "updated_ms",
)  # fmt: skip
Place = tuple[str, str]  # agent, id
Siblings = Callable[[], Collection[str]]


class Turn(NamedTuple):
    """A turn that the gateway keeps: `place` sorts by time, `id` is the answer's."""

    place: str
    id: str
    body: dict[str, Any]
    created_ms: int = 0


def new_place() -> str:
    return f"{now_ms():011x}{new_id(13)}"


@dataclass(slots=True)
class _Pending:
    row: dict[str, Any]
    turns: dict[str, dict[str, Any]] = field(default_factory=dict)  # by place
    size: int = 0  # bytes of the turns


class Register:
    """Without a database it knows the latest owners only, and keeps no turns."""

    def __init__(
        self, database: Database | None, keep_s: Callable[[], float] = lambda: 90 * 86_400.0
    ) -> None:
        self.database = database
        self._sql: Any = database.queries if database else None
        self._keep_s = keep_s
        self._owners: OrderedDict[Place, Owner] = OrderedDict()
        self._pending: OrderedDict[Place, _Pending] = OrderedDict()
        self._pending_bytes = 0
        self._deleted: OrderedDict[tuple[str, ...], int] = OrderedDict()  # when, in ms
        self._writing: asyncio.Task[None] | None = None
        self._flushing: asyncio.Future[None] | None = None
        self._wake = asyncio.Event()
        self._waiting: set[asyncio.Future[Any]] = set()
        self._sweeping: asyncio.Task[None] | None = None
        self._warned = float("-inf")  # when, by the monotonic clock
        self.lost = 0  # conversations and turns that the database did not take in time

    # Ownership.

    async def require(
        self, owner: Owner, place: Place, *, adopts: bool, siblings: Siblings = tuple
    ) -> None:
        """Raises ConversationNotFound unless the conversation is the owner's. With `adopts` one
        that nobody has named yet becomes the owner's: some platforms let callers make up ids.
        `siblings` gives agents with the same account at the platform; theirs are not adopted.
        Raises DatabaseUnavailable if that cannot be found out."""
        known = self._owners.get(place)
        if known is None:
            if adopts and any([(agent, place[1]) in self._owners for agent in siblings()]):
                raise not_found()
            if self.database is not None:
                known = await self._in_time(self._owner(owner, place, adopts, siblings))
            elif adopts:
                known = owner
        if known is not None:
            self._know(place, known)
        if known != owner:
            raise not_found()

    async def _owner(
        self, owner: Owner, place: Place, adopts: bool, siblings: Siblings
    ) -> Owner | None:
        agent, id_ = place
        async with self._open() as conn:
            found = await self._sql.conversation_owner(conn, agent=agent, id=id_)
            if found is None and adopts:
                others = self._sql.conversation_agents(conn, id=id_, most=_MOST_AGENTS)
                elsewhere = {row["agent"] for row in await fetch(others)}
                if elsewhere and not elsewhere.isdisjoint(siblings()):
                    return None
                # Another replica may do the same now: the first one owns it.
                await self._sql.conversation_adopt(
                    conn,
                    agent=agent,
                    id=id_,
                    caller=owner.caller,
                    end_user=owner.user,
                    at_ms=now_ms(),
                )
                found = await self._sql.conversation_owner(conn, agent=agent, id=id_)
        return Owner(found["caller"], found["end_user"]) if found else None

    def _know(self, place: Place, owner: Owner) -> None:
        self._owners[place] = owner
        self._owners.move_to_end(place)
        while len(self._owners) > MAX_KNOWN:
            self._owners.popitem(last=False)

    def note(
        self,
        owner: Owner,
        place: Place,
        *,
        platform_user: str = "",
        model: str = "",
        title: str = "",
        turn: Turn | None = None,
        pause: dict[str, Any] | None = None,
        began_ms: int | None = None,
    ) -> None:
        """A call in that conversation has been answered. `turn` is there if the gateway
        keeps it. `pause` is what the bot waits for now; {} if no longer, None if that is
        as before. Of a call that began before its conversation was deleted nothing is kept."""
        if began_ms is not None and self._deleted and began_ms <= self._deleted_ms(owner, place):
            return
        if self._owners.setdefault(place, owner) != owner:
            return  # a platform that gives one id to two users: the first one has it
        self._know(place, owner)
        if self.database is None:
            return
        before = self._pending.pop(place, None)
        entry = before or _Pending(_row(owner, place, platform_user, model, title))
        entry.row["updated_ms"] = now_ms()
        if pause is not None:
            entry.row["pause"] = orjson.dumps(pause).decode() if pause else ""
        self._pending[place] = entry
        if turn is not None:
            self._add_turn(entry, place, turn)
        while len(self._pending) > MAX_PENDING or self._pending_bytes > MAX_PENDING_BYTES:
            _, dropped = self._pending.popitem(last=False)
            self._pending_bytes -= dropped.size
            self._lose(1, "the database does not answer")
        if self._writing is None:
            self._writing = asyncio.ensure_future(self._write())

    def _deleted_ms(self, owner: Owner, place: Place) -> int:
        return max(self._deleted.get((*owner, *key), -1) for key in (place, ()))

    def drop_earlier(self, owner: Owner, place: Place | tuple[()] = ()) -> None:
        """Keep nothing of the owner's calls under way, in that conversation or in any."""
        key = (*owner, *place)
        self._deleted[key] = now_ms()
        self._deleted.move_to_end(key)
        while len(self._deleted) > MAX_DELETED:
            self._deleted.popitem(last=False)

    def _add_turn(self, entry: _Pending, place: Place, turn: Turn) -> None:
        entry.row["is_kept"] = 1
        text = orjson.dumps(turn.body).decode()
        entry.turns[turn.place] = {
            "agent": place[0],
            "conversation_id": place[1],
            "place": turn.place,
            "id": turn.id,
            "created_ms": now_ms(),
            "body": text,
        }
        entry.size += len(text)
        self._pending_bytes += len(text)

    # Writing.

    async def settle(self) -> None:
        """Wait for what is pending to be written, at most `SETTLE_S`."""
        self._wake.set()
        if self._pending:
            with contextlib.suppress(Exception):  # the answer comes in any case; `_write` reports
                await self._in_time(self.flush(), SETTLE_S)

    async def _write(self) -> None:
        """Write until nothing is pending."""
        try:
            while self._pending:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_EVERY_S):
                        await self._wake.wait()
                self._wake.clear()
                try:
                    await self.flush()
                except DatabaseUnavailable:
                    await asyncio.sleep(_EVERY_S)
                except Exception as error:
                    log.warning("Conversations cannot be written: %s", describe_fault(error))
                    await asyncio.sleep(_FAULT_S)
        finally:
            self._writing = None

    async def flush(self) -> None:
        """Write all that is pending. Raises DatabaseUnavailable, and then keeps it; a conversation
        with a value that the database refuses is dropped. Calls at the same time share one attempt:
        of a database that hangs each would otherwise wait for all before it."""
        if self._flushing is None:
            self._flushing = asyncio.ensure_future(self._flush())
            self._flushing.add_done_callback(self._ended)
        await asyncio.shield(self._flushing)

    async def _flush(self) -> None:
        try:
            while self._pending:
                batch = dict(list(self._pending.items())[:_BATCH])
                for place in batch:
                    del self._pending[place]
                try:
                    await self._write_all(batch)
                except BaseException:
                    self._keep_pending(batch)
                    raise
                self._pending_bytes -= sum(entry.size for entry in batch.values())
        finally:
            self._flushing = None

    def _lose(self, count: int, why: str) -> None:
        """Count what is lost, and say so at most once a minute."""
        self.lost += count
        now = time.monotonic()
        if now >= self._warned + _WARN_S:
            self._warned = now
            log.warning("%d conversations could not be kept: %s", self.lost, why)

    def _keep_pending(self, batch: dict[Place, _Pending]) -> None:
        """Put back what could not be written, before what has come since."""
        for place, entry in batch.items():
            newer = self._pending.pop(place, None)
            if newer is not None:
                later = {name: newer.row[name] for name in ("updated_ms", "is_kept", "pause")}
                entry.row |= {name: value for name, value in later.items() if value is not None}
                entry.turns |= newer.turns
                entry.size += newer.size
        self._pending = OrderedDict({**batch, **self._pending})

    async def _write_all(self, batch: dict[Place, _Pending]) -> None:
        """Write the batch; if the database refuses a value, one conversation after the other: those
        of other callers must not be lost with it."""
        try:
            await self._write_batch(batch)
            return
        except ValueRefused:
            pass
        for place, entry in batch.items():
            try:
                await self._write_batch({place: entry})
            except ValueRefused as error:
                self._lose(1, str(error))

    async def _write_batch(self, batch: dict[Place, _Pending]) -> None:
        assert self.database is not None
        ordered = [entry for _, entry in sorted(batch.items())]
        async with self._open() as conn:
            rows = [tuple([entry.row[name] for name in _COLUMNS]) for entry in ordered]
            await self.database.load(conn, "conversations", _COLUMNS, rows)
            await self._sql.conversations_merge(conn)
            turns = [turn for entry in ordered for turn in entry.turns.values()]
            if turns:
                await self._sql.turns_save(conn, turns)

    def start(self) -> None:
        """Begin to delete what is older than `conversations.keep`, from time to time."""
        if self.database is not None:
            self._sweeping = asyncio.ensure_future(self._sweep_loop())

    async def _sweep_loop(self) -> None:
        while True:
            try:
                await self.sweep()
            except DatabaseUnavailable:
                pass
            except Exception as error:
                log.warning("Old conversations cannot be deleted: %s", describe_fault(error))
            await asyncio.sleep(_SWEEP_S)

    async def sweep(self) -> None:
        """Delete what is older than `conversations.keep`, in batches."""
        before_ms = now_ms() - int(self._keep_s() * 1000)
        is_whole = False
        while not is_whole:
            async with self._open() as conn:
                old = await fetch(
                    self._sql.conversations_old(conn, before_ms=before_ms, most=_BATCH)
                )
                for row in old:
                    await self._delete_rows(conn, (row["agent"], row["id"]))
            is_whole = len(old) < _BATCH

    # Reading and changing, for the API.

    async def page(
        self, owner: Owner, agent: str, limit: int, before: tuple[int, str, str]
    ) -> list[Conversation]:
        """Up to `limit` conversations after `before` (updated_ms, agent, id), the newest first."""
        await self.flush()
        async with self._open() as conn:
            rows = await fetch(
                self._sql.conversations_page(
                    conn,
                    caller=owner.caller,
                    end_user=owner.user,
                    agent=agent,
                    before_ms=before[0],
                    before_agent=before[1],
                    before_id=before[2],
                    most=limit,
                )
            )
        return [_conversation(row) for row in rows]

    async def named(self, owner: Owner, id_: str) -> list[Conversation]:
        """The owner's conversations with that id: agents may use the same one."""
        await self.flush()
        async with self._open() as conn:
            rows = await fetch(
                self._sql.conversations_named(
                    conn, caller=owner.caller, end_user=owner.user, id=id_
                )
            )
        return [_conversation(row) for row in rows]

    async def rename(self, one: Conversation, title: str, by: str) -> None:
        async with self._open() as conn:
            await self._sql.conversation_rename(
                conn, agent=one.agent, id=one.id, title=title, title_by=by
            )

    async def delete(self, one: Conversation) -> None:
        """Delete the conversation with its turns and feedback here; the platform's is another."""
        place = (one.agent, one.id)
        self.drop_earlier(one.owner, place)
        await self.flush()
        async with self._open() as conn:
            await self._sql.conversation_bury(conn, agent=one.agent, id=one.id, at_ms=now_ms())
            await self._delete_content(conn, place)
        self._owners.pop(place, None)

    async def _delete_rows(self, conn: Any, place: Place) -> None:
        await self._sql.conversation_delete(conn, agent=place[0], id=place[1])
        await self._delete_content(conn, place)

    async def _delete_content(self, conn: Any, place: Place) -> None:
        agent, id_ = place
        await self._sql.turns_delete(conn, agent=agent, conversation_id=id_)
        await self._sql.feedback_delete(conn, agent=agent, conversation_id=id_)

    async def mark(self, one: Conversation, turn: Turn) -> None:
        """Add a turn to a conversation that the gateway keeps."""
        self.note(one.owner, (one.agent, one.id), turn=turn)
        await self.flush()

    async def has_turn(self, one: Conversation, id_: str) -> bool:
        """Whether the gateway keeps an answer with that id there."""
        await self.flush()
        async with self._open() as conn:
            found = await self._sql.turn_by_id(
                conn, agent=one.agent, conversation_id=one.id, id=id_
            )
        return found is not None

    async def turns(self, place: Place, limit: int, before: str = "") -> tuple[list[Turn], str]:
        """Up to `limit` turns before the place `before`, the newest first, and the place before
        which there may be more, or "". Beyond `MAX_READ` no more are read: one may be long."""
        await self.flush()
        found: list[Turn] = []
        size, at_once, older = 0, _FIRST_TURNS, before or _LATEST
        async with self._open() as conn:
            while older and len(found) < limit and size < MAX_READ:
                at_once = min(at_once * 2, limit - len(found))
                rows = await fetch(
                    self._sql.turns_page(
                        conn, agent=place[0], conversation_id=place[1], before=older, most=at_once
                    )
                )
                older = rows[-1]["place"] if len(rows) == at_once else ""
                size += sum(len(row["body"]) for row in rows)
                found += [
                    Turn(row["place"], row["id"], orjson.loads(row["body"]), row["created_ms"])
                    for row in rows
                ]
        return found, older

    async def history(self, place: Place, limit: int) -> list[dict[str, Any]]:
        """The latest turns, the oldest first, for a call that waits. Raises DatabaseUnavailable."""
        found, _ = await self._in_time(self.turns(place, limit))
        return [turn.body for turn in reversed(found)]

    async def rate(self, one: Conversation, message: str, feedback: dict[str, Any]) -> None:
        """Keep a person's feedback on an answer; one without a rating takes it back."""
        place = {"agent": one.agent, "conversation_id": one.id, "message_id": message}
        async with self._open() as conn:
            if feedback["rating"] is None:
                await self._sql.feedback_undo(conn, **place)
                return
            await self._sql.feedback_save(
                conn,
                **place,
                rating=feedback["rating"],
                body=orjson.dumps(feedback).decode(),
                updated_ms=now_ms(),
            )

    async def ratings(self, one: Conversation) -> dict[str, dict[str, Any]]:
        """The feedback in a conversation, by the message's id."""
        async with self._open() as conn:
            rows = await fetch(
                self._sql.feedback_of(
                    conn, agent=one.agent, conversation_id=one.id, most=_MAX_FEEDBACK
                )
            )
        return {row["message_id"]: orjson.loads(row["body"]) for row in rows}

    def _open(self) -> contextlib.AbstractAsyncContextManager[Any]:
        assert self.database is not None  # its users have asked
        return self.database.transaction()

    async def _in_time(self, work: Coroutine[Any, Any, _T], most_s: float = DEADLINE_S) -> _T:
        """The result of `work`, which goes on if it takes longer: cutting a connection off costs
        more than its answer. Raises DatabaseUnavailable."""
        task = asyncio.ensure_future(work)
        self._waiting.add(task)
        task.add_done_callback(self._ended)
        await asyncio.wait({task}, timeout=most_s)
        if not task.done():
            raise DatabaseUnavailable
        return task.result()

    def _ended(self, task: asyncio.Future[Any]) -> None:
        self._waiting.discard(task)
        if not task.cancelled():
            task.exception()  # the call may have gone on without it

    async def close(self) -> None:
        """Write what is pending, if the database takes it."""
        for task in (self._sweeping, self._writing):
            if task is not None:
                task.cancel()
                await asyncio.wait({task})
        with contextlib.suppress(Exception):
            await self.flush()


def not_found() -> ConversationNotFound:
    return ConversationNotFound(
        "There is no such conversation of this user; leave conversation_id out to begin one.",
        param="conversation_id",
    )


def _row(owner: Owner, place: Place, platform_user: str, model: str, title: str) -> dict[str, Any]:
    now = now_ms()
    return {
        "agent": place[0],
        "id": place[1],
        "caller": owner.caller,
        "end_user": owner.user,
        "platform_user": platform_user,
        "model": model,
        "title": title,
        "title_by": "question",
        "is_kept": 0,
        "pause": None,
        "created_ms": now,
        "updated_ms": now,
    }


def _conversation(row: dict[str, Any]) -> Conversation:
    return Conversation(
        row["agent"],
        row["id"],
        Owner(row["caller"], row["end_user"]),
        row["platform_user"],
        row["model"],
        row["title"],
        row["title_by"],
        bool(row["is_kept"]),
        orjson.loads(row["pause"] or "{}"),
        row["created_ms"],
        row["updated_ms"],
    )
