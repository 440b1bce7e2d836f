"""Rate limits: which buckets a request is charged to, and the error when one is empty.

    rate    a token bucket: `capacity` in a burst, `per_s` afterwards
    tokens  the same, but charged after the answer, by its usage; it must only not be empty
    slots   calls in flight
    quota   calls in all, or in a month

A request is charged to all the buckets it needs or to none. `limits.buckets` keeps them, in this
process or in Redis.
"""

from functools import lru_cache
from hashlib import sha256
from typing import Any, Literal, NamedTuple

from gateway import headers as headernames
from gateway.accounts.credentials import Caller
from gateway.config.models import RateLimits
from gateway.config.values import Rate
from gateway.errors import CallsUsedUp, GatewayError, RateLimited, TooManyAtOnce
from gateway.ids import new_id
from gateway.language.sentences import say
from gateway.limits.charges import Charge, QuotaCharge, RateCharge, SlotCharge, TokenCharge

Class = Literal["chat", "tasks", "upload", "agents", "login", "accounts"]


class Decision(NamedTuple):
    """One bucket's answer. `wait_ms`: until it allows the charge; `full_ms`: until it is full."""

    allowed: bool
    remaining: int
    wait_ms: int
    full_ms: int


def request_charges(limits: RateLimits, caller: Caller, class_: Class) -> list[Charge]:
    """The charges of a request of that class for `caller`, whose own limits come first."""
    is_plain = not (caller.has_own_limits or caller.end_user or caller.quotas)
    if is_plain and not (limits.tokens or limits.concurrency):  # nearly always
        general: Rate | None = getattr(limits, class_)
        return [_plain_rate(caller.tag, caller.id, class_, general)] if general else []
    return _all_charges(limits, caller, class_)


@lru_cache(maxsize=4096)
def _plain_rate(tag: str, id_: str, class_: Class, rate: Rate) -> RateCharge:
    return _rate(f"{{{tag}}}:{id_}:{class_}", rate)


def _all_charges(limits: RateLimits, caller: Caller, class_: Class) -> list[Charge]:
    name = f"{{{caller.tag}}}:{caller.id}"
    general: Rate | None = getattr(limits, class_)
    account = f"{{{caller.tag}}}:account"
    out: list[Charge] = []
    each, shared = _both(caller, limits, class_)
    if each:
        out.append(_rate(f"{name}:{class_}", each))
    if shared:
        out.append(_rate(f"{account}:{class_}", shared))
    if caller.end_user and general:
        user = sha256(caller.end_user.encode()).hexdigest()[:16]
        out.append(_rate(f"{name}:{class_}:{user}", general))
    if class_ not in ("chat", "tasks"):
        return out
    if caller.has_own_limits or limits.tokens:
        each, shared = _both(caller, limits, "tokens")
        for budget, whose in ((each, name), (shared, account)):
            if budget:
                per_ms = budget.per_s / 1000
                out.append(TokenCharge(f"{whose}:tokens", budget.capacity, per_ms))
    if caller.has_own_limits or limits.concurrency:
        each, shared = _both(caller, limits, "concurrency")
        for most, whose in ((each, name), (shared, account)):
            if most:
                out.append(SlotCharge(f"{whose}:slots", most, new_id(24)))
    for quota in caller.quotas:
        key = f"{{{caller.tag}}}:{quota.scope}:{quota.period}:calls"
        out.append(QuotaCharge(key, quota))
    return out


def counts_tokens(limits: RateLimits, caller: Caller) -> bool:
    """Whether the caller's tokens are limited, so that an answer's usage must be known."""
    if not caller.has_own_limits:
        return limits.tokens is not None
    return any(_both(caller, limits, "tokens"))


def _both(caller: Caller, limits: RateLimits, name: str) -> tuple[Any, Any]:
    """(the caller's own limit, its account's), each None if there is none.

    Only an administrator can give a key more than its account has; such a key does not share the
    account's limit. If both are the same, the account's is enough.
    """
    if not caller.has_own_limits:
        return getattr(limits, name), None
    own = getattr(caller.limits, name, None)
    each = own or getattr(limits, name)
    if not caller.is_held:
        return each, None
    shared = getattr(limits.account, name, None) or getattr(limits, name)
    if shared is None or (own is not None and _is_wider(own, shared)):
        return each, None
    return (None if each == shared else each), shared


