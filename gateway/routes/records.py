"""GET /api/v1/usage and /api/v1/calls: usage, and single calls, for administrators."""

import contextlib
from datetime import UTC, date, datetime, timedelta
from typing import Any

from aiohttp import web

from gateway.errors import DatabaseUnavailable, InvalidRequest, NotFound
from gateway.http.body import choice, day, envelope, moment_ms, number, require_query
from gateway.http.context import Services
from gateway.http.services import services_of
from gateway.language.sentences import say
from gateway.telemetry.call import kept_user
from gateway.telemetry.store import MAX_GROUPS
from gateway.times import iso

_TEXTS = ("request_id", "caller", "key_id", "user_id", "agent", "end_user", "task")
_FILTERS = ("from", "to", "surface", "status", "only_errors", *_TEXTS)
_GROUPS = ("day", "agent", "caller", "key", "user")
_PAGE, _LARGEST_PAGE = 50, 200
_LAST = "g"  # sorts after every id, since ids are hexadecimal
_FAR_MS = 1 << 53
_FIRST_DAY = date(1970, 1, 30)


async def usage(request: web.Request) -> web.Response:
    """`?from=&to=` (days; by default the last 30) `&group_by=` some of day, agent, caller, key,
    user. Read from the roll-ups."""
    require_query(request, "from", "to", "group_by")
    services = await _up_to_date(request)
    today = datetime.now(UTC).date()
    last = day(request, "to", today)
    first = day(request, "from", max(last, _FIRST_DAY) - timedelta(days=29))
    if first > last:
        raise InvalidRequest("'from' is after 'to'.", param="from")
    by = [name.strip() for name in request.query.get("group_by", "day").split(",") if name.strip()]
    if not set(by) <= set(_GROUPS) or len(set(by)) != len(by):
        known = ", ".join(_GROUPS)
        raise InvalidRequest(
            say("'group_by' must name some of {known}.", known=known), param="group_by"
        )
    rows = await services.calls.usage_by(first.isoformat(), last.isoformat(), by)
    return envelope(
        {
            "from": first.isoformat(),
            "to": last.isoformat(),
            "group_by": by,
            "usage": rows,
            "is_complete": len(rows) < MAX_GROUPS,
        }
    )


async def calls(request: web.Request) -> web.Response:
    """A page of calls, newest first. The answer's `next`, sent as `?before=`, selects the following
    page.

    Filters: from, to (ISO 8601), request_id, caller, key_id, user_id, agent, end_user, task,
    surface, status, only_errors=1.
    """
    require_query(request, "limit", "before", *_FILTERS)
    query = request.query
    limit = number(request, "limit", _PAGE, _LARGEST_PAGE)
    filters: dict[str, Any] = {
        "before_id": _text(request, "before") or _LAST,
        "from_ms": moment_ms(query["from"], "from") if query.get("from") else 0,
        "to_ms": moment_ms(query["to"], "to") if query.get("to") else _FAR_MS,
        "surface": choice(request, "surface", ("chat", "openai", "passthrough", "audio")),
        "status": number(request, "status", 0, 999),
        "only_errors": int(
            choice(request, "only_errors", ("1", "true", "0", "false")) in ("1", "true")
        ),
    }
    for name in _TEXTS:
        filters[name] = _text(request, name)
    filters["end_user"] = kept_user(filters["end_user"])
    services = await _up_to_date(request)
    rows = await services.calls.page(limit, **filters)
    following = rows[-1]["id"] if len(rows) == limit else None
    return envelope({"calls": [_public(row) for row in rows], "next": following})


async def call(request: web.Request) -> web.Response:
    """One call; `bodies` if its agent's `capture` stored them."""
    services = await _up_to_date(request)
    found = await services.calls.call(_clean(request.match_info["id"]))
    if found is None:
        raise NotFound("There is no such call.")
    return envelope(_public(found))


async def _up_to_date(request: web.Request) -> Services:
    """The services, after this process's last calls are written."""
    services = services_of(request)
    with contextlib.suppress(DatabaseUnavailable):
        await services.recorder.flush()
    return services


def _text(request: web.Request, name: str) -> str:
    return _clean(request.query.get(name, ""))


def _clean(text: str) -> str:
    return text.replace("\x00", "")[:300]


def _public(row: dict[str, Any]) -> dict[str, Any]:
    flags = {name: bool(row[name]) for name in ("streamed", "client_gone")}
    began = row["began_ms"]
    texts = {name: row[name] or "" for name in ("reason", "end_user", "task")}  # NULL in older rows
    out = {**row, **flags, **texts, "time": iso(began)}
    del out["day"]
    return out
