"""Background calls of chat clients: who answers them, and which limit they count in."""

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from gateway import headers as headernames
from gateway.background.answers import answer
from gateway.background.recognise import marked, recognise
from gateway.background.tasks import KINDS, Kind, Task
from gateway.chat.routing import Target
from gateway.chat.steps import resolve
from gateway.config.models import BackgroundMode, Config
from gateway.errors import GatewayError, InvalidRequest
from gateway.http.context import CONTEXT, LATEST, UPSTREAM, State
from gateway.http.remember import owner_of
from gateway.language.sentences import say
from gateway.middlewares.ratelimit import charge_as_task
from gateway.telemetry.call import Call

_SUGGEST_S = 10.0
_NO_TASK = "chat"  # the header's value for a call that must run like any other


def task_of(
    request: web.Request, state: State, body: Mapping[str, Any], targets: list[Target]
) -> Task | None:
    """The background call that the request is, if its agent does not run such calls like chats.
    Raises InvalidRequest for an unknown kind in the caller's header."""
    mode = _mode(state.config, targets[0])
    if mode == "run":
        return None
    headers = request.headers
    if headernames.TASK in headers:
        kind = _declared(headers[headernames.TASK])
        return None if kind is None else marked(kind, body)
    if "x-conversation-id" in headers:
        return None
    task = recognise(body)
    if task is None or not state.config.background.rules.get(task.kind, True):
        return None
    return task


def _mode(config: Config, target: Target) -> BackgroundMode:
    """The mode at the agent that comes first. Plain models answer such calls as any others, unless
    the agent says otherwise."""
    if target.agent.background is not None:
        return target.agent.background
    return "run" if target.platform.is_model else config.background.mode


def _declared(value: str) -> Kind | None:
    name = value.strip().lower()
    if name == _NO_TASK:
        return None
    for kind in KINDS:
        if kind == name:
            return kind
    message = say(
        "The header {name} must be one of {allowed}.",
        name=str(headernames.TASK),
        allowed=", ".join((_NO_TASK, *KINDS)),
    )
    raise InvalidRequest(message, param=str(headernames.TASK))


async def divert(
    request: web.Request, state: State, call: Call, task: Task, targets: list[Target]
) -> tuple[str | None, str | None]:
    """(the text of the answer, None) or (None, the model that answers): the agent itself if both
    are None.

    What reaches the agent is charged like a chat. All else is charged to `tasks`; raises
    RateLimited. Raises InvalidRequest if the agent refuses background calls.
    """
    call.task = task.kind
    if _mode(state.config, targets[0]) == "refuse":
        await charge_as_task(request)
        raise InvalidRequest(
            say(
                "This agent answers no background calls ({kind}): switch them off in the chat "
                "client, or choose another model for them there.",
                kind=task.kind,
            ),
            param="messages",
        )
    text = "ok" if task.kind == "probe" else None
    model = state.config.background.model
    if text is None and model is None:
        suggestions: tuple[str, ...] = ()
        if task.kind == "follow_ups":
            suggestions = await _suggested(request, call, task, targets)
        text = answer(task, suggestions)
    if text is None and model is None:
        call.answered_by = "agent"
        return None, None
    await charge_as_task(request)
    call.answered_by = "model" if text is None else "gateway"
    return text, model if text is None else None


async def _suggested(
    request: web.Request, call: Call, task: Task, targets: list[Target]
) -> tuple[str, ...]:
    """The next questions that the bot itself suggests after the user's last one."""
    by_name = {target.name: target for target in targets}
    answered = request.app[LATEST].find(owner_of(call), by_name, task.last)
    if answered is None or answered.suggestions or not answered.message_id:
        return answered.suggestions if answered is not None else ()
    target = by_name[answered.agent]
    try:
        step = target.platform.suggest(
            answered.conversation, answered.platform_user, answered.message_id
        )
        found = await resolve(request.app[UPSTREAM], target, step, fetch_s=_SUGGEST_S)
    except GatewayError:  # none is an answer, too
        return ()
    return tuple(found)


def require_room(request: web.Request) -> None:
    """Raises RateLimited for a call beyond the limit of chats that no background call is."""
    if (error := request[CONTEXT].over) is not None:
        raise error
