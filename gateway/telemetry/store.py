"""The record of calls in the database: writes batches, reads usage and pages of calls."""

from collections.abc import Sequence
from typing import Any

from gateway.database import Database, Rows, fetch
from gateway.telemetry.call import COLUMNS, Row, first_id

COUNTS = ("calls", "errors", "prompt_tokens", "completion_tokens", "total_tokens")
MAX_GROUPS = 10_000
_EXPIRE_AT_ONCE = 1000


class Calls:
    """Every method is one transaction. Raises DatabaseUnavailable if the database is down."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sql = database.queries

    async def write(
        self, rows: Sequence[Row], bodies: Sequence[Row], now_ms: int
    ) -> dict[tuple[str, str], int]:
        """Store a batch and add it to the roll-ups; rows that are already stored change nothing.

        Returns the new totals of each (scope, period) that the batch has changed.
        """
        async with self._database.transaction() as conn:
            await self._database.load(conn, "calls", COLUMNS, rows)
            await self._sql.calls_forget_known(conn)
            await self._sql.calls_keep(conn)
            await self._sql.calls_roll_up_days(conn)
            totals = await fetch(self._sql.calls_roll_up_totals(conn, now_ms=now_ms))
            for call_id, began_ms, request, answer, request_size, answer_size in bodies:
                await self._sql.call_body_keep(
                    conn, call_id=call_id, began_ms=began_ms, request=request, answer=answer,
                    request_size=request_size, answer_size=answer_size,
                )  # fmt: skip
        return {(row["scope"], row["period"]): row["calls"] for row in totals}

    async def of_user(self, caller: str, end_user: str, most: int) -> list[dict[str, Any]]:
        """The latest calls of a caller's end user, without their bodies."""
        async with self._database.transaction() as conn:
            return await fetch(
                self._sql.calls_of_user(conn, caller=caller, end_user=end_user, most=most)
            )

    async def forget(self, caller: str, end_user: str) -> int:
        """Take the end user's name out of the caller's calls, and delete their bodies. Returns the
        number of calls. Each batch is a transaction of its own."""
        count, place = 0, {"caller": caller, "end_user": end_user, "most": _EXPIRE_AT_ONCE}
        while end_user:
            async with self._database.transaction() as conn:
                await self._sql.call_bodies_forget(conn, **place)
                changed = len(await fetch(self._sql.calls_forget(conn, **place)))
            count += changed
            if changed < _EXPIRE_AT_ONCE:
                break
        return count

    async def usage(self, kind: str, id_: str, today: str) -> dict[str, Any]:
        """The usage of one key or user: in all, today, this month, and this month's days by agent.

        `kind` is "key" or "user", `today` is YYYY-MM-DD.
        """
        first = f"{today[:7]}-01"
        async with self._database.transaction() as conn:
            total = await self._sql.usage_total(conn, scope=f"{kind}:{id_}", period="")
            if kind == "key":
                rows = self._sql.usage_of_key(conn, key_id=id_, first_day=first)
            else:
                rows = self._sql.usage_of_user(conn, user_id=id_, first_day=first)
            days = await fetch(rows)
        return {
            "total": {name: total[name] if total else 0 for name in COUNTS},
            "today": _sum(row for row in days if row["day"] == today),
            "month": _sum(days),
            "by_agent": [
                {"agent": agent, **_sum(row for row in days if row["agent"] == agent)}
                for agent in sorted({row["agent"] for row in days})
            ],
            "by_day": days,
        }

    async def usage_by(self, first_day: str, last_day: str, by: Sequence[str]) -> Rows:
        """Sums from the roll-ups, one for each value of `by`: day, agent, caller, key, user."""
        flags = {
            f"by_{name}": int(name in by) for name in ("day", "agent", "caller", "key", "user")
        }
        async with self._database.transaction() as conn:
            rows = await fetch(
                self._sql.usage_by(
                    conn, first_day=first_day, last_day=last_day, limit=MAX_GROUPS, **flags
                )
            )
        names = [f"{name}_name" for name in ("key", "user") if name in by]
        return [{name: row[name] for name in (*by, *names, *COUNTS)} for row in rows]

    async def page(self, limit: int, **filters: Any) -> Rows:
        """Calls, newest first; `filters` are the parameters of the query `calls_page`."""
        async with self._database.transaction() as conn:
            return await fetch(self._sql.calls_page(conn, limit=limit, **filters))

    async def call(self, id_: str) -> dict[str, Any] | None:
        """One call, with its bodies if they were stored."""
        async with self._database.transaction() as conn:
            row = await self._sql.call_by_id(conn, id=id_)
            bodies = await self._sql.call_body(conn, call_id=id_)
        return {**dict(row), "bodies": dict(bodies) if bodies else None} if row else None

    async def expire(
        self, calls_before_ms: int, bodies_before_ms: int, changes_before_ms: int
    ) -> bool:
        """Delete some older rows. Returns whether more may be left."""
        async with self._database.transaction() as conn:
            calls = self._sql.calls_expire(
                conn, before_id=first_id(calls_before_ms * 1_000_000), limit=_EXPIRE_AT_ONCE
            )
            bodies = self._sql.call_bodies_expire(
                conn, before_ms=bodies_before_ms, limit=_EXPIRE_AT_ONCE
            )
            deleted = len(await fetch(calls)), len(await fetch(bodies))
            await self._sql.changes_prune(conn, before_ms=changes_before_ms)
        return max(deleted) == _EXPIRE_AT_ONCE


def _sum(rows: Any) -> dict[str, int]:
    out = dict.fromkeys(COUNTS, 0)
    for row in rows:
        for name in COUNTS:
            out[name] += row[name]
    return out
