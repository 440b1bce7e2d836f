"""GET /api/v1/agents: who can be asked, and whether they are there."""

from typing import Any

from aiohttp import web

from gateway.body import envelope
from gateway.keys import UPSTREAM, state_of
from gateway.routing import Target


async def list_agents(request: web.Request) -> web.Response:
    targets = state_of(request).routing.targets.values()
    agents = [_described(target) for target in targets]
    return envelope({"total": len(agents), "agents": agents})


async def get_agent(request: web.Request) -> web.Response:
    return envelope(_described(_target(request)))


async def agent_health(request: web.Request) -> web.Response:
    """Always 200: the answer is about the bot. `/readyz` is about the gateway."""
    target = _target(request)
    health = await state_of(request).health.check(request.app[UPSTREAM], target)
    return envelope(
        {
            "name": target.name,
            "status": "healthy" if health.healthy else "unhealthy",
            "timestamp": health.checked,
            "capabilities": _capabilities(target),
            "detail": health.detail,
        }
    )


def _target(request: web.Request) -> Target:
    return state_of(request).routing.agent(request.match_info["name"])


def _described(target: Target) -> dict[str, Any]:
    return {
        "name": target.name,
        "type": target.platform.kind,
        "module": type(target.platform).__module__,
        "capabilities": _capabilities(target),
    }


def _capabilities(target: Target) -> dict[str, Any]:
    """`file_kinds` are those that a question may bring along."""
    kinds = sorted(target.kinds)
    return {"streaming": True, "file_upload": bool(kinds), "file_kinds": kinds}
