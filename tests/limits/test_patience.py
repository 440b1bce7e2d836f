"""The time for a reply counts only while the loop can read it. The clocks here are the loops'."""

import asyncio

import looptime

from gateway.limits.patience import is_done_within


class Loop(looptime.LoopTimeEventLoop, asyncio.SelectorEventLoop):
    """Its clock advances when nothing else is ready, and while `block` stands for slow code."""

    blocked_s = 0.0

    def time(self):
        return super().time() + self.blocked_s

    def block(self, seconds):
        self.blocked_s += seconds


def run(scenario):
    """The result of `scenario`, and the seconds that it took."""

    async def timed():
        loop = asyncio.get_running_loop()
        began = loop.time()
        return await scenario(loop), round(loop.time() - began, 3)

    with asyncio.Runner(loop_factory=Loop) as runner:
        return runner.run(timed())


def reply(after_s):
    return asyncio.ensure_future(asyncio.sleep(after_s))


def test_a_reply_ends_the_wait():
    async def scenario(loop):
        return await is_done_within(0.05, reply(0.012))

    assert run(scenario) == (True, 0.012)


def test_the_wait_ends_without_a_reply():
    async def scenario(loop):
        return await is_done_within(0.05, reply(9))

    assert run(scenario) == (False, 0.05)


def test_the_task_runs_on_after_the_wait():
    async def scenario(loop):
        task = reply(0.2)
        in_time = await is_done_within(0.05, task)
        await task
        return in_time

    assert run(scenario) == (False, 0.2)


def test_a_blocked_loop_uses_up_one_round_only():
    async def scenario(loop):
        loop.call_soon(loop.block, 3)
        task = loop.create_future()
        loop.call_later(3.01, task.set_result, None)  # the reply is read after the block
        return await is_done_within(0.05, task)

    assert run(scenario) == (True, 3.01)


def test_a_loop_busy_in_small_steps_gets_ten_rounds():
    async def scenario(loop):
        def step():
            loop.block(1)
            loop.call_soon(step)

        loop.call_soon(step)
        task = loop.create_future()
        loop.call_later(19.5, task.set_result, None)
        return await is_done_within(0.05, task)

    in_time, seconds = run(scenario)
    assert in_time
    assert seconds >= 19
