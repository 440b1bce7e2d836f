"""Read YAML: names, ids and keys stay strings, and each invalid section is reported by itself."""

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import yaml
from yaml.composer import ComposerError


class _Loader(yaml.SafeLoader):
    """SafeLoader that keeps nearly all scalars as strings.

    Names, ids and keys are often digits: `0123`, `12:34`, `1.10` and `yes` stay strings, and so
    does every key of a mapping. Only plain whole numbers, true, false and null are converted.
    """

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML reads this attribute

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        self.flatten_mapping(node)
        return {
            str(key.value) if isinstance(key, yaml.ScalarNode) else self.construct_object(key): (
                self.construct_object(value, deep=True)
            )
            for key, value in node.value
        }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^(?:0|-?[1-9][0-9]{0,17})$"), list("-0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"^<<$"), ["<"])


def read_yaml(text: str, problems: list[str]) -> tuple[Any, bool]:
    """The tree without the sections that are invalid YAML, which are reported in `problems`; and
    whether it is whole."""
    found: list[str] = []
    tree = _compose(text, found)
    is_whole = tree is not None or not found
    if not is_whole:
        parts = {name: _compose(part, found) for name, part in _sections(text)}
        # A complete section is a mapping with its name as the key.
        tree = {
            name: part[name]
            for name, part in parts.items()
            if isinstance(part, dict) and name in part
        } or None
    # The whole file and its section may report the same fault differently; keep one per line.
    problems += {line.partition(":")[0] if line.startswith("line ") else line: line
                 for line in reversed(found)}.values()  # fmt: skip
    return tree, is_whole


def _sections(text: str) -> Iterator[tuple[str, str]]:
    """(name, text) of each section that begins at the left margin, padded with empty lines so that
    line numbers are those of the file."""
    lines = text.splitlines()
    begins = [i for i, line in enumerate(lines) if re.match(r"[A-Za-z_]+\s*:", line)]
    for begin, end in pairwise([*begins, len(lines)]):
        part = "\n" * begin + "\n".join(lines[begin:end]) + "\n"
        yield lines[begin].partition(":")[0].strip(), part


def _compose(text: str, problems: list[str]) -> Any:
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        problems += _duplicates(root, "")
        return loader.construct_document(root) if root else None
    except ComposerError as error:
        if "undefined alias" not in str(error.problem):  # another section may define it
            problems.append(_yaml_problem(error))
    except yaml.MarkedYAMLError as error:
        problems.append(_yaml_problem(error))
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        problems.append("the file is not valid YAML")
    finally:
        loader.dispose()
    return None


def _yaml_problem(error: yaml.MarkedYAMLError) -> str:
    line = error.problem_mark.line + 1 if error.problem_mark else "?"
    begun = error.context_mark.line + 1 if error.context_mark else line
    problem = error.problem or ""
    advice = next((advice for seen, advice in _YAML_ADVICE if re.search(seen, problem)), "")
    # The parser quotes what it cannot read, which may be an unquoted secret.
    # Short text, or text in angle brackets, is YAML's own.
    plain = re.sub(r"'(?!<)[^']{3,}'|\"[^\"]{3,}\"", "…", problem)
    text = advice.format(begun=begun) or f"{plain}; put odd values in quotes"
    return f"line {line}: not valid YAML: {text}"


# PyYAML's message, and advice. `begun` is the line of the enclosing bracket, quote or mapping.
_YAML_ADVICE = (
    (r"'\\t'", "a tab stands there; indent with spaces"),
    (
        r"expected ',' or '[}\]]'",
        "the bracket that opens on line {begun} is not closed, or a comma is missing",
    ),
    (
        r"<block end>, but found '(?:<block |-)|no such indent",
        "the indentation does not fit the lines before; what belongs together (from line {begun})"
        " begins in the same column",
    ),
    (
        r"<block end>, but found '<scalar>",
        "text follows a closing quote; put the whole value in quotes, or check the indentation",
    ),
    (
        "mapping values are not allowed",
        "a value with ': ' in it needs quotes; if there is none, check the indentation",
    ),
    ("could not find expected ':'", "a name without ':' behind it begins on line {begun}"),
    ("unexpected end of stream", "the quote that opens on line {begun} is not closed"),
    ("unknown escape", "a \\ in double quotes is special; use single quotes"),
)


def _duplicates(node: yaml.Node | None, path: str) -> Iterator[str]:
    """Keys that occur twice in one mapping; YAML parsers silently keep the last one."""
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            yield from _duplicates(item, f"{path}[{i}]")
    elif isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            here = f"{path}.{key.value}".lstrip(".")
            if str(key.value) in seen:
                yield f"{here}: given twice (again on line {key.start_mark.line + 1})"
            seen.add(str(key.value))
            yield from _duplicates(value, here)
