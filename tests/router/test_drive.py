"""Running a request's coroutine without a task: signals, futures, ends, cancellation."""

from __future__ import annotations

import asyncio

import pytest

from turnout_router.http1.drive import Drive, Signal


class Heard:
    """How a coroutine went: what it noted, and its ends."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.ends: list[BaseException | None] = []


async def test_it_runs_at_once_and_a_signal_resumes_it_at_once() -> None:
    """Before `resume` and `set` return, not in a later round of the loop."""
    heard, signal = Heard(), Signal(asyncio.get_running_loop())

    async def serve() -> None:
        heard.notes.append("began")
        await signal
        heard.notes.append("went on")

    Drive(serve(), heard.ends.append).resume()
    assert heard.notes == ["began"]
    assert not signal.is_set
    signal.set()
    signal.set()
    assert heard.notes == ["began", "went on"]
    assert heard.ends == [None]


async def test_a_signal_brings_an_exception_and_one_that_is_set_holds_no_one_up() -> None:
    """What waits raises it; what comes later does not wait."""
    heard, loop = Heard(), asyncio.get_running_loop()
    failing, done = Signal(loop), Signal(loop)
    done.set()

    async def serve() -> None:
        await done
        try:
            await failing
        except OSError as error:
            heard.notes.append(str(error))
        raise KeyError("end")

    Drive(serve(), heard.ends.append).resume()
    failing.set(OSError("gone"))
    assert heard.notes == ["gone"]
    assert isinstance(heard.ends[0], KeyError)


async def test_futures_and_tasks_can_be_waited_for() -> None:
    """Their results come in the loop's next rounds."""
    heard = Heard()
    ended = asyncio.Event()

    def on_end(error: BaseException | None) -> None:
        heard.ends.append(error)
        ended.set()

    async def number() -> int:
        async with asyncio.timeout(5):
            await asyncio.sleep(0)
        return 7

    async def serve() -> None:
        heard.notes.append(str(await asyncio.get_running_loop().create_task(number())))

    Drive(serve(), on_end).resume()
    async with asyncio.timeout(5):
        await ended.wait()
    assert (heard.notes, heard.ends) == (["7"], [None])


@pytest.mark.parametrize("kind", ["signal", "future", "itself"])
async def test_it_can_be_cancelled_wherever_it_waits(kind: str) -> None:
    """It raises CancelledError there, cleans up, and ends with it; also where it asked for it itself."""
    heard, loop = Heard(), asyncio.get_running_loop()
    signal, future = Signal(loop), loop.create_future()
    ended = asyncio.Event()
    drives: list[Drive] = []

    async def serve() -> None:
        if kind == "itself":
            drives[0].cancel()
        try:
            await (future if kind == "future" else signal)
        finally:
            heard.notes.append("cleaned up")

    def on_end(error: BaseException | None) -> None:
        heard.ends.append(error)
        ended.set()

    drives.append(Drive(serve(), on_end))
    drives[0].resume()
    drives[0].cancel()
    async with asyncio.timeout(5):
        await ended.wait()
    signal.set()
    assert heard.notes == ["cleaned up"]
    assert isinstance(heard.ends[0], asyncio.CancelledError)
    assert len(heard.ends) == 1


async def test_what_it_cannot_wait_for_is_said() -> None:
    """A bare yield (`asyncio.sleep(0)`) needs a task."""
    heard = Heard()
    Drive(asyncio.sleep(0), heard.ends.append).resume()
    assert "neither a signal nor a future" in str(heard.ends[0])


async def test_a_task_can_wait_for_a_signal() -> None:
    """As for a future: woken by its end or by its error, and it can be cancelled."""
    loop = asyncio.get_running_loop()
    good, bad, never, before = Signal(loop), Signal(loop), Signal(loop), Signal(loop)
    before.set()

    async def wait(signal: Signal) -> str:
        try:
            await signal
        except OSError as error:
            return str(error)
        return "done"

    tasks = [asyncio.create_task(wait(signal)) for signal in (good, bad, never, before)]
    await asyncio.sleep(0)
    good.set()
    bad.set(OSError("lost"))
    tasks[2].cancel()
    async with asyncio.timeout(5):
        assert await asyncio.gather(*tasks[:2], tasks[3]) == ["done", "lost", "done"]
        with pytest.raises(asyncio.CancelledError):
            await tasks[2]


async def test_a_cancellation_is_not_lost_between_a_futures_end_and_the_next_round() -> None:
    """What was waited for is there, but its coroutine has not yet run again: it is cancelled all the same."""
    heard, loop = Heard(), asyncio.get_running_loop()
    future: asyncio.Future[int] = loop.create_future()

    async def serve() -> None:
        await future
        heard.notes.append("went on")

    drive = Drive(serve(), heard.ends.append)
    drive.resume()
    future.set_result(7)
    drive.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert heard.notes == []
    assert isinstance(heard.ends[0], asyncio.CancelledError)


async def test_who_sets_a_signal_is_not_harmed_by_how_a_request_ends() -> None:
    """What `ended` raises is the event loop's to report."""
    loop = asyncio.get_running_loop()
    reported: list[BaseException] = []
    loop.set_exception_handler(lambda _, context: reported.append(context["exception"]))
    signal = Signal(loop)

    async def serve() -> None:
        await signal

    def ended(_: BaseException | None) -> None:
        raise RecursionError("too deep")

    Drive(serve(), ended).resume()
    signal.set()
    assert [type(error) for error in reported] == [RecursionError]
