"""Dify: four kinds of app behind three endpoints, from 0.15 to 1.17.

Source: Dify's service API and captures of real servers (tests/platforms/captures/dify).
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar
from urllib.parse import quote

from gateway.errors import (
    BodyTooLarge,
    ConversationNotFound,
    GatewayError,
    InvalidRequest,
    KindNotTaken,
    QuotaExhausted,
    RateLimited,
    UnsupportedMediaType,
    UpstreamCut,
    UpstreamFailed,
    UpstreamMisconfigured,
    clean,
    retry_after,
)
from gateway.filetypes import KINDS, MediaKind, extension_of, kind_of, mime_of
from gateway.platforms.base import (
    BasePlatform,
    Carriage,
    Decoder,
    EventDecoder,
    Preliminary,
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
    json_text,
    parse_object,
)
from gateway.platforms.dify.options import DifyOptions
from gateway.platforms.failures import (
    RETRY_AFTER_S,
    explain_http,
    explain_words,
    words_of,
)
from gateway.platforms.pauses import WAITS
from gateway.protocol import loosejson, sse
from gateway.protocol.content import markdown
from gateway.protocol.exchange import UploadRequest, UpstreamReply, UpstreamRequest
from gateway.protocol.messages import (
    Begin,
    ChatRequest,
    Delta,
    Finish,
    Media,
    Note,
    Reasoning,
    Replace,
    Text,
    Usage,
)
from gateway.protocol.passthrough import told_error
from gateway.protocol.prompt import as_prompt, require_question
from gateway.protocol.template import EventTemplate
from gateway.protocol.thinking import ThinkingSplitter, without_thinking
from gateway.protocol.usage import as_count

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
# The mode that a refusal speaks of: each endpoint has a code of its own.
_REFUSED_MODE = {
    "not_chat_app": "chat",
    "not_workflow_app": "workflow",
    "not_completion_app": "completion",
    "app_unavailable": "completion",
}
_FORM_TEXT = ("paragraph", "text-input")
_FORM_FILE = ("file", "file-list")
_USERS = ("local_file", "remote_url")  # how files come from users; a tool's are `tool_file`


_TYPES: dict[str, MediaKind] = {
    "image": "image", "document": "file", "audio": "audio", "video": "video", "custom": "file",
}  # fmt: skip
_FRESH_S = 300.0  # how long what an app said of its files is relied upon


class Dify(BasePlatform):
    kind = "dify"
    keeps_files = True

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
        self._form: list[dict[str, Any]] | None = None  # a workflow's input fields, once asked for
        self._rules = _FileRules()
        self._rules_at: float | None = None  # when they were asked for

    # What must be known before the first question: the app's mode, and a workflow's input.

    def prepare(self, chat: ChatRequest) -> Step:
        require_question(chat)
        if self._mode is None:
            return Preliminary(
                self._get("/info"), lambda reply: self._learn_mode(reply, chat), shared=True
            )
        if self._mode == "workflow" and not self._agent.input_variable and self._form is None:
            request = self._get("/parameters")
            return Preliminary(request, lambda reply: self._learn_form(reply, chat), shared=True)
        return self._ask(chat, self._mode, self._form or [])

    def _get(self, path: str) -> UpstreamRequest:
        return UpstreamRequest("GET", self._api + path, self._headers)

    def _learn_mode(self, reply: UpstreamReply, chat: ChatRequest) -> Step:
        self._keep_mode(reply)
        if self._mode is None:  # nothing learned: the next call asks again
            return self._ask(chat, "chat", [])
        return self.prepare(chat)

    def _keep_mode(self, reply: UpstreamReply) -> None:
        """Servers before 1.4 do not tell their mode; there the first refusal will."""
        if reply.status in (401, 403):
            raise _explain(reply)
        if reply.status in (200, 404):
            self._mode = _APP_MODES.get(as_text(reply.object().get("mode")), "chat")

    def _learn_form(self, reply: UpstreamReply, chat: ChatRequest) -> Step:
        if reply.status in (401, 403):
            raise _explain(reply)
        self._keep_parameters(reply)
        if self._form is None:  # nothing learned: the next call asks again
            return self._ask(chat, "workflow", [])
        return self.prepare(chat)

    def _keep_parameters(self, reply: UpstreamReply) -> None:
        if reply.status not in (200, 404):
            return
        told = reply.object()
        entries = [as_object(entry) for entry in as_list(told.get("user_input_form"))]
        self._form = [
            {**as_object(field), "kind": kind} for entry in entries for kind, field in entry.items()
        ]
        self._rules = _file_rules(told, self._mode, self._form)
        self._rules_at = self._now()

    # Files. Which ones an app takes is for its maker to set; chatflows drop others silently.

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
        """What could not be learned is left for the platform to refuse."""
        if reply.status in (401, 403):
            raise _explain(reply)
        self._keep_parameters(reply)

    def carry(self, media: Media, chat: ChatRequest) -> Carriage:
        """Dify fetches links if the app allows it; all else is uploaded."""
        is_link = bool(media.url) and not media.is_data
        if is_link and (self._rules.takes_links or not self._rules.takes_uploads):
            return "as it is"
        if not self._rules.takes_uploads:
            raise KindNotTaken(
                f"This Dify app takes files by URL only: give the {media.kind} as an http(s) URL"
                " that Dify can reach, or allow local uploads in the app.",
                param="files",
            )
        return "upload"

    def upload(self) -> UploadStep:
        headers = form_headers(self.token, self._agent.headers)
        return UploadRequest(f"{self._api}/files/upload", headers, user_field="user")

    def uploaded(self, reply: UpstreamReply) -> str:
        id_ = as_id(reply.object().get("id"))
        if reply.status not in (200, 201) or not id_:
            raise _explain(reply)
        return id_

    def _ask(self, chat: ChatRequest, mode: str, form: list[dict[str, Any]]) -> UpstreamRequest:
        question = as_prompt(chat)
        inputs = {**self._agent.inputs, **chat.variables}
        body: dict[str, Any] = {"inputs": inputs, "user": chat.user, "response_mode": "streaming"}
        files = [_file(media, self._rules) for media in chat.question.media]
        if mode == "workflow":
            inputs.setdefault(self._agent.input_variable or _field(form, _FORM_TEXT), question)
            _put_files(inputs, files, form)
        elif files:
            body["files"] = files
        if mode == "completion":
            inputs.setdefault(self._agent.input_variable or "query", question)
            body["query"] = question
        if mode == "chat":
            # Dify refuses an empty query, which a picture without words would be.
            body["query"] = question or "请看附件。/ See the attachment."
            body["auto_generate_name"] = False
            if chat.conversation_id:
                body["conversation_id"] = chat.conversation_id
        url = self._api + _PATHS[mode]
        return UpstreamRequest("POST", url, self._headers, dump(body), stream=True)

    def decoder(self, chat: ChatRequest) -> Decoder:
        return DifyDecoder(self._mode or "chat", self._agent.output_variable)

    def refused(self, reply: UpstreamReply, chat: ChatRequest) -> Step:
        """A wrong mode is learned from, a lost conversation begun anew if its turns came along;
        everything else is raised."""
        refused = _REFUSED_MODE.get(as_text(reply.object().get("code")))
        if refused == "completion" and "completion" not in (self._mode, *self._refused_modes):
            refused = None  # of the other endpoints it says that the app is broken
        if refused and self._agent.mode == "auto":
            self._refused_modes.add(refused)
            if self._mode != refused and self._mode is not None:
                return self.prepare(chat)  # another call has learned better meanwhile
            for mode in ("chat", "workflow", "completion"):
                if mode not in self._refused_modes:
                    self._mode = mode
                    return self.prepare(chat)
            self._mode, self._refused_modes = None, set()
        error = _explain(reply)
        if isinstance(error, ConversationNotFound) and len(chat.messages) > 1:
            return self.prepare(replace(chat, conversation_id=None))
        raise error

    def as_stream(self, reply: UpstreamReply) -> bytes:
        """From the shapes of the blocking mode."""
        body = reply.object()
        told = as_object(body.get("data"))
        is_paused = "workflow_paused" in (body.get("event"), f"workflow_{told.get('status')}")
        events: list[dict[str, Any]] = []
        if answer := as_text(body.get("answer")) or as_text(told.get("answer")):
            events.append({**told, **body, "event": "message", "answer": answer})
        if is_paused:
            events.append({**told, **body, "event": "workflow_paused"})
        elif "answer" in body:
            events.append({**body, "event": "message_end"})
        elif "workflow_run_id" in body and told:
            events.append({**body, "event": "workflow_finished"})
        return b"".join(sse.event(dump(event)) for event in events)

    def stop(self, chat: ChatRequest, decoder: Decoder) -> UpstreamRequest | None:
        if not isinstance(decoder, DifyDecoder) or not decoder.task_id:
            return None
        url = self._api + _STOPS[decoder.mode].format(quote(decoder.task_id, safe=""))
        return UpstreamRequest("POST", url, self._headers, dump({"user": chat.user}))

    def probe(self) -> Step:
        return self._get("/info")

    def verdict(self, reply: UpstreamReply) -> str:
        body = reply.object()
        if reply.status == 200 and body:
            mode = as_text(body.get("mode"))
            configured, found = self._agent.mode, _APP_MODES.get(mode)
            if found and configured not in ("auto", found):
                raise UpstreamMisconfigured(
                    f"The app is of the mode {mode!r}, but config.yaml says mode: {configured};"
                    f" set mode: {found}, or auto."
                )
            return f"app {as_text(body.get('name'))!r}" + (f", mode {mode}" if mode else "")
        raise _explain(reply)


def _field(form: list[dict[str, Any]], kinds: tuple[str, ...], otherwise: str = "query") -> str:
    """The form's required field of one of `kinds`, else its first, else `otherwise`."""
    fields = [field for field in form if field["kind"] in kinds]
    fields.sort(key=lambda field: field.get("required") is not True)
    return next(filter(None, (as_text(field.get("variable")) for field in fields)), otherwise)


