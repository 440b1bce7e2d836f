"""The catalogue of Chinese sentences against the sentences in the code."""

import ast
import re
import string
from collections.abc import Iterator
from pathlib import Path

import orjson

PACKAGE = Path(__file__).parent.parent.parent / "gateway"
CATALOGUE = PACKAGE / "language" / "zh.json"
# What they say reaches operators only.
FOR_OPERATORS = {"cli", "admin", "demo"}
# Errors that take something else than a message.
OWN_SENTENCE = {"EmptyAnswer", "MethodNotAllowed", "NotFromHere"}


def trees() -> dict[str, ast.Module]:
    paths = (path.relative_to(PACKAGE) for path in sorted(PACKAGE.rglob("*.py")))
    return {
        path.as_posix(): ast.parse((PACKAGE / path).read_text("utf-8"))
        for path in paths
        if path.parts[0].removesuffix(".py") not in FOR_OPERATORS
    }


TREES = trees()


def error_classes() -> set[str]:
    found, before = {"GatewayError", "NoWay"}, set[str]()
    classes = [n for tree in TREES.values() for n in ast.walk(tree) if isinstance(n, ast.ClassDef)]
    while found != before:
        before = set(found)
        found |= {c.name for c in classes if before & {getattr(b, "id", "") for b in c.bases}}
    return found - OWN_SENTENCE


ERRORS = error_classes()


def name_of(call: ast.Call) -> str:
    """The called function's name; `super().__init__` in an error is one of `ERRORS`."""
    function = call.func
    if isinstance(function, ast.Attribute):
        return "GatewayError" if function.attr == "__init__" else function.attr
    return getattr(function, "id", "")


def calls() -> Iterator[tuple[str, ast.Call]]:
    """(place, call) of each call that takes a sentence."""
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            is_init = isinstance(node, ast.Call) and ast.unparse(node.func) == "super().__init__"
            if isinstance(node, ast.Call) and node.args and (path == "errors.py" or not is_init):
                name = name_of(node)
                if name == "say" or name in ERRORS:
                    yield f"{path}:{node.lineno}", node


def pieces(node: ast.expr) -> Iterator[ast.expr]:
    """The expressions of which one is the sentence."""
    if isinstance(node, ast.IfExp):
        yield from pieces(node.body)
        yield from pieces(node.orelse)
    elif isinstance(node, ast.BoolOp):
        for value in node.values:
            yield from pieces(value)
    else:
        yield node


def assigned(path: str, name: str) -> Iterator[ast.expr]:
    """The values that a module gives to a variable."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Assign) and name in map(ast.unparse, node.targets):
            yield from pieces(node.value)


def sentences() -> dict[str, str]:
    """The places of all sentences."""
    found: dict[str, str] = {}
    for place, call in calls():
        for piece in pieces(call.args[0]):
            if isinstance(piece, ast.Constant) and piece.value:
                found.setdefault(piece.value, place)
    return found


def placeholders(text: str) -> set[tuple[str, str | None, str | None]]:
    """(name, conversion, format) of each one; a text that is not formatted may have braces."""
    try:
        return {(n, c, f) for _, n, f, c in string.Formatter().parse(text) if n is not None}
    except ValueError:
        return set()


def entries() -> list[tuple[str, str]]:
    """The catalogue as it is written; a JSON parser would keep the last of two equal keys."""
    lines = CATALOGUE.read_text("utf-8").splitlines()[1:-1]
    return [tuple(*orjson.loads(f"{{{line.removesuffix(',')}}}").items()) for line in lines]


CHINESE = dict(entries())


def test_every_sentence_is_in_the_catalogue():
    assert {text: place for text, place in sentences().items() if text not in CHINESE} == {}


def test_the_catalogue_has_no_other_sentence():
    assert CHINESE.keys() - sentences().keys() == set()


def test_no_sentence_is_there_twice():
    assert len(entries()) == len(CHINESE)


def test_both_languages_have_the_same_placeholders():
    wrong = {en: zh for en, zh in CHINESE.items() if placeholders(en) != placeholders(zh)}
    assert wrong == {}


def test_no_english_word_is_left():
    """Names are written as they are; a sentence has a small letter after a space."""
    plain = {text: re.sub(r"'[^']*'|\{[^{}]*\}", "", text) for text in CHINESE}
    english = [text for text, words in plain.items() if re.search(r"(^|\s)[a-z]", words)]
    left = [text for text in english if not re.search("[一-鿿]", CHINESE[text])]
    written = {CHINESE[text].strip() for text in left}
    assert written == {"key", "token"}  # as engineers in China write them, too


def test_what_is_quoted_stays_as_it_is():
    """Names of members and options, paths and commands."""
    for english, chinese in CHINESE.items():
        quoted = re.findall(r"(?<!\w)'[^']+'(?!\w)|`[^`]+`|/(?:api/)?v1/[a-z/-]*[a-z]", english)
        assert [part for part in quoted if part not in chinese] == [], english


def test_an_error_takes_no_text_that_is_put_together():
    """An f-string or a sum is no key of the catalogue: it must be a `say`."""
    wrong = []
    for place, call in calls():
        for piece in pieces(call.args[0]):
            values = [piece]
            if isinstance(piece, ast.Name):
                values = list(assigned(place.partition(":")[0], piece.id))
            if any(isinstance(value, ast.JoinedStr | ast.BinOp) for value in values):
                wrong.append(place)
            literal = any(isinstance(value, ast.Constant) and value.value for value in values)
            if isinstance(piece, ast.Name) and literal:
                wrong.append(place)
    assert wrong == []
