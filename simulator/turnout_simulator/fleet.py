"""Several engines of `turnout.simulation` in one virtual time: the engine with the earliest next event goes first."""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING

from turnout_simulator.policies.port import Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from turnout.simulation import Engine, EngineRequest, Event


class EngineFleet:
    """Advances engines together and hands each of their events, in the order of time, to *on_event*.

    *on_event* may submit to, deliver to and release on any engine of the fleet at the event's time.
    """

    def __init__(self, engines: Sequence[Engine], on_event: Callable[[int, Event], None]) -> None:
        self.engines = engines
        self._on_event = on_event
        self._agenda: list[tuple[float, int, int]] = []  # (time, engine, version)
        self._versions = [0] * len(engines)

    def submit(self, index: int, request: EngineRequest, now: float) -> None:
        """Send *request* to an engine. Raise an EngineError where it cannot take it."""
        self.engines[index].submit(request, now)
        self._schedule(index)

    def deliver(self, index: int, request_id: str, now: float) -> None:
        """Begin the transfer that an engine's `Fetch` asked for."""
        self.engines[index].deliver(request_id, now)
        self._schedule(index)

    def release(self, index: int, request_id: str, now: float) -> None:
        """Free a prompt that an engine has pinned."""
        self.engines[index].release(request_id, now)
        self._schedule(index)

    def run(self, until: float) -> None:
        """Let time pass up to and including *until* (``inf``: until nothing is left to do)."""
        agenda = self._agenda
        while agenda and agenda[0][0] <= until:
            at, index, version = heappop(agenda)
            if version != self._versions[index]:
                continue
            for event in self.engines[index].advance(at):
                self._on_event(index, event)
            self._schedule(index)

    def sample(self) -> tuple[Sample, ...]:
        """Return what a scrape of every engine says now."""
        samples = []
        for engine in self.engines:
            stats = engine.stats()
            counters = stats.counters
            samples.append(
                Sample(
                    stats.running,
                    stats.waiting,
                    stats.kv_usage,
                    counters.prefix_queries,
                    counters.prefix_hits + counters.external_hits,
                    counters.prompt_local_compute,
                )
            )
        return tuple(samples)

    def _schedule(self, index: int) -> None:
        self._versions[index] += 1
        at = self.engines[index].next_time()
        if at is not None:
            heappush(self._agenda, (at, index, self._versions[index]))
