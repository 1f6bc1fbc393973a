"""The rule of SGLang's gateway and of vllm-router: cache-aware while balanced.

A radix tree per engine, bounded to 2**24 characters: 8,192 blocks of 512 tokens at four characters a token. Where the
longest and the shortest queue differ by more than 64 requests and 1.5 times, the shortest queue; otherwise the
engine with the best match where more than 30 % of the prompt match there, else the shortest queue.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from turnout_simulator.policies.accounting import InFlight
from turnout_simulator.policies.lru import LruIndex

if TYPE_CHECKING:
    from turnout_simulator.policies.port import Arrival

TREE_BLOCKS: Final = 8192
CACHE_THRESHOLD: Final = 0.3
BALANCE_ABSOLUTE: Final = 64
BALANCE_RELATIVE: Final = 1.5


class CacheAware(InFlight):
    """See the module."""

    name = "cache-aware (SGLang)"

    def __init__(self, engines: int) -> None:
        super().__init__(engines)
        self._index = LruIndex(engines, TREE_BLOCKS)

    def choose(self, arrival: Arrival) -> int:  # noqa: D102 - the protocol says it
        longest, shortest = max(self.requests), min(self.requests)
        matches = self._index.match(arrival.blocks)
        best = max(range(self.engines), key=matches.__getitem__)
        unbalanced = longest - shortest > BALANCE_ABSOLUTE and longest > BALANCE_RELATIVE * shortest
        if unbalanced or matches[best] <= CACHE_THRESHOLD * max(1, len(arrival.blocks)):
            best = self.least()
        self._index.insert(arrival.blocks, best)
        return self.sent(arrival, best)
