"""What requests and their answers are told while the process stops."""

from aiohttp import web

from gateway.errors import Stopping
from gateway.keys import CONTEXT


def tell_to_stop(request: web.Request) -> None:
    """Before it is cancelled. `errors` answers with this if nothing has been sent."""
    request[CONTEXT].stopped = Stopping()


def end_connection(response: web.StreamResponse) -> None:
    """Clients shall go elsewhere with the next request."""
    response.force_close()
    response.headers["Connection"] = "close"  # aiohttp has written it already