def _put_files(inputs: dict[str, Any], files: list[Any], form: list[dict[str, Any]]) -> None:
    """A workflow takes files as the value of an input of its own."""
    if not files:
        return
    name = _field(form, _FORM_FILE, "")
    if not name:
        raise KindNotTaken("This Dify workflow has no input for files.", param="files")
    takes_list = any(f["kind"] == "file-list" for f in form if f.get("variable") == name)
    if not takes_list and len(files) > 1:
        raise InvalidRequest(f"This Dify workflow takes one file, in {name!r}.", param="files")
    inputs.setdefault(name, files if takes_list else files[0])


def _file(media: Media, rules: "_FileRules") -> dict[str, Any]:
    kind = rules.type_of(media)
    if media.uploaded:
        return {"type": kind, "transfer_method": "local_file", "upload_file_id": media.uploaded}
    return {"type": kind, "transfer_method": "remote_url", "url": media.url}


@dataclass(frozen=True, slots=True)
class _FileRules:
    """What an app says of the files it takes; before it has been asked, all of them."""

    kinds: frozenset[MediaKind] = frozenset(KINDS)
    takes_links: bool = True
    takes_uploads: bool = True
    types: frozenset[str] = frozenset()  # in Dify's words; none: it does not say
    endings: frozenset[str] = frozenset()  # of `custom` files, without dots

    def type_of(self, media: Media) -> str:
        """Dify refuses a file under any other type than the one that the app allows it as."""
        own = "document" if media.kind == "file" else media.kind
        if own == "document" and own in self.types:
            ending = _ending(media)
            is_custom = ending in self.endings and ending not in _DOCUMENTS
            return "custom" if "custom" in self.types and is_custom else own
        return "custom" if "custom" in self.types and own not in self.types else own


