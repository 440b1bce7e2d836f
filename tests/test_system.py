"""Where Windows differs. `make lint` checks that every name exists there: mypy --platform win32."""

import asyncio
import re
import signal
import sys
from pathlib import Path

import aiohttp
import pytest
from test_cli import ROOT, serving

from gateway.config import load as configfile
from gateway.server import process
from gateway.system import lock_now

LIKE_WINDOWS = (sys.executable, str(ROOT / "tests/like_windows.py"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_it_starts_answers_and_stops_without_unix(tmp_path, number):
    database = {"DATABASE_URL": "sqlite:///data/gateway.db"}
    async with (
        serving(cwd=tmp_path, command=LIKE_WINDOWS, **database) as (running, port, log),
        aiohttp.ClientSession() as client,
    ):
        body = {"query": "hello", "user": "u", "stream": True}
        answer = await client.post(
            f"http://127.0.0.1:{port}/api/v1/chat", json=body, headers={"agent": "dify"}
        )
        assert answer.status == 200
        assert "[DONE]" in await answer.text()
        running.send_signal(number)
        assert await asyncio.wait_for(running.wait(), 20) == 0
    assert "Stopped" in log[-1]
    assert not any("Traceback" in line for line in log)


async def test_the_locks_of_both_systems_exclude_others(tmp_path):
    spool = tmp_path / "data/spool"
    serve = {"cwd": tmp_path, "DATABASE_URL": "sqlite:///data/gateway.db"}
    async with serving(command=LIKE_WINDOWS, **serve):
        (folder,) = [each for each in spool.iterdir() if each.is_dir()]
        with (folder / "lock").open("w") as file, pytest.raises(OSError):
            lock_now(file)
    async with serving(**serve):  # takes the killed one's folder over
        assert not folder.exists()


async def test_a_port_is_shared_only_where_that_is_possible(monkeypatch, tmp_path):
    monkeypatch.setattr(process, "can_share_ports", lambda: False)
    text = "agents: {a: {platform: dify}}\nserver: {reuse_port: true}\ndatabase: none\n"
    (tmp_path / "data").mkdir()
    config = configfile.parse(text, {}, tmp_path)
    with pytest.raises(process.StartError, match=re.escape("server.reuse_port: this system")):
        await process.serve(config, Path("config.yaml"), lambda: config, None)
