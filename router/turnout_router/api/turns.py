"""Long work in steps, between which the event loop does its other work, and whose turn it is to have some done."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING, TypeVar

from turnout_router.http1.drive import Signal

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Generator

_T = TypeVar("_T")


async def in_turns(steps: Generator[object, None, _T], loop: asyncio.AbstractEventLoop) -> _T:
    """Run *steps*, one in each turn of the event loop, and return what they return."""
    try:
        while True:
            try:
                next(steps)
            except StopIteration as end:
                result: _T = end.value
                return result
            signal = Signal(loop)
            loop.call_soon(signal.set)
            await signal
    finally:
        steps.close()


class Queue:
    """Lets one holder in at a time, and takes the waiting clients in turn: one that wants much waits for itself.

    To be used on the event loop only.
    """

    __slots__ = ("_held", "_loop", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._held = False
        self._waiting: OrderedDict[str, deque[Signal]] = OrderedDict()

    async def enter(self, client: str) -> None:
        """Return once it is *client*'s turn. To be followed by `leave`, unless it was cancelled."""
        if not self._held:
            self._held = True
            return
        turn = Signal(self._loop)
        self._waiting.setdefault(client, deque()).append(turn)
        try:
            await turn
        except BaseException:
            if not self._withdraw(client, turn):
                self.leave()  # its turn had come
            raise

    def leave(self) -> None:
        """Let the next client in."""
        if not self._waiting:
            self._held = False
            return
        client, turns = self._waiting.popitem(last=False)
        turn = turns.popleft()
        if turns:
            self._waiting[client] = turns  # behind all others
        turn.set()

    def _withdraw(self, client: str, turn: Signal) -> bool:
        """Wait no longer; say whether it was still waiting."""
        turns = self._waiting.get(client)
        if turns is None or turn not in turns:
            return False
        turns.remove(turn)
        if not turns:
            del self._waiting[client]
        return True
