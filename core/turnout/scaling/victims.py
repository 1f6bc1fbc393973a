"""Which pods leave when a pool shrinks, and when each may go.

A pod leaves in two steps (contracts.md): it is labeled draining, so that the router stops choosing it, and the pool's
replicas are lowered once it is idle or its deadline has passed. Everything here is stateless: labels and
annotations on the pods are the only state. Seconds are real ones, for drains are in real time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

DRAIN_DEADLINE_SECONDS: Final = 120.0
"""After so long a draining pod goes with what it still has; its preStop hook and grace period follow."""
SETTLE_SECONDS: Final = 2.0
"""So long an idle pod stays after it was labeled: a router may have chosen it before it saw the label."""

COST_GOING: Final = -1000
COST_DRAINING: Final = -100
"""Pod deletion costs: Kubernetes removes the lowest first, so idle victims go before those with streams."""


@dataclass(frozen=True, slots=True)
class PodFacts:
    """What the choice of victims knows about one pod of a pool (one role, one revision)."""

    name: str
    ready: bool
    created_seconds: float
    """When it was created, on any clock that all pods share."""
    requests: int | None = None
    """Requests running or waiting. None: it did not answer."""
    kv_utilization: float | None = None
    """KV cache in use, 0 to 1. None: it did not answer."""
    draining_since_seconds: float | None = None
    """When it was labeled draining. None: it is not draining."""


@dataclass(frozen=True, slots=True)
class DrainPlan:
    """What to do with the pods of a pool that shrinks. Names, in order."""

    drain: tuple[str, ...] = ()
    """Label these draining, with the time."""
    undrain: tuple[str, ...] = ()
    """Take the label off these: demand has returned."""
    leave: tuple[str, ...] = ()
    """These may go now: lower the pool's replicas by their number."""
    deletion_costs: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """Deletion cost of every pod that is to leave. All others have none (0)."""
    reason: str = ""
    """One sentence, empty where there is nothing to say."""


def _order(pod: PodFacts) -> tuple[bool, bool, bool, int, float, float, str]:
    return (
        # Kubernetes removes pods that are not ready before any other, draining or not.
        pod.ready,
        # Pods that drain already stay the victims, whatever others do meanwhile.
        pod.draining_since_seconds is None,
        # A silent but ready pod may carry streams: it comes after all whose load is known.
        pod.requests is None,
        pod.requests or 0,
        pod.kv_utilization or 0.0,
        -pod.created_seconds,
        pod.name,
    )


def choose_victims(pods: Iterable[PodFacts], count: int) -> tuple[str, ...]:
    """Return the names of the *count* pods that lose least by leaving, best victim first.

    Pods that are not ready come first (Kubernetes removes them first whatever their cost), then those that drain
    already, then those with the fewest requests, then the least KV cache in use (the cheapest cache to lose), then
    the newest; names break ties. Pods that are being deleted must not be among *pods*: they have gone.
    """
    return tuple(pod.name for pod in sorted(pods, key=_order)[: max(0, count)])


def drain_progress(
    pods: Iterable[PodFacts],
    leaving: int,
    now_seconds: float,
    deadline_seconds: float = DRAIN_DEADLINE_SECONDS,
    settle_seconds: float = SETTLE_SECONDS,
) -> DrainPlan:
    """Return what to do so that *leaving* of *pods* leave without a cut stream.

    *leaving* is the pool's replicas in its Deployment less those that shall stay. Pods that drain already remain the
    victims; when fewer must leave than drain, those with most requests are taken back into service. A pod may leave
    when it is not ready (it serves no requests), when it is known to be idle and was labeled *settle_seconds* ago, or when
    *deadline_seconds* have passed since.
    """
    ranked = sorted(pods, key=_order)
    chosen, staying = ranked[: max(0, leaving)], ranked[max(0, leaving) :]
    victims = [pod for pod in chosen if pod.draining_since_seconds is not None]
    fresh = tuple(pod.name for pod in chosen if pod.draining_since_seconds is None)
    undrain = tuple(pod.name for pod in staying if pod.draining_since_seconds is not None)
    leave = tuple(
        pod.name for pod in victims if _may_leave(pod, now_seconds, deadline_seconds, settle_seconds)
    )
    costs = {pod.name: COST_GOING if pod.name in leave else COST_DRAINING for pod in victims}
    costs.update(dict.fromkeys(fresh, COST_DRAINING))
    return DrainPlan(
        drain=fresh,
        undrain=undrain,
        leave=leave,
        deletion_costs=MappingProxyType(costs),
        reason=_sentence(fresh, undrain, leave, len(victims) - len(leave)),
    )


def _may_leave(pod: PodFacts, now: float, deadline: float, settle: float) -> bool:
    if not pod.ready:
        return True
    drained = now - pod.draining_since_seconds if pod.draining_since_seconds is not None else 0.0
    return drained >= deadline or (pod.requests == 0 and drained >= settle)


def _sentence(drain: tuple[str, ...], undrain: tuple[str, ...], leave: tuple[str, ...], wait: int) -> str:
    parts = [
        f"{verb} {', '.join(names)}"
        for verb, names in (("draining", drain), ("back in service", undrain), ("leaving", leave))
        if names
    ]
    if wait:
        parts.append(f"{wait} still finishing requests")
    return "; ".join(parts)
