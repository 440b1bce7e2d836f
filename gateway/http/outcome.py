"""What streams and whole answers share: their headers, and how an answer ends early."""

import asyncio
from typing import Any

from gateway import headers as headernames
from gateway.chat.run import Run
from gateway.errors import Stopping, UpstreamTimeout
from gateway.http.context import header_value
from gateway.http.remember import memory_header
from gateway.language.sentences import say
from gateway.platforms.base import ignored_options
from gateway.protocol.messages import Finish
from gateway.protocol.render import Notes, public_id

_LONGEST_NAME, _MOST_NAMES = 40, 20  # of ignored members in a header


def stop_of(stopped: Stopping, run: Run) -> Stopping:
    """The error for a call that the end of the process cuts short."""
    if not run.attempt.has_accepted:
        return stopped
    return Stopping(
        "The gateway is being restarted, which cut this answer short; ask again.",
        should_retry=False,
    )


def stopped_by_user(run: Run, notes: Notes) -> Finish:
    """The end of an answer that its user has stopped; the upstream is released."""
    notes.is_stopped = True
    decoder = run.attempt.decoder
    return Finish("stop", decoder.usage_so_far() if decoder is not None else None)


async def end(task: asyncio.Future[Any]) -> None:
    """Cancel the task if it still runs, and retrieve its exception so that asyncio does
    not log it."""
    if not task.done():
        task.cancel()
        await asyncio.wait({task})
    if not task.cancelled():
        task.exception()


def headers_of(run: Run) -> dict[str, str]:
    attempt, agent = run.attempt, run.attempt.target.name
    headers: dict[str, str] = {
        headernames.AGENT: header_value(run.chat.route or agent),
        headernames.ATTEMPTS: str(run.attempts),
    }
    if run.chat.task:
        headers[headernames.TASK] = run.chat.task
    if run.conversation_id:
        conversation = public_id(run.chat, agent, run.conversation_id)
        headers[headernames.CONVERSATION_ID] = header_value(conversation)
    if run.recall is not None:
        headers[headernames.MEMORY] = memory_header(run)
    if run.chat.options or run.chat.ignored:
        names = ignored_options(attempt.endpoint, run.chat, attempt.decoder)
        if names:
            headers[headernames.IGNORED] = _listed(names)
    return headers


def _listed(names: tuple[str, ...]) -> str:
    shown = [header_value(name[:_LONGEST_NAME]).replace(",", "%2C") for name in names[:_MOST_NAMES]]
    return ", ".join([*shown, "..."] if len(names) > _MOST_NAMES else shown)


def too_long(run: Run) -> UpstreamTimeout:
    message = say(
        "Agent {name!r}: the answer took longer than {seconds:g} s.",
        name=run.attempt.target.name,
        seconds=run.total_s,
    )
    return UpstreamTimeout(message, should_retry=False)
