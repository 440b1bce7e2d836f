"""FastGPT's node results: what was counted, cited and put out, and on which node a run failed.

A failed node is silent from 4.8.13 on: the stream ends like any other, and only its result tells.
"""

import re
from collections.abc import Iterator
from typing import Any

from gateway.errors import GatewayError, UpstreamFailed, clean
from gateway.failures import explain_words
from gateway.messages import Usage
from gateway.platforms.base import as_list, as_object, as_text, json_text
from gateway.usage import as_count

MAX_NODES = 5000
_MOST = 2000  # characters of a failure's words
MAX_DEPTH = 20  # of sub-apps in each other; FastGPT's own limit
_SUB_APPS = ("pluginDetail", "loopDetail", "childrenResponses")
_NESTED = ("toolDetail", *_SUB_APPS)
_TOOL_CALLERS = ("tools", "agent")  # what they call may fail, and they answer all the same


def walk(nodes: list[Any]) -> Iterator[dict[str, Any]]:
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


def tokens(nodes: list[Any]) -> Usage | None:
    """Real tokens, summed over nodes; the top-level `usage` of FastGPT is always 1/1/1."""
    usage = Usage()
    for node in walk(nodes):
        _count(as_object(node.get("queryExtensionResult")), usage)
        if node.get("moduleType") != "datasetSearchNode":  # whose own tokens are embeddings
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
            scores = [as_object(score).get("value") for score in as_list(quote.get("score"))]
            text = filter(None, (as_text(quote.get("q")), as_text(quote.get("a"))))
            score = next((s for s in scores if isinstance(s, int | float)), None)
            title = as_text(quote.get("sourceName"))
            out.append({"title": title, "text": "\n".join(text), "score": score})
    return out


def what_plugin_gave(nodes: list[Any]) -> str:
    """The result of a plugin app, which sends no text: its one string, or all of it as JSON."""
    for node in walk(nodes):
        output = as_object(node.get("pluginOutput"))
        if node.get("moduleType") == "pluginOutput" and output:
            words = [value for value in output.values() if isinstance(value, str) and value]
            return words[0] if len(words) == 1 else json_text(output)
    return ""


def model_finish(nodes: list[Any]) -> str:
    """Why the last model stopped, `length` or `content_filter`; "" if it came to its own end.

    The answer's frames always say `stop`.
    """
    for node in reversed(nodes):
        reason = as_text(as_object(node).get("finishReason"))
        if reason:
            return reason if reason in ("length", "content_filter") else ""
        children = [child for name in _SUB_APPS for child in as_list(as_object(node).get(name))]
        if any("finishReason" in as_object(child) for child in children):
            return model_finish(children)
    return ""


def choice_made(nodes: list[Any]) -> str:
    """What was taken for the answer to a bot's question, if the run ended with that."""
    return as_text(as_object(nodes[-1] if nodes else None).get("userSelectResult"))


def last_failure(nodes: list[Any]) -> GatewayError | None:
    """Why the last node failed: the text that came is not the whole answer then.

    A failed node that others follow was handled by the app.
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
    """Why an answer without text has none: the latest of the nodes that failed."""
    failed = [error for node in walk(nodes) if (error := _failure(node))]
    return failed[-1] if failed else None


def _failure(node: dict[str, Any]) -> GatewayError | None:
    if node.get("errorCaptured") is True:  # the flow has a branch for it
        return None
    name = as_text(node.get("moduleName"))
    where = f"FastGPT's node {clean(name, 100)!r}" if name else "FastGPT"
    if words := as_text(node.get("errorText")) or _error_words(node.get("error")):
        return explain_words(where, readable(words))
    # What an app's own HTTP request met says nothing of the model, its key or its limits.
    if words := _error_words(as_object(node.get("httpResult")).get("error")):
        return UpstreamFailed(f"{where} failed in its HTTP request: {readable(words)}")
    return None


def _error_words(error: Any) -> str:
    """An error's message, with the vendor's code before it, as servers before 4.8.13 write it."""
    if not isinstance(error, dict):
        return as_text(error)
    words = as_text(error.get("message")) or as_text(error.get("msg"))
    code = as_text(error.get("code"))
    if not words:
        return json_text(error) if error else ""
    return words if not code or code in words or code.isupper() else f"{code} {words}"


_NAMESPACES = r"(?:common|chat|app|workflow|dataset|user|account\w*|file|publish|plugin|login)"
_KEY = re.compile(
    rf"(?<!\S){_NAMESPACES}:[A-Za-z_][\w.-]*(?!\S)"
    r"|^[a-z][a-z_]*:[A-Za-z_][\w.-]*$|^(?:common|core|error|support)(?:\.\w+)+$"
)
_KEYS_MEANING = {
    "LLM_model_response_empty": "the model sent an empty answer",
    "AI_input_is_empty": "the model was given no question",
}
_PAGE = re.compile(r"<(?:!doctype|html|head|body)\b", re.IGNORECASE)


def readable(words: str, otherwise: str = "") -> str:
    """FastGPT's words without what no reader understands: keys of translations, a missing code
    (`null …`), a proxy's web page. `otherwise` if nothing is left."""
    words = words[:_MOST].removeprefix("null ").strip()
    if page := _PAGE.search(words):
        words = f"{words[: page.start()]} it got a web page"
    words = _KEY.sub(lambda key: _KEYS_MEANING.get(key[0].partition(":")[2], ""), words)
    return clean(words) or clean(otherwise)
