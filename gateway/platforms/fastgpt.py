"""FastGPT: an OpenAI look-alike whose failures, usage and citations hide behind `detail: true`.

Source: FastGPT's completions API, 4.6 to 4.16; the named events are those of `detail: true`.
"""

import re
from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Any, ClassVar

from gateway.config import FastGPTAgent
from gateway.errors import (
    ConversationBusy,
    ConversationNotFound,
    GatewayError,
    InvalidRequest,
    KindNotTaken,
    QuotaExhausted,
    RateLimited,
    UpstreamCut,
    UpstreamFailed,
    UpstreamMisconfigured,
    clean,
)
from gateway.exchange import UpstreamReply, UpstreamRequest
from gateway.failures import RETRY_AFTER_S, explain_http, explain_words
from gateway.history import require_question
from gateway.messages import (
    Begin,
    ChatRequest,
    Delta,
    Finish,
    Media,
    Message,
    Note,
    Reasoning,
    Text,
    Usage,
)
from gateway.platforms.base import (
    Carriage,
    EventDecoder,
    Step,
    TextOnly,
    as_list,
    as_object,
    as_text,
    base_url,
    carry_inside,
    dump,
    json_headers,
    json_text,
    parse_json,
    parse_object,
)
from gateway.usage import as_count

MAX_CHAT_ID = 250


class FastGPT(TextOnly):
    kind = "fastgpt"
    # Sounds and films reach the bots of 4.15 and later alone; `accepts` says where they may.
    kinds = frozenset(("image", "file"))

    def __init__(self, name: str, agent: FastGPTAgent, url: str) -> None:
        self._name = name
        self._agent = agent
        self.token = agent.api_key.reveal()
        self._api = base_url(
            url, "/v1/chat/completions", "/v2/chat/completions", "/v1", "/v2", "/api", then="/api"
        )
        self._headers = json_headers(self.token, agent.headers)

    def prepare(self, chat: ChatRequest) -> Step:
        require_question(chat)
        chat_id = _chat_id(chat)
        if len(chat_id) > MAX_CHAT_ID:
            raise InvalidRequest(
                f"The conversation id is longer than {MAX_CHAT_ID} characters.", param="chat_id"
            )
        # With a chatId FastGPT adds the history it has stored: only what is new may be sent then.
        turns = (chat.question,) if chat.conversation_id else chat.messages
        body: dict[str, Any] = {
            "chatId": chat_id,
            "stream": True,
            "detail": True,  # the only way to learn of usage, citations and failed nodes
            "messages": [_message(turn) for turn in turns if turn.text or turn.media],
            "variables": {**self._agent.variables, **chat.variables},
            "customUid": chat.user,
        }
        if app_id := self._agent.app_id or chat.app_id:
            body["appId"] = app_id
        url = f"{self._api}/v1/chat/completions"
        return UpstreamRequest("POST", url, self._headers, dump(body), stream=True)

    def sends_turns(self, chat: ChatRequest) -> bool:
        return not chat.conversation_id

    def carry(self, media: Media, chat: ChatRequest) -> Carriage:
        """Pictures may go inside; all else FastGPT fetches, so it needs a link to follow."""
        if media.kind == "image":
            return carry_inside(media)
        if media.is_data or (media.stored and not media.url):
            raise KindNotTaken(
                f"FastGPT fetches files by itself, and cannot reach this {media.kind}: give an"
                " http(s) URL that it can reach, or have uploads reached by setting"
                " storage.public_base_url (for a bucket S3_PUBLIC_BASE_URL).",
                param="files",
            )
        return "as it is"

    def decoder(self, chat: ChatRequest) -> "FastGPTDecoder":
        return FastGPTDecoder(_chat_id(chat), chat.detail)

    def refused(self, reply: UpstreamReply, chat: ChatRequest) -> Step:
        raise _explain(reply)

    def stop(self, chat: ChatRequest, decoder: Any) -> UpstreamRequest | None:
        # v1 runs end with their connection; newer servers may run on, and need the app's id.
        app_id = self._agent.app_id or chat.app_id
        if not app_id:
            return None
        body = {"appId": app_id, "chatId": decoder.conversation_id}
        return UpstreamRequest("POST", f"{self._api}/v2/chat/stop", self._headers, dump(body))

    def probe(self) -> Step:
        app = f"?appId={self._agent.app_id}" if self._agent.app_id else ""
        return UpstreamRequest("GET", f"{self._api}/core/chat/init{app}", self._headers)

    def verdict(self, reply: UpstreamReply) -> str:
        body = reply.object()
        app = as_object(as_object(body.get("data")).get("app"))
        if reply.status == 200 and body.get("code") == 200:
            return f"app {as_text(app.get('name')) or 'found'}"
        error = _explain(reply)
        if not self._agent.app_id and body and not isinstance(error, UpstreamMisconfigured):
            return "reachable; set app_id to have the app checked too"
        raise error


