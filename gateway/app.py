"""Build the application: the only wiring."""

import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from gateway.config import Config
from gateway.credentials import KeyRing
from gateway.errors import InternalError, InvalidRequest
from gateway.health import HealthCache
from gateway.keys import STATE, UPSTREAM, State, StateHolder
from gateway.middlewares.auth import auth
from gateway.middlewares.cors import add_headers, cors
from gateway.middlewares.errors import error_response, errors
from gateway.middlewares.requestlog import add_request_id, new_request_id, requestlog
from gateway.routes import OPS, add_to, all_routes
from gateway.routing import Routing
from gateway.upstream import open_upstream

log = logging.getLogger("gateway")


def build(config: Config) -> web.Application:
    """The gateway as an aiohttp application. Its resources open when it starts."""
    routes = list(all_routes())
    needed = {handler: permission for _, _, handler, permission in routes}
    app = web.Application(
        client_max_size=config.server.max_body,
        middlewares=[  # outermost first
            requestlog,
            errors,
            cors,
            auth(needed),
        ],
    )
    add_to(app, routes)
    app.on_response_prepare.append(add_request_id)
    app.on_response_prepare.append(add_headers)
    app.cleanup_ctx.append(_upstream)
    app.cleanup_ctx.append(_state(config))
    return app


def build_ops() -> web.Application:
    """The probes alone, for a second port that is not the public's."""
    app = web.Application(middlewares=[requestlog, errors])
    add_to(app, OPS)
    app.on_response_prepare.append(add_request_id)
    return app


async def _upstream(app: web.Application) -> AsyncIterator[None]:
    async with open_upstream() as upstream:
        app[UPSTREAM] = upstream
        yield


def _state(config: Config) -> Callable[[web.Application], AsyncIterator[None]]:
    async def open_state(app: web.Application) -> AsyncIterator[None]:
        if not any(agent.is_demo for agent in config.agents.values()):
            app[STATE] = StateHolder(make_state(config, {}))
            yield
            return
        from gateway.demo import serve_demos  # nobody else pays for loading the simulators

        async with serve_demos(config) as urls:
            app[STATE] = StateHolder(make_state(config, urls))
            yield

    return open_state


def make_state(config: Config, demo_urls: Mapping[str, str]) -> State:
    """Everything that follows from `config`."""
    return State(
        config=config,
        keyring=KeyRing(config),
        routing=Routing(config, demo_urls),
        health=HealthCache(),
        since=int(time.time()),
    )


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """What callers send wrongly has been answered with a 400; aiohttp logs a traceback as well."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, web.RequestPayloadError)


class _Connection(RequestHandler):
    """aiohttp's connection, but what is not HTTP is answered like every other error."""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun; another cannot be sent")
        if status >= 500:
            log.error("Unexpected error below the middlewares", exc_info=exc)
            error = InternalError("The gateway met an unexpected condition.")
            response = error_response(request, error)
        else:
            words = " ".join((message or "").split())[:100]
            response = error_response(
                request, InvalidRequest(f"The request is not valid HTTP: {words}")
            )
        response.headers["x-request-id"] = new_request_id()
        response.force_close()
        return response


class _Server(web.Server):
    def __call__(self) -> RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """AppRunner whose handlers are cancelled when their caller leaves.

    aiohttp makes its connections in `Server.__call__`; a test sends bad HTTP and fails if that
    ever changes.
    """

    def __init__(self, app: web.Application, **kwargs: Any) -> None:
        super().__init__(app, handler_cancellation=True, access_log=None, **kwargs)

    async def setup(self) -> None:
        logging.getLogger("aiohttp.server").addFilter(_is_worth_a_line)
        await super().setup()

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        server.__class__ = _Server
        return server
