"""The queue between events and work: each key at most once, never twice at a time, retried with back-off.

Keys are in shares (namespaces, for example) that take turns: ten thousand keys of one
share delay those of another by one key each.
As in client-go: a key that is added while it is being worked on is worked on once more afterwards. So a burst
of events costs one pass, and what the pass did not see yet is not lost. It holds as many keys as there are resources.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

K = TypeVar("K", bound="Hashable")

FIRST_DELAY_SECONDS: Final = 0.5
LAST_DELAY_SECONDS: Final = 60.0


class WorkQueue(Generic[K]):
    """Keys that wait for their turn."""

    def __init__(self, share: Callable[[K], Hashable] = lambda _: None) -> None:
        self._share = share
        self._ready: dict[Hashable, dict[K, None]] = {}
        """By share, the one whose turn is next first; none is empty."""
        self._active: set[K] = set()
        self._again: set[K] = set()
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._failures: dict[K, int] = {}
        self._filled = asyncio.Event()

    def __len__(self) -> int:
        """Return how many keys wait, timers aside."""
        return sum(map(len, self._ready.values())) + len(self._again)

    def add(self, key: K) -> None:
        """Have *key* worked on as soon as a worker task is free."""
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        if key in self._active:
            self._again.add(key)
        else:
            self._ready.setdefault(self._share(key), {})[key] = None
            self._filled.set()

    def add_after(self, key: K, seconds: float) -> None:
        """Have *key* worked on after *seconds*, or sooner where something else asks for it."""
        loop = asyncio.get_running_loop()
        before = self._timers.get(key)
        due = loop.time() + seconds
        if before is not None:
            if before.when() <= due:
                return
            before.cancel()
        self._timers[key] = loop.call_at(due, self.add, key)

    def retry(self, key: K) -> float:
        """Have *key* worked on again after a delay that doubles with every failure in a row; return the delay."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        delay: float = min(LAST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2.0 ** min(failures - 1, 16))
        self.add_after(key, delay)
        return delay

    def forgive(self, key: K) -> None:
        """Forget the failures of *key*."""
        self._failures.pop(key, None)

    async def get(self) -> K:
        """Return the key that has waited longest of the share whose turn it is, once there is one. Say `done` afterwards."""
        while not self._ready:
            self._filled.clear()
            await self._filled.wait()
        share = next(iter(self._ready))
        waiting = self._ready.pop(share)
        key = next(iter(waiting))
        del waiting[key]
        if waiting:
            self._ready[share] = waiting  # behind all others
        self._active.add(key)
        return key

    def done(self, key: K) -> None:
        """Say that the work on *key* is over."""
        self._active.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def close(self) -> None:
        """Drop everything that waits."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._ready.clear()
        self._again.clear()
