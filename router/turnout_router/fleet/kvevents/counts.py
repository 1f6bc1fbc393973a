"""Metrics of KV events, by deployment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from turnout import metrics as catalog
from turnout_router.families import counter_family, gauge_family

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric

    from turnout.routing.events import EventStream

STATES: Final = ("complete", "partial", "away")
"""All that a worker has cached is known; some of it; its events do not arrive."""


def state_of(stream: EventStream) -> str:
    """Return one of `STATES`."""
    if not stream.following:
        return "away"
    return "complete" if stream.complete else "partial"


class Worker:
    """One worker's events. `lag` is how old its last batch was when it arrived, in seconds by both clocks."""

    __slots__ = ("batches", "deployment", "lag", "stream")

    def __init__(self, deployment: str, stream: EventStream) -> None:
        self.deployment = deployment
        self.stream = stream
        self.batches = 0
        self.lag = 0.0

    def totals(self) -> dict[str, int]:
        """Return what happened, by its name in the metric."""
        stream = self.stream
        return {
            "batch": self.batches,
            "gap": stream.gaps,
            "restart": stream.restarts,
            "lost": stream.lost,
            "unreadable": stream.unreadable,
            "dropped_block": stream.cache.dropped,
            "unplaced_block": stream.cache.unplaced,
        }


class Counts:
    """A collector of Prometheus': of the workers that are followed, and of what is left of those that went."""

    def __init__(self) -> None:
        self.workers: dict[str, Worker] = {}
        self._gone: dict[str, dict[str, int]] = {}
        self._tokenized: dict[tuple[str, str], int] = {}

    def tokenized(self, deployment: str, outcome: str) -> None:
        """Count a prompt whose tokens were wanted."""
        key = deployment, outcome
        self._tokenized[key] = self._tokenized.get(key, 0) + 1

    def left(self, key: str) -> None:
        """Keep the counts of a worker that is followed no longer."""
        worker = self.workers.pop(key)
        kept = self._gone.setdefault(worker.deployment, {})
        for name, number in worker.totals().items():
            kept[name] = kept.get(name, 0) + number

    def retain(self, deployments: frozenset[str]) -> None:
        """Forget deployments that are gone."""
        self._gone = {key: kept for key, kept in self._gone.items() if key in deployments}
        self._tokenized = {key: n for key, n in self._tokenized.items() if key[0] in deployments}

    def collect(self) -> Iterator[Metric]:
        """Return all of it."""
        totals = {key: dict(kept) for key, kept in self._gone.items()}
        states: dict[tuple[str, str], int] = {}
        blocks: dict[str, int] = {}
        lags: dict[str, float] = {}
        for worker in self.workers.values():
            key = worker.deployment
            sums = totals.setdefault(key, {})
            for name, number in worker.totals().items():
                sums[name] = sums.get(name, 0) + number
            for state in STATES:
                states.setdefault((key, state), 0)
            states[key, state_of(worker.stream)] += 1
            blocks[key] = blocks.get(key, 0) + len(worker.stream.cache)
            lags[key] = max(lags.get(key, 0.0), worker.lag)
        events = counter_family(catalog.ROUTER_KV_EVENTS)
        for key, sums in totals.items():
            for name, number in sums.items():
                events.add_metric([key, name], number)
        yield events
        followed = gauge_family(catalog.ROUTER_KV_EVENTS_WORKERS)
        for (key, state), number in states.items():
            followed.add_metric([key, state], number)
        yield followed
        known = gauge_family(catalog.ROUTER_KV_EVENTS_BLOCKS)
        for key, number in blocks.items():
            known.add_metric([key], number)
        yield known
        lag = gauge_family(catalog.ROUTER_KV_EVENTS_LAG)
        for key, seconds in lags.items():
            lag.add_metric([key], seconds)
        yield lag
        prompts = counter_family(catalog.ROUTER_TOKENIZED)
        for (key, outcome), number in self._tokenized.items():
            prompts.add_metric([key, outcome], number)
        yield prompts