def _chat_id(chat: ChatRequest) -> str:
    """The conversation's id: the caller's, or for a new one an id that only this call has.

    FastGPT takes any id and asks nobody whose it is. So one of a caller who speaks for a single
    user begins with that user's mark, and an id without it, such as another user's, gets it.
    """
    given = chat.conversation_id or f"gw{chat.call_id}"
    if not chat.is_bound:
        return given
    mark = f"u{sha256(chat.user.encode('utf-8', 'replace')).hexdigest()[:16]}-"
    return given if given.startswith(mark) else mark + given


def _message(turn: Message) -> dict[str, Any]:
    if not turn.media:
        return {"role": _ROLES[turn.role], "content": turn.text}
    parts: list[dict[str, Any]] = [{"type": "text", "text": turn.text}] if turn.text else []
    for media in turn.media:
        if media.kind == "image":
            parts.append({"type": "image_url", "image_url": {"url": media.url}})
        else:
            name = media.name or media.url.partition("?")[0].rpartition("/")[2] or "file"
            part = {"type": "file_url", "name": name, "url": media.url}
            parts.append(part if media.kind == "file" else {**part, "fileType": media.kind})
    return {"role": _ROLES[turn.role], "content": parts}


# FastGPT has no turn for a tool of ours; its result reads like something the user reports.
_ROLES = {"system": "system", "user": "user", "assistant": "assistant", "tool": "user"}


class FastGPTDecoder(EventDecoder):
    """Answer chunks are OpenAI's; everything else comes as named events.

    Servers up to 4.14.6 send `[DONE]` before `flowResponses`, so the end is both or the close of
    the connection. A failed node is silent: it shows only as an `error` in the node results.
    """

    __slots__ = (
        "_begun", "_detail", "_has_more", "_has_text", "_knows_nodes", "_nodes", "_reason",
        "_said_done",
    )  # fmt: skip

    text_members = (b"content",)

    def __init__(self, chat_id: str, detail: bool) -> None:
        super().__init__()
        self.conversation_id = chat_id
        self._detail = detail
        self._begun = False
        self._said_done = False
        self._reason: str | None = None
        self._has_text = False
        self._has_more = False  # thinking, or a question to the user
        self._nodes: list[dict[str, Any]] = []
        self._knows_nodes = False

    def event(self, name: str, data: bytes, out: list[Delta]) -> None:
        if not self._begun:
            self._begun = True
            out.append(Begin(self.conversation_id))
        if data.strip() in (b"[DONE]", b'"[DONE]"'):
            self._said_done = True
            self._close_if_whole(out)
        elif name in ("", "answer", "fastAnswer"):
            if data.strip():
                self._chunk(parse_object(data), out)
        elif handle := self._HANDLERS.get(name):
            handle(self, data, out)

    def _chunk(self, chunk: dict[str, Any], out: list[Delta]) -> None:
        if "choices" not in chunk:
            if chunk.get("error") or as_text(chunk.get("statusText")):
                raise _explain_code(as_object(chunk.get("error")) or chunk)
            return  # 4.9.7 leaks its timing into plain streams
        for choice in as_list(chunk["choices"])[:1]:
            delta = as_object(as_object(choice).get("delta"))
            if reasoning := as_text(delta.get("reasoning_content")):
                self._has_more = True
                out.append(Reasoning(reasoning))
            if text := as_text(delta.get("content")):
                self._say(text, out)
            if reason := as_text(as_object(choice).get("finish_reason")):
                self._reason = reason

    def _say(self, text: str, out: list[Delta]) -> None:
        self._has_text = True
        out.append(Text(text))

    def _on_error(self, data: bytes, out: list[Delta]) -> None:
        raise _explain_code(parse_object(data))

    def _on_status(self, data: bytes, out: list[Delta]) -> None:
        status = parse_object(data)
        if self._detail:
            step = {"node": as_text(status.get("name")), "status": as_text(status.get("status"))}
            out.append(Note("progress", [step]))
        else:
            out.append(Note("progress", []))  # a sign of life that shows nothing

    def _on_tool(self, data: bytes, out: list[Delta]) -> None:
        tool = as_object(parse_object(data).get("tool"))
        name = as_text(tool.get("toolName")) or as_text(tool.get("functionName"))
        shown = [{"name": name, "status": "running"}] if self._detail and name else []
        out.append(Note("tools", shown))

    def _on_nodes(self, data: bytes, out: list[Delta]) -> None:
        nodes = parse_json(data)
        if isinstance(nodes, dict):  # one pre-release sent {"0": …, "1": …}
            nodes = [nodes[key] for key in nodes]
        self._nodes += [node for node in as_list(nodes) if isinstance(node, dict)]
        self._knows_nodes = True
        self._close_if_whole(out)

    def _on_node(self, data: bytes, out: list[Delta]) -> None:
        self._nodes.append(parse_object(data))
        self._knows_nodes = True
        out.append(Note("progress", []))

    def _on_variables(self, data: bytes, out: list[Delta]) -> None:
        if self._detail:
            out.append(Note("outputs", parse_object(data)))

    def _on_title(self, data: bytes, out: list[Delta]) -> None:
        if title := as_text(parse_object(data).get("title")):
            out.append(Note("title", title))

    def _on_interactive(self, data: bytes, out: list[Delta]) -> None:
        asked = _innermost(as_object(parse_object(data).get("interactive")))
        params = as_object(asked.get("params"))
        self._has_more = True
        out.append(Note("interaction", {"type": as_text(asked.get("type")), "params": params}))
        if words := _interactive_text(params):
            self._say(f"\n\n{words}" if self._has_text else words, out)

    _HANDLERS: ClassVar[dict[str, Callable[["FastGPTDecoder", bytes, list[Delta]], None]]] = {
        "error": _on_error,
        "flowNodeStatus": _on_status,
        "moduleStatus": _on_status,
        "toolCall": _on_tool,
        "flowResponses": _on_nodes,
        "appStreamResponse": _on_nodes,
        "flowNodeResponse": _on_node,
        "updateVariables": _on_variables,
        "chatTitle": _on_title,
        "interactive": _on_interactive,
    }

    def _close_if_whole(self, out: list[Delta]) -> None:
        if self._said_done and self._knows_nodes:
            self._end(out)
        else:
            self.ending = self._said_done

    def finish(self, out: list[Delta]) -> None:
        if not self._said_done and self._reason is None:
            raise UpstreamCut("FastGPT's answer ended before it was complete.")
        self._end(out)

    def _end(self, out: list[Delta]) -> None:
        nodes = list(_walk(self._nodes))
        if not self._has_text and (words := _plugin_output(nodes)):
            self._say(words, out)
        if not (self._has_text or self._has_more):
            self._explain_silence(nodes)
        if self._detail and (citations := _citations(nodes)):
            out.append(Note("citations", citations))
        out.append(Finish(self._reason or "stop", _usage(nodes)))
        self.done = True

    def _explain_silence(self, nodes: list[dict[str, Any]]) -> None:
        failed = [node for node in nodes if _node_error(node)]
        if failed:
            node = failed[-1]
            where = as_text(node.get("moduleName"))
            words = _node_error(node)
            raise explain_words(f"FastGPT's node {where!r}" if where else "FastGPT", words)
        if not self._knows_nodes:
            raise UpstreamFailed(
                "FastGPT sent an empty answer. Its app's log tells which node failed."
            )


