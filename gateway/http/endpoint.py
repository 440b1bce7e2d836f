"""What a route demands of its callers, told where the route is declared."""

from dataclasses import dataclass
from typing import Literal

from aiohttp.typedefs import Handler

from gateway.config.models import Permission
from gateway.limits.rules import Class

# A permission is had by keys and by logins; `login` and `login-admin` by logins alone.
Access = Permission | Literal["login", "login-admin"]


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path. `access` None is public, `limit` None is not limited."""

    method: str
    path: str
    handler: Handler
    access: Access | None = None
    limit: Class | None = None
