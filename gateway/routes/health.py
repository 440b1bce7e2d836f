"""Whether the process is alive and ready. None of these asks an upstream."""

from datetime import UTC, datetime

from aiohttp import web


async def health(request: web.Request) -> web.Response:
    return web.json_response({"status": "healthy", "timestamp": _now()})


async def livez(request: web.Request) -> web.Response:
    """That this is answered at all is the event loop's heartbeat."""
    return web.json_response({"status": "alive", "timestamp": _now()})


async def readyz(request: web.Request) -> web.Response:
    return web.json_response({"status": "ready", "timestamp": _now()})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