def _innermost(asked: dict[str, Any]) -> dict[str, Any]:
    """The question itself: inside tools, sub-apps and loops it comes wrapped, also repeatedly."""
    for _ in range(20):
        inner = as_object(as_object(asked.get("params")).get("childrenResponse"))
        if not inner:
            break
        asked = inner
    return asked


def _interactive_text(params: dict[str, Any]) -> str:
    lines = [as_text(params.get("description")) or as_text(params.get("content"))]
    for i, option in enumerate(as_list(params.get("userSelectOptions")), 1):
        lines.append(f"{i}. {as_text(as_object(option).get('value'))}")
    for i, option in enumerate(as_list(params.get("options")), 1):
        lines.append(f"{i}. {as_text(option) or as_text(as_object(option).get('value'))}")
    for entry in as_list(params.get("inputForm")):
        lines.append(f"- {as_text(as_object(entry).get('label'))}")
    return "\n".join(line for line in lines if line)


_NESTED = ("toolDetail", "pluginDetail", "loopDetail", "childrenResponses")
MAX_NODES = 5000


def _walk(nodes: list[Any]) -> Iterator[dict[str, Any]]:
    """Every node result once; newer servers send children both flat and nested."""
    seen: set[str] = set()
    todo = list(reversed(nodes))
    while todo and len(seen) < MAX_NODES:
        node = todo.pop()
        if not isinstance(node, dict):
            continue
        key = as_text(node.get("id")) or f"#{len(seen)}"
        if key in seen:
            continue
        seen.add(key)
        yield node
        for name in _NESTED:
            todo += reversed(as_list(node.get(name)))


