"""The language in which a caller reads the gateway's sentences, decided only when there is one."""

from typing import NamedTuple

from aiohttp import web
from aiohttp.hdrs import ACCEPT_LANGUAGE, CONTENT_LANGUAGE, VARY

from gateway.http.context import CONTEXT, MAIN, STATE
from gateway.language.preference import preferred
from gateway.language.sentences import Language


class Choice(NamedTuple):
    """The language of an answer, and the answer's headers about it."""

    language: Language
    headers: dict[str, str]


_CONFIGURED = Choice("zh", {CONTENT_LANGUAGE: "zh"})
_PREFERRED: dict[Language, Choice] = {
    "en": Choice("en", {CONTENT_LANGUAGE: "en", VARY: ACCEPT_LANGUAGE}),
    "zh": Choice("zh", {CONTENT_LANGUAGE: "zh", VARY: ACCEPT_LANGUAGE}),
}


def configured(app: web.Application) -> Language:
    """`server.language`; English until the configuration is in effect."""
    holder = app.get(MAIN, app).get(STATE)
    return "en" if holder is None else holder.now.config.server.language


def choose(request: web.BaseRequest, configured: Language) -> Choice:
    """Chinese if the configuration or the request's `Accept-Language` says so; else English."""
    if configured == "zh":
        return _CONFIGURED
    return _PREFERRED[preferred(request.headers.get(ACCEPT_LANGUAGE, ""))]


def choice_of(request: web.Request) -> Choice:
    """`choose` with the configuration of the request's start."""
    context = request.get(CONTEXT)
    state = None if context is None else context.state
    language = configured(request.app) if state is None else state.config.server.language
    return choose(request, language)
