"""AIBrix's prefix-cache routing.

Where requests in flight differ by more than 8 between two engines: least requests. Otherwise the best match among the
engines with at most mean + 1 standard deviation requests, equal matches by fewest requests; without any match least
requests. Its index is given the engines' real capacity.
"""

from __future__ import annotations

from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Final

from turnout_simulator.policies.accounting import InFlight
from turnout_simulator.policies.lru import LruIndex

if TYPE_CHECKING:
    from turnout_simulator.policies.port import Arrival

IMBALANCE: Final = 8


class PrefixCache(InFlight):
    """See the module."""

    name = "prefix-cache (AIBrix)"

    def __init__(self, engines: int, kv_blocks: int) -> None:
        super().__init__(engines)
        self._index = LruIndex(engines, kv_blocks)

    def choose(self, arrival: Arrival) -> int:  # noqa: D102 - the protocol says it
        engine = self._best(self._index.match(arrival.blocks))
        self._index.insert(arrival.blocks, engine)
        return self.sent(arrival, engine)

    def _best(self, matches: list[int]) -> int:
        requests = self.requests
        if max(requests) - min(requests) > IMBALANCE:
            return self.least()
        bound = fmean(requests) + pstdev(requests)
        fitting = [e for e in range(self.engines) if requests[e] <= bound and matches[e]]
        if not fitting:
            return self.least()
        most = max(matches[e] for e in fitting)
        return self.least([e for e in fitting if matches[e] == most])
