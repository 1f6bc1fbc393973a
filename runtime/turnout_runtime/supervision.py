"""The long-lived tasks of a process: what they raise is logged with its cause, counted and survived.

A task that fails is run again after a pause that grows with each failure. The process ends only for an error that the
composition root has named as fatal for a task: `Supervisor.ended` raises it.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Coroutine

_MOST_CAUSES: Final = 256
"""Causes of which it is remembered when they were logged. With more than that, the oldest is logged again."""


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
    therefore few and fixed; what tells one worker's task from another's goes into *detail*, which is only logged.
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
        return self._start(self._run_once(name, work, detail), name)

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

    async def stop(self, seconds: float = 5.0) -> None:
        """Cancel all tasks and timers, and wait for the tasks' end, at most *seconds*."""
        for timer in tuple(self._timers):
            self._end_timer(timer)
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            _, left = await asyncio.wait(tasks, timeout=seconds)
            for task in left:
                self._log.error("%s did not end within %g s after it was cancelled", task.get_name(), seconds)
        if not self._fatal.done():
            self._fatal.cancel()
        elif not self._fatal.cancelled():
            self._fatal.exception()  # seen: asyncio need not complain that nobody asked

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
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

    async def _run_once(self, name: str, work: Coroutine[Any, Any, None], detail: str) -> None:
        try:
            await work
        except asyncio.CancelledError as error:
            if is_cancelled():
                raise
            self.note(name, error, detail=detail)
        except Exception as error:  # noqa: BLE001 - as above
            self.note(name, error, detail=detail)

    def _end_with(self, name: str, error: Exception) -> None:
        self._failed(name)
        if not self._fatal.done():
            self._fatal.set_exception(error)

    def _end_timer(self, timer: _Timer) -> None:
        self._timers.discard(timer)
        timer.cancel()


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


def is_cancelled() -> bool:
    """Say whether the current task itself was cancelled, rather than something that it waited for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