# The endings that Dify itself calls documents: some versions refuse them as `custom`.
_DOCUMENTS = frozenset((
    "csv", "doc", "docx", "eml", "epub", "html", "markdown", "md", "mdx", "msg", "pdf", "ppt",
    "pptx", "properties", "txt", "vtt", "xls", "xlsx", "xml",
))  # fmt: skip


def _ending(media: Media) -> str:
    if media.is_data and not media.name:
        return ""
    path = media.name or media.url.partition("?")[0].partition("#")[0]
    return extension_of(path.rpartition("/")[2])


def _file_rules(told: dict[str, Any], mode: str | None, form: list[dict[str, Any]]) -> _FileRules:
    """From `/parameters`: of a workflow the field for files tells them, else `file_upload`, which
    apps made before 0.10 have for pictures alone."""
    if mode == "workflow":
        name = _field(form, _FORM_FILE, "")
        rules = next((f for f in form if name and f.get("variable") == name), {})
        is_on = bool(rules)
    else:
        rules = as_object(told.get("file_upload"))
        is_on = rules.get("enabled") is True
        image = as_object(rules.get("image"))
        if not is_on and image.get("enabled") is True:
            methods = image.get("transfer_methods")
            rules = {"allowed_file_types": ["image"], "allowed_file_upload_methods": methods}
            is_on = True
    if "file_upload" not in told and mode != "workflow":
        return _FileRules()  # it does not say
    types = [t for t in as_list(rules.get("allowed_file_types")) if isinstance(t, str)]
    kinds = frozenset(_TYPES[t] for t in types if t in _TYPES) if types else frozenset(KINDS)
    listed = map(as_text, as_list(rules.get("allowed_file_extensions")))
    endings = frozenset(ending.lower().removeprefix(".") for ending in listed)
    if "custom" in types:
        kinds |= {kind_of(mime_of(ending)) for ending in endings}
    methods = as_list(rules.get("allowed_file_upload_methods")) or ["remote_url", "local_file"]
    return _FileRules(
        kinds if is_on else frozenset(),
        "remote_url" in methods,
        "local_file" in methods,
        frozenset(types),
        endings,
    )


