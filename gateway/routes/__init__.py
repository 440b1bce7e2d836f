"""One file per resource: JSON in, a `ChatRequest` or an envelope out; the table of routes."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from aiohttp import web

from gateway.errors import BodyTooLarge, InvalidRequest
from gateway.http.endpoint import Route
from gateway.http.language import choice_of
from gateway.language.sentences import say
from gateway.middlewares.errors import error_response
from gateway.routes import (
    accounts,
    agents,
    apikeys,
    audio,
    chat,
    conversations,
    files,
    health,
    openai,
    passthrough,
    records,
    userdata,
)


def _with_head(routes: Iterable[Route]) -> Iterator[Route]:
    """Add HEAD to every GET: monitors use it."""
    for route in routes:
        yield route
        if route.method == "GET":
            yield replace(route, method="HEAD")


OPS = list(
    _with_head(
        (
            Route("GET", "/health", health.health),
            Route("GET", "/livez", health.livez),
            Route("GET", "/readyz", health.readyz),
            Route("GET", "/metrics", health.metrics),
        )
    )
)

_AUTH = "/api/v1/auth"
_KEYS = "/api/v1/api-keys"
_TALKS = "/api/v1/conversations"
_ANSWER = f"{_TALKS}/{{id}}/messages/{{message}}"
_DATA = "/api/v1/users/{end_user}/data"
_LINK = "/files/{name:uploads/.+}"

_API = [
    Route("GET", "/", health.root),
    Route("POST", "/api/v1/chat", chat.chat, "chat", "chat"),
    Route("POST", "/api/v1/audio/speech", audio.api_speak, "chat", "chat"),
    Route("POST", "/api/v1/audio/transcriptions", audio.api_transcribe, "chat", "chat"),
    Route("GET", "/api/v1/agents", agents.list_agents, None, "agents"),
    Route("GET", "/api/v1/agents/{name}", agents.get_agent, None, "agents"),
    Route("GET", "/api/v1/agents/{name}/health", agents.agent_health, None, "agents"),
    Route("POST", "/api/v1/login", accounts.login, None, "login"),
    Route("POST", f"{_AUTH}/login", accounts.login, None, "login"),
    Route("POST", f"{_AUTH}/register", accounts.register, None, "login"),
    Route("POST", f"{_AUTH}/refresh", accounts.refresh, "login", "login"),
    Route("GET", f"{_AUTH}/me", accounts.me, "login", "accounts"),
    Route("PUT", f"{_AUTH}/me", accounts.update_me, "login", "accounts"),
    Route("GET", f"{_AUTH}/me/usage", accounts.my_usage, "login", "accounts"),
    Route("POST", f"{_AUTH}/change-password", accounts.change_password, "login", "login"),
    Route("GET", f"{_AUTH}/users", accounts.list_users, "login-admin", "accounts"),
    Route("POST", f"{_AUTH}/users", accounts.create_user, "login-admin", "accounts"),
    Route("GET", f"{_AUTH}/users/{{id}}", accounts.get_user, "login-admin", "accounts"),
    Route("PUT", f"{_AUTH}/users/{{id}}", accounts.update_user, "login-admin", "accounts"),
    Route("DELETE", f"{_AUTH}/users/{{id}}", accounts.delete_user, "login-admin", "accounts"),
    Route("GET", f"{_AUTH}/users/{{id}}/usage", accounts.user_usage, "login-admin", "accounts"),
    Route("POST", _KEYS, apikeys.create_key, "login", "accounts"),
    Route("GET", _KEYS, apikeys.my_keys, "login", "accounts"),
    Route("GET", f"{_KEYS}/my", apikeys.my_keys, "login", "accounts"),
    Route("GET", f"{_KEYS}/admin/all", apikeys.all_keys, "login-admin", "accounts"),
    Route("POST", f"{_KEYS}/admin/cleanup", apikeys.clean_up, "login-admin", "accounts"),
    Route("GET", f"{_KEYS}/{{id}}", apikeys.get_key, "login", "accounts"),
    Route("PUT", f"{_KEYS}/{{id}}", apikeys.update_key, "login", "accounts"),
    Route("DELETE", f"{_KEYS}/{{id}}", apikeys.delete_key, "login", "accounts"),
    Route("POST", f"{_KEYS}/{{id}}/revoke", apikeys.revoke_key, "login", "accounts"),
    Route("GET", f"{_KEYS}/{{id}}/usage", apikeys.key_usage, "login", "accounts"),
    Route("POST", "/api/v1/tokens", apikeys.create_token, "chat", "accounts"),
    Route("GET", _TALKS, conversations.list_conversations, "chat", "accounts"),
    Route("DELETE", _TALKS, conversations.delete_all, "chat", "accounts"),
    Route("GET", f"{_TALKS}/{{id}}", conversations.get_conversation, "chat", "accounts"),
    Route("PUT", f"{_TALKS}/{{id}}", conversations.rename, "chat", "accounts"),
    Route("DELETE", f"{_TALKS}/{{id}}", conversations.delete, "chat", "accounts"),
    Route("POST", f"{_TALKS}/{{id}}/title", conversations.make_title, "chat", "tasks"),
    Route("POST", f"{_TALKS}/{{id}}/clear", conversations.clear, "chat", "accounts"),
    Route("POST", f"{_TALKS}/{{id}}/continue", conversations.continue_run, "chat", "chat"),
    Route("POST", f"{_TALKS}/{{id}}/stop", conversations.stop, "chat", "accounts"),
    Route("GET", f"{_TALKS}/{{id}}/messages", conversations.list_messages, "chat", "accounts"),
    Route("POST", f"{_ANSWER}/feedback", conversations.give_feedback, "chat", "accounts"),
    Route("GET", f"{_ANSWER}/suggestions", conversations.suggestions, "chat", "tasks"),
    Route("GET", _DATA, userdata.export_data, "chat", "tasks"),
    Route("DELETE", _DATA, userdata.delete_data, "chat", "tasks"),
    Route("POST", "/api/v1/upload", files.upload, "upload", "upload"),
    Route("GET", "/api/v1/upload/agents", files.agents, "upload", "agents"),
    Route("GET", _LINK, files.served),
    Route("GET", "/api/v1/usage", records.usage, "admin", "accounts"),
    Route("GET", "/api/v1/calls", records.calls, "admin", "accounts"),
    Route("GET", "/api/v1/calls/{id}", records.call, "admin", "accounts"),
]

_V1 = [
    Route("POST", "/v1/chat/completions", openai.chat_completions, "chat", "chat", has_tasks=True),
    Route("GET", "/v1/models", openai.models, "chat"),
    Route("GET", "/v1/models/{id:.+}", openai.model, "chat"),
    Route("POST", "/v1/files", files.create, "upload", "upload"),
    Route("GET", "/v1/files", files.list_files, "upload", "agents"),
    Route("GET", "/v1/files/{id}", files.retrieve, "upload"),
    Route("DELETE", "/v1/files/{id}", files.delete, "upload"),
    Route("GET", "/v1/files/{id}/content", files.content, "upload"),
    Route("POST", "/v1/audio/speech", audio.speak, "chat", "chat"),
    Route("POST", "/v1/audio/transcriptions", audio.transcribe, "chat", "chat"),
    Route("POST", "/v1/{path:.+}", passthrough.pass_on, "chat", "chat"),
    Route("*", "/v1/{path:.+}", passthrough.nothing),
]


def all_routes() -> Iterator[Route]:
    """Paths are listed in their canonical form (`gateway.http.addresses`)."""
    yield from (*OPS, *_with_head((*_API, *_V1)))


def add_to(app: web.Application, routes: Iterable[Route]) -> None:
    for route in routes:
        app.router.add_route(route.method, route.path, route.handler, expect_handler=_expect)


async def _expect(request: web.Request) -> web.StreamResponse | None:
    """Answer `Expect: 100-continue`, which curl sends with large bodies; no other expectation is
    supported.

    aiohttp calls this outside the middlewares, so it renders its errors itself.
    """
    if request.headers.get("Expect", "").lower() != "100-continue":
        return error_response(
            request, InvalidRequest("Only 100-continue can be expected."), choice_of(request)
        )
    most = request.client_max_size
    is_form = request.headers.get("Content-Type", "")[:10].lower() == "multipart/"
    if not is_form and (request.content_length or 0) > most:
        message = say("The request body is larger than {most} bytes (server.max_body).", most=most)
        response = error_response(request, BodyTooLarge(message), choice_of(request))
        response.force_close()
        return response
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # the answer itself has not begun
    return None
