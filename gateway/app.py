"""The only wiring: builds the application from a configuration."""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web

from gateway.accounts.directory import Directory
from gateway.accounts.passwords import Passwords, check_strength
from gateway.accounts.store import Accounts
from gateway.accounts.tokens import Signer, signing_secret
from gateway.chat.attachments import Attachments
from gateway.config.models import Config
from gateway.conversations.latest import Latest
from gateway.conversations.register import Register
from gateway.database import connect, is_locked
from gateway.errors import Conflict, DatabaseUnavailable, InvalidRequest, StartError, describe_fault
from gateway.files.fetcher import Guard
from gateway.files.library import open_files
from gateway.http.body import BODIES_SHARE
from gateway.http.commonheaders import complete
from gateway.http.context import (
    ACCESS_LOG,
    ATTACHMENTS,
    BODIES,
    BUCKETS,
    CONVERSATIONS,
    FILES,
    FORMS,
    IN_FLIGHT,
    LATEST,
    MAIN,
    MEMORY,
    METRICS,
    PARSING,
    RELOAD,
    SERVICES,
    SIGNER,
    STATE,
    TRACER,
    UPSTREAM,
    Services,
    StateHolder,
)
from gateway.http.finish import mark_stopped, record
from gateway.http.gauges import process_gauges
from gateway.http.inflight import InFlight
from gateway.http.stops import STOPS, Stops
from gateway.limits.buckets import Buckets
from gateway.limits.redis import RedisBuckets
from gateway.limits.shares import Shares
from gateway.memory.database import DatabaseStore
from gateway.memory.local import LocalStore
from gateway.memory.recall import Memory, Store
from gateway.memory.redis import RedisStore
from gateway.middlewares.auth import auth
from gateway.middlewares.errors import errors
from gateway.middlewares.ratelimit import ratelimit
from gateway.middlewares.requestlog import requestlog
from gateway.reload import make_state, take_over
from gateway.routes import OPS, add_to, all_routes
from gateway.secret import Secret
from gateway.telemetry.accesslog import AccessLog
from gateway.telemetry.metrics import LoopLag, Metrics
from gateway.telemetry.recorder import Recorder
from gateway.telemetry.spool import Spool
from gateway.telemetry.store import Calls
from gateway.telemetry.traces import open_tracer
from gateway.upstream.client import open_upstream

if TYPE_CHECKING:
    from gateway.demo import Demos

log = logging.getLogger("gateway")

_PATIENCE_S = 6.0  # for the database's first answer; after that the start goes on without it


def build(config: Config, access_log: AccessLog | None = None) -> web.Application:
    """The gateway as an aiohttp application. Its resources open when it starts.

    Raises StartError, here or at the start, for faults that time does not fix.
    """
    routes = list(all_routes())
    by_handler = {route.handler: route for route in routes}
    secret = signing_secret(config)
    metrics, in_flight = Metrics(lambda: process_gauges(app)), InFlight(mark_stopped)
    access_log = access_log or AccessLog()
    app = web.Application(
        client_max_size=config.server.max_body,
        middlewares=[  # outermost first
            requestlog(metrics, access_log, in_flight, record(metrics, lambda: app.get(SERVICES))),
            errors(in_flight),
            auth(by_handler, secret),
            ratelimit(by_handler),
        ],
    )
    app[ACCESS_LOG], app[IN_FLIGHT], app[METRICS] = access_log, in_flight, metrics
    app[PARSING], app[BODIES] = asyncio.Lock(), Shares(config.server.max_bodies, BODIES_SHARE)
    app[FORMS] = Shares(config.server.max_forms, BODIES_SHARE)
    app[LATEST] = Latest()
    app[SIGNER] = Signer(secret, config.auth.token_ttl)
    add_to(app, routes)
    app.on_response_prepare.append(_complete_headers(in_flight))
    app.cleanup_ctx.append(_services(config))
    app.cleanup_ctx.append(_buckets(config))
    app.cleanup_ctx.append(_upstream)
    app.cleanup_ctx.append(_files(config))
    app.cleanup_ctx.append(_state(config))
    app.cleanup_ctx.append(_conversations)
    app.cleanup_ctx.append(_observed(config))
    return app


def build_ops(main: web.Application) -> web.Application:
    """The probes of `main` alone, for a second, non-public port."""
    metrics, in_flight = (
        main[METRICS],
        InFlight(mark_stopped),
    )  # a stop does not wait for probes
    app = web.Application(
        middlewares=[requestlog(metrics, main[ACCESS_LOG], in_flight), errors(in_flight)]
    )
    app[MAIN], app[METRICS] = main, metrics
    add_to(app, OPS)
    app.on_response_prepare.append(_complete_headers(in_flight))
    return app


def _complete_headers(
    in_flight: InFlight,
) -> Callable[[web.BaseRequest, web.StreamResponse], Awaitable[None]]:
    async def on_prepare(request: web.BaseRequest, response: web.StreamResponse) -> None:
        complete(request, response, in_flight.stopping)

    return on_prepare


def _observed(config: Config) -> Callable[[web.Application], AsyncIterator[None]]:
    async def observe(app: web.Application) -> AsyncIterator[None]:
        tracer = app[TRACER] = open_tracer(config.traces)
        lag = LoopLag(app[METRICS].loop_lag.observe)
        yield
        lag.close()
        await asyncio.to_thread(tracer.close)

    return observe


