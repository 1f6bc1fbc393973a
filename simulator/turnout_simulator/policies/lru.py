"""The approximate prefix index of most peers: per engine the blocks last sent there, least recently used out first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnout.routing.prefix import PrefixIndex

if TYPE_CHECKING:
    from collections.abc import Sequence


class LruIndex:
    """*capacity* blocks for each of *engines* engines."""

    def __init__(self, engines: int, capacity: int) -> None:
        self._engines = engines
        self._capacity = capacity
        self._index = PrefixIndex()
        self._recent: list[dict[int, None]] = [{} for _ in range(engines)]

    def match(self, blocks: Sequence[int]) -> list[int]:
        """Return how many leading *blocks* each engine is thought to hold."""
        return self._index.match(blocks, self._engines)

    def insert(self, blocks: Sequence[int], engine: int) -> None:
        """Note that a prompt of *blocks* has been sent to *engine*."""
        recent = self._recent[engine]
        for block in reversed(blocks):  # the beginning is the most recent: a prefix outlives what hangs on it
            if block in recent:
                del recent[block]
            else:
                self._index.add(block, engine)
            recent[block] = None
        while len(recent) > self._capacity:
            oldest = next(iter(recent))
            del recent[oldest]
            self._index.remove(oldest, engine)
