"""Every route with the permission it takes; None is public."""

from collections.abc import Iterator

from aiohttp import web
from aiohttp.typedefs import Handler

from gateway.config import Permission
from gateway.routes import agents, chat, health, openai

Route = tuple[str, str, Handler, Permission | None]

OPS: list[Route] = [
    ("GET", "/health", health.health, None),
    ("GET", "/livez", health.livez, None),
    ("GET", "/readyz", health.readyz, None),
]

_API: list[Route] = [
    ("POST", "/api/v1/chat", chat.chat, "chat"),
    ("GET", "/api/v1/agents", agents.list_agents, None),
    ("GET", "/api/v1/agents/{name}", agents.get_agent, None),
    ("GET", "/api/v1/agents/{name}/health", agents.agent_health, None),
]

# `/v1` comes missing or doubled, depending on what a client's settings make of the base URL.
_PREFIXES = ("/v1", "", "/v1/v1")


def all_routes() -> Iterator[Route]:
    yield from OPS
    yield from _API
    for prefix in _PREFIXES:
        for slash in ("", "/"):
            path = f"{prefix}/chat/completions{slash}"
            yield "POST", path, openai.chat_completions, "chat"
            yield "GET", f"{prefix}/models{slash}", openai.models, "chat"
        yield "GET", f"{prefix}/models/{{id:.+}}", openai.model, "chat"
    for prefix in ("/v1/v1", "/v1"):
        yield "POST", f"{prefix}/{{path:.+}}", openai.pass_on, "chat"


def add_to(app: web.Application, routes: list[Route]) -> None:
    for method, path, handler, _ in routes:
        app.router.add_route(method, path, handler)
