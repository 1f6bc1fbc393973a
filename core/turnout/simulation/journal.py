"""A KV cache that keeps a journal: which blocks it has cached and evicted, in order, for a publisher.

A class of its own, so that an engine whose cache is not published pays nothing for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from turnout.simulation.kv import Holding, KvCache

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class BlocksCached:
    """Consecutive blocks of a prompt are cached now, behind the block *parent* (None: from its beginning)."""

    blocks: tuple[int, ...]
    parent: int | None


@dataclass(frozen=True, slots=True)
class BlocksEvicted:
    """Blocks are cached no more."""

    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CacheCleared:
    """No block is cached any more."""


Entry = BlocksCached | BlocksEvicted | CacheCleared


class JournaledKvCache(KvCache):
    """The blocks of one engine, and what has become of them since the journal was last read."""

    __slots__ = ("_journal",)

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._journal: list[Entry] = []

    def read(self) -> list[Entry]:
        """Return what has happened since the last call."""
        journal, self._journal = self._journal, []
        return journal

    def grow(self, holding: Holding, private: int) -> None:
        """Grow, and note what is evicted for it."""
        evicted = tuple(islice(self._evictable, max(0, private - self.free)))
        super().grow(holding, private)
        if evicted:
            self._journal.append(BlocksEvicted(evicted))

    def publish(self, holding: Holding, hashes: Sequence[int], full_blocks: int) -> None:
        """Publish, and note what had not been published before."""
        known = self._references
        run: list[int] = []
        for index in range(len(holding.shared), min(full_blocks, len(hashes))):
            if hashes[index] not in known:
                run.append(index)
            elif run:
                self._note(hashes, run)
                run = []
        super().publish(holding, hashes, full_blocks)
        if run:
            self._note(hashes, run)

    def clear(self) -> bool:
        """Clear, and note it where it was done."""
        cleared = super().clear()
        if cleared:
            self._journal.append(CacheCleared())
        return cleared

    def _note(self, hashes: Sequence[int], run: list[int]) -> None:
        first = run[0]
        parent = hashes[first - 1] if first else None
        self._journal.append(BlocksCached(tuple(hashes[first : run[-1] + 1]), parent))
