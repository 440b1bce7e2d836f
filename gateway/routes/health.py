"""Whether the process is alive and ready. None of these asks an upstream."""

from datetime import UTC, datetime

from aiohttp import web

from gateway import __version__


async def root(request: web.Request) -> web.Response:
    """For those who open the address in a browser."""
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
    """That this is answered at all is the event loop's heartbeat."""
    return web.json_response({"status": "alive", "timestamp": _now()})


async def readyz(request: web.Request) -> web.Response:
    return web.json_response({"status": "ready", "timestamp": _now()})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
