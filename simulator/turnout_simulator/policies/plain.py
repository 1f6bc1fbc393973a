"""Baselines that know nothing of prefixes: round robin and least requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnout_simulator.policies.accounting import InFlight

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnout_simulator.policies.port import Arrival, Sample


class RoundRobin:
    """One after the other."""

    name = "round robin"
    scrape_seconds: float | None = None

    def __init__(self, engines: int) -> None:
        self._engines = engines
        self._turn = -1

    def choose(self, arrival: Arrival) -> int:  # noqa: ARG002, D102 - the protocol says it
        self._turn = (self._turn + 1) % self._engines
        return self._turn

    def first_token(self, number: int, now: float) -> None:
        """Learn nothing."""

    def finished(self, number: int, now: float, cached_tokens: int, output_tokens: int) -> None:
        """Learn nothing."""

    def scraped(self, now: float, samples: Sequence[Sample]) -> None:
        """Learn nothing."""


class LeastRequests(InFlight):
    """The engine with the fewest requests that this router has in flight; equals take turns."""

    name = "least requests"

    def choose(self, arrival: Arrival) -> int:  # noqa: D102 - the protocol says it
        return self.sent(arrival, self.least())
