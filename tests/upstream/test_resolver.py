"""DNS look-ups: upstreams' names never wait for those that callers cause."""

import asyncio
import socket
import threading

import pytest
from conftest import AGENTS

from gateway.errors import RateLimited
from gateway.upstream import resolver as lookups
from gateway.upstream.resolver import MAX_OF_ALL, MAX_OF_ONE, CallersNames, Resolver, numeric

FOUND = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 80))]


class Clock:
    """The loop's clock, set by hand."""

    def __init__(self, monkeypatch) -> None:
        self.now = 1000.0
        loop = asyncio.get_running_loop()
        self._real = loop.time
        monkeypatch.setattr(loop, "time", lambda: self._real() + self.now)


@pytest.fixture
def system(monkeypatch):
    """The system's look-ups: `asked` are names; `gate` lets them be answered with `answer`."""

    class System:
        def __init__(self) -> None:
            self.asked: list[str] = []
            self.gate = threading.Event()
            self.gate.set()
            self.answer: object = FOUND

        def __call__(self, host, port, *args, flags=0, **kwargs):
            if flags & socket.AI_NUMERICHOST:
                return real(host, port, *args, flags=flags, **kwargs)
            if not host.endswith(".test"):
                return real(host, port, *args, flags=flags, **kwargs)
            self.asked.append(host)
            assert self.gate.wait(20)
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer

    real = socket.getaddrinfo
    system = System()
    monkeypatch.setattr(socket, "getaddrinfo", system)
    yield system
    system.gate.set()


async def test_a_name_is_asked_for_once_in_ten_seconds(system, monkeypatch):
    clock, names = Clock(monkeypatch), Resolver()
    assert await names.find("a.test", 80) == await names.find("a.test", 80) == FOUND
    assert system.asked == ["a.test"]
    clock.now += 11
    await names.find("a.test", 80)
    assert system.asked == ["a.test"] * 2


async def test_many_who_wait_for_a_name_hold_one_thread(system):
    system.gate.clear()
    names = Resolver()
    waiting = [asyncio.ensure_future(names.find("a.test", 80)) for _ in range(50)]
    await asyncio.sleep(0)
    waiting[0].cancel()  # one cancelled waiter does not affect the others
    system.gate.set()
    assert await asyncio.gather(*waiting[1:]) == [FOUND] * 49
    assert system.asked == ["a.test"]


async def test_a_slow_name_holds_up_no_other(system):
    names = Resolver()
    system.gate.clear()
    slow = [asyncio.ensure_future(names.find(f"slow{i}.test", 80)) for i in range(20)]
    await asyncio.sleep(0)
    assert (await names.find("localhost", 80))[0][4][0] in ("127.0.0.1", "::1")
    system.gate.set()
    assert await asyncio.gather(*slow) == [FOUND] * 20


async def test_an_address_that_was_good_outlives_its_name_server(system, monkeypatch):
    clock, names = Clock(monkeypatch), Resolver()
    await names.find("a.test", 80)
    clock.now += 60
    system.answer = socket.gaierror(socket.EAI_AGAIN, "no answer")
    assert await names.find("a.test", 80) == FOUND
    monkeypatch.setattr(lookups, "_PATIENCE_S", 0.01)
    system.gate.clear()
    assert await names.find("a.test", 80) == FOUND  # and its silence is not waited for
    system.gate.set()
    clock.now += 3600
    with pytest.raises(socket.gaierror):
        await names.find("a.test", 80)


async def test_what_can_be_no_name_is_an_error_each_time(system):
    names = Resolver()
    for _ in range(2):
        with pytest.raises((OSError, UnicodeError)):
            await names.find("x" * 64 + ".test.", 80)
        system.answer = UnicodeError("label too long")


async def test_an_address_needs_no_look_up(system):
    assert (await Resolver().find("127.0.0.1", 80))[0][4] == ("127.0.0.1", 80)
    assert (await Resolver().find("::1", 80))[0][4][:2] == ("::1", 80)
    assert numeric("a.test", 80) is None
    assert system.asked == []


@pytest.fixture
def silent(monkeypatch):
    """A name server that never answers, for c-ares."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        real = lookups.aiohttp.AsyncResolver

        def resolver(**kwargs):
            return real(nameservers=["127.0.0.1"], udp_port=port, **kwargs)

        monkeypatch.setattr(lookups.aiohttp, "AsyncResolver", resolver)
        yield server


async def test_one_callers_concurrent_look_ups_are_limited(silent):
    names = CallersNames()
    waiting = [
        asyncio.ensure_future(names.find(f"{i}.x.test", 80, "evil")) for i in range(MAX_OF_ONE)
    ]
    await asyncio.sleep(0)
    with pytest.raises(RateLimited):
        await names.find("more.test", 80, "evil")
    with pytest.raises(TimeoutError):  # another caller may still ask
        async with asyncio.timeout(0.02):
            await names.find("x.test", 80, "good")
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    assert not names._running
    await names.close()


async def test_all_callers_together_have_a_bound(silent):
    names = CallersNames()
    waiting = [
        asyncio.ensure_future(names.find(f"{i}.x.test", 80, f"caller {i // MAX_OF_ONE}"))
        for i in range(MAX_OF_ALL)
    ]
    await asyncio.sleep(0)
    with pytest.raises(RateLimited):
        await names.find("x.test", 80, "good")
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    await names.close()


async def test_unresolved_file_hosts_delay_no_upstream(gateway, demo, silent):
    """Their chats end at `fetch.timeout`; others, with and without files, go on."""
    served = await demo("openai", key="sk-upstream-key")
    url = served.url.replace("127.0.0.1", "localhost")
    gw = await gateway(
        agents={"bot": {**AGENTS["openai"], "base_url": url}},
        fetch={"timeout": "1s"},
        auth={"keys": [{"name": name, "key": f"sk-{name}-00001"} for name in ("evil", "good")]},
    )

    async def ask(name: str, *hosts: str) -> int:
        headers = {"Agent": "bot", "Authorization": f"Bearer sk-{name}-00001"}
        files = [{"type": "file", "url": f"http://{host}.slow.test/a.pdf"} for host in hosts]
        body = {"query": "hi", "files": files}
        async with gw.post("/api/v1/chat", body, headers=headers) as answer:
            return answer.status

    attacks = [asyncio.ensure_future(ask("evil", f"h{i}")) for i in range(30)]
    await asyncio.sleep(0.1)
    assert [await ask("good") for _ in range(3)] == [200] * 3
    assert await ask("good", "x") == 400  # it waited for its own name server, and was not refused
    assert set(await asyncio.gather(*attacks)) == {400, 429}
