"""Types for the models: durations, sizes, rates and addresses as config.yaml writes them.

Their errors address the author of the file; pydantic puts the location in front.
"""

import re
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from gateway.config.proxy import Proxy, read_proxy
from gateway.language.sentences import say
from gateway.secret import Secret

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_UNITS_BYTES = {"": 1, "b": 1}
_UNITS_BYTES |= {f"{p}b": 1000**i for i, p in enumerate(("k", "m", "g"), 1)}
_UNITS_BYTES |= {f"{p}ib": 1024**i for i, p in enumerate(("k", "m", "g"), 1)}


def duration_s(value: str) -> float:
    """Seconds from `90s`, `1.5m`, `500ms`, `2h`, `7d` or plain `90`. Raises ValueError."""
    match = re.fullmatch(r"\s*(\d{1,12}(?:\.\d{1,12})?)\s*(ms|s|m|h|d)?\s*", value)
    if not match:
        raise ValueError("must be a duration such as 500ms, 30s, 5m, 2h or 30d")
    return float(match[1]) * _UNITS_S[match[2] or "s"]


def _duration(value: Any) -> Any:
    return duration_s(value) if isinstance(value, str) else value


def _size(value: Any) -> Any:
    """Bytes from `1048576`, `"10MiB"` or `"100MB"`."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", value)
        if not match or match[2].lower() not in _UNITS_BYTES:
            raise ValueError("must be a size such as 512KiB, 10MiB or 100MB")
        return int(float(match[1]) * _UNITS_BYTES[match[2].lower()])
    return value


class Rate(NamedTuple):
    """The largest burst, and the rate per second afterwards: `60/min` is `Rate(60, 1.0)`."""

    capacity: int
    per_s: float


def times(rate: Rate | None, factor: int) -> Rate | None:
    """`factor` times as many calls; None stays without a limit."""
    return None if rate is None else Rate(rate.capacity * factor, rate.per_s * factor)


_PERIODS_S = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "hour": 3600, "d": 86_400}
_PERIODS_S["day"] = _PERIODS_S["d"]


def _rate(value: Any) -> Any:
    """`Rate` from `60/min`, `5/s` or `1000/day`."""
    if isinstance(value, Rate):
        return value
    text = value if isinstance(value, str) and len(value) <= 32 else ""
    match = re.fullmatch(r"\s*([1-9][0-9]{0,8})\s*/\s*([a-z]{1,4})\s*", text)
    if not match or match[2] not in _PERIODS_S:
        raise ValueError(say("must be a rate such as 60/min, 5/s or 1000/day"))
    return Rate(int(match[1]), int(match[1]) / _PERIODS_S[match[2]])


def _network(value: Any) -> Any:
    try:
        return ip_network(value)
    except ValueError:
        raise ValueError("must be an address or a network such as 10.0.0.0/8") from None


def with_a_port(url: Secret) -> Secret:
    """`url` unchanged, if its port is valid; the driver checks a URL with several hosts.

    Raises ValueError.
    """
    try:
        parts = urlsplit(url.reveal())
        if "," not in parts.netloc:
            _ = parts.port
    except ValueError:
        raise ValueError(
            "is not a URL: check its host and port, and write / : @ # ? of a password as %2F %3A"
            " %40 %23 %3F"
        ) from None
    return url


def public_address(value: str) -> str:
    """The URL at which others reach something, without a trailing slash. Raises ValueError."""
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("must be an http:// or https:// address without a query")
    return value.rstrip("/")


def _proxy(value: Any) -> Any:
    """A `Proxy` from its URL; "none" from an empty value, which differs from a missing key."""
    if isinstance(value, Secret):
        value = value.reveal()
    if value is None or value in ("", "none"):
        return "none"
    return read_proxy(value) if isinstance(value, str) else value


def _header(value: Secret) -> Secret:
    if not re.fullmatch(r"[\t\x20-\x7e\x80-\U0010ffff]*", value.reveal()):
        raise ValueError("contains characters that are not allowed here")
    return value


def empty_is_none(value: Any) -> Any:
    """Read "" as None: a variable that is not set gives ""."""
    return None if value == "" else value


def _units(schema: dict[str, Any]) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string", **schema}]})


Duration = Annotated[
    float,
    BeforeValidator(_duration),
    Field(gt=0, le=7 * 86_400),
    _units({"description": "a duration such as 500ms, 30s, 5m or 2h"}),
]
Size = Annotated[
    int,
    BeforeValidator(_size),
    Field(gt=0),
    _units({"description": "a size such as 512KiB, 10MiB or 100MB"}),
]
Age = Annotated[
    float,
    BeforeValidator(_duration),
    Field(gt=0, le=3660 * 86_400),
    _units({"description": "a duration such as 12h, 30d or 400d"}),
]
AnyRate = Annotated[
    Rate,
    BeforeValidator(_rate),
    WithJsonSchema({"type": "string", "description": "a rate such as 60/min, 5/s or 1000/day"}),
]
Network = Annotated[
    IPv4Network | IPv6Network,
    BeforeValidator(_network),
    WithJsonSchema({"type": "string", "description": "an address or a network: 10.0.0.0/8"}),
]
AnyProxy = Annotated[
    Proxy | Literal["none"] | None,  # None: the key is missing
    BeforeValidator(_proxy),
    WithJsonSchema(
        {"anyOf": [{"type": "null"}, {"type": "string"}], "description": "a proxy's URL, or none"}
    ),
]
PublicAddress = Annotated[str, AfterValidator(public_address)]
Port = Annotated[int, Field(ge=0, le=65_535)]
OptionalText = Annotated[str | None, BeforeValidator(empty_is_none)]
HeaderValue = Annotated[Secret, AfterValidator(_header)]  # some hold credentials