_KIND = re.compile(rb'"event":\s*"(\w+)"')
_MODEL = re.compile(rb'"node_type":\s*"llm"')


class DifyDecoder(EventDecoder):
    """The events of all modes. Which of two terminal events comes last depends on the version:

    an easy app (chat, agent, completion) ends with `message_end`, a workflow app with
    `workflow_finished`, a chatflow with both in either order; 1.13.0 loses the first of them.
    """

    platform = "Dify"
    __slots__ = (
        "_begun", "_files", "_filtered", "_finished", "_forms", "_has_reasoning", "_is_agent",
        "_last_thought", "_message_end", "_nodes_usage", "_output", "_repeats", "_runs_workflow",
        "_shown", "_speaker", "_split", "_thought", "mode", "task_id",
    )  # fmt: skip

    text_members = (b"answer", b"text")

    def __init__(self, mode: str = "chat", output_variable: str | None = None) -> None:
        super().__init__()
        self.mode = mode
        self.task_id = ""
        self._output = output_variable
        self._begun = False
        self._runs_workflow = False
        self._message_end: dict[str, Any] | None = None
        self._finished: dict[str, Any] | None = None
        self._split = ThinkingSplitter()
        self._speaker: Any = None  # the node that is talking, in a chatflow
        self._shown: list[str] = []  # the answer so far, for what repeats or replaces it
        self._has_reasoning = False
        self._thought = ""  # the round of an agent that speaks
        self._last_thought = ""
        self._is_agent = False
        self._repeats = False  # what comes is the answer once more
        self._files: dict[str, dict[str, str]] | None = None  # those that came, by place
        self._forms: list[dict[str, Any]] | None = None  # what a person is to fill in
        self._nodes_usage: Usage | None = None  # the sum of what the model nodes have told
        self._filtered = False

    def event(self, name: str, data: bytes, out: list[Delta]) -> None:
        if not data.strip():
            return
        event = parse_object(data)
        kind = event.get("event")
        if kind == "message" and not self._is_agent:  # nearly all events are this
            if not self._begun:
                self._begin(event, out)
            selector = event.get("from_variable_selector")
            self._say(as_text(event.get("answer")), out, selector)
            return
        handle = self._HANDLERS.get(kind) if isinstance(kind, str) else None
        if kind == "error":
            raise self.explain(event)
        if kind is None and (error := told_error(event)):
            raise self.explain(error)
        if not self._begun and kind not in (None, "ping"):
            self._begin(event, out)
        if handle:
            handle(self, event, out)

    def explain(self, error: Any) -> GatewayError:
        return _explain_event(as_object(error) or {"error": error})

    @property
    def heard(self) -> Callable[[str], None]:
        return self._shown.append

    def pattern(self, chunk: bytes, delta: Delta) -> EventTemplate | None:
        adds_only = self._split.passes_all and not self._repeats
        return super().pattern(chunk, delta) if adds_only else None

    @staticmethod
    def skips(name: str, head: bytes) -> bool:
        """Outputs of nodes and audio; of a node that is a model the tokens are counted."""
        found = _KIND.search(head, 0, 4096)
        kind = found[1].decode() if found else "message"
        if kind.startswith("node_"):
            return not _MODEL.search(head, 0, 4096)
        return kind not in DifyDecoder._HANDLERS and kind not in ("message", "error")

    def _begin(self, event: dict[str, Any], out: list[Delta]) -> None:
        self._begun = True
        self.task_id = as_id(event.get("task_id"))
        self.conversation_id = as_id(event.get("conversation_id"))
        message_id = as_id(event.get("message_id")) or as_id(event.get("workflow_run_id"))
        out.append(Begin(self.conversation_id, message_id))

    # The answer's text.

    def _say(self, text: str, out: list[Delta], speaker: Any = None) -> None:
        if not text:
            return
        if self._split.passes_all and speaker == self._speaker:
            self._shown.append(text)
            out.append(Text(text))
            return
        if speaker != self._speaker:
            if self._speaker is not None:
                self._show(self._split.restart(), out)
            self._speaker = speaker
        self._show(self._split.feed(text), out)

    def _show(self, deltas: list[Delta], out: list[Delta]) -> None:
        """Append what the splitter made of the text, and remember what is answer in it."""
        self._shown += [delta.text for delta in deltas if isinstance(delta, Text)]
        out += deltas

    def _flush(self, out: list[Delta]) -> None:
        """Nothing more is said for now: what the splitter holds back is what it seems to be."""
        self._show(self._split.close(), out)

    def _on_message(self, event: dict[str, Any], out: list[Delta]) -> None:
        """In an agent app a `message` closes the answer by repeating all of it."""
        self._repeats = True
        self._flush(out)
        self._split = ThinkingSplitter(answering=True)
        text, so_far = without_thinking(as_text(event.get("answer"))), "".join(self._shown)
        self._say(text[len(so_far) :] if text.startswith(so_far) else "", out, self._speaker)

    def _on_agent_message(self, event: dict[str, Any], out: list[Delta]) -> None:
        self._is_agent = True
        self._say(as_text(event.get("answer")), out)

    def _on_text_chunk(self, event: dict[str, Any], out: list[Delta]) -> None:
        data = as_object(event.get("data"))
        selector = as_list(data.get("from_variable_selector"))
        if self._output and selector and selector[-1] != self._output:
            return  # another output of the End node, or the glue between two
        self._say(as_text(data.get("text")), out, selector or None)

    def _on_message_replace(self, event: dict[str, Any], out: list[Delta]) -> None:
        self._replace(as_text(event.get("answer")), out)
        self._filtered = True

    def _on_text_replace(self, event: dict[str, Any], out: list[Delta]) -> None:
        self._replace(as_text(as_object(event.get("data")).get("text")), out)
        self._filtered = True

    def _replace(self, text: str, out: list[Delta]) -> None:
        self._flush(out)
        text, so_far = without_thinking(text), "".join(self._shown)
        out.append(Replace(text, text[len(so_far) :] if text.startswith(so_far) else None))
        self._shown = [text]
        self._split = ThinkingSplitter(answering=True)  # what follows goes on with the new text

    def _on_reasoning(self, event: dict[str, Any], out: list[Delta]) -> None:
        if text := as_text(as_object(event.get("data")).get("reasoning")):
            self._has_reasoning = True
            out.append(Reasoning(text))

    def _add_reasoning(self, text: str, out: list[Delta]) -> None:
        """From 1.9 to 1.15 separated thinking comes with the node's end only; clients want it
        before the answer, so behind one it is left out."""
        if text.strip() and not (self._has_reasoning or self._shown):
            self._has_reasoning = True
            out.append(Reasoning(text))

    # What stands beside the text.

    def _on_message_file(self, event: dict[str, Any], out: list[Delta]) -> None:
        """A file made by a tool, or (1.11.2 to 1.12.1) a piece of text under a wrong name."""
        if text := as_text(event.get("answer")):
            self._say(text, out)
        else:
            self._add_files([event], out)

    def _on_agent_thought(self, event: dict[str, Any], out: list[Delta]) -> None:
        round_ = as_id(event.get("id"))
        if round_ != self._thought:  # each round of an agent may open with thinking of its own
            self._thought = round_
            self._show(self._split.restart(), out)
        tool = as_text(event.get("tool"))
        self._last_thought = "" if tool else as_text(event.get("thought"))
        status = "finished" if as_text(event.get("observation")) else "running"
        shown = [{"name": name, "status": status} for name in tool.split(";") if name]
        out.append(Note("tools", shown))

    def _on_workflow_started(self, event: dict[str, Any], out: list[Delta]) -> None:
        self._runs_workflow = True
        out.append(Note("progress", []))

    def _on_node(self, event: dict[str, Any], out: list[Delta]) -> None:
        node = as_object(event.get("data"))
        status = as_text(node.get("status")) if event.get("event") != "node_started" else "running"
        step = {
            "node": as_text(node.get("node_type")),
            "title": as_text(node.get("title")),
            "status": status or "running",
        }
        out.append(Note("progress", [step]))
        if event.get("event") == "node_finished" and node.get("node_type") == "llm":
            outputs = as_object(node.get("outputs"))
            self._add_reasoning(as_text(outputs.get("reasoning_content")), out)
            usage = as_object(outputs.get("usage"))
            of_nodes = self._nodes_usage = self._nodes_usage or Usage()
            of_nodes.prompt += as_count(usage.get("prompt_tokens"))
            of_nodes.completion += as_count(usage.get("completion_tokens"))

    # The end.

    def _on_message_end(self, event: dict[str, Any], out: list[Delta]) -> None:
        self._flush(out)
        self._message_end = event
        metadata = as_object(event.get("metadata"))
        if sources := as_list(metadata.get("retriever_resources")):
            out.append(Note("citations", [_citation(as_object(source)) for source in sources]))
        files = as_list(event.get("files"))
        if not self._runs_workflow:  # from 1.13 on easy apps list the user's own files as well
            files = [f for f in files if as_object(f).get("transfer_method") not in _USERS]
        self._add_files(files, out)
        if self._finished or not self._runs_workflow:
            self._end(out)
        else:
            self.ending = True

    def _on_workflow_finished(self, event: dict[str, Any], out: list[Delta]) -> None:
        self._flush(out)
        data = as_object(event.get("data"))
        if data.get("status") == "failed" and self._message_end is None:
            raise _explain_run(data)
        # 1.17.1 reports a failure after the whole answer of an annotation hit: it is none.
        if data.get("status") == "paused":
            self._pause(as_list(data.get("reasons")), out)
            return
        self._finished = data
        if self._is_workflow:
            self._add_outputs(as_object(data.get("outputs")), out)
            self._add_files(data.get("files"), out)
            self._end(out)
        elif self._message_end:
            self._end(out)
        else:
            self.ending = True

    def _on_form(self, event: dict[str, Any], out: list[Delta]) -> None:
        """What `workflow_paused` says again in most versions."""
        self._forms = [*(self._forms or ()), as_object(event.get("data"))]
        out.append(Note("progress", []))

    def _on_form_done(self, event: dict[str, Any], out: list[Delta]) -> None:
        self._forms = None
        out.append(Note("progress", []))

    def _on_paused(self, event: dict[str, Any], out: list[Delta]) -> None:
        self._flush(out)
        self._pause(as_list(as_object(event.get("data")).get("reasons")), out)

    def _pause(self, reasons: list[Any], out: list[Delta]) -> None:
        asked = [as_object(reason) for reason in reasons]
        known = {as_id(form.get("form_id")) for form in asked}
        asked += [form for form in self._forms or () if as_id(form.get("form_id")) not in known]
        forms = [
            {
                "type": as_text(form.get("TYPE")) or "human_input_required",
                "title": as_text(form.get("node_title")),
                "text": as_text(form.get("form_content")),
                "inputs": as_list(form.get("inputs")),
                "actions": as_list(form.get("actions")),
                "form_token": as_text(form.get("form_token")),
            }
            for form in asked
        ]
        out.append(Note("interaction", {"type": "human_input", "forms": forms}))
        words = "\n\n".join(filter(None, map(_words_of_form, forms)))
        if not (words or self._shown):
            words = WAITS
        if words:
            self._show([Text(f"\n\n{words}" if self._shown else words)], out)
        self._forms = None
        self._end(out)

    @property
    def _is_workflow(self) -> bool:
        return self.mode == "workflow" or not self.conversation_id

    def _add_outputs(self, outputs: dict[str, Any], out: list[Delta]) -> None:
        """A workflow whose End node could not stream has its text in `outputs` only."""
        chosen = outputs.get(self._output) if self._output else None
        if chosen is not None:
            text = chosen if isinstance(chosen, str) else json_text(chosen)
            so_far = "".join(self._shown)
            if without_thinking(text).startswith(so_far):
                self._show([Text(without_thinking(text)[len(so_far) :])], out)
            else:
                self._replace(text, out)
        elif not (self._shown or self._output in outputs):
            self._say(_words_of(outputs), out)
        self._flush(out)
        for value in outputs.values():
            self._add_files([v for v in _listed(value) if _is_file(v)], out)
        if outputs:
            out.append(Note("outputs", outputs))

    def _add_answer(self, out: list[Delta]) -> None:
        """Text that never came as a message: a chatflow's stands in its run's outputs, an agent's
        in its last thought."""
        if self._shown or self._filtered:
            return
        outputs = as_object(as_object(self._finished).get("outputs"))
        words = as_text(outputs.get("answer")) or self._last_thought
        if not (words or self._is_workflow or "answer" in outputs):
            words = _words_of(outputs)
        self._say(words, out)
        self._flush(out)

    def _add_files(self, files: Any, out: list[Delta]) -> None:
        """Files of the bot; the same file comes again at the end, under another signature."""
        shown = []
        if self._files is None:
            self._files = {}
        for file in map(as_object, as_list(files)):
            url = as_text(file.get("url")) or as_text(file.get("remote_url"))
            place = url.partition("?")[0]
            if url and file.get("belongs_to") != "user" and place not in self._files:
                self._files[place] = _made_file(file, url)
                shown.append(self._files[place])
        if shown:
            out.append(Note("files", shown))

    def finish(self, out: list[Delta]) -> None:
        self._flush(out)
        if self._forms and self._finished is None:  # some servers close without `workflow_paused`
            self._pause([], out)
            return
        if self._message_end is None and self._finished is None:
            raise UpstreamCut("Dify's answer ended before it was complete.")
        if self._message_end is None:  # 1.13.0 loses it
            self._add_files(as_object(self._finished).get("files"), out)
        self._end(out)

    def _end(self, out: list[Delta]) -> None:
        self._add_answer(out)
        if not (self._shown or self._filtered or self._files):
            self._require_success()
        if self._files:
            self._show_files(self._files, out)
        self.done = True
        out.append(Finish("content_filter" if self._filtered else "stop", self.usage_so_far()))

    def _require_success(self) -> None:
        """Only a run that has succeeded may have nothing to say."""
        data = self._finished or {}
        status = as_text(data.get("status"))
        if status == "stopped" and not data.get("error"):
            raise UpstreamFailed("The run was stopped in Dify before it said anything; ask again.")
        if status not in ("", "succeeded", "partial-succeeded"):
            raise _explain_run(data)

    def _show_files(self, files: dict[str, dict[str, str]], out: list[Delta]) -> None:
        """Where only text is shown, those that the text does not name by itself."""
        text = "".join(self._shown)
        if words := markdown([file for place, file in files.items() if place not in text]):
            out.append(Note("files", [], words))

    def usage_so_far(self) -> Usage | None:
        """The message's own figures, else the sum of the model nodes'; zeros are what Dify says
        when it does not know."""
        end = as_object(as_object(as_object(self._message_end).get("metadata")).get("usage"))
        prompt = as_count(end.get("prompt_tokens"))
        completion = as_count(end.get("completion_tokens"))
        usage = Usage(
            prompt, completion, max(as_count(end.get("total_tokens")), prompt + completion)
        )
        if not usage.total:
            usage = self._nodes_usage or Usage()
            told = as_count(as_object(self._finished).get("total_tokens"))
            usage.total = max(told, usage.prompt + usage.completion)
        return usage if usage.total or end else None

    _HANDLERS: ClassVar[dict[str, Callable[["DifyDecoder", dict[str, Any], list[Delta]], None]]] = {
        "message": _on_message,
        "agent_message": _on_agent_message,
        "text_chunk": _on_text_chunk,
        "message_replace": _on_message_replace,
        "text_replace": _on_text_replace,
        "reasoning_chunk": _on_reasoning,
        "message_file": _on_message_file,
        "agent_thought": _on_agent_thought,
        "workflow_started": _on_workflow_started,
        "node_started": _on_node,
        "node_finished": _on_node,
        "node_retry": _on_node,
        "message_end": _on_message_end,
        "workflow_finished": _on_workflow_finished,
        "workflow_paused": _on_paused,
        "human_input_required": _on_form,
        "human_input_form_filled": _on_form_done,
        "human_input_form_timeout": _on_form_done,
    }


