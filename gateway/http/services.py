"""What account routes share: access to the database, and usage as the API reports it."""

import contextlib
from datetime import UTC, datetime

from aiohttp import web

from gateway.errors import DatabaseUnavailable, NotFound
from gateway.http.body import envelope
from gateway.http.context import SERVICES, Services


def services_of(request: web.Request) -> Services:
    """The services. Raises NotFound if there is no database."""
    services = request.app.get(SERVICES)
    if services is None:
        raise NotFound("This gateway has no database (database: none), so it has no accounts.")
    return services


async def usage_of(request: web.Request, kind: str, id_: str) -> web.Response:
    """The usage of a key ("key") or a user ("user"), this process's last calls included."""
    services = services_of(request)
    with contextlib.suppress(DatabaseUnavailable):
        await services.recorder.flush()
    return envelope(await services.calls.usage(kind, id_, datetime.now(UTC).strftime("%Y-%m-%d")))
