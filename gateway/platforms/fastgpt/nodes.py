"""Reads FastGPT's node results: usage, citations, outputs, and the node on which a run failed.

From 4.8.13 on a failed node is silent: the stream ends normally, and only the node's result has the
failure.
"""

from collections.abc import Iterator
from typing import Any

from gateway.errors import GatewayError, UpstreamFailed, clean
from gateway.language.sentences import say
from gateway.platforms.base import as_list, as_object, as_text, json_text
from gateway.platforms.failures import message_of
from gateway.platforms.fastgpt.failures import explain_run, readable
from gateway.protocol.messages import Usage
from gateway.protocol.usage import as_count

MAX_QUOTES = 200  # citations sent to the client
MAX_NODES = 5000
MAX_DEPTH = 20  # of nested sub-apps; FastGPT's own limit
_SUB_APPS = ("pluginDetail", "loopDetail", "childrenResponses")
_NESTED = ("toolDetail", *_SUB_APPS)
_TOOL_CALLERS = ("tools", "agent")  # their calls may fail, and they still answer


def walk(nodes: list[Any]) -> Iterator[dict[str, Any]]:
    """Every node result once; newer servers send children twice, flat and nested."""
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


def tokens(nodes: list[Any]) -> Usage | None:
    """The real usage, summed over nodes; FastGPT's top-level `usage` is always 1/1/1."""
    usage = Usage()
    for node in walk(nodes):
        _count(as_object(node.get("queryExtensionResult")), usage)
        if node.get("moduleType") != "datasetSearchNode":  # its own tokens are embeddings
            _count(node, usage)
    usage.total += usage.prompt + usage.completion
    return usage if usage.total else None


def _count(part: dict[str, Any], usage: Usage) -> None:
    if "inputTokens" in part or "toolCallInputTokens" in part:
        usage.prompt += as_count(part.get("inputTokens"))
        usage.prompt += as_count(part.get("toolCallInputTokens"))
        usage.completion += as_count(part.get("outputTokens"))
        usage.completion += as_count(part.get("toolCallOutputTokens"))
    else:  # before 4.8.17
        usage.total += as_count(part.get("tokens")) + as_count(part.get("toolCallTokens"))


def quotes(nodes: list[Any]) -> list[dict[str, Any]]:
    out = []
    for node in walk(nodes):
        for quote in map(as_object, as_list(node.get("quoteList"))):
            out.append(citation(quote))
            if len(out) == MAX_QUOTES:
                return out
    return out


def citation(quote: dict[str, Any]) -> dict[str, Any]:
    """A quotation from a knowledge base as an entry of the note `citations`."""
    scores = [as_object(score).get("value") for score in as_list(quote.get("score"))]
    text = filter(None, (as_text(quote.get("q")), as_text(quote.get("a"))))
    score = next((s for s in scores if isinstance(s, int | float)), None)
    return {"title": as_text(quote.get("sourceName")), "text": "\n".join(text), "score": score}


def what_plugin_gave(nodes: list[Any]) -> str:
    """The result of a plugin app, which sends no text: its only string, or all of it as JSON."""
    for node in walk(nodes):
        output = as_object(node.get("pluginOutput"))
        if node.get("moduleType") == "pluginOutput" and output:
            texts = [value for value in output.values() if isinstance(value, str) and value]
            return texts[0] if len(texts) == 1 else json_text(output)
    return ""


def model_finish(nodes: list[Any]) -> str:
    """Why the last model stopped: `length`, `content_filter`, or "" for a normal end.

    The answer's chunks always say `stop`.
    """
    for node in map(as_object, reversed(nodes)):
        reasons = [as_text(inner.get("finishReason")) for inner in walk([node])]
        if reason := reasons[0] or next(filter(None, reversed(reasons)), ""):
            return reason if reason in ("length", "content_filter") else ""
    return ""


def choice_made(nodes: list[Any]) -> str:
    """The option that the last node took as the answer to its question, else ""."""
    return as_text(as_object(nodes[-1] if nodes else None).get("userSelectResult"))


def last_failure(nodes: list[Any]) -> GatewayError | None:
    """The failure of the last node, after which the text is not the whole answer.

    If other nodes follow a failed node, the app has handled the failure.
    """
    for _ in range(MAX_DEPTH):
        node = as_object(nodes[-1] if nodes else None)
        if error := _failure(node):
            return error
        calls_tools = node.get("moduleType") in _TOOL_CALLERS
        inner = [] if calls_tools else [node[name] for name in _SUB_APPS if node.get(name)]
        nodes = as_list(inner[-1]) if inner else []
    return None


def any_failure(nodes: list[Any]) -> GatewayError | None:
    """Why an answer has no text: the failure of the latest failed node."""
    failed = [node for node in walk(nodes) if _run_error(node) or _http_error(node)]
    return _failure(failed[-1]) if failed else None


def _failure(node: dict[str, Any]) -> GatewayError | None:
    name = as_text(node.get("moduleName"))
    where = say("FastGPT's node {node!r}", node=clean(name, 100)) if name else "FastGPT"
    if message := _run_error(node):
        return explain_run(where, message)
    # The failure of an app's own HTTP request is unrelated to the model, its key or its limits.
    if message := _http_error(node):
        return UpstreamFailed(
            say(
                "{where} failed in its HTTP request: {message}",
                where=where,
                message=readable(message),
            )
        )
    return None


def _run_error(node: dict[str, Any]) -> str:
    if node.get("errorCaptured") is True:  # the flow handles it in a branch
        return ""
    return message_of(node.get("errorText")) or _error_message(node.get("error"))


def _http_error(node: dict[str, Any]) -> str:
    if node.get("errorCaptured") is True:
        return ""
    return _error_message(as_object(node.get("httpResult")).get("error"))


def _error_message(error: Any) -> str:
    """An error's message, with the vendor's code in front, as servers before 4.8.13 write it."""
    if not isinstance(error, dict):
        return as_text(error)
    message = message_of(error)
    code = as_text(error.get("code"))
    if not message:
        return json_text(error) if error else ""
    return message if not code or code in message or code.isupper() else f"{code} {message}"