def _words_of_form(form: dict[str, Any]) -> str:
    """What a person is asked, and the answers among which there is a choice."""
    words = form["text"].strip() or form["title"]
    titles = [as_text(as_object(action).get("title")) for action in form["actions"][:100]]
    choices = [f"- {title}" for title in titles if title]
    return "\n".join([words] * bool(words) + choices * (len(choices) > 1 or not words))


def _words_of(outputs: dict[str, Any]) -> str:
    """A workflow's one text, else all that it returned as JSON; "" for nothing but files."""
    told = [v for v in outputs.values() if v not in (None, "", [], {})]
    if all(all(map(_is_file, _listed(v))) for v in told):
        return ""
    words = [v for v in told if isinstance(v, str)]
    return words[0] if len(words) == 1 else json_text(outputs)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _is_file(value: Any) -> bool:
    return as_object(value).get("dify_model_identity") == "__dify__file__"


def _made_file(file: dict[str, Any], url: str) -> dict[str, str]:
    name = as_text(file.get("filename")) or url.partition("?")[0].rpartition("/")[2]
    return {"type": as_text(file.get("type")) or "file", "url": url, "name": name}


def _citation(source: dict[str, Any]) -> dict[str, Any]:
    score = source.get("score")
    return {
        "title": as_text(source.get("document_name")) or as_text(source.get("title")),
        "text": as_text(source.get("content")),
        "score": score if isinstance(score, int | float) else None,
    }


