"""Know which requests are under way, and begin no work while the process stops."""

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from gateway.errors import Stopping
from gateway.flights import Flights
from gateway.keys import CONTEXT


def inflight(flights: Flights) -> Middleware:
    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        """A request that is told to stop finds the error in its context; `errors` answers
        with it if nothing has been sent."""
        if flights.stopping and request.method not in ("GET", "HEAD", "OPTIONS"):
            raise Stopping
        flight = flights.begin(request)
        try:
            return await handler(request)
        finally:
            flights.end(flight)

    return middleware


def tell_to_stop(request: web.Request) -> None:
    request[CONTEXT].stopped = Stopping()


def end_connection(response: web.StreamResponse) -> None:
    """While the process stops, clients shall go elsewhere with the next request."""
    response.force_close()
    response.headers["Connection"] = "close"  # aiohttp has written it already
