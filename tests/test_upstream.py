import inspect

import aiohttp
import pytest

from gateway.errors import GatewayError
from gateway.upstream import translate

FOREIGN = [
    cls
    for _, cls in inspect.getmembers(aiohttp, inspect.isclass)
    if issubclass(cls, Exception)
    and cls.__module__.startswith("aiohttp.client")
    and not cls.__name__.startswith("WS")  # web sockets are not used
]


@pytest.mark.parametrize("cls", FOREIGN, ids=lambda cls: cls.__name__)
def test_every_error_of_aiohttps_client_has_a_counterpart(cls):
    error = cls.__new__(cls)
    translated = translate(error)
    assert isinstance(translated, GatewayError)
    assert translated.status in (502, 504)


@pytest.mark.parametrize(
    ("error", "status", "retryable"),
    [
        (ConnectionRefusedError(), 502, True),
        (ConnectionResetError(), 502, False),
        (aiohttp.ConnectionTimeoutError(), 504, True),
        (aiohttp.ServerDisconnectedError(), 502, False),
        (aiohttp.ClientPayloadError(), 502, False),
        (TimeoutError(), 504, False),
        (OSError(), 502, False),
        (ValueError(), 502, False),
    ],
)
def test_only_what_cannot_have_begun_may_be_tried_again(error, status, retryable):
    translated = translate(error)
    assert (translated.status, translated.retryable) == (status, retryable)


def test_a_bug_of_ours_is_not_the_networks_fault():
    bug = KeyError("x")
    assert translate(bug) is bug
