"""The log at the start: the address, warnings, and in a terminal what to do next."""

import logging
import sys
from pathlib import Path

import pytest

from gateway.config import invocation
from gateway.config.load import load
from gateway.http.locality import NotFromHere
from gateway.server.greeting import greet, look_around


@pytest.fixture
def greeted(tmp_path, caplog, monkeypatch):
    def greeted(text="", *, for_people=True, **environ):
        path = tmp_path / "config.yaml"
        path.write_text(
            text or 'agents: {bot: {platform: dify, base_url: "${DIFY_BASE_URL:-demo:}"}}'
        )
        caplog.clear()
        caplog.set_level(logging.INFO, "gateway")
        config = load(path, environ)
        look_around(config, tmp_path)
        greet(config, path, 3000, for_people=for_people)
        return caplog.messages

    return greeted


def test_a_terminal_shows_what_to_do_next(greeted, tmp_path):
    lines = "\n".join(greeted())
    assert "listens on http://localhost:3000" in lines
    assert "try: curl http://localhost:3000/api/v1/chat -H 'Agent: bot'" in lines
    assert f"to make it your bot put DIFY_BASE_URL and DIFY_API_KEY into {tmp_path}/.env" in lines
    assert "docs: " in lines


def test_without_a_file_it_says_where_it_would_go(caplog, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO, "gateway")
    path = Path("config.yaml")
    greet(load(path, {}, built_in=True), path, 3000, for_people=True)
    told = caplog.text
    assert f"there is no {tmp_path / path}, so the built-in routing table is used" in told
    assert f"to write the file: {invocation.command()} init" in told
    assert "to make it your bot put FASTGPT_BASE_URL and FASTGPT_API_KEY into .env" in told


def test_json_logs_have_no_such_noise(greeted):
    lines = "\n".join(greeted(for_people=False))
    assert "listens on" in lines
    assert "curl" not in lines


def test_an_open_address_shows_the_one_for_others(greeted, monkeypatch):
    monkeypatch.setattr("gateway.server.greeting._lan_address", lambda: "192.168.1.7")
    lines = greeted(HOST="0.0.0.0")
    told = "\n".join(lines)
    assert lines[0].startswith("demo: a simulator answers for bot")
    assert "for others in your network: http://192.168.1.7:3000" in told
    assert "-H 'Authorization: Bearer <key>'" in told
    assert f"{invocation.command()} --config" in told
    (line,) = (line for line in lines if "keys create web" in line)
    assert line.strip().startswith(f"make a key with: cd {Path.cwd()} && ")


def test_a_config_without_variables_is_to_be_edited(greeted, tmp_path):
    lines = "\n".join(greeted("agents: {bot: {platform: dify}}"))
    assert f"set its base_url and api_key in {tmp_path}/config.yaml" in lines


def test_hints_name_the_interpreter_as_it_can_be_pasted(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv/bin/python"))
    monkeypatch.setattr(sys, "argv", ["run.py"])
    assert invocation.command() == ".venv/bin/python run.py"
    assert invocation.command(Path("config.yaml")) == ".venv/bin/python run.py"
    assert invocation.command(Path("/etc/my bot.yaml")) == (
        ".venv/bin/python run.py --config '/etc/my bot.yaml'"
    )
    monkeypatch.setattr(sys, "executable", "/opt/python3.13")
    assert invocation.command() == "/opt/python3.13 run.py"
    monkeypatch.setattr(sys, "argv", ["/opt/bin/ai-gateway"])
    assert invocation.command() == "/opt/bin/ai-gateway"


@pytest.mark.parametrize(
    ("started_as", "program"),
    [("/opt/bin/ai-gateway", "ai-gateway"), ("/srv/ai/run.py", "python run.py")],
)
def test_callers_learn_the_command_but_not_where_it_is(started_as, program, monkeypatch):
    monkeypatch.setattr(sys, "argv", [started_as])
    assert invocation.program() == program
    assert f"`{program} keys create`" in NotFromHere("why.").message
