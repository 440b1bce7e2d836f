"""One call in each turn of the loop, in the order in which they were added."""

import asyncio

from gateway.upstream.fairness import OneATurn


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_each_call_has_a_turn_of_its_own():
    queue, made = OneATurn(asyncio.get_running_loop()), []
    for number in range(3):
        queue.add(lambda number=number: made.append(number))
    assert made == []
    for expected in ([0], [0, 1], [0, 1, 2], [0, 1, 2]):
        await turns(1)
        assert made == expected


async def test_a_call_that_is_added_twice_is_made_once():
    failed, made = [], []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: failed.append(context))
    queue = OneATurn(loop)

    def call() -> None:
        made.append(1)

    queue.add(call)
    queue.add(call)
    await turns(3)
    assert made == [1]
    assert failed == []


async def test_a_call_may_add_itself_again():
    queue, made = OneATurn(asyncio.get_running_loop()), []

    def call() -> None:
        made.append(1)
        if len(made) < 3:
            queue.add(call)

    queue.add(call)
    await turns(4)
    assert made == [1, 1, 1]
