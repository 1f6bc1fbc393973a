"""A shadow cache for each engine over one index, and what is in flight in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from turnout.routing.prefix import PrefixIndex
from turnout.routing.shadow import ShadowCache

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnout_simulator.policies.port import Arrival

EXPECTED_OUTPUT_TOKENS: Final = 256
"""What an answer is counted with while it runs, as in the router."""


class Shadows:
    """The shadows of *engines* engines of *kv_blocks* blocks of *block_tokens* tokens."""

    def __init__(self, engines: int, kv_blocks: int, block_tokens: int) -> None:
        self._index = PrefixIndex()
        self._caches = [ShadowCache(self._index, e, kv_blocks) for e in range(engines)]
        self._block_tokens = block_tokens
        self._flights: dict[int, tuple[int, tuple[int, ...], int, int]] = {}

    def match(self, blocks: Sequence[int]) -> list[int]:
        """Return how many leading *blocks* each engine is thought to hold."""
        return self._index.match(blocks, len(self._caches))

    def held(self) -> list[int]:
        """Return the blocks that requests in flight hold, by engine."""
        return [cache.held for cache in self._caches]

    def sent(self, arrival: Arrival, engine: int, matched: int) -> None:
        """Note that *arrival* has been sent to *engine*, where *matched* of its blocks are thought to be."""
        tokens = arrival.prompt_tokens + EXPECTED_OUTPUT_TOKENS
        private = -(-tokens // self._block_tokens) - len(arrival.blocks)
        self._flights[arrival.number] = (engine, arrival.blocks, private, matched)
        self._caches[engine].admit(arrival.blocks, private)

    def finished(self, number: int, cached_tokens: int) -> None:
        """Note an end and what its usage says."""
        engine, blocks, private, matched = self._flights.pop(number)
        self._caches[engine].correct(matched, cached_tokens // self._block_tokens)
        self._caches[engine].release(blocks, private)
