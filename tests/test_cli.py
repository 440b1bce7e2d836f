"""The commands as a user runs them: another process, real sockets, real signals."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import aiohttp
import pytest
from servers import free_port

ROOT = Path(__file__).parent.parent
RUN_PY = (sys.executable, str(ROOT / "run.py"))
# Of the environment only what a process needs; `make coverage` measures it by its own variables.
KEPT = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}
CLEAN = {"PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1", **KEPT}


def run(*args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "run.py", *args]
    env = {**CLEAN, "DATABASE_URL": "none", **environ}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=20)


def has_begun(log: list[str]) -> bool:
    return any("listens on" in line for line in log)


async def answers(port: int, path: str) -> bool:
    try:
        url = f"http://127.0.0.1:{port}{path}"
        async with aiohttp.ClientSession() as client, client.get(url) as answer:
            return answer.status == 200
    except aiohttp.ClientConnectionError:
        return False


@asynccontextmanager
async def serving(
    *args: str, ready: str = "", cwd: Path = ROOT, command: tuple[str, ...] = RUN_PY, **environ: str
):
    """A running gateway: (process, port, log lines so far). It is ready when its log says so or,
    where `LOG_LEVEL` hides that, when the path `ready` answers."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *command, *args, "--port", str(port), cwd=cwd,
        env={**CLEAN, "DATABASE_URL": "none", **environ}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    log: list[str] = []

    async def read() -> None:
        async for line in process.stdout:
            log.append(line.decode())

    reading = asyncio.ensure_future(read())
    try:
        async with asyncio.timeout(20):
            while not (await answers(port, ready) if ready else has_begun(log)):
                assert process.returncode is None, log
                await asyncio.sleep(0.02)
        yield process, port, log
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await reading


async def test_the_first_command_answers_and_term_ends_it():
    async with serving() as (process, port, log), aiohttp.ClientSession() as client:
        url = f"http://127.0.0.1:{port}"
        headers = {"agent": "dify", "x-request-id": "my-id-1"}
        body = {"query": "你好", "user": "test_user"}
        answer = await client.post(f"{url}/api/v1/chat", json=body, headers=headers)
        assert "demo" in (await answer.json())["choices"][0]["message"]["content"]
        assert run("probe", "--port", str(port)).returncode == 0
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 20) == 0
    line = json.loads(next(line for line in log if '"request_id"' in line))
    assert line.items() >= {
        "request_id": "my-id-1", "method": "POST", "path": "/api/v1/chat", "status": 200,
        "address": "127.0.0.1", "agent": "dify", "attempts": 1,
    }.items()  # fmt: skip
    assert line["caller"].startswith("anonymous-")


async def metrics(client: aiohttp.ClientSession, port: int) -> str:
    async with client.get(f"http://127.0.0.1:{port}/metrics") as answer:
        return await answer.text()


async def test_term_drains_streams_and_a_second_one_exits():
    async with serving() as (process, port, _), aiohttp.ClientSession() as client:
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        body = {"model": "dify", "stream": True, "messages": [{"role": "user", "content": "你好"}]}
        answer = await client.post(url, json=body)
        await answer.content.readany()
        process.send_signal(signal.SIGTERM)
        rest = await answer.read()
        assert rest.endswith(b"data: [DONE]\n\n")
        assert await asyncio.wait_for(process.wait(), 20) == 0
    async with serving() as (process, port, log), aiohttp.ClientSession() as client:
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        body["messages"][0]["content"] = "#slow"
        asking = asyncio.ensure_future(client.post(url, json=body))
        async with asyncio.timeout(20):
            while 'gateway_agent_running{agent="dify"} 1.0' not in await metrics(client, port):
                await asyncio.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            while not any("Stopping; 1 request" in line for line in log):
                await asyncio.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 20) == 1
        await asyncio.wait({asking})
        assert asking.exception() is not None


async def test_the_log_can_be_json_in_every_line():
    async with serving("--log-format", "json") as (process, port, log):
        async with aiohttp.ClientSession() as client:
            (await client.get(f"http://127.0.0.1:{port}/v1/models")).close()
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 20) == 0
    lines = [json.loads(line) for line in log]
    assert {"time", "level", "message"} <= set.intersection(*(set(line) for line in lines))
    assert any(line.get("path") == "/v1/models" for line in lines)
    assert "LOG_FORMAT" in run("serve", LOG_FORMAT="xml").stderr