def _explain(reply: UpstreamReply) -> GatewayError:
    body = reply.object()
    code, words = as_text(body.get("code")), words_of(body)
    error = _explain_code(code, words) or explain_http("Dify", reply, words)
    if isinstance(error, RateLimited):
        error.retry_after_s = retry_after(reply.headers, error.retry_after_s)
    return error


def _plain(words: str) -> str:
    """The sentence inside a plugin's error, which is JSON behind a request id."""
    start = words.find('{"')
    if start >= 0:
        try:
            inner = as_text(as_object(loosejson.loads(words[start:].encode())).get("message"))
        except loosejson.NotJson:
            return words
        return inner or words
    return words


def _explain_event(event: dict[str, Any]) -> GatewayError:
    """The `error` event: the run had begun, so `invalid_param` is rarely the caller's doing."""
    code = as_id(event.get("code"))
    words = _plain(words_of(event))
    if code in ("", "invalid_param", "completion_request_error", "internal_server_error"):
        return explain_words("Dify", words)
    status = as_count(event.get("status"))
    if error := _explain_code(code, words):
        return error
    if 400 <= status < 600 and status not in (400, 500):
        return explain_http("Dify", UpstreamReply(status, {}, b""), words)
    return explain_words("Dify", words)


def _explain_run(data: dict[str, Any]) -> GatewayError:
    """A failed workflow. One that failed without a step was refused for its input."""
    words = _plain(words_of(data.get("error"), data))
    error = explain_words("Dify", words)
    if "conversation not exists" in words.lower():
        return ConversationNotFound(_NO_CONVERSATION)
    if data.get("total_steps") == 0 and words and type(error) is UpstreamFailed:
        return InvalidRequest(f"Dify does not accept the request: {clean(words)}")
    return error


