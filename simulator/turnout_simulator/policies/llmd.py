"""llm-d's scorers: 2 x prefix + 1 x KV room + 1 x queue, highest wins.

Prefix: share of the prompt's blocks in an LRU index per engine of 31,250 blocks of 16 tokens, or of the engine's own
capacity where that is more. KV room: 1 - usage. Queue: (longest - its own) / (longest - shortest) of the waiting
requests, 1 where all are alike. KV and queue are scraped, every 50 ms or 200 ms; equals take turns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from turnout_simulator.policies.accounting import InFlight
from turnout_simulator.policies.lru import LruIndex
from turnout_simulator.policies.port import Sample

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnout_simulator.policies.port import Arrival

INDEX_TOKENS: Final = 31_250 * 16
PREFIX_WEIGHT: Final = 2.0
KV_WEIGHT: Final = 1.0
QUEUE_WEIGHT: Final = 1.0


class Scorers(InFlight):
    """See the module."""

    def __init__(self, engines: int, kv_blocks: int, block_tokens: int, scrape_seconds: float) -> None:
        super().__init__(engines)
        self.name = f"scorers, {scrape_seconds * 1000:.0f} ms (llm-d)"
        self.scrape_seconds: float | None = scrape_seconds
        self._index = LruIndex(engines, max(kv_blocks, INDEX_TOKENS // block_tokens))
        self._samples: Sequence[Sample] = [Sample(0, 0, 0.0)] * engines

    def scraped(self, now: float, samples: Sequence[Sample]) -> None:  # noqa: ARG002, D102 - the protocol says it
        self._samples = samples

    def choose(self, arrival: Arrival) -> int:  # noqa: D102 - the protocol says it
        matches = self._index.match(arrival.blocks)
        blocks = max(1, len(arrival.blocks))
        queues = [sample.waiting for sample in self._samples]
        longest, spread = max(queues), max(queues) - min(queues)
        self._turn += 1

        def score(engine: int) -> tuple[float, int]:
            queue = (longest - queues[engine]) / spread if spread else 1.0
            room = 1 - self._samples[engine].kv_usage
            total = PREFIX_WEIGHT * matches[engine] / blocks + KV_WEIGHT * room + QUEUE_WEIGHT * queue
            return total, (engine + self._turn) % self.engines

        best = max(range(self.engines), key=score)
        self._index.insert(arrival.blocks, best)
        return self.sent(arrival, best)
