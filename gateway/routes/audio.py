"""Audio: texts spoken and recordings transcribed, in OpenAI's form and under `/api/v1`.

OpenAI-compatible agents get the calls of `/v1` as they are. For other platforms the gateway reads
the call, and their endpoints describe the requests.
"""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Literal

from aiohttp import web

from gateway.chat.routing import MAX_KNOWN, Target, listed
from gateway.errors import AudioTooLarge, InvalidRequest, NotOffered
from gateway.http.answer import answering
from gateway.http.body import agent_name, read_object, text_member
from gateway.http.context import CONTEXT, State, caller_of, is_api
from gateway.http.formcopy import FormCopy
from gateway.http.relay import relay, transcript
from gateway.language.sentences import say
from gateway.platforms.audio import TranscriptionEndpoint, require_text
from gateway.protocol.audio import FORMATS, Recording, Speech
from gateway.protocol.messages import ChatRequest, PassedOn
from gateway.routes.passthrough import held_form, with_form, with_json
from gateway.telemetry.call import Call

_SPEECH, _TRANSCRIPTION = "audio/speech", "audio/transcriptions"
_SPEEDS = (0.25, 4.0)  # as at OpenAI
# The members that the gateway's own API knows, and that web pages' tokens may send: OpenAI's own.
_MEMBERS = frozenset(
    ("model", "input", "voice", "instructions", "response_format", "speed", "stream_format")
)
_FIELDS = frozenset(
    (
        "file", "user", "language", "prompt", "response_format", "temperature", "stream",
        "include[]", "timestamp_granularities[]", "chunking_strategy",
    )
)  # fmt: skip
_FRAME = 1 << 20  # bytes that a form may have in addition to its recording
_MAX_NAME = 1024  # characters of a user's or a voice's name
_FORMS = ("response_format", "stream")  # that decide how the client reads the answer
Read = tuple[ChatRequest, list[Target]]


async def _read_speech(request: web.Request, state: State, call: Call) -> Read:
    body = await read_object(request)
    user = text_member(body, "user")
    _require_short("user", user)
    asked, targets = _targets(request, state, call, text_member(body, "model"), "speech")
    call.end_user = call.caller.end_user or user
    ignored: list[str] = []
    if is_api(request.path) or call.caller.end_user:
        ignored = [name for name in body if name not in _MEMBERS and name != "user"]
        body = {name: value for name, value in body.items() if name in _MEMBERS}
    is_read = is_api(request.path) or not _all_pass_through(targets)
    chat = ChatRequest(
        asked,
        (),
        call.caller.user_of(user),
        audio=_speech(body) if is_read else None,
        passed=PassedOn(_SPEECH, _query(request), partial(with_json, body)),
        options=_set(body, ("model", "input", "user"), {"stream_format": ("audio",)}),
        demands=("stream_format",) if body.get("stream_format") == "sse" else (),
        ignored=tuple(sorted(ignored)),
    )
    return chat, targets


def _speech(body: dict[str, Any]) -> Speech:
    text, voice = body.get("input"), body.get("voice")
    if isinstance(voice, dict):  # OpenAI's form of a voice that the account has made
        voice = voice.get("id")
    for name, value in (("input", text), ("voice", voice)):
        if not isinstance(value, str | None):
            raise InvalidRequest(say("'{name}' must be a string.", name=name), param=name)
    _require_short("voice", voice or "")
    format_, speed = text_member(body, "response_format"), body.get("speed")
    if format_ and format_ not in FORMATS:
        raise InvalidRequest(
            say(
                "{name!r} must be one of {allowed}.",
                name="response_format",
                allowed=", ".join(FORMATS),
            ),
            param="response_format",
        )
    if speed is not None and not (
        isinstance(speed, int | float)
        and not isinstance(speed, bool)
        and _SPEEDS[0] <= speed <= _SPEEDS[1]
    ):
        raise InvalidRequest(
            say(
                "'speed' must be a number from {least} to {most}.",
                least=_SPEEDS[0],
                most=_SPEEDS[1],
            ),
            param="speed",
        )
    speech = Speech(text or "", (voice or "").strip(), format_, speed)
    require_text(speech)
    return speech


speak = answering(_read_speech, answer=relay)
api_speak = answering(_read_speech, answer=relay)


def _transcribing() -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handler(request: web.Request) -> web.StreamResponse:
        if not request.content_type.startswith("multipart/"):
            raise InvalidRequest(
                "Send the file as multipart/form-data, in a part named 'file'.", param="file"
            )
        async with held_form(request, _FIELDS if caller_of(request).end_user else None) as form:
            return await answering(partial(_read_recording, form), answer=transcript)(request)

    return handler


transcribe = _transcribing()
api_transcribe = _transcribing()


