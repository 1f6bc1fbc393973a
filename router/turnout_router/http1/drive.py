"""Runs a request's coroutine without a task of asyncio: it starts at once, and what it waits for resumes it at once.

A task is started, woken and ended by the event loop's next rounds, each with a poll of all sockets, and is kept in a
register written in Python: for a request that waits once, for its worker, that was a fifth of all its work.

The caller of `set` runs the coroutine that waits for the signal, and never sees its exceptions: the end of a request goes to its
own `ended`, and what that raises to the event loop's exception handler.

`Signal` is what such a coroutine waits for. Futures can be waited for as well, and tasks can wait for signals. Code that
needs the current task (`asyncio.timeout`, `asyncio.TaskGroup`) belongs into a task of its own.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from mypy_extensions import mypyc_attr

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator
    from contextvars import Context


@mypyc_attr(free_list_len=1)
class Signal:
    """Something that happens once: `set` resumes the coroutine that waits for it, with an exception if one is given.

    `is_set` says whether it has happened.
    """

    __slots__ = ("_asyncio_future_blocking", "_callback", "_context", "_drive", "_error", "_loop", "is_set")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._asyncio_future_blocking = False
        self._loop = loop
        self.is_set = False
        self._error: BaseException | None = None
        self._drive: Drive | None = None
        self._callback: Callable[[Signal], object] | None = None
        self._context: Context | None = None

    def set(self, error: BaseException | None = None) -> None:
        """Resume the waiting coroutine. A second call does nothing."""
        if self.is_set:
            return
        self.is_set = True
        self._error = error
        drive, self._drive = self._drive, None
        if drive is not None:
            drive.resume()
        elif self._callback is not None:
            self._loop.call_soon(self._callback, self, context=self._context)

    def __await__(self) -> Generator[Signal, None, None]:
        """Wait for it."""
        return cast("Generator[Signal, None, None]", self)  # as far as `await` is concerned

    def __iter__(self) -> Signal:
        """Return itself: it is its own iterator."""
        return self

    def __next__(self) -> Signal:
        """Hand itself to the code that runs the coroutine; after it was set, let the coroutine go on."""
        if not self.is_set:
            self._asyncio_future_blocking = True
            return self
        error, self._error = self._error, None
        if error is not None:
            raise error
        raise StopIteration

    # The interface of a future for tasks

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop that it belongs to."""
        return self._loop

    def add_done_callback(
        self, callback: Callable[[Signal], object], *, context: Context | None = None
    ) -> None:
        """Have *callback* called in the loop's next round after it was set."""
        self._callback, self._context = callback, context
        if self.is_set:
            self._loop.call_soon(callback, self, context=context)

    def remove_done_callback(self, _callback: Callable[[Signal], object]) -> int:
        """Forget the callback."""
        self._callback = None
        return 1

    def cancel(self, msg: Any | None = None) -> bool:
        """Resume the waiting coroutine with CancelledError."""
        if self.is_set:
            return False
        self.set(asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg))
        return True

    def result(self) -> None:
        """Raise what it was set with."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def wait_with(self, drive: Drive) -> None:
        """Resume *drive* when it is set."""
        self._asyncio_future_blocking = False
        self._drive = drive

    def abandon(self) -> None:
        """Resume no coroutine any more."""
        self._drive = None


@mypyc_attr(free_list_len=1)
class Drive:
    """Runs *coroutine*; `ended` is called with None, or with what it raised (CancelledError included)."""

    __slots__ = ("_cancelled", "_coroutine", "_ended", "_future", "_running", "_signal")

    def __init__(
        self, coroutine: Coroutine[Any, Any, object], ended: Callable[[BaseException | None], None]
    ) -> None:
        self._coroutine = coroutine
        self._ended = ended
        self._signal: Signal | None = None
        self._future: asyncio.Future[Any] | None = None
        self._running = False
        self._cancelled = False

    def resume(self) -> None:
        """Run until it waits for something again, or ends."""
        self._step(None)

    def cancel(self) -> None:
        """Have the coroutine raise CancelledError where it waits; where it runs just now, when it waits next."""
        if self._running:
            self._cancelled = True
        elif self._signal is not None:
            self._signal.abandon()
            self._step(asyncio.CancelledError())
        elif self._future is not None and not self._future.cancel():
            self._cancelled = True  # it is done, and wakes this in the loop's next round

    def _wake(self, _future: asyncio.Future[Any]) -> None:
        if self._cancelled:
            self._cancelled = False
            self._step(asyncio.CancelledError())
        else:
            self._step(None)

    def _step(self, error: BaseException | None) -> None:
        self._signal = None
        self._future = None
        self._running = True
        try:
            waited = self._coroutine.send(None) if error is None else self._coroutine.throw(error)
        except StopIteration:
            self._end(None)
        except BaseException as failure:  # noqa: BLE001 - handed on, whatever it is
            self._end(failure)
        else:
            self._running = False
            self._wait_for(waited)

    def _end(self, failure: BaseException | None) -> None:
        self._running = False
        try:
            self._ended(failure)
        except Exception as error:  # noqa: BLE001 - the code that resumed this may be serving another request
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a request could not be ended", "exception": error}
            )

    def _wait_for(self, waited: object) -> None:
        if isinstance(waited, Signal):
            self._signal = waited
            waited.wait_with(self)
        elif isinstance(waited, asyncio.Future):
            waited._asyncio_future_blocking = False  # noqa: SLF001 - the protocol by which a coroutine's runner takes a future over
            self._future = waited
            waited.add_done_callback(self._wake)
        else:
            self._step(
                RuntimeError(f"a request waits for {waited!r}, which is neither a signal nor a future")
            )
            return
        if self._cancelled:
            self._cancelled = False
            self.cancel()
