"""pydantic's errors as sentences about config.yaml, each with the path of its option."""

import difflib
from collections.abc import Iterable, Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from gateway.config import kinds
from gateway.config.models import Config, RouteTarget


def problems_of(error: ValidationError, tree: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Each problem as (line, path), in plain English and with the nearest known name. pydantic
    reports one error per type of a union; together they are one problem."""
    found: dict[str, list[str]] = {}
    for item in error.errors(include_url=False, include_input=False):
        path = _path(item["loc"], tree)
        kind, message = item["type"], item["msg"].removeprefix("Value error, ")
        if kind == "extra_forbidden":
            name = str(item["loc"][-1])
            message = "unknown key" + nearest(name, _known_keys(item["loc"], tree))
        elif kind in ("union_tag_invalid", "union_tag_not_found"):
            path, message = _explain_platform(path, _at(tree, item["loc"]) or {})
        else:
            message = _MESSAGES.get(kind, message.replace("Input should be ", "must be "))
        found.setdefault(path, []).append(message[:1].lower() + message[1:])
    for path, messages in found.items():
        first, *more = dict.fromkeys(messages)
        others = "".join(f", or {each.removeprefix('must be ')}" for each in more)
        yield f"{path}: {first}{others}", path


# pydantic's messages name Python types; the file is YAML.
_MESSAGES = {
    "missing": "is missing",
    "string_pattern_mismatch": "contains characters that are not allowed here",
    "too_short": "must have at least one entry",
    "dict_type": "must be a mapping (lines of `name: value`)",
    "model_type": "must be a mapping (lines of `name: value`)",
    "model_attributes_type": "must be a mapping (lines of `name: value`)",
    "list_type": "must be a list",
    "string_type": "must be a text; put it in quotes",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
}


def _explain_platform(path: str, agent: dict[str, Any]) -> tuple[str, str]:
    """(path, message) for an agent whose platform is unknown, perhaps due to a typo in the key."""
    known = kinds.known()
    for key in agent:
        if "platform" not in agent and difflib.get_close_matches(key, ["platform"], 1, 0.7):
            return f"{path}.{key}", "unknown key; did you mean platform?"
    near = nearest(str(agent.get("platform")), known)
    return f"{path}.platform", f"must be one of {', '.join(known)}{near}"


def _path(loc: Iterable[Any], tree: Any) -> str:
    """`agents.dify.timeouts.idle` for pydantic's loc, without the tags of unions."""
    out, node = "", tree
    for step in loc:
        if isinstance(step, int):
            out += f"[{step}]"
            node = node[step] if isinstance(node, list) and step < len(node) else None
            continue
        known = isinstance(node, dict) and step in node
        if not known and (step in kinds.known() or step in _UNION_STEPS or "[" in step):
            continue
        out += f".{step}"
        node = node.get(step) if isinstance(node, dict) else None
    return out.lstrip(".") or "the file"


_UNION_STEPS = {"str", "bool", "int", "float"}


def _at(tree: Any, loc: Iterable[Any]) -> Any:
    for step in loc:
        if isinstance(tree, dict):
            tree = tree.get(step, tree)
        elif isinstance(tree, list) and isinstance(step, int):
            tree = tree[step]
    return tree if isinstance(tree, dict) else None


def _known_keys(loc: tuple[Any, ...], tree: dict[str, Any]) -> list[str]:
    """The names that are valid where an unknown key was found."""
    model: Any = Config
    for step in loc[:-1]:
        kind = kinds.find(step) if isinstance(step, str) and model is not Config else None
        if kind is not None:
            model = kind.options
        elif model is Config and step == "routes":
            model = RouteTarget
        elif (
            isinstance(step, str) and hasattr(model, "model_fields") and step in model.model_fields
        ):
            model = _model_of(model.model_fields[step].annotation) or model
    return list(getattr(model, "model_fields", {}))


def _model_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _model_of(arg))), None)


def nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name.lower(), list(known), 1, 0.6)
    return f"; did you mean {near[0]}?" if near else ""
