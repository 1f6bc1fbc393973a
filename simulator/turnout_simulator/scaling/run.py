"""One run: a scaler decides every few seconds on a fleet under traffic."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from math import inf, pi, sin
from random import Random
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from turnout_simulator.scaling.fleet import INTERVAL_SECONDS, PROMPT_SECONDS, Fleet

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from turnout.terms import Role
    from turnout_simulator.scaling.scalers import Scaler

_MINUTE: Final = 60.0

TRAFFIC: Final[Mapping[str, Callable[[float], float]]] = MappingProxyType(
    {
        "steady": lambda _: 8.0,
        "step": lambda t: 2.0 if t < 15 * _MINUTE else 14.0,
        "bursts": lambda t: 16.0 if t % (10 * _MINUTE) > 9 * _MINUTE else 3.0,
        "ramp": lambda t: 1.0 + 13.0 * sin(pi * min(1.0, t / (60 * _MINUTE))),
        "night": lambda t: 12.0 if t < 25 * _MINUTE else 0.3,
    }
)
"""Requests per second over an hour. One replica of each role carries about 5."""


@dataclass
class Run:
    """What happened in one run."""

    fleet: Fleet
    replicas: list[tuple[float, dict[Role, int]]] = field(default_factory=list)
    """Replicas asked for at each decision."""
    reasons: list[str] = field(default_factory=list)
    goodput: list[tuple[float, float | None]] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)

    def changes(self, since: float = 0.0) -> int:
        """Decisions after *since* that changed something."""
        counts = [n for at, n in self.replicas if at >= since]
        return sum(one != other for one, other in itertools.pairwise(counts))

    @property
    def replica_hours(self) -> float:
        """Cost."""
        return self.fleet.replica_seconds / 3600

    @property
    def goodput_percent(self) -> float:
        """Share of all finished requests that met both objectives."""
        return 100 * self.fleet.good / max(1, self.fleet.finished)


def run(
    scale: Scaler,
    rate: Callable[[float], float],
    *,
    seconds: float = 3600.0,
    start: Mapping[Role, int] = MappingProxyType({"prefill": 1, "decode": 1}),
    seed: int = 1,
    nodes: float = inf,
    startup_seconds: float = 60.0,
    prefill_seconds: float = PROMPT_SECONDS,
) -> Run:
    """Let *scale* decide every few seconds on traffic of *rate*, for *seconds*; the rest is the `Fleet`'s."""
    fleet = Fleet(
        rate,
        Random(seed),  # noqa: S311 - a simulation
        nodes=nodes,
        startup_seconds=startup_seconds,
        prefill_seconds=prefill_seconds,
    )
    fleet.start(start)
    result = Run(fleet)
    while fleet.now < seconds:
        fleet.advance(INTERVAL_SECONDS)
        facts = fleet.observe()
        desired, reason = scale(facts, fleet.now)
        fleet.scale(desired)
        result.replicas.append((fleet.now, dict(desired)))
        result.reasons.append(reason)
        result.goodput.append((fleet.now, facts.goodput_percent))
        result.pending.append(sum(fleet.pending.values()))
    return result
