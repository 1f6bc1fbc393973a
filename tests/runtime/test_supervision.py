"""What a task raises is logged once with its cause, counted and survived; only what is named as fatal ends the process."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import pytest

from support.faults import errors_of_awaiting
from turnout_runtime.supervision import Backoff, Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable

LOG = logging.getLogger("test.supervision")
ERRORS = errors_of_awaiting()


def new(failed: Callable[[str], None] = lambda _: None) -> Supervisor:
    return Supervisor(failed, LOG, backoff=Backoff(first_seconds=0.001, most_seconds=0.01))


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
async def test_whatever_a_task_raises_it_runs_again(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """Each failure is counted, the first one of a kind is logged with its traceback, and the task goes on."""
    counted: list[str] = []
    supervisor = new(counted.append)
    done = asyncio.Event()
    runs = 0

    async def work() -> None:
        nonlocal runs
        runs += 1
        if runs < 4:
            raise error
        done.set()

    with caplog.at_level(logging.ERROR):
        supervisor.run("work", work, detail="worker-1")
        async with asyncio.timeout(10):
            await done.wait()
    await supervisor.stop()
    assert counted == ["work"] * 3
    assert len(caplog.records) == 1
    assert "work failed (worker-1)" in caplog.text
    assert type(error).__name__ in caplog.text
    assert "Traceback" in caplog.text


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
async def test_what_runs_once_harms_no_other(error: BaseException) -> None:
    """A task that is not repeated is counted, too, and raises nothing."""
    counted: list[str] = []
    supervisor = new(counted.append)

    async def work() -> None:
        raise error

    await supervisor.once("look", work())
    assert counted == ["look"]
    await supervisor.stop()


async def test_a_cancelled_task_ends() -> None:
    """Stopping is no failure."""
    counted: list[str] = []
    supervisor = new(counted.append)
    task = supervisor.run("sleep", lambda: asyncio.sleep(3600))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert counted == []
    await supervisor.stop()


async def test_a_task_that_is_stopped_before_it_began_leaves_nothing_behind() -> None:
    """Not even a warning of a coroutine that was never awaited."""
    supervisor = new()
    work = asyncio.sleep(3600)
    supervisor.once("sleep", work)
    await supervisor.stop()
    assert work.cr_frame is None


async def test_a_fatal_error_is_raised_where_the_process_waits() -> None:
    """Only types that were named end the process; others are survived first."""
    supervisor = new()
    errors = [KeyError("survived"), OSError("the port is gone")]

    async def work() -> None:
        raise errors.pop(0)

    supervisor.run("serve", work, fatal=(OSError,))
    with pytest.raises(OSError, match="the port is gone"):
        async with asyncio.timeout(10):
            await supervisor.ended()
    await supervisor.stop()


async def test_a_timer_goes_on_after_a_failure() -> None:
    """One bad call does not end what must happen again and again."""
    counted: list[str] = []
    supervisor = new(counted.append)
    third = asyncio.Event()
    calls = 0

    def function() -> None:
        nonlocal calls
        calls += 1
        if calls >= 3:
            third.set()
        raise ValueError("bad")

    end = supervisor.every("sweep", 0.001, function)
    async with asyncio.timeout(10):
        await third.wait()
    end()
    assert counted[:3] == ["sweep"] * 3
    await supervisor.stop()


async def test_one_kind_of_failure_is_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """A thousand failures of one kind are a line, those of another kind are another line."""
    supervisor = new()
    with caplog.at_level(logging.ERROR):
        for number in range(1000):
            supervisor.note("scrape", ValueError(str(number)))
        supervisor.note("scrape", KeyError("x"))
        supervisor.note("check", ValueError("x"))
    assert len(caplog.records) == 3
    await supervisor.stop()


async def test_stopping_names_what_does_not_end(caplog: pytest.LogCaptureFixture) -> None:
    """A task that swallows its cancellation holds up the end for no longer than is said, and is named."""
    supervisor = new()
    release = asyncio.Event()

    async def stubborn() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    task = supervisor.run("stubborn", stubborn)
    await asyncio.sleep(0)
    with caplog.at_level(logging.ERROR):
        await supervisor.stop(seconds=0.01)
    assert "stubborn did not end" in caplog.text
    release.set()
    await task


async def test_what_is_asked_for_is_returned_or_missing() -> None:
    """A task that is run for its result gives that, or None where it raises."""
    counted: list[str] = []
    supervisor = new(counted.append)

    async def give() -> int:
        return 42

    async def fail() -> int:
        raise RecursionError

    assert await supervisor.attempt("ask", give()) == 42
    assert await supervisor.attempt("ask", fail()) is None
    assert counted == ["ask"]
    await supervisor.stop()


async def test_a_group_ends_with_its_block_and_none_of_it_ends_the_rest() -> None:
    """One task that fails is run again beside the others, and all of them are over when the block is."""
    counted: list[str] = []
    supervisor = new(counted.append)
    failures = [ValueError("a"), KeyError("b")]
    done = asyncio.Event()

    async def work() -> None:
        if failures:
            raise failures.pop()
        done.set()
        await asyncio.sleep(3600)

    async def boom() -> None:
        raise OSError

    with pytest.raises(RuntimeError, match="the block"):  # noqa: PT012 - what ends the block is the point
        async with supervisor.group() as group:
            other = group.run("other", lambda: asyncio.sleep(3600))
            worker = group.run("work", work)
            group.once("boom", boom())
            async with asyncio.timeout(10):
                await done.wait()
            assert not other.done()
            raise RuntimeError("the block")
    assert other.cancelled()
    assert worker.cancelled()
    assert sorted(counted) == ["boom", "work", "work"]
    await supervisor.stop()


async def test_what_callbacks_of_the_loop_raise_is_noted(caplog: pytest.LogCaptureFixture) -> None:
    """Until the supervisor is stopped; then the loop is left as it was."""
    counted: list[str] = []
    supervisor = new(counted.append)
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    supervisor.watch_loop("loop")

    def boom() -> None:
        raise RecursionError("too deep")

    with caplog.at_level(logging.ERROR):
        loop.call_soon(boom)
        loop.call_exception_handler({"message": "something without an exception"})
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert counted == ["loop", "loop"]
    assert "RecursionError: too deep" in caplog.text
    assert "something without an exception" in caplog.text
    await supervisor.stop()
    assert loop.get_exception_handler() is before


def test_pauses_grow_to_a_bound() -> None:
    """The pause doubles, and no number of failures makes it longer than the bound."""
    backoff = Backoff(first_seconds=0.1, most_seconds=2.0)
    assert [backoff.pause(n) for n in (1, 2, 3, 4, 5, 6)] == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0]
    assert backoff.pause(10_000) == 2.0
