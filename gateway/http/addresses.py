"""One form for every address: what clients make of a base URL, put right before anything is routed.

Settings of clients end in a slash or not, with `/v1` or without it, or in the path of the other
surface, and clients append to them what they will.
"""

# Nearly all requests are for these, and as they should be.
USUAL = frozenset(("/v1/chat/completions", "/api/v1/chat", "/v1/models", "/livez", "/readyz"))

# Preliminary steps under /v1, of what the gateway has itself and of what it passes on.
_OPENAIS = frozenset(
    (
        "models", "files", "embeddings", "completions", "audio", "images", "moderations",
        "rerank", "responses", "messages",
    )
)  # fmt: skip
# Preliminary steps under /api/v1.
_OURS = frozenset(
    ("chat", "agents", "login", "auth", "api-keys", "tokens", "upload", "usage", "calls")
)
_PREFIX = frozenset(("v1", "api", "openai"))
_PLAIN = _PREFIX | _OPENAIS | {"chat", "health", "livez", "readyz", "metrics"}


def canonical(target: str) -> str:
    """The path and query at which a request is routed: `target` itself if it is as it should be."""
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
    """The steps with `/v1` or `/api/v1` in front of what belongs there, once."""
    at = next((i for i, step in enumerate(steps) if step not in _PREFIX), len(steps))
    prefix, rest = steps[:at], steps[at:]
    if rest[:2] == ["files", "uploads"] and not prefix:  # the link to an upload
        return steps
    if rest[:2] == ["chat", "completions"] or (rest and rest[0] in _OPENAIS):
        return ["v1", *rest]
    if rest and rest[0] in _OURS and "api" in prefix and "v1" in prefix:
        return ["api", "v1", *rest]
    return ["v1", *rest] if rest and "v1" in prefix and "api" not in prefix else steps