_NO_CONVERSATION = (
    "Dify does not know this conversation for this user. Leave conversation_id out to begin a new"
    " one; a conversation belongs to the `user` who began it."
)
_OPERATOR = {
    "unauthorized": "Dify refused the gateway's API key: check api_key (it begins with app-).",
    "forbidden": "Dify does not let this app be used through its API: switch the app's API on.",
    "not_chat_app": "The Dify app is of another kind: set mode to auto.",
    "not_workflow_app": "The Dify app is of another kind: set mode to auto.",
    "not_completion_app": "The Dify app is of another kind: set mode to auto.",
    "app_unavailable": "The Dify app is unavailable: check that it is published, and its mode.",
    "agent_not_published": "The Dify agent has not been published: publish it in Dify.",
    "provider_not_initialize": "The Dify app has no working model: set its credentials in Dify.",
    "model_currently_not_support": "Dify's plan does not allow the app's model: choose another.",
}


def _explain_code(code: str, words: str) -> GatewayError | None:
    said = clean(words)
    low = words.lower()
    if code in _OPERATOR:
        return UpstreamMisconfigured(f"{_OPERATOR[code]} (Dify: {said or code})")
    if code == "provider_quota_exceeded":
        return QuotaExhausted(f"The model's quota in Dify is used up. {said}")
    if code in ("too_many_requests", "rate_limit_error") or low.startswith("too many requests"):
        return RateLimited(
            f"Dify is busy with this app's other calls; try again shortly. {said}",
            retry_after_s=RETRY_AFTER_S,
            retryable=True,
        )
    if code == "not_found" and low.startswith("conversation not exists"):
        return ConversationNotFound(_NO_CONVERSATION)
    if code == "invalid_param" and low.startswith("workflow not published"):
        return UpstreamMisconfigured(
            f"The Dify workflow has not been published: publish it in Dify. (Dify: {said})"
        )
    if code == "invalid_param" and low.startswith("run failed"):
        return explain_words("Dify", words)
    if code == "completion_request_error":
        return explain_words("Dify", words)
    if code in ("invalid_param", "bad_request", "conversation_completed"):
        error = explain_words("Dify", words)
        if "invokeerror" in low or type(error) is not UpstreamFailed:
            return error  # the words say more than the code
        return InvalidRequest(f"Dify does not accept the request: {said}")
    return _explain_file(code, said)


def _explain_file(code: str, said: str) -> GatewayError | None:
    if code in ("no_file_uploaded", "too_many_files", "filename_not_exists_error"):
        return InvalidRequest(f"Dify does not accept the file: {said}", param="file")
    if code in ("unsupported_media_type", "unsupported_file_type"):
        return UnsupportedMediaType(f"Dify does not take a file of this type. {said}")
    if code == "file_too_large":
        return BodyTooLarge(f"The file is too large for Dify. {said}")
    return None
