"""Carries out preliminary requests, which a platform needs before the question itself."""

from collections.abc import Callable
from typing import Any

from gateway.chat.routing import Target
from gateway.errors import UpstreamFailed
from gateway.platforms.base import Preliminary
from gateway.upstream.client import Upstream

MAX_STEPS = 8  # preliminary requests in a row, and further steps of one attempt
FETCH_S = 30.0


async def resolve(
    upstream: Upstream,
    target: Target,
    step: Any,
    again: Callable[[], Any] | None = None,
    fetch_s: float = FETCH_S,
) -> Any:
    """The step that follows the preliminary requests; `step` itself if it is not preliminary.

    One call sends a request whose result all calls of the agent share; the others wait, and then
    call `again` for their step. Each request may take `fetch_s`. Raises UpstreamFailed after
    MAX_STEPS requests.
    """
    for _ in range(MAX_STEPS):
        if not isinstance(step, Preliminary):
            return step
        if not step.shared or again is None:
            step = await _ask(upstream, target, step, fetch_s)
            continue
        async with target.learning:
            step = again()  # another call may have learned it by now
            if isinstance(step, Preliminary):
                step = await _ask(upstream, target, step, fetch_s)
    raise keeps_asking()


async def _ask(upstream: Upstream, target: Target, step: Preliminary, fetch_s: float) -> Any:
    return step.learn(await upstream.fetch(step.request, target.way, fetch_s))


def keeps_asking() -> UpstreamFailed:
    return UpstreamFailed("The upstream keeps asking for preliminary calls.")
