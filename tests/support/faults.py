"""What goes wrong where nothing should: exceptions of every kind, raised in turn by what otherwise works."""

from __future__ import annotations

import asyncio
import inspect
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType


def errors() -> list[Exception]:
    """Return one of each kind that a library, a transport or the interpreter raises."""
    return [
        RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed"),
        OSError(24, "Too many open files"),
        ValueError("no number"),
        UnicodeError("label too long"),
        RecursionError("too deep"),
        MemoryError("no memory"),
        AssertionError("impossible"),
        TimeoutError("late"),
        EOFError("the end"),
        ExceptionGroup("several", [KeyError("a"), TypeError("b")]),
        KeyError("key"),
    ]


def errors_of_awaiting() -> list[BaseException]:
    """Return the same, and the cancellation of something that was waited for."""
    return [*errors(), asyncio.CancelledError("of what it waited for")]


class Fault:
    """A function that raises one of *pending* at each call, and once there are none left does what *function* does."""

    def __init__(self, function: Callable[..., Any], pending: list[Any], only: Callable[..., bool]) -> None:
        self._function = function
        self._only = only
        self.pending = pending
        self.passed = 0
        """Calls that were let through."""

    def __get__(self, instance: object, owner: type | None = None) -> Callable[..., Any]:
        """Be a method of *instance*, where this stands in a class."""
        if inspect.iscoroutinefunction(self._function):

            async def wait(*args: Any, **more: Any) -> Any:
                self._raise(instance, *args)
                return await self._function(instance, *args, **more)

            return wait

        def call(*args: Any, **more: Any) -> Any:
            self._raise(instance, *args)
            return self._function(instance, *args, **more)

        return call

    def __call__(self, *args: Any, **more: Any) -> Any:
        """Be a function of a module."""
        self._raise(*args)
        return self._function(*args, **more)

    def _raise(self, *args: Any) -> None:
        if self.pending and self._only(*args):
            raise self.pending.pop(0)
        self.passed += 1


def faulty(
    owner: type | ModuleType, name: str, pending: list[Any], only: Callable[..., bool] = lambda *_: True
) -> Fault:
    """Return what stands in for *name*, a method of the class *owner* or a function of that module; *only* says for which arguments (self first) it raises."""
    return Fault(getattr(owner, name), pending, only)


class Behind:
    """All that *thing* is, but for what is given by name."""

    def __init__(self, thing: Any, **instead: Any) -> None:
        self._thing = thing
        self._instead = instead

    def __getattr__(self, name: str) -> Any:
        return self._instead[name] if name in self._instead else getattr(self._thing, name)

    def __len__(self) -> int:
        return len(self._thing)


@contextmanager
def slamming_port() -> Iterator[Slamming]:
    """Listen on a port that accepts every connection and closes it at once, as a proxy in front of a pod that is gone."""
    slamming = Slamming()
    try:
        yield slamming
    finally:
        slamming.close()


class Slamming:
    """`accepted` counts the connections."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.accepted = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def id(self) -> str:
        return f"127.0.0.1:{self._socket.getsockname()[1]}"

    @property
    def url(self) -> str:
        return f"http://{self.id}"

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._socket.close()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            connection.close()
            self.accepted += 1
