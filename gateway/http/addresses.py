"""Bring every request path into one form before it is routed.

Clients build addresses from a base URL that may end in a slash, may lack `/v1`, or may hold the
path of the other surface, and they append their own paths to it.
"""

# Nearly all requests use these paths, already in the right form.
USUAL = frozenset(("/v1/chat/completions", "/api/v1/chat", "/v1/models", "/livez", "/readyz"))

# First path segments under /v1: the gateway's own resources and those that it passes through.
_OPENAIS = frozenset(
    (
        "models", "files", "embeddings", "completions", "audio", "images", "moderations",
        "rerank", "responses", "messages",
    )
)  # fmt: skip
# First path segments under /api/v1.
_OURS = frozenset(
    (
        "chat", "agents", "conversations", "users", "login", "auth", "api-keys", "tokens",
        "upload", "usage", "calls",
    )
)  # fmt: skip
_BOTH = (["audio", "speech"], ["audio", "transcriptions"])  # that both surfaces have
_PREFIX = frozenset(("v1", "api", "openai"))
_PLAIN = _PREFIX | _OPENAIS | {"chat", "health", "livez", "readyz", "metrics"}


def canonical(target: str) -> str:
    """The path and query to route: `target` itself if its form is already right."""
    if not target.startswith("/"):
        return target
    path, mark, query = target.partition("?")
    steps = [step for step in path.split("/") if step]
    if not steps:
        return "/" + mark + query
    end = "" if steps[0] in _PLAIN or not path.endswith("/") else "/"
    clean = "/" + "/".join(_with_prefix(steps)) + end
    return target if clean == path else clean + mark + query


def _with_prefix(steps: list[str]) -> list[str]:
    """The path segments with exactly one `/v1` or `/api/v1` prefix where one belongs."""
    at = next((i for i, step in enumerate(steps) if step not in _PREFIX), len(steps))
    prefix, rest = steps[:at], steps[at:]
    if rest[:2] == ["files", "uploads"] and not prefix:  # the link to an upload
        return steps
    if rest in _BOTH and "api" in prefix and "v1" in prefix:
        return ["api", "v1", *rest]
    if rest[:2] == ["chat", "completions"] or (rest and rest[0] in _OPENAIS):
        return ["v1", *rest]
    if rest and rest[0] in _OURS and "api" in prefix and "v1" in prefix:
        return ["api", "v1", *rest]
    return ["v1", *rest] if rest and "v1" in prefix and "api" not in prefix else steps
