"""What follows a failed attempt: `decide` is held against the table in docs/failures.md."""

import re
from pathlib import Path

import pytest

from gateway import errors
from gateway.chat.run import decide
from gateway.errors import GatewayError, UpstreamFailed
from gateway.platforms.failures import explain_http
from gateway.protocol.exchange import UpstreamReply

DOC = Path(__file__).parents[2] / "docs/failures.md"
REPORTED = "`upstream_failed`, `upstream_timeout` for an upstream's status 502, 503 or 504"


def reported(status: int) -> GatewayError:
    """The failure that an upstream reports with this status and nothing else."""
    return explain_http("Dify", UpstreamReply(status, {}, b""))


# The failures of the table by the first cell of their row.
FAILURES: dict[str, list[GatewayError]] = {
    "`upstream_unreachable`": [errors.UpstreamUnreachable("")],
    "`upstream_timeout` before there is a connection": [errors.UpstreamConnectTimeout("")],
    "`upstream_unavailable`": [errors.UpstreamUnavailable("")],
    "`rate_limit_exceeded` of the platform": [errors.RateLimited("", retryable=True)],
    REPORTED: [reported(502), reported(503), reported(504)],
    "any other `upstream_failed`, `upstream_cut`, `upstream_timeout`": [
        reported(500),
        reported(408),
        UpstreamFailed(""),
        errors.UpstreamCut(""),
        errors.UpstreamTimeout(""),
    ],
    "`upstream_auth_failed`, `insufficient_quota`": [
        errors.UpstreamMisconfigured(""),
        errors.QuotaExhausted(""),
    ],
    "an answer without content": [errors.EmptyAnswer("Dify")],
    "a request over the account's limit per minute": [errors.RateLimited("", elsewhere=True)],
    "`agent_busy`, `circuit_open`, `concurrency_limit_exceeded`": [
        errors.TargetBusy(""),
        errors.CircuitOpen(""),
        errors.ShareTaken(""),
    ],
    "`unsupported_file_kind`, `unsupported_parameter`": [
        errors.KindNotTaken(""),
        errors.OptionNotFollowed(""),
    ],
    "all others": [
        errors.InvalidRequest(""),
        errors.ContextTooLong(""),
        errors.ContentRefused(""),
        errors.BodyTooLarge(""),
        errors.UnsupportedMediaType(""),
        errors.ConversationNotFound(""),
        errors.ConversationBusy(""),
        errors.FileNotFound(""),
        errors.StorageUnavailable(),
        errors.InternalError(""),
    ],
}


def rows() -> dict[str, tuple[str, str]]:
    section = DOC.read_text("utf-8").partition("## What follows a failed attempt")[2]
    table = section.partition("\n## ")[0]
    cells = [re.split(r" *\| *", line)[1:-1] for line in table.splitlines() if line[:2] == "| "]
    return {what: (before, after) for what, before, after in cells[1:]}


def test_the_table_has_every_failure():
    assert list(rows()) == list(FAILURES)


@pytest.mark.parametrize("what", FAILURES)
def test_a_failure_is_decided_as_the_table_says(what):
    before, after = rows()[what]
    for error in FAILURES[what]:
        for accepted, expected in ((False, before), (True, after)):
            made = [
                decide(error, accepted=accepted, may_repeat=may_repeat, has_next=has_next)
                for may_repeat, has_next in ((True, True), (True, False), (False, True))
            ]
            assert (
                made
                == {
                    "again, then next": ["retry", "retry", "next"],
                    "next": ["next", "give up", "next"],
                    "given up": ["give up", "give up", "give up"],
                }[expected]
            ), (error, accepted)


@pytest.mark.parametrize("accepted", [False, True])
def test_without_time_and_targets_every_failure_is_given_up(accepted):
    for error in [error for row in FAILURES.values() for error in row]:
        last = decide(error, accepted=accepted, may_repeat=False, has_next=False)
        assert last == "give up"
