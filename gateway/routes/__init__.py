"""Every route with the permission it takes; None is public."""

from collections.abc import Iterator

from aiohttp import web
from aiohttp.typedefs import Handler

from gateway.config import Permission
from gateway.errors import InvalidRequest
from gateway.middlewares.errors import error_response
from gateway.routes import agents, chat, health, openai

Route = tuple[str, str, Handler, Permission | None]

OPS: list[Route] = [
    ("GET", "/health", health.health, None),
    ("GET", "/livez", health.livez, None),
    ("GET", "/readyz", health.readyz, None),
    *(("HEAD", path, health.health, None) for path in ("/health", "/livez", "/readyz")),
]

_API: list[Route] = [
    ("GET", "/", health.root, None),
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
        app.router.add_route(method, path, handler, expect_handler=_expect)


async def _expect(request: web.Request) -> web.StreamResponse | None:
    """`Expect: 100-continue`, which curl sends with large bodies; nothing else can be expected.

    aiohttp asks this below the middlewares, so an error is drawn here.
    """
    if request.headers.get("Expect", "").lower() != "100-continue":
        return error_response(request, InvalidRequest("Only 100-continue can be expected."))
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # the answer itself has not begun
    return None
