"""GET /api/v1/agents: the agents that can be asked, their profiles, and whether they are
available."""

from typing import Any

from aiohttp import web

from gateway.chat.routing import Target
from gateway.http.body import envelope
from gateway.http.context import CONTEXT, UPSTREAM, state_of
from gateway.http.language import choice_of
from gateway.language.sentences import in_language, say

_HIDDEN = say("Only for callers that may ask this agent: send an API key.")
_LISTED = say("Agents are listed for callers that may ask them: send an API key.")


async def list_agents(request: web.Request) -> web.Response:
    """The agents that the caller may ask."""
    targets = state_of(request).routing.targets.values()
    agents = [_described(target) for target in targets if _may_ask(request, target)]
    data: dict[str, Any] = {"total": len(agents), "agents": agents}
    if request[CONTEXT].caller is None:
        return _worded(request, data, note=_LISTED)
    return envelope(data)


async def get_agent(request: web.Request) -> web.Response:
    """The profile of an agent, or of a route's first agent. One that the caller may not ask is
    reported as not found."""
    context, state = request[CONTEXT], state_of(request)
    name, target = state.routing.first(request.match_info["name"], context.caller)
    context.hide([target.name], name)
    known = await state.profiles.of(request.app[UPSTREAM], target)
    accepts, files = target.agent.accepts, known.data["files"]
    kinds = files["kinds"] if accepts is None else sorted(accepts)
    data = {
        **_described(target),
        "platform": target.platform.kind,
        **known.data,
        "name": name,
        "title": known.data["title"] or name,
        "files": {**files, "kinds": kinds},
        "refreshed": known.refreshed,
    }
    if known.problem is None:
        return envelope(data)
    problem = known.problem
    for hidden in context.hidden:
        problem = problem.renamed(hidden, context.route)
    return _worded(request, data, problem=problem.message)


async def agent_health(request: web.Request) -> web.Response:
    """Always 200: the answer is about the bot. `/readyz` is about the gateway."""
    target = _target(request)
    health = await state_of(request).health.check(request.app[UPSTREAM], target)
    data = {
        "name": target.name,
        "status": "healthy" if health.healthy else "unhealthy",
        "timestamp": health.checked,
        "capabilities": _capabilities(target),
    }
    return _worded(request, data, detail=health.detail if _may_ask(request, target) else _HIDDEN)


def _worded(request: web.Request, data: dict[str, Any], **sentences: str) -> web.Response:
    """The data with `sentences` in the caller's language."""
    choice = choice_of(request)
    words = {name: in_language(text, choice.language) for name, text in sentences.items()}
    response = envelope(data | words)
    response.headers.update(choice.headers)
    return response


def _target(request: web.Request) -> Target:
    caller, name = request[CONTEXT].caller, request.match_info["name"]
    return state_of(request).routing.agent(name, caller)


def _may_ask(request: web.Request, target: Target) -> bool:
    """Whether the caller may ask the agent. These routes are public; a caller without a key is
    unknown or anonymous."""
    caller = request[CONTEXT].caller
    return caller is not None and caller.may_ask(target.name, [target.name])


def _described(target: Target) -> dict[str, Any]:
    return {
        "name": target.name,
        "type": target.platform.kind,
        "module": type(target.platform).__module__,
        "capabilities": _capabilities(target),
    }


def _capabilities(target: Target) -> dict[str, Any]:
    """`file_kinds` are the kinds of files that a question may contain; `speech` and `transcription`
    say whether the calls under `/api/v1/audio` are possible."""
    kinds, platform = sorted(target.kinds), target.platform
    return {
        "streaming": True,
        "file_upload": bool(kinds),
        "file_kinds": kinds,
        "speech": getattr(platform, "speech", None) is not None,
        "transcription": getattr(platform, "transcription", None) is not None,
    }
