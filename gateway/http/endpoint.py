"""What a route requires of its callers, declared next to the route."""

from dataclasses import dataclass
from typing import Literal

from aiohttp.typedefs import Handler

from gateway.config.models import Permission
from gateway.limits.rules import Class

# API keys and logins have permissions; `login` and `login-admin` are for logins alone.
Access = Permission | Literal["login", "login-admin"]


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path. `access` None is public, `limit` None is not limited. With
    `has_tasks` a call may turn out to be a background call, which has a limit of its own."""

    method: str
    path: str
    handler: Handler
    access: Access | None = None
    limit: Class | None = None
    has_tasks: bool = False
