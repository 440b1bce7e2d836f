"""Decodes Dify's event streams: chats, completions and workflows."""

import re
from collections.abc import Callable
from typing import Any, ClassVar

from gateway.errors import (
    GatewayError,
    UpstreamCut,
    UpstreamFailed,
)
from gateway.platforms.base import (
    EventDecoder,
    as_id,
    as_list,
    as_object,
    as_text,
    json_text,
    parse_object,
)
from gateway.platforms.dify.failures import explain_event, explain_run
from gateway.platforms.dify.forms import state_of
from gateway.platforms.pauses import WAITS, Pause, Pauses
from gateway.protocol.content import markdown
from gateway.protocol.messages import (
    Begin,
    Delta,
    Finish,
    Note,
    Reasoning,
    Replace,
    Text,
    Usage,
)
from gateway.protocol.reported_errors import reported_error
from gateway.protocol.template import EventTemplate
from gateway.protocol.thinking import ThinkingSplitter, without_thinking
from gateway.protocol.usage import as_count

_USERS = ("local_file", "remote_url")  # how users' files are sent; a tool's are `tool_file`


_KIND = re.compile(rb'"event":\s*"(\w+)"')


_MODEL = re.compile(rb'"node_type":\s*"llm"')


class DifyDecoder(EventDecoder):
    """Decodes the events of all modes. The terminal events depend on the mode and the version:

    an easy app (chat, agent, completion) ends with `message_end`, a workflow app with
    `workflow_finished`, a chatflow with both in either order; 1.13.0 loses `message_end`.
    """

    platform = "Dify"
    __slots__ = (
        "_begun",
        "_files",
        "_filtered",
        "_finished",
        "_forms",
        "_has_reasoning",
        "_is_agent",
        "_last_thought",
        "_message_end",
        "_nodes_usage",
        "_output",
        "_pauses",
        "_repeats",
        "_run",
        "_runs_workflow",
        "_shown",
        "_speaker",
        "_split",
        "_thought",
        "mode",
        "pause",
        "task_id",
    )  # fmt: skip

    text_members = (b"answer", b"text")

    def __init__(
        self,
        mode: str = "chat",
        output_variable: str | None = None,
        pauses: Pauses | None = None,
    ) -> None:
        """`pauses` remembers what a conversation waits for."""
        super().__init__()
        self.mode = mode
        self.pause: dict[str, Any] | None = None
        self._pauses = pauses
        self._run = ""  # of a workflow that waits
        self.task_id = ""
        self._output = output_variable
        self._begun = False
        self._runs_workflow = False
        self._message_end: dict[str, Any] | None = None
        self._finished: dict[str, Any] | None = None
        self._split = ThinkingSplitter()
        self._speaker: Any = None  # the node whose text arrives, in a chatflow
        self._shown: list[str] = []  # the answer so far, to compare with repetitions
        self._has_reasoning = False
        self._thought = ""  # the agent's current round
        self._last_thought = ""
        self._is_agent = False
        self._repeats = False  # text now repeats the answer
        self._files: dict[str, dict[str, str]] | None = None  # emitted files, by URL without query
        self._forms: list[dict[str, Any]] | None = None  # forms that a person must fill in
        self._nodes_usage: Usage | None = None  # the sum over the model nodes
        self._filtered = False

    def event(self, name: str, data: bytes, out: list[Delta]) -> None:
        if not data.strip():
            return
        event = parse_object(data)
        kind = event.get("event")
        if kind == "message" and not self._is_agent:  # nearly all events
            if not self._begun:
                self._begin(event, out)
            selector = event.get("from_variable_selector")
            self._say(as_text(event.get("answer")), out, selector)
            return
        handle = self._HANDLERS.get(kind) if isinstance(kind, str) else None
        if kind == "error":
            raise self.explain(event)
        if kind is None and (error := reported_error(event)):
            raise self.explain(error)
        if not self._begun and kind not in (None, "ping"):
            self._begin(event, out)
        if handle:
            handle(self, event, out)

    def explain(self, error: Any) -> GatewayError:
        return explain_event(as_object(error) or {"error": error})

    @property
    def on_text(self) -> Callable[[str], None]:
        return self._shown.append

    def pattern(self, chunk: bytes, delta: Delta) -> EventTemplate | None:
        adds_only = self._split.passes_all and not self._repeats
        return super().pattern(chunk, delta) if adds_only else None

    @staticmethod
    def skips(name: str, head: bytes) -> bool:
        """Skip outputs of nodes and audio, but not of model nodes, whose tokens are counted."""
        found = _KIND.search(head, 0, 4096)
        kind = found[1].decode() if found else "message"
        if kind.startswith("node_"):
            return not _MODEL.search(head, 0, 4096)
        return kind not in DifyDecoder._HANDLERS and kind not in ("message", "error")

    def _begin(self, event: dict[str, Any], out: list[Delta]) -> None:
        self._begun = True
        self.task_id = as_id(event.get("task_id"))
        self.conversation_id = as_id(event.get("conversation_id"))
        if self._pauses is not None:
            self._pauses.end(self.conversation_id)
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
        """Append the splitter's deltas, and remember the answer's text in them."""
        self._shown += [delta.text for delta in deltas if isinstance(delta, Text)]
        out += deltas

    def _flush(self, out: list[Delta]) -> None:
        """Emit the text that the splitter holds back, since no text follows for now."""
        self._show(self._split.close(), out)

    def _on_message(self, event: dict[str, Any], out: list[Delta]) -> None:
        """Handle the `message` of an agent app, which ends the answer by repeating all of it."""
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
            return  # another output of the End node, or a separator
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
        self._split = ThinkingSplitter(answering=True)  # later text continues the new text

    def _on_reasoning(self, event: dict[str, Any], out: list[Delta]) -> None:
        if text := as_text(as_object(event.get("data")).get("reasoning")):
            self._has_reasoning = True
            out.append(Reasoning(text))

    def _add_reasoning(self, text: str, out: list[Delta]) -> None:
        """Add the separate reasoning that 1.9 to 1.15 send only at the end of a node. Clients
        expect it before the answer, so after one it is left out."""
        if text.strip() and not (self._has_reasoning or self._shown):
            self._has_reasoning = True
            out.append(Reasoning(text))

    # Everything but the text.

    def _on_message_file(self, event: dict[str, Any], out: list[Delta]) -> None:
        """Add a tool's file, or (1.11.2 to 1.12.1) a piece of text under the wrong name."""
        if text := as_text(event.get("answer")):
            self._say(text, out)
        else:
            self._add_files([event], out)

    def _on_agent_thought(self, event: dict[str, Any], out: list[Delta]) -> None:
        round_ = as_id(event.get("id"))
        if round_ != self._thought:  # each round may begin with its own reasoning
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
            out.append(Note("citations", [citation(as_object(source)) for source in sources]))
        files = as_list(event.get("files"))
        if not self._runs_workflow:  # from 1.13 on easy apps also list the user's files
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
            raise explain_run(data)
        # 1.17.1 falsely reports a failure after the complete answer of an annotation hit.
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
        """Remember a form, which most versions repeat in `workflow_paused`."""
        self._run = as_id(event.get("workflow_run_id")) or self._run
        self._forms = [*(self._forms or ()), as_object(event.get("data"))]
        out.append(Note("progress", []))

    def _on_form_done(self, event: dict[str, Any], out: list[Delta]) -> None:
        self._forms = None
        out.append(Note("progress", []))

    def _on_paused(self, event: dict[str, Any], out: list[Delta]) -> None:
        self._flush(out)
        self._run = as_id(event.get("workflow_run_id")) or self._run
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
                "expires": as_count(form.get("expiration_time")) or None,
            }
            for form in asked
        ]
        self.pause = state_of(self._run, asked)
        if self._pauses is not None and self.pause is not None:
            self._pauses.begin(self.conversation_id, Pause(state=self.pause))
        out.append(Note("interaction", {"type": "human_input", "forms": forms}))
        question = "\n\n".join(filter(None, map(_text_of_form, forms)))
        if not (question or self._shown):
            question = WAITS
        if question:
            self._show([Text(f"\n\n{question}" if self._shown else question)], out)
        self._forms = None
        self._end(out)

    @property
    def _is_workflow(self) -> bool:
        return self.mode == "workflow" or not self.conversation_id

    def _add_outputs(self, outputs: dict[str, Any], out: list[Delta]) -> None:
        """Add a workflow's outputs. If the End node could not stream, its text is only there."""
        chosen = outputs.get(self._output) if self._output else None
        if chosen is not None:
            text = chosen if isinstance(chosen, str) else json_text(chosen)
            so_far = "".join(self._shown)
            if without_thinking(text).startswith(so_far):
                self._show([Text(without_thinking(text)[len(so_far) :])], out)
            else:
                self._replace(text, out)
        elif not (self._shown or self._output in outputs):
            self._say(_text_of(outputs), out)
        self._flush(out)
        for value in outputs.values():
            self._add_files([v for v in _listed(value) if _is_file(v)], out)
        if outputs:
            out.append(Note("outputs", outputs))

    def _add_answer(self, out: list[Delta]) -> None:
        """Add an answer that no message contained: a chatflow's is in the outputs of its run, an
        agent's in its last thought."""
        if self._shown or self._filtered:
            return
        outputs = as_object(as_object(self._finished).get("outputs"))
        text = as_text(outputs.get("answer")) or self._last_thought
        if not (text or self._is_workflow or "answer" in outputs):
            text = _text_of(outputs)
        self._say(text, out)
        self._flush(out)

    def _add_files(self, files: Any, out: list[Delta]) -> None:
        """Add the bot's files. The end repeats the same file with another signature."""
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
        if self._forms and self._finished is None:  # some servers omit `workflow_paused`
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
        """Raise unless the run succeeded: only then may an answer be empty."""
        data = self._finished or {}
        status = as_text(data.get("status"))
        if status == "stopped" and not data.get("error"):
            raise UpstreamFailed("The run was stopped in Dify before it said anything; ask again.")
        if status not in ("", "succeeded", "partial-succeeded"):
            raise explain_run(data)

    def _show_files(self, files: dict[str, dict[str, str]], out: list[Delta]) -> None:
        """Add Markdown, for clients that show only text, for files that the text does not link."""
        text = "".join(self._shown)
        if listed := markdown([file for place, file in files.items() if place not in text]):
            out.append(Note("files", [], listed))

    def usage_so_far(self) -> Usage | None:
        """The message's own usage, else the sum over the model nodes. Dify sends zeros if the usage
        is unknown."""
        end = as_object(as_object(as_object(self._message_end).get("metadata")).get("usage"))
        prompt = as_count(end.get("prompt_tokens"))
        completion = as_count(end.get("completion_tokens"))
        usage = Usage(
            prompt, completion, max(as_count(end.get("total_tokens")), prompt + completion)
        )
        if not usage.total:
            usage = self._nodes_usage or Usage()
            total = as_count(as_object(self._finished).get("total_tokens"))
            usage.total = max(total, usage.prompt + usage.completion)
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


