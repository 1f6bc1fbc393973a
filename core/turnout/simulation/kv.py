"""A paged KV cache: blocks shared by prefix, counted by reference, evicted least recently used first.

Invariant, at every moment: ``private + referenced + evictable + free == capacity`` with all four at least 0, and a
cached block is in the eviction order if and only if no sequence refers to it.

A block has an identity (a hash that stands for it and everything before it) only while it is cached. Blocks that are
not full, or whose content is unknown, are merely counted: which ones they are makes no difference.
"""

from __future__ import annotations

from collections.abc import Sequence  # noqa: TC003 - part of the public signatures


class Holding:
    """The blocks of one sequence."""

    __slots__ = ("private", "shared")

    def __init__(self) -> None:
        self.shared: list[int] = []
        """Hashes of the cached blocks that it refers to, in the order of the prompt."""
        self.private = 0
        """Blocks that are its own."""

    @property
    def blocks(self) -> int:
        """Number of blocks held."""
        return len(self.shared) + self.private


class KvCache:
    """The blocks of one engine."""

    __slots__ = ("_evictable", "_private", "_references", "capacity")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._references: dict[int, int] = {}  # hash -> how many sequences refer to it
        self._evictable: dict[int, None] = {}  # hashes without a reference, least recently used first
        self._private = 0

    @property
    def free(self) -> int:
        """Blocks that hold nothing."""
        return self.capacity - self._private - len(self._references)

    @property
    def available(self) -> int:
        """Blocks that can be taken: free ones and those that can be evicted."""
        return self.capacity - self._private - len(self._references) + len(self._evictable)

    @property
    def used(self) -> int:
        """Blocks that are referenced."""
        return self._private + len(self._references) - len(self._evictable)

    @property
    def cached(self) -> int:
        """Blocks with an identity, in use or not."""
        return len(self._references)

    @property
    def private(self) -> int:
        """Blocks that belong to one sequence each."""
        return self._private

    def referenced(self) -> set[int]:
        """Return the cached blocks that are referenced."""
        return set(self._references) - set(self._evictable)

    def lookup(self, hashes: Sequence[int], limit: int) -> int:
        """Return how many of the first *limit* hashes are cached without a gap."""
        references = self._references
        hits = 0
        for block in hashes[:limit]:
            if block not in references:
                break
            hits += 1
        return hits

    def take(self, holding: Holding, shared: Sequence[int], private: int, reserve: int = 0) -> bool:
        """Give *holding* the cached blocks *shared* and *private* further ones, leaving *reserve* available.

        Returns False, and changes nothing, where there is not enough room.
        """
        evictable = self._evictable
        revived = sum(1 for block in shared if block in evictable)
        if private + revived + reserve > self.available:
            return False
        references = self._references
        for block in shared:
            if block in evictable:
                del evictable[block]
            references[block] += 1
        holding.shared.extend(shared)
        self.grow(holding, private)
        return True

    def grow(self, holding: Holding, private: int) -> None:
        """Give *holding* *private* more blocks, evicting what is needed. There must be that many available."""
        free = self.capacity - self._private - len(self._references)
        evictable, references = self._evictable, self._references
        for _ in range(private - free):
            oldest = next(iter(evictable))
            del evictable[oldest]
            del references[oldest]
        self._private += private
        holding.private += private

    def publish(self, holding: Holding, hashes: Sequence[int], full_blocks: int) -> None:
        """Make the blocks of *holding* up to the *full_blocks*-th known under their hashes.

        Where another sequence has published the same block in the meantime, its block is shared and the own one
        is free again. (vLLM keeps such a duplicate until its sequence ends.)
        """
        references, evictable = self._references, self._evictable
        for index in range(len(holding.shared), min(full_blocks, len(hashes))):
            block = hashes[index]
            if block in references:
                references[block] += 1
                evictable.pop(block, None)
            else:
                references[block] = 1
            holding.shared.append(block)
            holding.private -= 1
            self._private -= 1

    def release(self, holding: Holding) -> None:
        """Take back all blocks of *holding*. The deepest are evicted first: a prefix outlives what hangs on it."""
        references, evictable = self._references, self._evictable
        for block in reversed(holding.shared):
            references[block] -= 1
            if references[block] == 0:
                evictable[block] = None
        self._private -= holding.private
        holding.shared = []
        holding.private = 0

    def clear(self) -> bool:
        """Forget all cached blocks. Returns False, and changes nothing, while any is referenced, as vLLM does."""
        if self.used:
            return False
        self._references.clear()
        self._evictable.clear()
        return True

    def check(self) -> None:
        """Raise AssertionError where the invariant does not hold. For tests."""
        unused = {block for block, count in self._references.items() if count == 0}
        if unused != set(self._evictable):
            raise AssertionError(f"eviction order {set(self._evictable)} differs from unused blocks {unused}")
        if min(self._private, self.available, *self._references.values(), 0) < 0:
            raise AssertionError("a count is negative")
        if self._private + len(self._references) > self.capacity:
            raise AssertionError(
                f"{self._private + len(self._references)} blocks of {self.capacity} are in use"
            )
