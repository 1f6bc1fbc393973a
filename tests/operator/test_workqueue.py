"""The queue between events and work."""

from __future__ import annotations

import asyncio

from turnout_operator.workqueue import LAST_DELAY_SECONDS, WorkQueue


async def test_a_burst_is_one_pass() -> None:
    """A key that is added many times is worked on once."""
    queue: WorkQueue[str] = WorkQueue()
    for _ in range(5):
        queue.add("a")
    queue.add("b")
    assert [await queue.get(), await queue.get()] == ["a", "b"]
    assert len(queue) == 0


async def test_what_comes_during_the_work_is_not_lost() -> None:
    """A key that is added while it is worked on comes once more, but not at the same time."""
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    assert await queue.get() == "a"
    queue.add("a")
    queue.add("b")
    assert await queue.get() == "b"
    queue.done("a")
    assert await asyncio.wait_for(queue.get(), 1) == "a"


async def test_failures_wait_longer_and_longer() -> None:
    """The delay doubles up to a bound, and starts over once the key is forgiven."""
    queue: WorkQueue[str] = WorkQueue()
    delays = [queue.retry("a") for _ in range(10)]
    assert delays[:3] == [0.5, 1.0, 2.0]
    assert delays[-1] == LAST_DELAY_SECONDS
    queue.forgive("a")
    assert queue.retry("a") == 0.5
    queue.close()


async def test_an_event_does_not_wait_for_a_timer() -> None:
    """A key with a timer is worked on at once when something happens, and the timer is gone."""
    queue: WorkQueue[str] = WorkQueue()
    queue.add_after("a", 60)
    queue.add("a")
    assert await asyncio.wait_for(queue.get(), 1) == "a"
    queue.done("a")
    assert len(queue) == 0


async def test_the_sooner_of_two_timers_counts() -> None:
    """Asking for later does not put off what was to come sooner."""
    queue: WorkQueue[str] = WorkQueue()
    queue.add_after("a", 0.01)
    queue.add_after("a", 60)
    assert await asyncio.wait_for(queue.get(), 5) == "a"


async def test_shares_take_turns() -> None:
    """One namespace's thousand keys put off another's by one."""
    queue: WorkQueue[str] = WorkQueue(lambda key: key[0])
    for number in range(1000):
        queue.add(f"a{number}")
    queue.add("b0")
    queue.add("b1")
    queue.add("c0")
    assert len(queue) == 1003
    assert [await queue.get() for _ in range(6)] == ["a0", "b0", "c0", "a1", "b1", "a2"]
    queue.close()
    assert len(queue) == 0
