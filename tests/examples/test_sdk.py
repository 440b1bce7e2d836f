"""The examples with the official SDKs, run as they stand, with a real gateway."""

import asyncio
import os
import subprocess
import sys

import pytest
from conftest import AGENTS
from toolbox import EXAMPLES, KEY, copied, modules, node

pytestmark = pytest.mark.timeout(300)  # the first run may install npm's packages

USER = "张三/visitor 7"


@pytest.fixture(params=["chat.py", "chat.mjs"])
def command(request, tmp_path):
    """The command line of that example."""
    if request.param.endswith(".py"):
        return [sys.executable, str(EXAMPLES / "sdk" / request.param)]
    folder = copied("sdk", tmp_path)
    (folder / "node_modules").symlink_to(modules())
    return [node(), str(folder / request.param)]


@pytest.fixture
def play(gateway, demo, command, tmp_path):
    """`await play()`: (gateway, what the example has printed, the simulator)."""

    async def play(key: str = KEY, user: str = USER):
        served = await demo("dify", key=AGENTS["dify"]["api_key"])
        gw = await gateway(
            agents={"dify": {**AGENTS["dify"], "base_url": served.url}},
            auth={"anonymous": False, "keys": [{"name": "app", "key": KEY}]},
            database=f"sqlite:///{tmp_path}/gateway.db",
            record={"spool": str(tmp_path / "spool")},
        )
        await gw.ask(KEY, user="another", query="not mine")
        environ = {**os.environ, "GATEWAY": gw.url, "GATEWAY_KEY": key, "END_USER": user}
        done = await asyncio.to_thread(
            subprocess.run, command, env=environ, capture_output=True, text=True, timeout=100
        )
        return gw, done, served.demo

    return play


async def test_a_conversation_from_the_first_question_to_its_end(play):
    gw, done, dify = await play()
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert 'previous question was "My bicycle squeaks. Why?"' in said
    assert said.count("  My bicycle squeaks. Why?\n") == 1  # in the list
    assert "not mine" not in said
    assert said.count("\nQ: ") == 2
    assert said.endswith("Deleted: 1 conversation(s)\n")
    rated = [body for path, body in dify.requests if path.endswith("/feedbacks")]
    assert [body["rating"] for body in rated] == ["like"]
    left = [key for key, _ in dify.talks.items()]
    assert len(left) == 1
    assert left[0].startswith("another/")


async def test_the_gateways_errors_are_shown(play):
    _, done, _ = await play(key="sk-of-another-operator")
    assert done.returncode != 0
    assert "API key" in done.stdout + done.stderr


def test_without_a_key_it_says_what_to_set(command):
    environ = {**os.environ, "GATEWAY_KEY": ""}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == "Set GATEWAY_KEY to a key of the gateway.\n"
