import socket
import ssl

import pytest

from gateway.errors import GatewayError
from gateway.exchange import UpstreamRequest
from gateway.link import AnswerCut, NoAnswer, NotHttp
from gateway.upstream import _no_connection, open_upstream, translate


@pytest.mark.parametrize(
    ("error", "status", "code", "retryable"),
    [
        (NoAnswer(), 502, "upstream_cut", False),
        (AnswerCut(), 502, "upstream_cut", False),
        (NotHttp(), 502, "upstream_failed", False),
        (ConnectionResetError(), 502, "upstream_cut", False),
        (RuntimeError(), 502, "upstream_cut", False),
        (TimeoutError(), 504, "upstream_timeout", False),
        (OSError(), 502, "upstream_failed", False),
        (ValueError(), 502, "upstream_failed", False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_error_of_an_exchange_has_a_counterpart(error, status, code, retryable):
    translated = translate(error)
    assert isinstance(translated, GatewayError)
    assert (translated.status, translated.code, translated.retryable) == (status, code, retryable)


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        (ConnectionRefusedError(), "upstream_unreachable", True),
        (socket.gaierror(), "upstream_unreachable", True),
        (OSError(), "upstream_unreachable", True),
        (ssl.SSLCertVerificationError(), "upstream_auth_failed", False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_keeps_a_connection_from_being_made_says_so(error, code, retryable):
    translated = _no_connection(error)
    assert (translated.status, translated.code, translated.retryable) == (502, code, retryable)


def test_a_bug_of_ours_is_not_the_networks_fault():
    bug = KeyError("x")
    assert translate(bug) is bug


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://127.0.0.1:1/x", "upstream_unreachable"),
        ("http://no-such-host.invalid/x", "upstream_unreachable"),
        ("ftp://127.0.0.1/x", "upstream_auth_failed"),
        ("http:///x", "upstream_auth_failed"),
    ],
)
async def test_an_address_that_leads_nowhere_is_named(url, code):
    async with open_upstream() as upstream:
        with pytest.raises(GatewayError) as caught:
            await upstream.send(UpstreamRequest("GET", url), 5.0)
    assert caught.value.code == code


@pytest.mark.parametrize("bad", ["a\r\nb: c", "a\nb", "a\0"])
async def test_a_header_cannot_smuggle_another_one_in(bad):
    async with open_upstream() as upstream:
        with pytest.raises(GatewayError) as caught:
            await upstream.send(UpstreamRequest("GET", "http://127.0.0.1:1/", {"x-key": bad}), 5.0)
    assert caught.value.code == "upstream_auth_failed"
