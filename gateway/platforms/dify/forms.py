"""Forms of human-input nodes: what a run waits for, and how a person's reply continues it.

Source: Dify's guide to human input (July 2026). Whoever knows a form's token may fill it, so the
token stays in the gateway.
"""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import orjson

from gateway.errors import Conflict, GatewayError, InvalidRequest
from gateway.language.sentences import edited, say
from gateway.platforms.base import Preliminary, as_id, as_list, as_object, as_text, dump
from gateway.platforms.dify.failures import explain
from gateway.platforms.pauses import MAX_CHARACTERS, Field, Pause
from gateway.protocol.exchange import UpstreamReply, UpstreamRequest
from gateway.protocol.messages import Resume
from gateway.protocol.redaction import masked

_MAX_FORMS, _MAX_EACH = 20, 100
_SUBMITTED = "human_input_form_submitted"
_EXPIRED = "human_input_form_expired"


def state_of(run: str, forms: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What the gateway remembers of a run that waits, from the members of its events; None if it
    cannot be continued: a form without a token is sent by e-mail."""
    kept = [
        {
            "token": as_text(form.get("form_token")),
            "actions": [
                [as_id(action.get("id")), as_text(action.get("title"))]
                for action in map(as_object, as_list(form.get("actions"))[:_MAX_EACH])
            ],
            "inputs": [
                [as_text(field.get("output_variable_name")), as_text(field.get("type"))]
                for field in map(as_object, as_list(form.get("inputs"))[:_MAX_EACH])
            ],
        }
        for form in forms[:_MAX_FORMS]
        if as_text(form.get("form_token"))
    ]
    state = {"run": run, "forms": kept}
    return state if run and kept and len(dump(state)) <= 4 * MAX_CHARACTERS else None


def resume(
    state: Mapping[str, Any],
    reply: Resume,
    user: str,
    api: str,
    headers: Mapping[str, str],
) -> Preliminary:
    """Submit the first form, then follow the run. Raises InvalidRequest for an action that the form
    does not have."""
    form = as_object(next(iter(as_list(state.get("forms"))), None))
    body = {"inputs": dict(reply.inputs), "action": _action(form, reply.action), "user": user}
    secret, run = as_text(form.get("token")), quote(as_text(state["run"]), safe="")
    token = quote(secret, safe="")
    events = f"{api}/workflow/{run}/events?user={quote(user, safe='')}"

    def learn(answer: UpstreamReply) -> UpstreamRequest:
        if answer.status not in (200, 201, 204) and (error := _refusal(answer)) is not None:
            raise _without(error, [secret, token])
        return UpstreamRequest("GET", events, headers, stream=True)

    url = f"{api}/form/human_input/{token}"
    return Preliminary(UpstreamRequest("POST", url, headers, dump(body)), learn)


def _without(error: GatewayError, secrets: list[str]) -> GatewayError:
    """The error without the form's token, which servers and proxies quote with the address."""
    return error.replace(message=edited(error.message, lambda text: masked(text, secrets)))


def _action(form: Mapping[str, Any], wanted: str) -> str:
    """The id of the wanted button, by its id or its title; the only one may be left out."""
    actions = [(as_text(id_), as_text(title)) for id_, title in as_list(form.get("actions"))]
    if not wanted and len(actions) == 1:
        return actions[0][0]
    for id_, title in actions:
        if wanted and wanted in (id_, title):
            return id_
    known = ", ".join(id_ for id_, _ in actions)
    raise InvalidRequest(
        say("'action' must be one of the form's actions: {known}.", known=known), param="action"
    )


def _refusal(answer: UpstreamReply) -> GatewayError | None:
    """The error in the reply to a form. One that was submitted before has continued its run, which
    can be followed again."""
    code = as_text(answer.object().get("code"))
    if code == _SUBMITTED:
        return None
    if code == _EXPIRED or (answer.status == 404 and code == "not_found"):
        return Conflict("The bot waits for this answer no longer; ask again.")
    return explain(answer)


def read_reply(state: Mapping[str, Any], text: str) -> Resume | None:
    """A message as a reply to the first form: a button by its number or title, on a line of its
    own if values of fields follow. None if it names no button."""
    form = as_object(next(iter(as_list(state.get("forms"))), None))
    actions = [(as_text(id_), as_text(title)) for id_, title in as_list(form.get("actions"))]
    fields = tuple(
        Field(as_text(name), as_text(name), kind == "number")
        for name, kind in as_list(form.get("inputs"))
    )
    choice = Pause(options=tuple(title or id_ for id_, title in actions))
    first, _, rest = text.strip().partition("\n")
    for head, values in ((text.strip(), ""), (first, rest)):
        chosen = choice.answer(head)
        if chosen in choice.options:
            return Resume(state, actions[choice.options.index(chosen)][0], _values(fields, values))
    if len(actions) == 1:
        return Resume(state, actions[0][0], _values(fields, text))
    return None


def _values(fields: tuple[Field, ...], text: str) -> dict[str, Any]:
    if not (fields and text.strip()):
        return {}
    try:
        values = orjson.loads(Pause(fields=fields).answer(text))
    except orjson.JSONDecodeError:
        return {}
    return values if isinstance(values, dict) else {}
