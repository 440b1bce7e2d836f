"""The log in a terminal and elsewhere, and a failed request's line."""

import io
import json
import logging
import re
import time

import pytest

from gateway.errors import DatabaseUnavailable, InvalidRequest, describe_fault, why
from gateway.telemetry import logs
from gateway.telemetry.accesslog import AccessLog, level_of
from gateway.times import stamp

LINE = {
    "time": "t", "level": "error", "message": "request", "request_id": "req-1", "method": "POST",
    "path": "/api/v1/chat", "status": 502, "ms": 34.4, "address": "10.0.0.9", "user_agent": "curl",
    "caller": "key-web", "agent": "dify", "attempts": 1, "error": "upstream_auth_failed",
    "reason": "Dify refuses the key.",
}  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def root(monkeypatch):
    """The root logger, restored afterwards."""
    logger = logging.getLogger()
    before, level = logger.handlers[:], logger.level
    monkeypatch.delenv("NO_COLOR", raising=False)
    yield logger
    logger.handlers, logger.level = before, level


def written(stream, form):
    """(a log's line, a request's line)."""
    logging.getLogger().handlers = []  # pytest's own
    access_log = logs.set_up("INFO", form, stream)
    logging.getLogger("gateway").warning("watch %s", "out")
    line = stream.getvalue()
    return line, access_log.render(LINE)


def test_elsewhere_every_line_is_json():
    line, request = written(io.StringIO(), "auto")
    told = json.loads(line)
    assert (told["level"], told["logger"], told["message"]) == ("warning", "gateway", "watch out")
    assert json.loads(request) == LINE
    assert line.startswith('{"time":"')  # the same spacing as orjson's
    assert request.startswith('{"time":"')


def test_a_secret_is_shown_in_the_logs_form_and_not_logged(capsys, caplog):
    for form, shown in (("text", "secret 1"), ("json", '"logger":"gateway","message":"secret 1"}')):
        access_log = logs.set_up("INFO", form, io.StringIO())
        access_log.show("secret 1")
        assert capsys.readouterr().err.endswith(f"{shown}\n")
    AccessLog().show("secret 1")
    assert capsys.readouterr().err == "secret 1\n"
    assert caplog.messages == []


def test_at_a_terminal_lines_are_short_and_coloured():
    line, request = written(Terminal(), "auto")
    time_ = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d"
    assert re.fullmatch(rf"\x1b\[33m{time_} WARNING watch out\x1b\[0m\n", line)
    words = r"POST /api/v1/chat 502 34ms dify key-web 10.0.0.9"
    assert re.fullmatch(
        rf"\x1b\[31m{time_} ERROR   {words} upstream_auth_failed: Dify refuses the key\. \[req-1\]\x1b\[0m",
        request,
    )


def test_no_color_and_the_switch_are_heeded(monkeypatch):
    assert json.loads(written(Terminal(), "json")[0])["message"] == "watch out"
    assert "\x1b" not in "".join(written(io.StringIO(), "text"))
    monkeypatch.setenv("NO_COLOR", "1")
    line, request = written(Terminal(), "auto")
    assert "\x1b" not in line + request
    assert "WARNING watch out" in line


@pytest.mark.parametrize(
    ("status", "has_failed", "level"),
    [(200, False, "INFO"), (304, False, "INFO"), (499, False, "INFO"), (499, True, "INFO"),
     (400, True, "WARNING"), (401, True, "WARNING"), (429, True, "WARNING"),
     (500, True, "ERROR"), (502, True, "ERROR"), (503, False, "ERROR"), (200, True, "ERROR")],
)  # fmt: skip
def test_the_level_of_a_request_is_its_outcome(status, has_failed, level):
    assert logging.getLevelName(level_of(status, has_failed)) == level


def test_what_a_caller_sends_cannot_colour_or_break_a_line():
    request = logs.RequestText(False)({**LINE, "path": "/\x1b[31m\nINFO faked"})
    assert "\x1b" not in request
    assert "\n" not in request


def test_all_lines_have_one_time_zone_with_its_offset(monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Shanghai")
    time.tzset()
    try:
        assert stamp(1_700_000_001.25) == "2023-11-15T06:13:21.250+08:00"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_the_reason_has_the_underlying_fault_and_no_secret():
    error = DatabaseUnavailable()
    error.__cause__ = OSError(
        "cannot reach postgresql://gw:Pa55w0rd@db:5432/gw, key sk-12345678abc"
    )
    assert why(error) == (
        "The database does not answer; try again shortly."
        " (cannot reach postgresql://***@db:5432/gw, key ***)"
    )
    assert describe_fault(TimeoutError()) == "no answer in time"
    assert describe_fault(ConnectionResetError()) == "ConnectionResetError"
    assert len(why(InvalidRequest("x" * 5000))) <= 500


def test_half_a_character_is_no_reason_to_lose_a_line():
    record = logging.LogRecord("gateway", logging.INFO, "", 0, "file \udc80", (), None)
    assert json.loads(logs.JsonFormatter().format(record))["message"] == "file \udc80"


def test_an_embedded_application_logs_json_too(caplog):
    caplog.set_level(logging.INFO, "gateway.access")
    log = AccessLog()
    log.add(logging.ERROR, log.render(LINE))
    assert json.loads(caplog.messages[0]) == LINE
    assert caplog.records[0].levelname == "ERROR"
    assert not log.for_people
