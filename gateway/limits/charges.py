"""What a request takes from one bucket, a class for each kind, with the script's four arguments.

Named tuples, since each request makes at least one: a frozen dataclass takes more than twice as
long to make.
"""

from typing import NamedTuple

from gateway.accounts.credentials import Quota

LEASE_S = 60.0  # after which the slot of a crashed holder is free
# the database has the usage and Redis only caches it; an expired count starts from there
QUOTA_TTL_S = 3600.0

# A bucket's key: the part in braces selects the node of a Redis Cluster.
Argv = tuple[str, str, str, float | str]


class RateCharge(NamedTuple):
    """`cost` calls from a token bucket."""

    key: str
    capacity: int
    per_ms: float
    cost: int = 1

    def argv(self) -> Argv:
        return "rate", repr(float(self.capacity)), repr(self.per_ms), self.cost


class TokenCharge(NamedTuple):
    """Nothing yet from a token bucket that must not be empty: the answer's usage is charged
    later."""

    key: str
    capacity: int
    per_ms: float

    def argv(self, cost: int = 0) -> Argv:
        return "rate", repr(float(self.capacity)), repr(self.per_ms), cost


class SlotCharge(NamedTuple):
    """One of `most` slots for calls in flight, held until it is released or the lease ends."""

    key: str
    most: int
    holder: str
    lease_ms: float = LEASE_S * 1000

    def argv(self) -> Argv:
        return "slots", repr(float(self.most)), repr(float(self.lease_ms)), self.holder


class QuotaCharge(NamedTuple):
    """One call of a quota; `ttl_ms` is how long Redis keeps its count."""

    key: str
    quota: Quota
    ttl_ms: float = QUOTA_TTL_S * 1000

    def argv(self) -> Argv:
        return "quota", *self._limits(), self.quota.known

    def argv_to_return(self) -> Argv:
        """To return the call."""
        return "quota", *self._limits(), -1

    def _limits(self) -> tuple[str, str]:
        return repr(float(self.quota.limit)), repr(float(self.ttl_ms))


Charge = RateCharge | TokenCharge | SlotCharge | QuotaCharge