def _is_wider(own: Any, shared: Any) -> bool:
    pairs = zip(own, shared, strict=True) if isinstance(own, Rate) else [(own, shared)]
    return any(mine > theirs for mine, theirs in pairs)


def _rate(key: str, rate: Rate) -> RateCharge:
    return RateCharge(key, rate.capacity, rate.per_s / 1000)


def login_charges(limits: RateLimits, address: str, username: str | None) -> list[Charge]:
    """Login attempts from one address, and on one name from anywhere."""
    if limits.login is None:
        return []
    if username is None:
        return [_rate(f"{{{address}}}:login", limits.login)]
    name = sha256(username.encode("utf-8", "replace")).hexdigest()[:16]
    return [_rate(f"{{name-{name}}}:login", limits.login)]


def refusal(charged: list[Charge], decisions: list[Decision]) -> GatewayError | None:
    """The error for the bucket that keeps the caller waiting longest, or None."""
    if all([decision.allowed for decision in decisions]):
        return None
    refused = [pair for pair in zip(charged, decisions, strict=True) if not pair[1].allowed]
    for charge, _ in refused:
        if isinstance(charge, QuotaCharge):
            return _used_up(charge)
    charge, decision = max(refused, key=lambda pair: pair[1].wait_ms)
    if isinstance(charge, SlotCharge):
        message = say(
            "{limit} calls are under way, which is the limit; wait for one to end.",
            limit=charge.most,
        )
        return TooManyAtOnce(message, retry_after_s=1.0)
    assert isinstance(charge, RateCharge | TokenCharge)
    wait_s = max(decision.wait_ms / 1000, 0.001)
    return RateLimited(
        say(
            "Rate limit reached: {limit} {unit}, refilled at {rate}. Try again in {seconds:.3g} s.",
            limit=charge.capacity,
            unit=say("tokens") if isinstance(charge, TokenCharge) else say("calls"),
            rate=_per(charge.per_ms),
            seconds=wait_s,
        ),
        retry_after_s=wait_s,
    )


def _used_up(charge: QuotaCharge) -> CallsUsedUp:
    quota = charge.quota
    if quota.period:
        message = say(
            "All {count} calls of this account for {period} (UTC) are used. Ask an administrator "
            "for more.",
            count=quota.limit,
            period=quota.period,
        )
    else:
        message = say(
            "All {count} calls of this API key are used. Ask an administrator for more.",
            count=quota.limit,
        )
    return CallsUsedUp(message)


def _per(per_ms: float) -> str:
    per_s = per_ms * 1000
    for seconds, unit in ((1, "s"), (60, "min"), (3600, "h")):
        if per_s * seconds >= 1:
            return f"{round(per_s * seconds, 1):.10g}/{unit}"
    return f"{round(per_s * 86_400, 1):.10g}/day"


_REQUESTS, _TOKENS = headernames.LIMITS["requests"], headernames.LIMITS["tokens"]


def headers(charged: list[Charge], decisions: list[Decision]) -> dict[str, str]:
    """`x-ratelimit-*` as OpenAI writes them; of two buckets of a kind, the scarcer one."""
    out: dict[str, str] = {}
    for charge, decision in zip(charged, decisions, strict=True):
        if isinstance(charge, RateCharge):
            limit, remaining, reset = _REQUESTS
        elif isinstance(charge, TokenCharge):
            limit, remaining, reset = _TOKENS
        else:
            continue
        if remaining in out and decision.remaining >= int(out[remaining]):
            continue
        out[limit] = str(charge.capacity)
        out[remaining] = str(decision.remaining)
        out[reset] = duration(decision.full_ms)
    return out


def duration(ms: int) -> str:
    """`120ms`, `1s`, `6m0s`: OpenAI's format for the time until a bucket is full."""
    if ms < 1000:
        return f"{ms}ms"
    seconds = -(-ms // 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{seconds}s"
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"