def _text_of_form(form: dict[str, Any]) -> str:
    """The question to a person, and the possible answers."""
    text = form["text"].strip() or form["title"]
    titles = [as_text(as_object(action).get("title")) for action in form["actions"][:100]]
    choices = [f"- {title}" for title in titles if title]
    return "\n".join([text] * bool(text) + choices * (len(choices) > 1 or not text))


def _text_of(outputs: dict[str, Any]) -> str:
    """A workflow's only text, else all of its outputs as JSON; "" if they are only files."""
    values = [v for v in outputs.values() if v not in (None, "", [], {})]
    if all(all(map(_is_file, _listed(v))) for v in values):
        return ""
    texts = [v for v in values if isinstance(v, str)]
    return texts[0] if len(texts) == 1 else json_text(outputs)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _is_file(value: Any) -> bool:
    return as_object(value).get("dify_model_identity") == "__dify__file__"


def _made_file(file: dict[str, Any], url: str) -> dict[str, str]:
    name = as_text(file.get("filename")) or url.partition("?")[0].rpartition("/")[2]
    return {"type": as_text(file.get("type")) or "file", "url": url, "name": name}


def citation(source: dict[str, Any]) -> dict[str, Any]:
    """One of `retriever_resources` as an entry of the note `citations`."""
    score = source.get("score")
    return {
        "title": as_text(source.get("document_name")) or as_text(source.get("title")),
        "text": as_text(source.get("content")),
        "score": score if isinstance(score, int | float) else None,
    }