async def _read_recording(form: FormCopy, request: web.Request, state: State, call: Call) -> Read:
    if is_api(request.path):  # the agents are known before the form is read
        _refuse_early(_targets(request, state, call, "", "transcription")[1], request)
    model = await form.keep()
    request[CONTEXT].file_bytes = form.file_size
    asked, targets = _targets(request, state, call, model, "transcription")
    fields, of_api = form.fields, is_api(request.path)
    user = fields.get("user", "").strip()
    _require_short("user", user)
    call.end_user = call.caller.end_user or user
    is_read = of_api or not _all_pass_through(targets)
    if is_read:
        _require_file(form)
    described = partial(with_form, form)
    options = _set(fields, ("user",), {"response_format": ("json", "text"), "stream": ("false",)})
    demands = () if of_api else tuple(name for name in _FORMS if name in options)
    chat = ChatRequest(
        asked,
        (),
        call.caller.user_of(user),
        audio=Recording(form.extension, form.file_size, fields, form.as_form) if is_read else None,
        passed=None if of_api else PassedOn(_TRANSCRIPTION, _query(request), described),
        options=options,
        demands=demands,
    )
    return chat, targets


def _refuse_early(targets: list[Target], request: web.Request) -> None:
    """Raises AudioTooLarge if the form is larger than any recording that the agents take."""
    refusal: AudioTooLarge | None = None
    for target in targets:
        endpoint = target.platform.transcription
        if not isinstance(endpoint, TranscriptionEndpoint):
            return
        try:
            endpoint.require_size((request.content_length or 0) - _FRAME)
            return
        except AudioTooLarge as error:
            refusal = error
    if refusal is not None:
        raise refusal


def _require_file(form: FormCopy) -> None:
    """Raises InvalidRequest unless the form has one file that is not empty."""
    if form.files > 1:
        raise InvalidRequest("Send one file per upload.", param="file")
    if not form.files:
        names = ", ".join(map(repr, form.fields))
        came = say(" (it has {fields})", fields=names) if names else ""
        raise InvalidRequest(
            say("The form has no part named 'file'{fields}.", fields=came), param="file"
        )
    if not form.file_size:
        raise InvalidRequest("The file is empty.", param="file")


def _require_short(name: str, value: str) -> None:
    if len(value) > _MAX_NAME:
        raise InvalidRequest(
            say("'{name}' is longer than {most} characters.", name=name, most=_MAX_NAME), param=name
        )


def _set(
    members: Mapping[str, Any], known: tuple[str, ...], plain: Mapping[str, tuple[str, ...]]
) -> tuple[str, ...]:
    """The names of the options that the caller sets, but not to a value that is `plain`."""
    names = [
        name
        for name, value in members.items()
        if name not in known
        and value not in (None, False, "", [], {})
        and value not in plain.get(name, ())
    ]
    return tuple(sorted(names))


def _query(request: web.Request) -> str:
    """The query to pass on: none of the gateway's own API, and none of web pages."""
    is_free = not (is_api(request.path) or caller_of(request).end_user)
    return request.rel_url.raw_query_string if is_free else ""


def _all_pass_through(targets: list[Target]) -> bool:
    return all(target.platform.passes_through for target in targets)


Offer = Literal["speech", "transcription"]


def _targets(
    request: web.Request, state: State, call: Call, model: str, offer: Offer
) -> tuple[str, list[Target]]:
    """The name that the caller asks, and those of its agents that offer speech or transcription.
    Raises NotOffered if none does."""
    call.surface = "audio"
    asked, word, param = model, "model", "model"
    if is_api(request.path):
        name = agent_name(request)
        asked, word, param = (
            state.routing.asked(name, model or None) if name else "",
            "agent",
            "Agent",
        )
        if not name:
            known = [name for name, _ in state.routing.visible(call.caller)][:MAX_KNOWN]
            raise InvalidRequest(
                say("Say which agent to ask in the header 'Agent'.{known}", known=listed(known)),
                param="Agent",
                detail={"known": known},
            )
    if not asked:
        raise InvalidRequest("'model' is missing: put the agent's name there.", param="model")
    allowed = state.routing.allowed(call.caller, asked, word)
    targets = [target for target in allowed if _offers(target, offer)]
    if not targets:
        raise _no_offer(state, call, asked, allowed[0], offer, param)
    return asked, targets


def _no_offer(
    state: State, call: Call, asked: str, target: Target, offer: Offer, param: str
) -> NotOffered:
    """The refusal of a call that none of the agents asked can answer."""
    routing = state.routing
    able = [
        each.name
        for each in routing.targets.values()
        if _offers(each, offer) and call.caller.may_ask(each.name, [each.name])
    ]
    if routing.is_route(asked):
        reason: str = say("none of the route's agents has it")
    else:
        own: str = getattr(target.platform, f"no_{offer}", "")
        reason = own or say("{platform} has no API for it", platform=target.platform.title)
    advice = (
        say("Ask one of these: {agents}.", agents=", ".join(able[:MAX_KNOWN]))
        if able
        else say(
            "Agents of Dify, Coze, Zhipu's models and OpenAI-compatible services can: have the "
            "operator add one."
        )
    )
    return NotOffered(
        say(_NO_OFFER[offer], name=asked[:100], reason=reason, advice=advice), param=param
    )


def _offers(target: Target, offer: Offer) -> bool:
    return getattr(target.platform, offer, None) is not None


_NO_OFFER = {
    "speech": say("Agent {name!r} speaks no texts: {reason}. {advice}"),
    "transcription": say("Agent {name!r} transcribes no recordings: {reason}. {advice}"),
}