async def test_the_first_password_is_json_in_a_json_log(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("agents: {a: {platform: dify}}")
    async with serving("--config", str(config), DATABASE_URL="sqlite:///g.db") as (_, _, log):
        lines = [json.loads(line) for line in log]
    (told,) = (line for line in lines if "its password" in line["message"])
    assert told["message"].startswith("Account 'admin' was made; its password, shown only now: ")
    assert told["level"] == "warning"


def test_what_stops_the_start_is_json_in_a_json_log():
    for environ, words in (
        ({"HOST": "192.0.2.1"}, "this machine has no such address: set HOST"),
        ({"DATABASE_URL": "sqlite:////nowhere/g.db"}, "Is a disk not mounted?"),
    ):
        lines = [json.loads(line) for line in run("--port", "0", **environ).stderr.splitlines()]
        assert lines[-1]["level"] == "critical"
        assert words in lines[-1]["message"]


@pytest.mark.parametrize("form", ["json", "text"])
async def test_a_higher_log_level_keeps_failed_requests(form):
    faults = {"hi": 200, "#fail": 502, "#cut": 200}
    async with serving("--log-format", form, LOG_LEVEL="WARNING", ready="/readyz") as (
        process, port, log,
    ), aiohttp.ClientSession() as client:  # fmt: skip
        url = f"http://127.0.0.1:{port}/api/v1/chat"
        for query, status in faults.items():
            body = {"query": query, "user": "u", "stream": True}
            async with client.post(url, json=body, headers={"agent": "dify"}) as answer:
                assert answer.status == status
                await answer.read()
        async with client.post(url, json={}, headers={"agent": "nope"}) as answer:
            assert answer.status == 404
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 20) == 0
    if form == "json":
        told = [json.loads(line) for line in log]
        levels = [(line["level"], line["status"]) for line in told if "status" in line]
    else:
        lines = [line.split() for line in log if " /api/v1/chat " in line]
        levels = [(line[2].lower(), int(line[5])) for line in lines]
    assert levels == [("error", 502), ("error", 200), ("warning", 404)]


def test_closed_output_causes_no_traceback():
    command = f"{sys.executable} run.py schema | head -c 100"
    told = subprocess.run(
        command, shell=True, cwd=ROOT, env=CLEAN, capture_output=True, text=True, timeout=20
    )
    assert "$schema" in told.stdout
    assert told.stderr == ""


def test_without_its_packages_every_command_says_what_to_do():
    for command in (["check"], ["serve"], ["keys", "list"], ["schema"], []):
        told = subprocess.run(
            [sys.executable, "-S", "run.py", *command], cwd=ROOT, env=CLEAN, capture_output=True,
            text=True, timeout=20,
        )  # fmt: skip
        assert told.returncode == 1
        assert "make install" in told.stderr
        assert "Traceback" not in told.stderr


def test_check_reports_problems_and_exits_with_1(tmp_path):
    good = run("check")
    assert (good.returncode, good.stderr) == (0, "")
    assert "dify: dify at demo" in good.stdout
    bad = tmp_path / "bad.yaml"
    odd = "base_url: 'https://d.example.com/v1', api_key: fastgpt-12345678"
    bad.write_text(f"agents: {{a: {{platform: dfy}}, b: {{platform: dify, {odd}}}}}\nsever: {{}}\n")
    option = ["--config", str(bad)]
    for command in (["check", *option], [*option, "check"], ["serve", *option], option):
        told = run(*command)
        assert told.returncode == 1
        assert "did you mean dify?" in told.stderr
        assert "sever: unknown key; did you mean server?" in told.stderr
        assert "2 problems" in told.stderr
        assert "warning: agents.b.api_key: looks like a key of FastGPT" in told.stderr
        assert "Traceback" not in told.stderr


def run_in(folder: Path, *args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RUN_PY, *args],
        cwd=folder,
        env={**CLEAN, **environ},
        capture_output=True,
        text=True,
        timeout=20,
    )


def test_a_named_config_that_is_missing_is_an_error(tmp_path):
    by_option = run_in(tmp_path, "keys", "create", "web", "--config", "config.yaml")
    by_variable = run_in(tmp_path, "check", GATEWAY_CONFIG="config.yaml")
    for told in (by_option, by_variable):
        assert told.returncode == 1
        assert f"there is no {tmp_path}/config.yaml: name the file with --config" in told.stderr
        assert "GATEWAY_CONFIG" in told.stderr


def test_an_empty_folder_gets_the_built_in_table(tmp_path):
    told = run_in(tmp_path, "check")
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.startswith("the built-in config.yaml (no config.yaml): ok\n")
    assert told.stdout.splitlines()[1:] == run("check").stdout.splitlines()[1:]
    told = run_in(tmp_path, "keys", "create", "web")
    assert told.returncode == 1  # only a start makes a database
    assert str(tmp_path / "data/gateway.db") in told.stderr
    (tmp_path / ".env").write_text("PORT=many\n")
    told = run_in(tmp_path, "check")
    assert told.stderr.startswith("the built-in config.yaml (no config.yaml): 1 problem\n")
    assert "there is no" not in told.stderr


