"""The JSON Schema of config.yaml for editors, generated from the models."""

from typing import Any

from gateway.config.kinds import config_model

_VARIABLE = {"type": "string", "pattern": r"\$\{"}  # ${NAME} may replace any scalar


def config_schema() -> dict[str, Any]:
    schema = config_model().model_json_schema(mode="validation")
    allowed = _allow_variables(schema)
    assert isinstance(allowed, dict)
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "config.yaml of AI Gateway",
    }
    return head | {key: value for key, value in allowed.items() if key != "title"}


def _allow_variables(node: Any) -> Any:
    """Accept a variable wherever the schema requires a number, a boolean or an enum value."""
    if isinstance(node, list):
        return [_allow_variables(item) for item in node]
    if not isinstance(node, dict):
        return node
    out = {key: _allow_variables(value) for key, value in node.items() if key != "default"}
    if "default" in node:
        out["default"] = node["default"]
    is_scalar = out.get("type") in ("integer", "number", "boolean") or "enum" in out
    if not is_scalar:
        return out
    kept = {key: out.pop(key) for key in ("default", "title", "description") if key in out}
    return {"anyOf": [out, _VARIABLE], **kept}
