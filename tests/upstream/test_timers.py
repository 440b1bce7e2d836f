import asyncio
import logging
import random

from hypothesis import given
from hypothesis import strategies as st

from gateway.upstream.timers import Timers


class Clock:
    """The part of an event loop that timers need, with a clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0
        self.bells: list[Bell] = []

    def time(self) -> float:
        return self.now

    def call_at(self, moment: float, act) -> "Bell":
        bell = Bell(moment, act)
        self.bells.append(bell)
        return bell

    def pass_to(self, moment: float) -> None:
        while due := [b for b in self.bells if b.moment <= moment and not b.cancelled]:
            first = min(due, key=lambda b: b.moment)
            self.bells.remove(first)
            self.now = max(self.now, first.moment)
            first.act()
        self.now = moment

    @property
    def pending(self) -> list[float]:
        return [b.moment for b in self.bells if not b.cancelled]


class Bell:
    def __init__(self, moment: float, act) -> None:
        self.moment, self.act, self.cancelled = moment, act, False

    def cancel(self) -> None:
        self.cancelled = True


def test_timers_fire_in_order_and_not_early():
    clock, rung = Clock(), []
    timers = Timers(clock)
    for moment in (103, 101, 102, 101):
        timers.set(moment, lambda m=moment: rung.append((m, clock.now)))
    clock.pass_to(100.9)
    assert rung == []
    clock.pass_to(200)
    assert [m for m, _ in rung] == [101, 101, 102, 103]
    assert all(m <= at < m + 0.01 for m, at in rung)
    assert len(timers) == 0
    assert clock.pending == []


def test_one_timer_of_the_loop_serves_them_all():
    clock = Clock()
    timers = Timers(clock)
    for i in range(1000):
        timers.set(200 + i, int)
    assert clock.pending == [200]
    timers.set(150, int)
    assert clock.pending == [150]


def test_what_is_forgotten_does_not_go_off_and_is_not_held():
    clock, rung = Clock(), []
    timers = Timers(clock)
    kept = timers.set(101, lambda: rung.append("kept"))
    gone = timers.set(101, lambda: rung.append("gone"))
    timers.forget(gone)
    timers.forget(gone)
    assert gone.act is None
    clock.pass_to(102)
    assert rung == ["kept"]
    timers.forget(kept)  # too late, and no harm


def test_a_timer_can_cancel_another_that_is_due():
    clock, rung = Clock(), []
    timers = Timers(clock)
    timers.set(101, lambda: timers.forget(second))
    second = timers.set(101, lambda: rung.append("second"))
    clock.pass_to(102)
    assert rung == []


def test_a_timer_set_by_a_timer_fires_in_a_later_turn():
    clock, rung = Clock(), []
    timers = Timers(clock)

    def again() -> None:
        rung.append(clock.now)
        if len(rung) < 3:
            timers.set(clock.now - 1, again)

    timers.set(101, again)
    clock.pass_to(102)
    assert len(rung) == 3
    assert rung == sorted(rung)


def test_forgotten_timers_take_no_more_room_than_the_others():
    clock = Clock()
    timers = Timers(clock)
    for i in range(50):
        timers.set(1000 + i, int)
    for i in range(10_000):
        timers.forget(timers.set(500 + i, int))
        assert len(timers) <= 200


def test_an_action_that_fails_keeps_no_other_from_its_turn(caplog):
    clock, rung = Clock(), []
    timers = Timers(clock)
    timers.set(101, lambda: 1 / 0)
    timers.set(101, lambda: rung.append("other"))
    timers.set(103, lambda: rung.append("later"))
    with caplog.at_level(logging.ERROR, "gateway"):
        clock.pass_to(104)
    assert rung == ["other", "later"]
    assert "A timer's action failed" in caplog.text


async def test_a_loop_that_rings_early_is_asked_again():
    """uvloop rounds to whole milliseconds."""
    loop = asyncio.get_running_loop()
    timers = Timers(loop)
    for _ in range(20):
        moment, rung = loop.time() + random.random() / 100, asyncio.Event()
        timers.set(moment, rung.set)
        await asyncio.wait_for(rung.wait(), 20)
        assert loop.time() >= moment


@given(st.lists(st.tuples(st.integers(0, 50), st.booleans(), st.integers(0, 20))))
def test_exactly_those_go_off_that_are_due_and_not_forgotten(steps):
    """Steps: the delay, whether to cancel the previous timer, how much time passes."""
    clock, rung, wanted = Clock(), [], []
    timers = Timers(clock)
    live: dict[int, tuple[float, object]] = {}
    for number, (after, forgets, passes) in enumerate(steps):
        if forgets and live:
            _, timer = live.pop(max(live))
            timers.forget(timer)
        moment = clock.now + after
        live[number] = moment, timers.set(moment, lambda n=number: rung.append(n))
        clock.pass_to(clock.now + passes + 0.01)
        due = sorted((m, n) for n, (m, _) in live.items() if m <= clock.now - 0.005)
        wanted += [n for _, n in due]
        for _, n in due:
            del live[n]
    assert sorted(rung) == sorted(wanted)
