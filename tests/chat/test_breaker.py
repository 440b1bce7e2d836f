"""The circuit breaker alone, and an agent's slots with their queue."""

import asyncio

import pytest
import yaml

from gateway.chat.breaker import Breaker
from gateway.chat.routing import Routing
from gateway.config import load as configfile
from gateway.config.models import BreakerSettings
from gateway.errors import (
    CircuitOpen,
    InvalidRequest,
    RateLimited,
    TargetBusy,
    UpstreamFailed,
    UpstreamMisconfigured,
    UpstreamTimeout,
    UpstreamUnavailable,
    UpstreamUnreachable,
)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def breaker(clock):
    return Breaker("bot", BreakerSettings(failures=3, cooldown=10.0), clock)


def down():
    return UpstreamUnreachable("Connection refused.")


def fail(breaker, times=1):
    for _ in range(times):
        breaker.ended(breaker.admit(), down())


def test_it_opens_after_failures_and_says_why_and_how_long(breaker):
    fail(breaker, 2)
    assert breaker.state == "closed"
    fail(breaker)
    assert breaker.state == "open"
    with pytest.raises(CircuitOpen) as caught:
        breaker.admit()
    assert "3 times in a row" in caught.value.message
    assert "upstream_unreachable: Connection refused." in caught.value.message
    assert caught.value.retry_after_s == 10
    assert breaker.opened == 1


def test_an_upstreams_message_reaches_its_own_caller_only(breaker):
    for _ in range(3):
        breaker.ended(breaker.admit(), UpstreamUnavailable("No room for 'my secret'."))
    with pytest.raises(CircuitOpen) as caught:
        breaker.admit()
    assert "upstream_unavailable." in caught.value.message
    assert "secret" not in caught.value.message


def test_an_answer_resets_the_count(breaker):
    fail(breaker, 2)
    breaker.ended(breaker.admit())
    fail(breaker, 2)
    assert breaker.state == "closed"


def test_after_the_cooldown_one_call_tries_and_the_others_do_not(breaker, clock):
    fail(breaker, 3)
    clock.now += 10
    assert breaker.state == "half-open"
    probe = breaker.admit()
    with pytest.raises(CircuitOpen):
        breaker.admit()
    breaker.ended(probe)
    assert breaker.state == "closed"
    breaker.admit()


def test_a_failed_trial_opens_it_again(breaker, clock):
    fail(breaker, 3)
    clock.now += 10
    fail(breaker)
    assert breaker.state == "open"
    assert breaker.opened == 2
    clock.now += 9.9
    with pytest.raises(CircuitOpen):
        breaker.admit()


def test_the_log_says_once_that_it_opens_and_that_it_closes(breaker, clock, caplog):
    fail(breaker, 2)
    assert caplog.messages == []
    fail(breaker)
    for _ in range(3):  # probes that fail
        clock.now += 10
        fail(breaker)
    clock.now += 10
    breaker.ended(breaker.admit())
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert caplog.messages == [
        "Agent bot: the circuit is open after 3 failures in a row; a call tests the agent every 10 s. "
        "The last failure: upstream_unreachable: Connection refused.",
        "Agent bot: the circuit is closed; the agent answers again",
    ]


def test_who_leaves_after_headers_have_come_has_seen_no_answer(breaker, clock):
    fail(breaker, 3)
    clock.now += 10
    breaker.ended(breaker.admit(), asyncio.CancelledError(), has_answered=True)
    assert breaker.state == "half-open"


@pytest.mark.parametrize("error", [asyncio.CancelledError(), InvalidRequest("x")])
def test_a_trial_whose_caller_leaves_decides_nothing(breaker, clock, error):
    fail(breaker, 3)
    clock.now += 10
    breaker.ended(breaker.admit(), error)
    assert breaker.state == "half-open"
    breaker.admit()


@pytest.mark.parametrize(
    "error",
    [RateLimited("slow"), UpstreamMisconfigured("key"), UpstreamFailed("the workflow failed")],
)
def test_a_refusal_is_no_outage(breaker, error):
    for _ in range(10):
        breaker.ended(breaker.admit(), error, has_answered=True)
    assert breaker.state == "closed"