def test_init_writes_both_files_and_never_overwrites(tmp_path):
    told = run_in(tmp_path, "init")
    assert (told.returncode, told.stderr) == (0, "")
    config, env = tmp_path / "config.yaml", tmp_path / ".env"
    first, *lines = config.read_text("utf-8").splitlines()
    assert lines == (ROOT / "config.yaml").read_text("utf-8").splitlines()[1:]
    schema = Path(url2pathname(urlsplit(first.partition("=")[2]).path))
    assert schema.samefile(ROOT / "config/config.schema.json")
    assert env.stat().st_mode & 0o077 == 0
    named = set(re.findall(r"^#([A-Z0-9_]+)=", env.read_text("utf-8"), re.M))
    assert named >= {"DIFY_BASE_URL", "DIFY_API_KEY", "COZE_BOT_ID", "OPENAI_MODEL"}
    assert named <= set(re.findall(r"\$\{([A-Z0-9_]+)", config.read_text("utf-8")))
    assert f"{config.name} is written" in told.stdout
    assert "run.py check" in told.stdout
    env.write_text("DIFY_API_KEY=mine\n")
    config.write_text("agents: {mine: {platform: dify}}\n")
    again = run_in(tmp_path, "init")
    assert again.returncode == 0
    assert again.stdout.count("stays as it is") == 2
    assert (env.read_text(), "mine" in config.read_text()) == ("DIFY_API_KEY=mine\n", True)


def test_init_names_the_file_that_cannot_be_written(tmp_path):
    told = run_in(tmp_path, "init", "--config", "missing/config.yaml")
    assert told.returncode == 1
    assert "config.yaml cannot be written: No such file" in told.stderr


async def test_init_beside_a_running_gateway_takes_effect(tmp_path):
    """And a file that vanishes afterwards leaves its own agents in effect, not the demos."""
    config = tmp_path / "config.yaml"
    async with serving(cwd=tmp_path) as (_, port, log), aiohttp.ClientSession() as client:
        async with asyncio.timeout(20):
            while not any("the built-in routing table is used" in line for line in log):
                await asyncio.sleep(0.02)
        (hint,) = (line for line in log if "the built-in routing table is used" in line)
        assert str(config) in hint
        assert "run.py init" in hint
        config.write_text("agents: {mine: {platform: dify}}\n")
        async with asyncio.timeout(20):
            while await names(client, port) != ["mine"]:
                await asyncio.sleep(0.05)
        config.unlink()
        async with asyncio.timeout(20):
            while not any("stays in effect" in line for line in log):
                await asyncio.sleep(0.05)
        assert await names(client, port) == ["mine"]


async def names(client: aiohttp.ClientSession, port: int) -> list[str]:
    async with client.get(f"http://127.0.0.1:{port}/v1/models") as answer:
        return [model["id"] for model in (await answer.json())["data"]]


def test_a_gateway_without_possible_callers_is_reported():
    assert "nobody can call" in run("check", HOST="0.0.0.0").stdout


@pytest.mark.parametrize("taken", ["port", "ops_port"])
def test_a_taken_port_is_reported_and_nothing_is_made(taken, tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        ports = {"port": free_port(), "ops_port": free_port(), taken: s.getsockname()[1]}
        config = {"agents": {"bot": {"platform": "dify"}}, "server": ports}
        (tmp_path / "config.yaml").write_text(json.dumps(config))
        told = run_in(tmp_path)
    assert told.returncode == 1
    assert f"Cannot start: cannot listen on 127.0.0.1:{ports[taken]}: " in told.stderr
    assert "password" not in told.stderr
    assert "Traceback" not in told.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_probe_fails_without_a_listener_or_with_bad_settings():
    assert run("probe", "--port", str(free_port())).returncode == 1
    assert "LOG_LEVEL" in run("serve", LOG_LEVEL="LOUD").stderr
    assert run("--version").stdout.strip()
    assert '"$schema"' in run("schema").stdout


async def test_the_ops_port_has_the_probes_and_nothing_else(tmp_path):
    ops = free_port()
    config = tmp_path / "c.yaml"
    config.write_text(f"server: {{ops_port: {ops}}}\nagents: {{a: {{platform: dify}}}}\n")
    async with serving("--config", str(config)), aiohttp.ClientSession() as client:
        assert (await client.get(f"http://127.0.0.1:{ops}/readyz")).status == 200
        assert (await client.get(f"http://127.0.0.1:{ops}/v1/models")).status == 404
