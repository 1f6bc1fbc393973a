"""Scaling policies in closed loop with the fleet model, and the traffic they meet."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from math import ceil, pi, sin
from random import Random
from types import MappingProxyType
from typing import TYPE_CHECKING

from support.scaling_fluid import INTERVAL_SECONDS, Fleet
from turnout.scaling.decide import decide
from turnout.scaling.decision import Memory

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from turnout.scaling.facts import LoadFacts
    from turnout.scaling.policy import Policy
    from turnout.terms import Role

TRAFFIC: Mapping[str, Callable[[float], float]] = MappingProxyType(
    {
        "steady": lambda _: 8.0,
        "step": lambda t: 2.0 if t < 900 else 14.0,
        "bursts": lambda t: 16.0 if t % 600 > 540 else 3.0,
        "ramp": lambda t: 1.0 + 13.0 * sin(pi * min(1.0, t / 3600)),
        "night": lambda t: 12.0 if t < 1500 else 0.3,
    }
)
"""Requests per second over an hour. One replica of each role carries about 5."""


def turnout(policy: Policy) -> Callable[[LoadFacts, float], tuple[Mapping[Role, int], str]]:
    """Turnout's own decision, with the memory it needs."""
    memory = Memory()

    def scale(facts: LoadFacts, now: float) -> tuple[Mapping[Role, int], str]:
        nonlocal memory
        decision = decide(facts, policy, memory, now)
        memory = decision.memory
        return decision.desired, decision.reason

    return scale


def hpa_on_queue(
    policy: Policy, target: float = 5.0, cooldown_seconds: float = 360.0
) -> Callable[[LoadFacts, float], tuple[Mapping[Role, int], str]]:
    """Kubernetes' HPA on waiting requests, each pool alone: the vLLM production stack's default.

    desired = ceil(waiting / target) within a tolerance of 10 %; at most the double or 4 more within 15 s; the highest
    recommendation of the last *cooldown_seconds* holds replicas.
    """
    history: list[tuple[float, dict[Role, int]]] = []

    def scale(facts: LoadFacts, now: float) -> tuple[Mapping[Role, int], str]:
        wanted: dict[Role, int] = {}
        for one in facts.pools:
            ratio = one.waiting / target / max(1, one.replicas)
            n = one.replicas if abs(ratio - 1) <= 0.1 else ceil(one.waiting / target)
            wanted[one.role] = min(n, max(2 * one.replicas, one.replicas + 4))
        history[:] = [(at, n) for at, n in history if at > now - cooldown_seconds] + [(now, wanted)]
        desired: dict[Role, int] = {}
        for one in facts.pools:
            highest = max(n[one.role] for _, n in history)
            n = wanted[one.role] if wanted[one.role] > one.replicas else min(one.replicas, highest)
            desired[one.role] = min(max(n, policy.pool(one.role).minimum), policy.pool(one.role).maximum)
        return desired, ""

    return scale


def fixed(replicas: Mapping[Role, int]) -> Callable[[LoadFacts, float], tuple[Mapping[Role, int], str]]:
    """No scaling at all."""
    return lambda _facts, _now: (replicas, "")


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
    scale: Callable[[LoadFacts, float], tuple[Mapping[Role, int], str]],
    rate: Callable[[float], float],
    *,
    seconds: float = 3600.0,
    start: Mapping[Role, int] = MappingProxyType({"prefill": 1, "decode": 1}),
    seed: int = 1,
    **fleet_settings: float,
) -> Run:
    """Let *scale* decide every few seconds on traffic of *rate*."""
    fleet = Fleet(rate, Random(seed), **fleet_settings)  # type: ignore[arg-type]  # noqa: S311 - a simulation
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
