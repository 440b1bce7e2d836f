"""Whether the process is alive and ready. No route here asks an upstream."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from gateway import __version__
from gateway.http.context import BUCKETS, FILES, IN_FLIGHT, MAIN, METRICS, SERVICES, STATE, State


async def root(request: web.Request) -> web.Response:
    """Basic information for a browser that opens the address."""
    return web.json_response(
        {
            "name": "AI Gateway",
            "version": __version__,
            "agents": "GET /api/v1/agents",
            "chat": "POST /api/v1/chat with the header Agent",
            "openai": "base_url is this address with /v1",
        }
    )


async def health(request: web.Request) -> web.Response:
    return web.json_response({"status": "healthy", "timestamp": _now()})


async def livez(request: web.Request) -> web.Response:
    """An answer at all shows that the event loop runs."""
    return web.json_response({"status": "alive", "timestamp": _now()})


async def readyz(request: web.Request) -> web.Response:
    """Ready even while an optional dependency is unavailable; `degraded` lists it. 503 while the
    process stops, or while no caller could be identified because no key is known yet."""
    app = request.app.get(MAIN, request.app)
    if app[IN_FLIGHT].stopping:
        under_way = {"under_way": len(app[IN_FLIGHT])}
        return _ready("stopping", [], under_way, status=503)
    if not {STATE, BUCKETS, FILES} <= app.keys():
        return _ready("starting", [], {}, status=503)
    detail: dict[str, Any] = {"database": "none", "redis": "none"}
    degraded = []
    services, buckets = app.get(SERVICES), app[BUCKETS]
    if services is not None:
        detail["database"] = services.directory.unavailable or "ok"
        recorder = services.recorder
        detail["record"] = {
            "waiting": recorder.waiting,
            "written": recorder.written,
            "lost": recorder.lost,
            "rejected": recorder.rejected,
            "damaged": recorder.damaged,
        }
        if services.directory.unavailable or recorder.unavailable:
            degraded.append("database")
    if buckets.is_configured:
        detail["redis"] = "it does not answer; each process limits by itself"
        if buckets.is_shared:
            detail["redis"] = "ok"
        else:
            degraded.append("redis")
    files = app[FILES]
    detail["storage"] = files.unavailable or "ok"
    if files.unavailable:
        degraded.append("storage")
    holder = app[STATE]
    # Not the problems themselves: they quote a file with secrets, and this route is public.
    problem = f"{holder.problems} problem(s), see the log" if holder.problems else None
    detail["config"] = {"generation": holder.now.generation, "problem": problem}
    if holder.problems:
        degraded.append("config")
    config = holder.now.config
    degraded += _agents(holder.now, detail)
    knows_callers = services is None or services.directory.has_read
    if knows_callers or config.anonymous or config.auth.keys:
        return _ready("ready", degraded, detail)
    return _ready("waiting for the database", degraded, detail, status=503)


def _agents(state: State, detail: dict[str, Any]) -> Iterator[str]:
    """What is degraded about the agents; `detail` gets their numbers. It gets no names, since
    /readyz is public."""
    config = state.config
    circuits = [target.breaker.state for target in state.routing.targets.values()]
    if count := len(circuits) - circuits.count("closed"):
        text = "{count} of {all} failed repeatedly and did not answer since, see the log"
        detail["agents"] = text.format(count=count, all=len(circuits))
        yield "agents"
    if unchecked := sum(not agent.verify for agent in config.agents.values()):
        detail["warning"] = f"certificates of {unchecked} upstream(s) are not checked"
    if config.exposed_demos:
        detail["demo"] = f"{len(config.exposed_demos)} agent(s) answered by simulators, see the log"
        yield "demo"


async def metrics(request: web.Request) -> web.Response:
    """Metrics for Prometheus. On the public port only if `server.metrics` allows it."""
    app = request.app.get(MAIN, request.app)
    if app is request.app and STATE in app and not app[STATE].now.config.server.metrics:
        raise web.HTTPNotFound
    body, kind = app[METRICS].text(request.headers.get("Accept", ""))
    return web.Response(body=body, headers={"Content-Type": kind})


def _ready(
    state: str, degraded: list[str], detail: dict[str, Any], status: int = 200
) -> web.Response:
    body = {"status": state, "timestamp": _now(), "degraded": degraded, "detail": detail}
    return web.json_response(body, status=status)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