async def _upstream(app: web.Application) -> AsyncIterator[None]:
    async with open_upstream() as upstream:
        app[UPSTREAM] = upstream
        yield


def _files(config: Config) -> Callable[[web.Application], AsyncIterator[None]]:
    async def open_both(app: web.Application) -> AsyncIterator[None]:
        files = open_files(config.storage)
        guard = Guard(config.fetch, lambda: app[STATE].now.config.outgoing)
        app[FILES], app[ATTACHMENTS] = files, Attachments(files, guard)
        try:
            await files.open()
            yield
        finally:
            await files.close()
            await guard.close()

    return open_both


def _buckets(config: Config) -> Callable[[web.Application], AsyncIterator[None]]:
    async def open_buckets(app: web.Application) -> AsyncIterator[None]:
        buckets = Buckets(RedisBuckets(config.redis) if config.redis.url else None)
        app[BUCKETS] = buckets
        await buckets.open()
        app[MEMORY] = Memory(_threads(config, app, buckets))
        yield
        await app[MEMORY].close()
        await buckets.close()

    return open_buckets


async def _conversations(app: web.Application) -> AsyncIterator[None]:
    services = app.get(SERVICES)
    register = app[CONVERSATIONS] = Register(
        services.database if services else None,
        lambda: app[STATE].now.config.conversations.keep,
    )
    register.start()
    stops = app[STOPS] = Stops(app[IN_FLIGHT], app[BUCKETS].redis)
    stops.start()
    yield
    await stops.close()
    await register.close()


def _threads(config: Config, app: web.Application, buckets: Buckets) -> Store:
    """Where the memory keeps threads: what all replicas share, as far as there is something."""
    if config.redis.url:
        return RedisStore(buckets.evaluate)
    services = app.get(SERVICES)
    if services is None:
        return LocalStore()
    return DatabaseStore(services.database, is_shared=not config.sqlite_file)


def _services(config: Config) -> Callable[[web.Application], AsyncIterator[None]]:
    async def open_books(app: web.Application) -> AsyncIterator[None]:
        if not config.database:
            yield
            return
        database = connect(config.database.reveal())
        accounts, calls, passwords = Accounts(database), Calls(database), Passwords()

        made_up = Secret(secrets.token_urlsafe(12))

        async def prepare() -> None:
            if steps := await database.migrate():
                log.info("The database's schema took %d step(s)", steps)
            await _first_admin(
                accounts, passwords, config.auth.admin_password, made_up, app[ACCESS_LOG].show
            )

        directory = Directory(database, prepare)
        spool = Spool(Path(config.record.spool), config.record.max_spool)
        recorder = Recorder(calls, spool, config.record, directory)
        try:
            await directory.open(_PATIENCE_S)
            if directory.unavailable and config.sqlite_file and not is_locked(directory.cause):
                raise StartError(
                    f"database: {config.sqlite_file} cannot be opened or written"
                    f" ({_cause(directory)}); name another file in DATABASE_URL, or none to do"
                    " without accounts and the record"
                )
            if directory.unavailable:
                log.warning(
                    "The database does not answer (%s); accounts wait until it does",
                    _cause(directory),
                )
            await recorder.open()
            app[SERVICES] = Services(database, accounts, directory, calls, recorder, passwords)
            yield
        finally:
            await recorder.close()
            await directory.close()
            passwords.close()
            await database.close()

    return open_books


def _cause(directory: Directory) -> str:
    return describe_fault(directory.cause) if directory.cause else "no answer in time"


async def _first_admin(
    accounts: Accounts,
    passwords: Passwords,
    configured: Secret,
    made_up: Secret,
    show: Callable[[str], None],
) -> None:
    """Create the account `admin` in an empty database, with the password `configured` or else
    `made_up`, which is passed to `show` once."""
    if await accounts.has_users():
        if configured:
            log.info("ADMIN_PASSWORD is not used: the database has accounts already")
        return
    if configured:
        try:
            check_strength(configured, "admin")
        except InvalidRequest as error:
            raise StartError(f"auth.admin_password (ADMIN_PASSWORD): {error.message}") from None
    hashed = await passwords.hash(configured or made_up)
    try:
        await accounts.add_user("admin", hashed, role="admin")
    except Conflict:
        return  # another replica was quicker
    except DatabaseUnavailable:
        # The account may exist without a confirmation; then its password would be unknown.
        if not configured:
            show(f"Account 'admin' may have been made; if so, its password is {made_up.reveal()}")
        raise
    if not configured:
        show(f"Account 'admin' was made; its password, shown only now: {made_up.reveal()}")


def _state(config: Config) -> Callable[[web.Application], AsyncIterator[None]]:
    async def open_state(app: web.Application) -> AsyncIterator[None]:
        demos: list[Demos] = []

        async def demo_urls(config: Config) -> Mapping[str, str]:
            if not any(agent.is_demo for agent in config.agents.values()):
                return {}
            if not demos:
                from gateway.demo import Demos  # load the simulators only if needed

                demos.append(Demos())
            return await demos[0].urls(config)

        try:
            holder = app[STATE] = StateHolder(make_state(config, await demo_urls(config)))
            app[METRICS].know(config.agents)

            async def reload(config: Config) -> list[str]:
                fixed = await take_over(holder, config, demo_urls)
                app[METRICS].know(config.agents)
                return fixed

            app[RELOAD] = reload
            yield
        finally:
            for each in demos:
                await each.close()

    return open_state
