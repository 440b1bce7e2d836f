"""Errors carry facts, and do not change after they were made."""

import ast
from pathlib import Path

import pytest

from gateway.errors import GatewayError, MethodNotAllowed, UpstreamFailed, why

GATEWAY = Path(__file__).parent.parent / "gateway"
FACTS = {"cause", "elsewhere", "outage", "retry_after_s", "retryable", "should_retry"}
FACTS_BY_OTHER_NAMES = {"detail", "message", "param"}  # other objects have such members too


def assigned(source: str) -> set[str]:
    """What the code assigns to members of an object that is not `self`."""
    targets: list[ast.expr] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign):
            targets += node.targets
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets.append(node.target)
    return {
        f"{target.value.id}.{target.attr}"
        for each in targets
        for target in ast.walk(each)
        if isinstance(target, ast.Attribute)
        and isinstance(target.value, ast.Name)
        and target.value.id != "self"
    }


@pytest.mark.parametrize("path", sorted(GATEWAY.rglob("*.py")), ids=lambda path: path.stem)
def test_no_module_changes_an_error(path):
    changed = {name.partition(".")[::2] for name in assigned(path.read_text("utf-8"))}
    assert {(owner, fact) for owner, fact in changed if fact in FACTS} == set()
    of_errors = {"error", "failure", "failed", "stopped", "caught"}
    assert {it for it in changed if it[0] in of_errors and it[1] in FACTS_BY_OTHER_NAMES} == set()


def test_replace_makes_another_error():
    fault = OSError("no route")
    error = UpstreamFailed("It broke.", retryable=True, retry_after_s=2.0)
    error.__cause__ = fault
    other = error.replace(retryable=False, message="It broke again.")
    assert (other.retryable, other.message, str(other)) == (
        False,
        "It broke again.",
        "It broke again.",
    )
    assert (other.retry_after_s, other.code, other.__cause__) == (2.0, "upstream_failed", fault)
    assert (error.retryable, error.message) == (True, "It broke.")
    assert why(other) == "It broke again. (no route)"


def test_replace_keeps_what_a_class_adds():
    error = MethodNotAllowed("PUT", ["POST", "GET"])
    assert error.replace(param="x").allowed == "GET, POST"
    assert type(error.replace(param="x")) is MethodNotAllowed


def test_a_hidden_agents_name_is_replaced_by_the_routes():
    error: GatewayError = UpstreamFailed("Agent 'secret-bot': it broke.")
    assert error.renamed("secret-bot", "help").message == "Agent 'help': it broke."
    assert error.message == "Agent 'secret-bot': it broke."