def _usage(nodes: list[dict[str, Any]]) -> Usage | None:
    """Real tokens, summed over nodes; the top-level `usage` of FastGPT is always 1/1/1."""
    usage = Usage()
    for node in nodes:
        extension = as_object(node.get("queryExtensionResult"))
        for part in (node, extension):
            usage.prompt += as_count(part.get("inputTokens")) + as_count(
                part.get("toolCallInputTokens")
            )
            usage.completion += as_count(part.get("outputTokens")) + as_count(
                part.get("toolCallOutputTokens")
            )
            if "inputTokens" not in part and "toolCallInputTokens" not in part:
                usage.total += as_count(part.get("tokens"))  # before 4.8.17
    usage.total += usage.prompt + usage.completion
    return usage if usage.total else None


def _citations(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    out = []
    for node in nodes:
        for quote in map(as_object, as_list(node.get("quoteList"))):
            scores = [as_object(score).get("value") for score in as_list(quote.get("score"))]
            out.append(
                {
                    "title": as_text(quote.get("sourceName")),
                    "text": "\n".join(
                        filter(None, (as_text(quote.get("q")), as_text(quote.get("a"))))
                    ),
                    "score": next((s for s in scores if isinstance(s, int | float)), None),
                }
            )
    return out


def _plugin_output(nodes: list[dict[str, Any]]) -> str:
    """The result of a plugin app, which sends no text: its one string, or all of it as JSON."""
    for node in nodes:
        output = as_object(node.get("pluginOutput"))
        if node.get("moduleType") == "pluginOutput" and output:
            words = [value for value in output.values() if isinstance(value, str) and value]
            return words[0] if len(words) == 1 else json_text(output)
    return ""


def _node_error(node: dict[str, Any]) -> str:
    if node.get("errorCaptured") is True:  # the flow has a branch for it
        return ""
    error = node.get("error")
    if isinstance(error, dict):
        error = error.get("message") or error.get("msg") or json_text(error)
    return as_text(node.get("errorText")) or as_text(error)


def _explain(reply: UpstreamReply) -> GatewayError:
    body = reply.object()
    if as_count(body.get("code")):
        return _explain_code(body, reply)
    words = as_text(body.get("message"))
    if words and reply.status in (200, 500):
        return _explain_code(body, reply)
    return explain_http("FastGPT", reply, words)


_BAD_KEY = {403, 514, 506000, 506001, 506003}
_NO_MONEY = {500004, 510, 506002}
_BAD_APP = {511, 502000, 502001}


def _explain_code(body: dict[str, Any], reply: UpstreamReply | None = None) -> GatewayError:
    """The error for FastGPT's own code; the HTTP status is 500 for nearly all of them."""
    code = as_count(body.get("code"))
    words = as_text(body.get("message")) or as_text(body.get("msg"))
    said = _readable(words, as_text(body.get("statusText")))
    if code in _BAD_KEY:
        return UpstreamMisconfigured(
            f"FastGPT refused the gateway's API key (code {code}). Check api_key, and that the key"
            " belongs to this app and server."
        )
    if code in _BAD_APP or "appid is empty" in words.lower():
        return UpstreamMisconfigured(
            f"FastGPT does not offer this app to the key ({said or code}). Check app_id."
        )
    if code in _NO_MONEY:
        return QuotaExhausted(f"The FastGPT account has no credit left (code {code}).")
    if code == 429:
        wait = re.search(r"in (\d{1,5}) seconds?", words)
        return RateLimited(
            f"FastGPT is limiting calls: {said or 'too many requests'}.",
            retry_after_s=float(wait[1]) if wait else RETRY_AFTER_S,
            retryable=True,
        )
    if code == 504001:
        return ConversationBusy("FastGPT is still answering in this conversation; wait for it.")
    if code == 504000:
        return ConversationNotFound("FastGPT does not give this conversation to the key's user.")
    if code == 400 or body.get("zodError") or body.get("errorType") == "UserError":
        return InvalidRequest(f"FastGPT does not accept the request: {said or 'bad input'}.")
    if 506000 <= code < 507000 or 502000 <= code < 503000:
        return UpstreamMisconfigured(f"FastGPT refuses the key or the app (code {code}: {said}).")
    if 510000 <= code < 511000:
        return InvalidRequest(f"FastGPT does not take the file: {said or code}.")
    if code and reply and reply.status not in (200, 500):
        return explain_http("FastGPT", reply, said)
    if code in (401, 403, 404, 413, 415):
        return explain_http("FastGPT", UpstreamReply(code, {}, b""), said)
    return explain_words("FastGPT", said or (f"code {code}" if code else ""))


def _readable(words: str, otherwise: str) -> str:
    """FastGPT often sends the key of a translation in place of a message."""
    is_key = ":" in words and " " not in words and "." in words
    return clean(otherwise if is_key else words or otherwise).rstrip(".。")
