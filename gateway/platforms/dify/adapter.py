"""Dify: four kinds of app on three endpoints, from 0.15 to 1.17.

Source: Dify's service API and captures of real servers (tests/platforms/captures/dify).
"""

import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from gateway.errors import (
    Conflict,
    InvalidRequest,
    KindNotTaken,
    UpstreamMisconfigured,
)
from gateway.filetypes import MediaKind
from gateway.language.sentences import say
from gateway.platforms.base import (
    Decoder,
    Delivery,
    Preliminary,
    ProfileStep,
    Step,
    UploadStep,
    as_id,
    as_list,
    as_object,
    as_text,
    base_url,
    dump,
    form_headers,
    json_headers,
)
from gateway.platforms.dify.audio import DifySpeech, DifyTranscription
from gateway.platforms.dify.conversations import DifyConversations
from gateway.platforms.dify.decoder import DifyDecoder
from gateway.platforms.dify.failures import explain
from gateway.platforms.dify.filerules import FORM_FILE, FileRules, field, file, file_rules
from gateway.platforms.dify.forms import read_reply, resume
from gateway.platforms.dify.options import DifyOptions
from gateway.platforms.dify.profile import file_needs, read_profile, schema
from gateway.platforms.pauses import Pauses
from gateway.protocol import sse
from gateway.protocol.exchange import UploadRequest, UpstreamReply, UpstreamRequest
from gateway.protocol.messages import (
    ChatRequest,
    Media,
    Resume,
)
from gateway.protocol.prompt import as_prompt, require_question

_PATHS = {
    "chat": "/chat-messages",
    "completion": "/completion-messages",
    "workflow": "/workflows/run",
}


_STOPS = {
    "chat": "/chat-messages/{}/stop",
    "completion": "/completion-messages/{}/stop",
    "workflow": "/workflows/tasks/{}/stop",
}


_APP_MODES = {
    "chat": "chat",
    "agent-chat": "chat",
    "advanced-chat": "chat",
    "agent": "chat",
    "completion": "completion",
    "workflow": "workflow",
}


# The mode that a refusal rules out: each endpoint has its own code.
_REFUSED_MODE = {
    "not_chat_app": "chat",
    "not_workflow_app": "workflow",
    "not_completion_app": "completion",
    "app_unavailable": "completion",
}


_FORM_TEXT = ("paragraph", "text-input")


_FRESH_S = 300.0  # how long an app's rules for files are cached


