"""What decides on replicas in a run: Turnout, and what it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import ceil
from typing import TYPE_CHECKING, Final

from turnout.scaling.decide import decide
from turnout.scaling.decision import Memory
from turnout.scaling.facts import LoadFacts
from turnout.terms import Role

if TYPE_CHECKING:
    from turnout.scaling.policy import ScalingPolicy

Scaler = Callable[[LoadFacts, float], tuple[Mapping[Role, int], str]]
"""Takes facts and the time, gives replicas by role and the reason."""

_TOLERANCE: Final = 0.1
"""Kubernetes' own, for its horizontal autoscaler."""


def turnout(policy: ScalingPolicy) -> Scaler:
    """Turnout's own decision, with the memory it needs."""
    memory = Memory()

    def scale(facts: LoadFacts, now: float) -> tuple[Mapping[Role, int], str]:
        nonlocal memory
        decision = decide(facts, policy, memory, now)
        memory = decision.memory
        return decision.desired, decision.reason

    return scale


def hpa_on_queue(policy: ScalingPolicy, target: float = 5.0, cooldown_seconds: float = 360.0) -> Scaler:
    """Kubernetes' HPA on waiting requests, each pool alone: the vLLM production stack's default.

    desired = ceil(waiting / target) within a tolerance of 10 %; at most the double or 4 more within 15 s; the highest
    recommendation of the last *cooldown_seconds* holds replicas.
    """
    history: list[tuple[float, dict[Role, int]]] = []

    def scale(facts: LoadFacts, now: float) -> tuple[Mapping[Role, int], str]:
        wanted: dict[Role, int] = {}
        for one in facts.pools:
            ratio = one.waiting / target / max(1, one.replicas)
            n = one.replicas if abs(ratio - 1) <= _TOLERANCE else ceil(one.waiting / target)
            wanted[one.role] = min(n, max(2 * one.replicas, one.replicas + 4))
        history[:] = [(at, n) for at, n in history if at > now - cooldown_seconds] + [(now, wanted)]
        desired: dict[Role, int] = {}
        for one in facts.pools:
            highest = max(n[one.role] for _, n in history)
            n = wanted[one.role] if wanted[one.role] > one.replicas else min(one.replicas, highest)
            desired[one.role] = min(max(n, policy.pool(one.role).minimum), policy.pool(one.role).maximum)
        return desired, ""

    return scale


def fixed(replicas: Mapping[Role, int]) -> Scaler:
    """No scaling at all."""
    return lambda _facts, _now: (replicas, "")
