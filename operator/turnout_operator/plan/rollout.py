"""The rollout of one deployment: replicas of every revision, what of older ones is left to delete, what is news.

The division itself is the core's (``turnout.scaling.rollout``); what it needs to know is read from the pools here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from turnout.scaling.rollout import rollout
from turnout.scaling.rollout_facts import RevisionFacts, RevisionPool, RolloutPlan, Surge
from turnout_operator.plan.effects import Notice, removal_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from turnout.api import Role
    from turnout.scaling.policy import ScalingPolicy
    from turnout_operator.plan.effects import Removal
    from turnout_operator.plan.observed import ObservedPool


def divide(
    pools: Sequence[ObservedPool],
    desired: Mapping[Role, int],
    target: str,
    policy: ScalingPolicy,
    now: float,
    *,
    obstacle: str = "",
) -> RolloutPlan:
    """Return the replicas of every revision. Where there is an *obstacle* to new workers, nothing moves."""
    facts = _revisions(pools, now)
    if not obstacle:
        return _with_other_shapes(rollout(desired, facts, target, policy, Surge()), facts, target)
    # A model that does not fit, or is not here yet, never replaces one that serves: everything stays.
    kept = {item.revision: {pool.role: pool.replicas for pool in item.pools} for item in facts}
    serving = [item.revision for item in facts if item.pools and all(pool.ready for pool in item.pools)]
    return RolloutPlan(kept, serving[-1] if serving else None, done=True, reason=obstacle)


def _with_other_shapes(division: RolloutPlan, facts: Sequence[RevisionFacts], target: str) -> RolloutPlan:
    """Keep pools whose role the spec no longer has (split into prefill and decode, or no longer) until the target serves.

    They cannot move over in step, replica by replica, for the two shapes share no role.
    """
    replicas = {revision: dict(pools) for revision, pools in division.replicas.items()}
    roles = set(replicas.get(target, {}))
    serving = division.serving
    for item in facts:
        other = [pool for pool in item.pools if pool.role not in roles]
        if not other or serving == target:
            continue
        replicas.setdefault(item.revision, {}).update({pool.role: pool.replicas for pool in item.pools})
        if serving is None and all(pool.ready for pool in item.pools):
            serving = item.revision
    return replace(division, replicas=replicas, serving=serving)


def _revisions(pools: Sequence[ObservedPool], now: float) -> tuple[RevisionFacts, ...]:
    by_revision: dict[str, list[ObservedPool]] = {}
    for pool in pools:
        by_revision.setdefault(pool.revision, []).append(pool)
    return tuple(
        RevisionFacts(
            revision,
            min(pool.created_at for pool in found),
            tuple(_revision_pool(pool, now) for pool in found),
        )
        for revision, found in by_revision.items()
    )


def _revision_pool(pool: ObservedPool, now: float) -> RevisionPool:
    alive = pool.alive
    draining = sum(pod.draining for pod in alive)
    # Draining pods that the Deployment no longer counts are above its number.
    counted = max(0, draining - max(0, len(alive) - pool.replicas))
    stuck = [now - pod.unschedulable_since for pod in alive if pod.unschedulable_since is not None]
    return RevisionPool(
        role=pool.role,
        replicas=max(0, pool.replicas - counted),
        ready=sum(pod.serving for pod in alive),
        unschedulable=len(stuck),
        unschedulable_seconds=max(stuck, default=0.0),
        draining=draining + len(pool.pods) - len(alive),
    )


def emptied(pools: Iterable[ObservedPool], division: RolloutPlan, target: str) -> tuple[Removal, ...]:
    """Return the pools of older revisions that hold nothing and are to hold nothing."""
    return tuple(
        removal_of(pool.live)
        for pool in pools
        if pool.revision != target
        and pool.replicas == 0
        and not pool.pods
        and not division.replicas.get(pool.revision, {}).get(pool.role, 0)
    )


def milestones(
    pools: Sequence[ObservedPool],
    removals: Iterable[Removal],
    target: str,
    division: RolloutPlan,
    *,
    possible: bool,
) -> tuple[Notice, ...]:
    """Return the Events about the beginning and the end of a rollout."""
    old = [pool for pool in pools if pool.revision != target]
    if not old or not possible:
        return ()
    if len(old) == len(pools):
        return (
            Notice(
                "Normal",
                "RolloutStarted",
                f"replacing revision {old[-1].revision} by {target}: {division.reason}",
            ),
        )
    removed = {(removal.kind, removal.name) for removal in removals}
    if all(("Deployment", pool.live["metadata"]["name"]) in removed for pool in old):
        return (Notice("Normal", "RolloutFinished", f"revision {target} serves alone"),)
    return ()
