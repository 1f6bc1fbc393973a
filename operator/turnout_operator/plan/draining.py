"""One pool's step towards fewer replicas: label the victims, wait until they are idle, only then lower the number.

Everything is read from the pods and the Deployment, so a restart at any point goes on where it stopped. A victim's
deletion cost is written one step before the replicas are lowered: Kubernetes must know by then which pods to take.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from turnout import terms
from turnout.scaling.victims import COST_GOING, PodFacts, drain_progress
from turnout_operator.plan.conditions import rfc3339
from turnout_operator.plan.effects import PodPatch

if TYPE_CHECKING:
    from turnout_operator.plan.observed import ObservedPool
    from turnout_operator.plan.pods import ObservedPod

SETTLED_SECONDS = 1.0
"""A load that was scraped sooner after the label says nothing: a router may have chosen the pod meanwhile."""


@dataclass(frozen=True, slots=True)
class Shrink:
    """What a pool's pods and replicas should be made now."""

    replicas: int
    patches: tuple[PodPatch, ...]
    sentence: str
    """Which pods drain and which leave; empty where none do."""


def shrink(pool: ObservedPool, stay: int, namespace: str, now: float) -> Shrink:
    """Return how *pool* comes nearer to *stay* replicas without cutting a stream."""
    alive = pool.alive
    labeled = [pod for pod in alive if pod.draining]
    # Pods above the Deployment's own number (its rolling update's surge) are not ours to drain.
    leaving = max(0, min(len(alive) - stay, pool.replicas - stay + len(labeled)))
    plan = drain_progress([_facts(pod) for pod in alive], leaving, now)
    by_name = {pod.name: pod for pod in alive}
    patches = [
        *(_patch(namespace, name, _undrained()) for name in plan.undrain),
        *(_patch(namespace, name, _drained(plan.deletion_costs[name], now)) for name in plan.drain),
        *(
            _patch(namespace, name, _costing(cost))
            for name, cost in plan.deletion_costs.items()
            if name not in plan.drain and by_name[name].deletion_cost != cost
        ),
    ]
    gone = sum(by_name[name].deletion_cost == COST_GOING or not by_name[name].ready for name in plan.leave)
    replicas = stay if stay >= pool.replicas else min(pool.replicas, max(stay, len(alive) - gone))
    return Shrink(replicas, tuple(patches), plan.reason)


def _facts(pod: ObservedPod) -> PodFacts:
    load = pod.load
    if (
        load is not None
        and pod.draining_since is not None
        and load.scraped_at < pod.draining_since + SETTLED_SECONDS
    ):
        load = None
    return PodFacts(
        name=pod.name,
        ready=pod.ready,
        created_seconds=pod.created_at,
        requests=None if load is None else load.running + load.waiting,
        kv_utilization=None if load is None else load.kv_utilization,
        draining_since_seconds=pod.draining_since,
    )


def _patch(namespace: str, name: str, metadata: dict[str, Any]) -> PodPatch:
    return PodPatch(namespace, name, {"metadata": metadata})


def _drained(cost: int, now: float) -> dict[str, Any]:
    return {
        "labels": {terms.LABEL_DRAINING: "true"},
        "annotations": {
            terms.ANNOTATION_DRAINING_SINCE: rfc3339(now),
            terms.ANNOTATION_DELETION_COST: str(cost),
        },
    }


def _undrained() -> dict[str, Any]:
    return {
        "labels": {terms.LABEL_DRAINING: None},
        "annotations": {terms.ANNOTATION_DRAINING_SINCE: None, terms.ANNOTATION_DELETION_COST: None},
    }


def _costing(cost: int) -> dict[str, Any]:
    return {"annotations": {terms.ANNOTATION_DELETION_COST: str(cost)}}