class Dify(DifyConversations):
    kind = "dify"
    keeps_files = True
    keeps_forms = True
    restarts = True
    checks_inputs = True

    def __init__(
        self, name: str, agent: DifyOptions, url: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._agent = agent
        self._now = clock
        self.token = agent.api_key.reveal()
        self._api = base_url(url, *_PATHS.values(), "/v1", then="/v1")
        self._headers = json_headers(self.token, agent.headers)
        self._mode: str | None = None if agent.mode == "auto" else agent.mode
        self._refused_modes: set[str] = set()
        self._form: list[dict[str, Any]] | None = None  # a workflow's input fields, once known
        self._pauses = Pauses()
        self._rules = FileRules()
        self._rules_at: float | None = None  # when the rules were fetched
        self.speech = DifySpeech(agent, self._api, self._headers)
        self.transcription = DifyTranscription(self._api, self._headers)

    # Facts needed before the first question: the app's mode, and a workflow's input fields.

    def prepare(self, chat: ChatRequest) -> Step:
        if reply := self._reply(chat):
            chat.reply_with(reply)
            return resume(reply.state, reply, chat.user, self._api, self._headers)
        require_question(chat)
        if self._mode is None:
            return Preliminary(
                self._get("/info"), lambda reply: self._learn_mode(reply, chat), shared=True
            )
        if self._mode == "workflow" and not self._agent.input_variable and self._form is None:
            request = self._get("/parameters")
            return Preliminary(request, lambda reply: self._learn_form(reply, chat), shared=True)
        return self._ask(chat, self._mode, self._form or [])

    def _reply(self, chat: ChatRequest) -> Resume | None:
        """The reply to a form that the conversation waits for; None for a question."""
        if chat.resume is not None:
            if not chat.resume.state:
                raise Conflict("Dify sends this form to a person by e-mail; it is answered there.")
            return chat.resume
        pause = self._pauses.get(chat.conversation_id or "")
        return read_reply(pause.state, chat.question.text) if pause and pause.state else None

    def _get(self, path: str) -> UpstreamRequest:
        return UpstreamRequest("GET", self._api + path, self._headers)

    def _learn_mode(self, reply: UpstreamReply, chat: ChatRequest) -> Step:
        self._keep_mode(reply)
        if self._mode is None:  # still unknown: the next call asks again
            return self._ask(chat, "chat", [])
        return self.prepare(chat)

    def _keep_mode(self, reply: UpstreamReply) -> None:
        """Learn the mode. Servers before 1.4 do not send it; their first refusal reveals it."""
        if reply.status in (401, 403):
            raise explain(reply)
        if reply.status in (200, 404):
            self._mode = _APP_MODES.get(as_text(reply.object().get("mode")), "chat")

    def _learn_form(self, reply: UpstreamReply, chat: ChatRequest) -> Step:
        if reply.status in (401, 403):
            raise explain(reply)
        self._keep_parameters(reply)
        if self._form is None:  # still unknown: the next call asks again
            return self._ask(chat, "workflow", [])
        return self.prepare(chat)

    def _keep_parameters(self, reply: UpstreamReply) -> None:
        if reply.status not in (200, 404):
            return
        parameters = reply.object()
        entries = [as_object(entry) for entry in as_list(parameters.get("user_input_form"))]
        self._form = [
            {**as_object(field), "kind": kind} for entry in entries for kind, field in entry.items()
        ]
        self._rules = file_rules(parameters, self._mode, self._form)
        self._rules_at = self._now()

    # Files. An app's author sets which kinds it accepts; chatflows drop other files silently.

    @property
    def kinds(self) -> frozenset[MediaKind]:
        return self._rules.kinds

    def learn_kinds(self) -> Preliminary | None:
        if self._mode is None:
            return Preliminary(self._get("/info"), self._learn_mode_for_files, shared=True)
        if self._rules_at is not None and self._now() - self._rules_at < _FRESH_S:
            return None
        return Preliminary(self._get("/parameters"), self._learn_rules, shared=True)

    def _learn_mode_for_files(self, reply: UpstreamReply) -> Preliminary | None:
        self._keep_mode(reply)
        return self.learn_kinds() if self._mode else None

    def _learn_rules(self, reply: UpstreamReply) -> None:
        """Learn the rules for files. If they remain unknown, the platform refuses bad files."""
        if reply.status in (401, 403):
            raise explain(reply)
        self._keep_parameters(reply)

    def delivery(self, media: Media, chat: ChatRequest) -> Delivery:
        """Dify fetches links if the app allows it; other files are uploaded."""
        is_link = bool(media.url) and not media.is_data
        if is_link and (self._rules.takes_links or not self._rules.takes_uploads):
            return "url"
        if not self._rules.takes_uploads:
            raise KindNotTaken(
                say(
                    "This Dify app takes files by URL only: give the {kind} as an http(s) URL "
                    "that Dify can reach, or allow local uploads in the app.",
                    kind=media.kind,
                ),
                param="files",
            )
        return "upload"

    def upload(self) -> UploadStep:
        headers = form_headers(self.token, self._agent.headers)
        return UploadRequest(f"{self._api}/files/upload", headers, user_field="user")

    def uploaded(self, reply: UpstreamReply) -> str:
        id_ = as_id(reply.object().get("id"))
        if reply.status not in (200, 201) or not id_:
            raise explain(reply)
        return id_

    def _ask(self, chat: ChatRequest, mode: str, form: list[dict[str, Any]]) -> UpstreamRequest:
        question = as_prompt(chat)
        inputs = {**self._agent.inputs, **chat.variables}
        body: dict[str, Any] = {"inputs": inputs, "user": chat.user, "response_mode": "streaming"}
        files = [file(media, self._rules) for media in chat.question.media]
        if mode == "workflow":
            inputs.setdefault(self._agent.input_variable or field(form, _FORM_TEXT), question)
            _put_files(inputs, files, form)
        elif files:
            body["files"] = files
        if mode == "completion":
            inputs.setdefault(self._agent.input_variable or "query", question)
            body["query"] = question
        if mode == "chat":
            # Dify refuses an empty query, as with a picture without text.
            body["query"] = question or "请看附件。/ See the attachment."
            body["auto_generate_name"] = False
            if chat.conversation_id:
                body["conversation_id"] = chat.conversation_id
        url = self._api + _PATHS[mode]
        return UpstreamRequest("POST", url, self._headers, dump(body), stream=True)

    def decoder(self, chat: ChatRequest) -> Decoder:
        return DifyDecoder(self._mode or "chat", self._agent.output_variable, self._pauses)

    @property
    def remembers(self) -> bool:
        return self._mode in (None, "chat")

    def recover(self, reply: UpstreamReply, chat: ChatRequest) -> Step:
        """Retry with another mode after a refusal of the mode. Raises any other error."""
        refused = _REFUSED_MODE.get(as_text(reply.object().get("code")))
        if refused == "completion" and "completion" not in (self._mode, *self._refused_modes):
            refused = None  # from other endpoints it means that the app is broken
        if refused and self._agent.mode == "auto":
            self._refused_modes.add(refused)
            if self._mode != refused and self._mode is not None:
                return self.prepare(chat)  # another call has learned the mode meanwhile
            for mode in ("chat", "workflow", "completion"):
                if mode not in self._refused_modes:
                    self._mode = mode
                    return self.prepare(chat)
            self._mode, self._refused_modes = None, set()
        raise explain(reply)

    def as_stream(self, reply: UpstreamReply) -> bytes:
        """The events for an answer of the blocking mode."""
        body = reply.object()
        data = as_object(body.get("data"))
        is_paused = "workflow_paused" in (body.get("event"), f"workflow_{data.get('status')}")
        events: list[dict[str, Any]] = []
        if answer := as_text(body.get("answer")) or as_text(data.get("answer")):
            events.append({**data, **body, "event": "message", "answer": answer})
        if is_paused:
            events.append({**data, **body, "event": "workflow_paused"})
        elif "answer" in body:
            events.append({**body, "event": "message_end"})
        elif "workflow_run_id" in body and data:
            events.append({**body, "event": "workflow_finished"})
        return b"".join(sse.event(dump(event)) for event in events)

    def stop(self, chat: ChatRequest, decoder: Decoder) -> UpstreamRequest | None:
        if not isinstance(decoder, DifyDecoder) or not decoder.task_id:
            return None
        url = self._api + _STOPS[decoder.mode].format(quote(decoder.task_id, safe=""))
        return UpstreamRequest("POST", url, self._headers, dump({"user": chat.user}))

    def probe(self) -> Step:
        return self._get("/info")

    def describe(self, reply: UpstreamReply) -> str:
        body = reply.object()
        if reply.status == 200 and body:
            mode = as_text(body.get("mode"))
            configured, found = self._agent.mode, _APP_MODES.get(mode)
            if found and configured not in ("auto", found):
                raise UpstreamMisconfigured(
                    say(
                        "The app is of the mode {mode!r}, but config.yaml says mode: {configured}; "
                        "set mode: {found}, or auto.",
                        mode=mode,
                        configured=configured,
                        found=found,
                    )
                )
            name = as_text(body.get("name"))
            if not mode:
                return say("app {name!r}", name=name)
            return say("app {name!r}, mode {mode}", name=name, mode=mode)
        raise explain(reply)

    # The profile. The calls are three, so each reply is kept until the last one has come.

    def profile(self) -> ProfileStep:
        return Preliminary(self._get("/info"), self._profile_after_info)

    def _profile_after_info(self, reply: UpstreamReply) -> Preliminary:
        info = _told(reply, 404)
        if self._mode is None:
            self._keep_mode(reply)

        def learn(reply: UpstreamReply) -> Preliminary:
            parameters = _told(reply)
            self._keep_parameters(reply)
            return Preliminary(self._get("/site"), lambda site: self._read(info, parameters, site))

        return Preliminary(self._get("/parameters"), learn)

    def _read(
        self, info: dict[str, Any], parameters: dict[str, Any], reply: UpstreamReply
    ) -> ProfileStep:
        site = _told(reply, 403, 404)  # versions up to 0.15 have none, nor do some apps
        mode, form = self._mode or "chat", self._form or []
        inputs = schema(form, self._asked_in(mode, form), self._agent.inputs)
        files = file_needs(parameters, mode, form, self._rules)
        return read_profile(info, parameters, site, inputs, files)

    def _asked_in(self, mode: str, form: list[dict[str, Any]]) -> tuple[str, ...]:
        """The inputs that `_ask` fills with the question and its files."""
        if mode == "workflow":
            question = self._agent.input_variable or field(form, _FORM_TEXT)
            return (question, field(form, FORM_FILE, ""))
        return (self._agent.input_variable or "query",) if mode == "completion" else ()


def _told(reply: UpstreamReply, *missing: int) -> dict[str, Any]:
    """The object in a reply; {} if it has one of the statuses of a call that this version or app
    does not have. Raises the error in any other."""
    body = reply.object()
    if reply.status == 200 and body:
        return body
    if reply.status in missing and body.get("code") in (None, "not_found", "forbidden"):
        return {}
    raise explain(reply)


def _put_files(inputs: dict[str, Any], files: list[Any], form: list[dict[str, Any]]) -> None:
    """Put the files into `inputs`: a workflow accepts them as the value of one of its inputs."""
    if not files:
        return
    name = field(form, FORM_FILE, "")
    if not name:
        raise KindNotTaken("This Dify workflow has no input for files.", param="files")
    takes_list = any(f["kind"] == "file-list" for f in form if f.get("variable") == name)
    if not takes_list and len(files) > 1:
        raise InvalidRequest(
            say("This Dify workflow takes one file, in {name!r}.", name=name), param="files"
        )
    inputs.setdefault(name, files if takes_list else files[0])
