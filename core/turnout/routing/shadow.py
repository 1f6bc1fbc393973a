"""A backend's prefix cache, estimated from the requests that the router has sent there.

A shadow follows the engine's own rules (`turnout.simulation.kv`): blocks of running requests stay, the others go least
recently used first, the deepest of a prompt before its beginning; tokens of answers take room, too. It counts every
request as admitted when it is sent, so it is wrong by the requests in the engine's queue. The answer's usage has the
number of tokens that really were cached, which corrects the shadow's capacity: an engine that evicts sooner than
expected has less room for prefixes than expected, for whatever reason (another router's requests, for example).

Bounded: no more than `capacity` blocks and those of requests in flight.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from turnout.routing.prefix import PrefixIndex

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

STEP: Final = 0.02
"""Share by which one wrong prediction moves the capacity."""

LEAST_SHARE: Final = 0.2
"""A shadow never shrinks below this share of the capacity that the engine has."""


class ShadowCache:
    """The cache of one backend. *number* is the backend's in *index*, *capacity* its KV cache in blocks."""

    __slots__ = ("_evictable", "_index", "_number", "_private", "_references", "_room", "capacity")

    def __init__(self, index: PrefixIndex, number: int, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"a KV cache has at least one block, not {capacity}")
        self.capacity = capacity
        self._room = float(capacity)
        self._index = index
        self._number = number
        self._references: dict[Hashable, int] = {}
        # Least recently used first. Not a dict: its first entry is found by walking past all that were taken out.
        self._evictable: OrderedDict[Hashable, None] = OrderedDict()
        self._private = 0

    @property
    def held(self) -> int:
        """Blocks that requests in flight hold."""
        return self._private + len(self._references) - len(self._evictable)

    def leading_held(self, blocks: Sequence[Hashable], most: int) -> int:
        """Return how many of the first *most* blocks requests in flight hold, without a gap."""
        references = self._references
        count = 0
        while count < most and references.get(blocks[count], 0):
            count += 1
        return count

    def admit(self, blocks: Sequence[Hashable], private: int) -> None:
        """Take a request's prefix *blocks* and room for *private* further ones that no other prompt shares."""
        references, evictable = self._references, self._evictable
        for block in blocks:
            count = references.get(block)
            if count is None:
                references[block] = 1
                self._index.add(block, self._number)
            else:
                references[block] = count + 1
                if not count:
                    del evictable[block]
        self._private += private
        self._evict()

    def release(self, blocks: Sequence[Hashable], private: int) -> None:
        """Let go of what `admit` took. The blocks stay until their room is needed."""
        references, evictable = self._references, self._evictable
        for block in reversed(blocks):
            count = references[block] - 1
            references[block] = count
            if not count:
                evictable[block] = None
        self._private -= private
        self._evict()

    def correct(self, expected_blocks: int, found_blocks: int) -> None:
        """Learn from a request of which *expected_blocks* were thought to be cached and *found_blocks* were.

        One block more or less is no evidence: the engine's blocks end elsewhere.
        """
        if found_blocks + 1 < expected_blocks:
            self._room = max(self._room * (1 - STEP), self.capacity * LEAST_SHARE)
            self._evict()
        elif found_blocks > expected_blocks + 1:
            self._room = min(self._room * (1 + STEP), float(self.capacity))

    def clear(self) -> None:
        """Forget everything that no request in flight holds: the engine has started anew."""
        for block in self._evictable:
            del self._references[block]
            self._index.remove(block, self._number)
        self._evictable.clear()

    def drop(self) -> None:
        """Take this backend out of the index for good. Nothing may be admitted any more; releases do no harm."""
        for block in self._references:
            self._index.remove(block, self._number)
        self._index = PrefixIndex()

    def resize(self, capacity: int) -> None:
        """Follow an engine whose KV cache has another size than expected."""
        if capacity < 1:
            raise ValueError(f"a KV cache has at least one block, not {capacity}")
        if capacity != self.capacity:
            self._room *= capacity / self.capacity
            self.capacity = capacity
            self._evict()

    def _evict(self) -> None:
        references, evictable = self._references, self._evictable
        excess = self._private + len(references) - int(self._room)
        while excess > 0 and evictable:
            block, _ = evictable.popitem(last=False)
            del references[block]
            self._index.remove(block, self._number)
            excess -= 1
