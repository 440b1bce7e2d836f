"""Carries out the steps of a platform's conversation calls with given replies."""

import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

from gateway.platforms.base import Preliminary
from gateway.protocol.exchange import UpstreamReply, UpstreamRequest


def reply(value: object, status: int = 200) -> UpstreamReply:
    return UpstreamReply(status, {}, json.dumps(value).encode())


def carried(step: Any, *replies: UpstreamReply) -> tuple[Any, list[UpstreamRequest]]:
    """(the result after all of `replies`, the requests)."""
    asked = []
    for each in replies:
        assert isinstance(step, Preliminary), f"{len(asked)} requests were enough"
        asked.append(step.request)
        step = step.learn(each)
    assert not isinstance(step, Preliminary), f"it asks for {step.request.url}"
    return step, asked


def told(request: UpstreamRequest) -> tuple[str, str, dict[str, str], Any]:
    """(method, path, query, body)."""
    url = urlsplit(request.url)
    query = {name: values[0] for name, values in parse_qs(url.query).items()}
    return request.method, url.path, query, json.loads(request.body or b"null")
