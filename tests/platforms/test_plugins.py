"""A platform of another distribution: found by its entry point, without a line of the gateway
changed."""

import sys
from importlib import invalidate_caches
from textwrap import dedent

import pytest
import yaml
from conftest import Script

from gateway.config import kinds
from gateway.config.load import ConfigError, parse

TOY = '''
"""Toy: one line of text for a question."""

from typing import Literal

from gateway.config.kinds import Kind
from gateway.config.models import Agent
from gateway.errors import UpstreamFailed
from gateway.platforms.base import BasePlatform, EventDecoder, dump
from gateway.protocol import ndjson
from gateway.protocol.exchange import UpstreamRequest
from gateway.protocol.messages import Begin, Finish, Text


class Options(Agent):
    platform: Literal["toy"]
    voice: Literal["low", "high"] = "low"


class Decoder(EventDecoder):
    platform = "Toy"
    framing = ndjson.Parser

    def event(self, name, data, out):
        if data == b"bye":
            out.append(Finish())
            self.done = True
        else:
            out += [Begin(), Text(data.decode())]


class Toy(BasePlatform):
    kind = "toy"

    def __init__(self, name, options, url):
        self.token, self._options, self._url = options.api_key.reveal(), options, url

    def prepare(self, chat):
        body = {"q": chat.question.text, "voice": self._options.voice}
        headers = {"Authorization": "Toy " + self.token}
        return UpstreamRequest("POST", self._url, headers, dump(body))

    def decoder(self, chat):
        return Decoder()

    def recover(self, reply, chat):
        raise UpstreamFailed("Toy says: " + reply.text)

    def stop(self, chat, decoder):
        return None

    def probe(self):
        return UpstreamRequest("GET", self._url)

    def verdict(self, reply):
        return "there"


KIND = Kind("toy", "Toy", Options, Toy, key_shapes=(r"toykey\\d{6}",), key_prefixes=("toy-",))
'''


@pytest.fixture
def install(tmp_path, monkeypatch):
    """`install(name, source)`: a distribution with a module that the entry point `name` leads to."""

    def installed(name: str, source: str) -> None:
        (tmp_path / f"ai_gateway_{name}.py").write_text(source, "utf-8")
        info = tmp_path / f"ai_gateway_{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: ai-gateway-{name}\nVersion: 1.0\n"
        )
        (info / "entry_points.txt").write_text(f"[{kinds.GROUP}]\n{name} = ai_gateway_{name}\n")
        invalidate_caches()

    monkeypatch.syspath_prepend(str(tmp_path))
    yield installed
    kinds.config_model.cache_clear()
    for name in [name for name in sys.modules if name.startswith("ai_gateway_")]:
        del sys.modules[name]


async def test_a_toy_is_asked_end_to_end(install, gateway, scripted):
    install("toy", TOY)
    upstream = await scripted(Script([b"hello\nbye\n"], headers={"Content-Type": "text/plain"}))
    agent = {
        "platform": "toy",
        "base_url": upstream.url,
        "api_key": "toykey123456",
        "voice": "high",
    }
    gw = await gateway(agents={"bot": agent})
    answer = await gw.complete("bot", "hi")
    assert (await answer.json())["choices"][0]["message"]["content"] == "hello"
    assert upstream.bodies() == [{"q": "hi", "voice": "high"}]


async def test_its_errors_are_told_without_its_keys(install, gateway, scripted):
    install("toy", TOY)
    refusal = Script(
        [b"no such key: toykey999999"], status="500 Oh", headers={"Content-Type": "text/plain"}
    )
    upstream = await scripted(refusal)
    agent = {"platform": "toy", "base_url": upstream.url, "api_key": "toykey123456", "retries": 0}
    gw = await gateway(agents={"bot": agent})
    answer = await gw.complete("bot", "hi")
    assert answer.status == 502
    assert "no such key: ***" in await answer.text()


def told(agent: dict) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(yaml.safe_dump({"agents": {"bot": agent}}), {})
    return caught.value.problems


def test_its_options_are_checked(install):
    install("toy", TOY)
    agent = {
        "platform": "toy",
        "base_url": "http://toy.example.com",
        "api_key": "k-1",
        "voise": "low",
    }
    assert told(agent) == ["agents.bot.voise: unknown key; did you mean voice?"]
    assert told({**agent, "voise": 1, "voice": "loud"})[0].startswith("agents.bot.voice: must be")


def test_it_needs_an_address_since_there_is_no_simulator_of_it(install):
    install("toy", TOY)
    assert told({"platform": "toy"}) == [
        "agents.bot.base_url: is missing; the gateway has no simulator of Toy"
    ]


def test_it_is_not_imported_unless_an_agent_is_of_its_kind(install):
    install("toy", TOY)
    parse("agents: {bot: {platform: dify}}", {})
    assert "ai_gateway_toy" not in sys.modules
    assert "toy" in kinds.known()


@pytest.mark.parametrize(
    ("source", "words"),
    [("raise RuntimeError('boom')", "cannot be imported: RuntimeError: boom"),
     ("KIND = 1", "has no KIND with the name 'broken'"), ("", "has no KIND with the name 'broken'"),
     (TOY.replace('Kind("toy"', 'Kind("other"'), "has no KIND with the name 'broken'"),
     (TOY.replace('Kind("toy"', 'Kind("broken"').replace("toykey", "(toykey"), "no regular expression")],
)  # fmt: skip
def test_a_broken_package_is_told_by_its_agent(install, source, words):
    install("broken", dedent(source))
    problems = told({"platform": "broken", "base_url": "http://toy.example.com", "api_key": "k-1"})
    assert len([line for line in problems if words in line]) == 1
    assert problems[0].startswith("agents.bot.platform: the installed platform 'broken'")
