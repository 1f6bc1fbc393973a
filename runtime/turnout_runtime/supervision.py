"""The long-lived tasks of a process: what they raise is logged with its cause, counted and survived.

A task that fails is run again after a pause that grows with each failure. The process ends only for an error that the
composition root has named as fatal for a task: `Supervisor.ended` raises it.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Collection, Coroutine

_Result = TypeVar("_Result")

_MOST_CAUSES: Final = 256
"""Causes of which it is remembered when they were logged. With more than that, the oldest is logged again."""

_MOST_SECONDS_TO_END: Final = 5.0
"""How long cancelled tasks are waited for."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long a failed task pauses before it runs again. Times in seconds."""

    first_seconds: float = 0.1
    """After the first failure; each further one doubles it."""
    most_seconds: float = 30.0
    """No pause is longer."""
    reset_seconds: float = 60.0
    """A task that ran this long before it failed begins with the first pause again."""

    def pause(self, failures: int) -> float:
        """Return the pause after *failures* failures in a row (1 or more), without jitter."""
        return min(self.most_seconds, self.first_seconds * 2.0 ** min(failures - 1, 32))


class Supervisor:
    """Runs the tasks of one process. To be made and used on the event loop.

    *failed* is called with a task's name for each failure: it counts, in a metric whose label is that name. Names are
    therefore few and fixed; what distinguishes one worker's task from another's goes into *detail*, which is only logged.
    """

    def __init__(
        self,
        failed: Callable[[str], None],
        log: logging.Logger,
        *,
        backoff: Backoff | None = None,
        log_again_seconds: float = 60.0,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._failed = failed
        self._log = log
        self._backoff = backoff or Backoff()
        self._log_again_seconds = log_again_seconds
        self._logged: dict[tuple[str, str], float] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._timers: set[_Timer] = set()
        self._fatal: asyncio.Future[None] = self._loop.create_future()
        self._end_of_loop_watch: Callable[[], None] | None = None

    def watch_loop(self, name: str) -> None:
        """Have what callbacks of the event loop raise, and what no task reports, noted under *name* until `stop`."""
        before = self._loop.get_exception_handler()

        def handle(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            message = str(context.get("message") or "the event loop reports a failure")
            error = context.get("exception")
            self.note(
                name, error if isinstance(error, BaseException) else RuntimeError(message), detail=message
            )

        def end() -> None:
            if self._loop.get_exception_handler() is handle:  # of two supervisors the last one hears of it
                self._loop.set_exception_handler(before)

        self._loop.set_exception_handler(handle)
        self._end_of_loop_watch = end

    def run(
        self,
        name: str,
        work: Callable[[], Coroutine[Any, Any, None]],
        *,
        detail: str = "",
        fatal: tuple[type[Exception], ...] = (),
    ) -> asyncio.Task[None]:
        """Run *work* until it returns or its task is cancelled; each time it raises, run it again after a pause.

        An exception of a type in *fatal* is not survived: `ended` raises it, and *work* is not run again.
        """
        return self._start(self._keep_running(name, work, detail, fatal), name)

    def once(self, name: str, work: Coroutine[Any, Any, None], *, detail: str = "") -> asyncio.Task[None]:
        """Run *work* once. What it raises is logged and counted, and goes no further."""
        return self.attempt(name, work, detail=detail)

    def attempt(
        self, name: str, work: Coroutine[Any, Any, _Result], *, detail: str = ""
    ) -> asyncio.Task[_Result | None]:
        """Run *work* once for its result, which is None where it raises; that is logged and counted, as with `once`."""
        task = self._start(self._run_once(name, work, detail), name)
        task.add_done_callback(lambda _: work.close())  # of a task that was cancelled before it began
        return task

    def group(self) -> Group:
        """Return what starts tasks that end with a block; see `Group`."""
        return Group(self, self._log)

    def every(self, name: str, seconds: float, function: Callable[[], None]) -> Callable[[], None]:
        """Call *function* now and every *seconds*, whatever it raises. Return what ends that."""
        timer = _Timer(self, name, seconds, function)
        self._timers.add(timer)
        timer.call()
        return lambda: self._end_timer(timer)

    def note(self, name: str, error: BaseException, *, detail: str = "") -> None:
        """Count and log *error*, which was raised outside a task: in a callback of the event loop, for example.

        An error of the same type under the same name is logged, with its traceback, once in `log_again_seconds`.
        """
        self._failed(name)
        cause = name, type(error).__qualname__
        now = self._loop.time()
        if now < self._logged.get(cause, now):
            return
        if len(self._logged) >= _MOST_CAUSES:
            del self._logged[next(iter(self._logged))]
        self._logged[cause] = now + self._log_again_seconds
        self._log.error(
            "%s failed%s: %s: %s",
            name,
            f" ({detail})" if detail else "",
            type(error).__name__,
            error,
            exc_info=error,
        )

    async def ended(self) -> None:
        """Wait for a fatal error, and raise it. Never returns."""
        await asyncio.shield(self._fatal)

    async def stop(self, seconds: float = _MOST_SECONDS_TO_END) -> None:
        """Cancel all tasks and timers, and wait for the tasks' end, at most *seconds*."""
        for timer in tuple(self._timers):
            self._end_timer(timer)
        if self._end_of_loop_watch is not None:
            self._end_of_loop_watch()
            self._end_of_loop_watch = None
        await _cancel(tuple(self._tasks), seconds, self._log)
        if not self._fatal.done():
            self._fatal.cancel()
        elif not self._fatal.cancelled():
            self._fatal.exception()  # retrieved, or asyncio would log it

    def _start(self, work: Coroutine[Any, Any, _Result], name: str) -> asyncio.Task[_Result]:
        task = self._loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _keep_running(
        self,
        name: str,
        work: Callable[[], Coroutine[Any, Any, None]],
        detail: str,
        fatal: tuple[type[Exception], ...],
    ) -> None:
        failures = 0
        while True:
            began = self._loop.time()
            try:
                await work()
            except fatal as error:
                self._end_with(name, error)
                return
            except asyncio.CancelledError as error:
                if is_cancelled():
                    raise
                self.note(name, error, detail=detail)  # raised by what the task waited for, not meant for it
            except Exception as error:  # noqa: BLE001 - whatever it is, the process goes on
                self.note(name, error, detail=detail)
            else:
                return
            failures = 1 if self._loop.time() - began >= self._backoff.reset_seconds else failures + 1
            pause = self._backoff.pause(failures)
            await asyncio.sleep(pause * random.uniform(0.75, 1.25))  # noqa: S311 - spreads load, guards nothing

    async def _run_once(self, name: str, work: Coroutine[Any, Any, _Result], detail: str) -> _Result | None:
        try:
            return await work
        except asyncio.CancelledError as error:
            if is_cancelled():
                raise
            self.note(name, error, detail=detail)
        except Exception as error:  # noqa: BLE001 - as above
            self.note(name, error, detail=detail)
        return None

    def _end_with(self, name: str, error: Exception) -> None:
        self._failed(name)
        if not self._fatal.done():
            self._fatal.set_exception(error)

    def _end_timer(self, timer: _Timer) -> None:
        self._timers.discard(timer)
        timer.cancel()


class Group:
    """Tasks of a supervisor that end with an ``async with`` block, whatever ends that.

    What one of them raises ends none of the others, unlike with `asyncio.TaskGroup`.
    """

    def __init__(self, supervisor: Supervisor, log: logging.Logger) -> None:
        self._supervisor = supervisor
        self._log = log
        self._tasks: set[asyncio.Task[None]] = set()

    def run(
        self, name: str, work: Callable[[], Coroutine[Any, Any, None]], *, detail: str = ""
    ) -> asyncio.Task[None]:
        """Do as `Supervisor.run`, until the block ends."""
        return self._keep(self._supervisor.run(name, work, detail=detail))

    def once(self, name: str, work: Coroutine[Any, Any, None], *, detail: str = "") -> asyncio.Task[None]:
        """Do as `Supervisor.once`, until the block ends."""
        return self._keep(self._supervisor.once(name, work, detail=detail))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await _cancel(tuple(self._tasks), _MOST_SECONDS_TO_END, self._log)

    def _keep(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class _Timer:
    """Calls a function again and again."""

    def __init__(
        self, supervisor: Supervisor, name: str, seconds: float, function: Callable[[], None]
    ) -> None:
        self._supervisor = supervisor
        self._name = name
        self._seconds = seconds
        self._function = function
        self._ended = False
        self._handle: asyncio.TimerHandle | None = None

    def call(self) -> None:
        try:
            self._function()
        except Exception as error:  # noqa: BLE001 - the next call must come, whatever it is
            self._supervisor.note(self._name, error)
        if not self._ended:
            self._handle = asyncio.get_running_loop().call_later(self._seconds, self.call)

    def cancel(self) -> None:
        self._ended = True
        if self._handle is not None:
            self._handle.cancel()


async def _cancel(tasks: Collection[asyncio.Task[Any]], seconds: float, log: logging.Logger) -> None:
    """Cancel *tasks* and wait for their end, at most *seconds*."""
    for task in tasks:
        task.cancel()
    if tasks:
        _, left = await asyncio.wait(tasks, timeout=seconds)
        for task in left:
            log.error("%s did not end within %g s after it was cancelled", task.get_name(), seconds)


def is_cancelled() -> bool:
    """Say whether the current task itself was cancelled, rather than something that it waited for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
