"""What most policies count: the requests that a router has in flight on each engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnout_simulator.policies.port import Arrival, Sample


class InFlight:
    """Counts requests in flight by engine; the base of policies that balance by them."""

    name = ""
    scrape_seconds: float | None = None

    def __init__(self, engines: int) -> None:
        self.engines = engines
        self.requests = [0] * engines
        self._where: dict[int, int] = {}
        self._turn = 0

    def sent(self, arrival: Arrival, engine: int) -> int:
        """Count *arrival* on *engine*, and return it."""
        self._where[arrival.number] = engine
        self.requests[engine] += 1
        return engine

    def least(self, among: Sequence[int] | None = None) -> int:
        """Return the engine with the fewest requests (of *among*); equals take turns."""
        self._turn += 1
        turn, n = self._turn, self.engines
        candidates = range(n) if among is None else among
        return min(candidates, key=lambda e: (self.requests[e], (e - turn) % n))

    def first_token(self, number: int, now: float) -> None:
        """Take note of a computed prompt."""

    def finished(self, number: int, now: float, cached_tokens: int, output_tokens: int) -> None:  # noqa: ARG002 - the protocol's
        """Take note of an end."""
        self.requests[self._where.pop(number)] -= 1

    def scraped(self, now: float, samples: Sequence[Sample]) -> None:
        """Take note of scraped metrics."""
