import asyncio
import functools

import looptime
import pytest

from gateway.upstream.deadline import Deadline
from gateway.upstream.timers import Timers


def in_its_own_time(test):
    """Run on a loop whose clock advances when nothing else is ready: a busy machine changes
    nothing."""

    @functools.wraps(test)
    def run():
        with asyncio.Runner(loop_factory=looptime.new_event_loop) as runner:
            runner.run(test())

    return run


async def wait_with(deadline: Deadline, seconds: float, work) -> str:
    try:
        with deadline.until(asyncio.get_running_loop().time() + seconds):
            await work
        return "done"
    except TimeoutError:
        return "rang"


@in_its_own_time
async def test_it_interrupts_a_wait_and_leaves_the_task_uncancelled():
    deadline = Deadline(Timers(asyncio.get_running_loop()))
    assert await wait_with(deadline, 0.01, asyncio.sleep(10)) == "rang"
    assert asyncio.current_task().cancelling() == 0
    assert await wait_with(deadline, 10, asyncio.sleep(0)) == "done"
    deadline.close()


@in_its_own_time
async def test_a_deadline_moves_later_and_earlier():
    deadline = Deadline(Timers(asyncio.get_running_loop()))
    for _ in range(5):
        assert await wait_with(deadline, 0.05, asyncio.sleep(0.02)) == "done"
    assert await wait_with(deadline, 30, asyncio.sleep(0)) == "done"
    assert await wait_with(deadline, 0.01, asyncio.sleep(10)) == "rang"
    deadline.close()


@in_its_own_time
async def test_what_is_not_waiting_is_not_interrupted():
    deadline = Deadline(Timers(asyncio.get_running_loop()))
    assert await wait_with(deadline, 0.01, asyncio.sleep(0)) == "done"
    await asyncio.sleep(0.03)  # past the deadline, in other code
    assert await wait_with(deadline, 0.01, asyncio.sleep(10)) == "rang"
    deadline.close()


@in_its_own_time
async def test_a_cancellation_from_outside_is_not_taken_for_the_alarm():
    started = asyncio.Event()

    async def work() -> str:
        deadline = Deadline(Timers(asyncio.get_running_loop()))
        started.set()
        try:
            return await wait_with(deadline, 10, asyncio.sleep(20))
        finally:
            deadline.close()

    task = asyncio.ensure_future(work())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@in_its_own_time
async def test_both_together_count_as_the_cancellation():
    async def work() -> str:
        deadline = Deadline(Timers(asyncio.get_running_loop()))
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        loop.call_at(loop.time() + 0.01, task.cancel)
        try:
            return await wait_with(deadline, 0.01, asyncio.sleep(20))
        finally:
            deadline.close()

    with pytest.raises(asyncio.CancelledError):
        await asyncio.ensure_future(work())


@in_its_own_time
async def test_an_outer_timeout_wins_over_a_later_alarm():
    deadline = Deadline(Timers(asyncio.get_running_loop()))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await wait_with(deadline, 10, asyncio.sleep(20))
    deadline.close()


@in_its_own_time
async def test_an_interruption_that_became_another_error_is_forgotten():
    async def fails_to_clean_up() -> None:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            raise OSError from None

    deadline = Deadline(Timers(asyncio.get_running_loop()))
    with pytest.raises(OSError):
        await wait_with(deadline, 0.01, fails_to_clean_up())
    deadline.close()
    assert asyncio.current_task().cancelling() == 0
    assert await wait_with(deadline, 0.01, asyncio.sleep(10)) == "rang"
    deadline.close()
