"""KubeAI's rule: consistent hashing with bounded loads (CHWBL).

256 replicas of each engine on the ring; an engine is passed over while its requests exceed 125 % of the mean. KubeAI
hashes the first 100 characters; every prompt of a trace with one system prompt would hash alike, so here the first
two prefix blocks are hashed, which is how far its setting would have to reach to separate conversations.
"""

from __future__ import annotations

from bisect import bisect_right
from hashlib import blake2b
from math import ceil
from typing import TYPE_CHECKING, Final

from turnout_simulator.policies.accounting import InFlight

if TYPE_CHECKING:
    from turnout_simulator.policies.port import Arrival

REPLICAS: Final = 256
MEAN_LOAD: Final = 1.25
HASHED_BLOCKS: Final = 2


class BoundedLoadHashing(InFlight):
    """See the module."""

    name = "CHWBL (KubeAI)"

    def __init__(self, engines: int) -> None:
        super().__init__(engines)
        ring = sorted((_point(f"engine-{e}-{r}"), e) for e in range(engines) for r in range(REPLICAS))
        self._points = [point for point, _ in ring]
        self._owners = [owner for _, owner in ring]

    def choose(self, arrival: Arrival) -> int:  # noqa: D102 - the protocol says it
        bound = ceil(MEAN_LOAD * (sum(self.requests) + 1) / self.engines)
        start = bisect_right(self._points, _point(repr(arrival.blocks[:HASHED_BLOCKS])))
        for step in range(len(self._owners)):
            engine = self._owners[(start + step) % len(self._owners)]
            if self.requests[engine] < bound:
                return self.sent(arrival, engine)
        return self.sent(arrival, self.least())


def _point(key: str) -> int:
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big")
