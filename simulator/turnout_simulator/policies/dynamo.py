"""Dynamo's cost: prefill blocks not cached + decode blocks in flight, lowest wins.

Both are what the engine would have with the request on it: prompt blocks that it has still to compute, the new
request's uncached ones included, and the KV blocks of all its requests, shared ones counted once. The index is as
good as Turnout's own: a shadow of each engine's cache at its real capacity.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnout_simulator.policies.accounting import InFlight
from turnout_simulator.policies.shadows import Shadows

if TYPE_CHECKING:
    from turnout_simulator.policies.port import Arrival


class KvCost(InFlight):
    """See the module."""

    name = "KV cost (Dynamo)"

    def __init__(self, engines: int, kv_blocks: int, block_tokens: int) -> None:
        super().__init__(engines)
        self._shadows = Shadows(engines, kv_blocks, block_tokens)
        self._block_tokens = block_tokens
        self._prefill = [0.0] * engines  # blocks to be computed
        self._mine: dict[int, float] = {}

    def choose(self, arrival: Arrival) -> int:  # noqa: D102 - the protocol says it
        matches = self._shadows.match(arrival.blocks)
        prompt = arrival.prompt_tokens / self._block_tokens
        held = self._shadows.held()
        costs = [
            self._prefill[e] + (prompt - matches[e]) + held[e] + (prompt - matches[e])
            for e in range(self.engines)
        ]
        least = min(costs)
        engine = self.least([e for e in range(self.engines) if costs[e] == least])
        self._mine[arrival.number] = prompt - matches[engine]
        self._prefill[engine] += prompt - matches[engine]
        self._shadows.sent(arrival, engine, matches[engine])
        return self.sent(arrival, engine)

    def first_token(self, number: int, now: float) -> None:  # noqa: ARG002, D102 - the protocol says it
        self._prefill[self._where[number]] -= self._mine.pop(number)

    def finished(self, number: int, now: float, cached_tokens: int, output_tokens: int) -> None:  # noqa: D102
        self._shadows.finished(number, cached_tokens)
        super().finished(number, now, cached_tokens, output_tokens)