def test_silence_is_an_outage_even_after_headers(breaker):
    for _ in range(3):
        breaker.ended(breaker.admit(), UpstreamTimeout("silent"), has_answered=True)
    assert breaker.state == "open"


def test_calls_from_before_it_opened_do_not_count(breaker, clock):
    late = [breaker.admit() for _ in range(5)]
    fail(breaker, 3)
    for one in late[:3]:
        breaker.ended(one, down())
    assert breaker.opened == 1
    clock.now += 10
    probe = breaker.admit()
    breaker.ended(late[3], down())
    breaker.ended(late[4])
    assert breaker.state == "half-open"
    with pytest.raises(CircuitOpen):
        breaker.admit()
    breaker.ended(probe)
    assert breaker.state == "closed"


def test_a_slow_trial_does_not_block_further_trials(breaker, clock):
    fail(breaker, 3)
    clock.now += 10
    slow = breaker.admit()
    clock.now += 9.9
    with pytest.raises(CircuitOpen):
        breaker.admit()
    clock.now += 0.1
    breaker.ended(breaker.admit())
    assert breaker.state == "closed"
    breaker.ended(slow, down())
    assert breaker.state == "closed"


# Slots


def target(**settings):
    agent = {"platform": "dify", "base_url": "http://127.0.0.1:9", "api_key": "app-1", **settings}
    text = yaml.safe_dump({"agents": {"bot": agent}, "database": "none"})
    return Routing(configfile.parse(text, {}), {}).targets["bot"]


async def test_queue_is_fifo():
    bot = target(concurrency=1)
    order = []

    async def call(name):
        await bot.acquire()
        order.append(name)
        await asyncio.sleep(0)
        bot.release()

    await bot.acquire()
    waiting = [asyncio.ensure_future(call(name)) for name in "abc"]
    await asyncio.sleep(0)
    assert (bot.running, bot.waiting) == (1, 3)
    bot.release()
    await asyncio.gather(*waiting)
    assert order == list("abc")
    assert (bot.running, bot.waiting) == (0, 0)


async def test_a_call_that_waits_too_long_gets_an_error():
    bot = target(concurrency=1, timeouts={"queue": "20ms"})
    await bot.acquire()
    with pytest.raises(TargetBusy) as caught:
        await bot.acquire()
    assert caught.value.status == 503
    assert caught.value.retry_after_s == 1
    assert (bot.running, bot.waiting) == (1, 0)


async def test_a_full_queue_refuses_immediately():
    bot = target(concurrency=1, queue=1)
    await bot.acquire()
    waiting = asyncio.ensure_future(bot.acquire())
    await asyncio.sleep(0)
    with pytest.raises(TargetBusy):
        await bot.acquire()
    bot.release()
    await waiting


async def test_who_leaves_the_queue_takes_no_place_along():
    bot = target(concurrency=1)
    await bot.acquire()
    leaver, patient = (asyncio.ensure_future(bot.acquire()) for _ in range(2))
    await asyncio.sleep(0)
    leaver.cancel()
    await asyncio.sleep(0)
    bot.release()
    await patient
    assert (bot.running, bot.waiting) == (1, 0)


async def test_who_leaves_just_when_the_place_comes_gives_it_on():
    bot = target(concurrency=1)
    await bot.acquire()
    leaver, patient = (asyncio.ensure_future(bot.acquire()) for _ in range(2))
    await asyncio.sleep(0)
    bot.release()
    leaver.cancel()
    await patient
    assert (bot.running, bot.waiting) == (1, 0)


async def test_an_open_circuit_has_no_queue():
    bot = target(concurrency=1, breaker={"failures": 1, "cooldown": "1m"})
    bot.breaker.ended(await bot.acquire(), down())
    bot.running = 1
    with pytest.raises(CircuitOpen):
        await bot.acquire()
    assert bot.running == 1
