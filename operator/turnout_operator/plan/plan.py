"""The plan for one LLMDeployment: everything that should be done now, from what is observed.

The steps, in order: settle whether the model fits; take the replicas that scaling wants; let the rollout divide
them between revisions; drain what leaves; name the children that differ from what they should be, and those
that nothing needs any more; tell all of it in status.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from turnout import terms
from turnout.scaling.fit import Fit, fit
from turnout.scaling.rollout import rollout
from turnout.scaling.rollout_facts import RevisionFacts, RevisionPool, RolloutPlan, Surge
from turnout.sizing.capacity import Misfit, fits
from turnout_operator.plan import manifests
from turnout_operator.plan.draining import shrink
from turnout_operator.plan.drift import differs
from turnout_operator.plan.effects import Notice, Plan, PodPatch, Removal
from turnout_operator.plan.facts import missing, without_rollout, worker_facts
from turnout_operator.plan.notices import notices
from turnout_operator.plan.observed import FailedPod, ObservedPod, ObservedPool, observed_pools
from turnout_operator.plan.ownership import owns
from turnout_operator.plan.policy import policy_of
from turnout_operator.plan.revision import model_revision
from turnout_operator.plan.status import Picture, status, tally

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from turnout.api import LLMDeployment, Role
    from turnout.scaling.decision import Decision
    from turnout.scaling.policy import Policy
    from turnout_operator.plan.claims import Settlement
    from turnout_operator.plan.config import PlanConfig

BUSY_REQUEUE_SECONDS: Final = 2.0
"""How soon to look again while something drains or rolls out: its deadlines pass without an event."""

MARKED_REQUEUE_SECONDS: Final = 0.2
"""How soon to go on once pods were marked: our own writes bring no news."""


@dataclass(frozen=True, slots=True)
class Observed:
    """What is known of one deployment."""

    deployment: LLMDeployment
    status: Mapping[str, Any]
    """The status that was written last, raw."""
    children: Sequence[dict[str, Any]]
    """Objects with its labels."""
    pods: Sequence[ObservedPod]
    names: Settlement
    decision: Decision | None = None
    """The last scaling decision. None: none was made since this operator started."""
    goodput_percent: float | None = None
    failed: Sequence[FailedPod] = ()
    """Pods of its workers that ended for good without having been asked to."""

    @property
    def own(self) -> tuple[dict[str, Any], ...]:
        """Those of the children that it owns; the others only have its labels."""
        meta = self.deployment.metadata
        owner = {"name": meta.name, "uid": meta.uid}
        return tuple(child for child in self.children if owns(owner, child))


def current_desired(observed: Observed) -> dict[Role, int]:
    """Return the replicas that scaling asked for last, by role.

    Status keeps them, so that edited or half rolled out pools do not count. Where there is no status (a fresh
    deployment, or status was lost) the pools themselves tell, and where there are none, the minimum.
    """
    spec = observed.deployment.spec
    pools = observed_pools(_deployments(observed), observed.pods)
    desired: dict[Role, int] = {}
    for role in spec.roles:
        told = (observed.status.get("prefill" if role == "prefill" else "decode") or {}).get("desired") or 0
        running = sum(pool.replicas for pool in pools if pool.role == role)
        desired[role] = told or running or spec.pool(role).replicas.min
    return desired


def plan(observed: Observed, config: PlanConfig, now: float) -> Plan:
    """Return what to do about a deployment. *now* is in seconds since the epoch.

    Raise ValueError for a spec whose durations or ratios cannot be read (an object of an older schema).
    """
    deployment = observed.deployment
    policy = policy_of(deployment.spec)
    misfit = _misfit(deployment)
    before = current_desired(observed)
    allowed = _desired(observed.decision, before, policy)
    target = model_revision(deployment, config.worker_image)
    pools = observed_pools(_deployments(observed), observed.pods)
    division = _divide(pools, allowed.replicas, target, policy, now, possible=misfit is None)

    patches, workloads, sentences = _pools(observed, pools, division, target=target, config=config, now=now)
    removals = (*_emptied(pools, division, target), *_orphans(observed, pools))
    constants = manifests.constants(deployment, config.namespace)
    wanted = (*constants, *workloads) if misfit is None else workloads
    live = {(child["kind"], child["metadata"]["name"]): child for child in observed.own}
    apply = tuple(
        manifest
        for manifest in wanted
        if differs(live.get((manifest["kind"], manifest["metadata"]["name"])), manifest)
    )

    rolling = not division.done and any(pool.revision != target for pool in pools)
    picture = Picture(
        deployment=deployment,
        pods=observed.pods,
        desired=allowed.replicas,
        serving=division.serving,
        target=target,
        rollout=division.reason if rolling else "",
        misfit=misfit,
        names=observed.names,
        goodput_percent=observed.goodput_percent,
        decision=observed.decision,
        limit=allowed.limit or (observed.decision.limit if observed.decision else None),
        endpoint=config.endpoint,
        pools=pools,
        failed=observed.failed,
    )
    scaled = _scaled(observed, before, allowed)
    written = status(picture, observed.status, scaled, now)
    draining = any(pod.draining for pod in observed.pods)
    return Plan(
        patches=patches,
        apply=apply,
        delete=removals,
        status=written,
        notices=notices(observed.status, written, observed.names, scaled),
        milestones=_milestones(pools, removals, target, division, misfit),
        requeue_seconds=MARKED_REQUEUE_SECONDS
        if patches
        else BUSY_REQUEUE_SECONDS
        if rolling or draining
        else None,
        summary="; ".join(part for part in (division.reason, *sentences) if part),
    )


def _misfit(deployment: LLMDeployment) -> Misfit | None:
    model = deployment.spec.model
    for role in deployment.spec.roles:
        accelerator = deployment.spec.pool(role).accelerator
        found = fits(model.source, accelerator.type, accelerator.count, model.max_length)
        if isinstance(found, Misfit):
            return found
    return None


def _desired(decision: Decision | None, before: Mapping[Role, int], policy: Policy) -> Fit:
    """Return the replicas to have: what was decided last, within the bounds as they are now."""
    decided = decision is not None and decision.apply and set(decision.desired) == set(before)
    return fit(decision.desired if decision is not None and decided else before, policy)


def _divide(
    pools: Sequence[ObservedPool],
    desired: Mapping[Role, int],
    target: str,
    policy: Policy,
    now: float,
    *,
    possible: bool,
) -> RolloutPlan:
    facts = _revisions(pools, now)
    if possible:
        return _with_other_shapes(rollout(desired, facts, target, policy, Surge()), facts, target)
    # A model that does not fit never replaces one that serves: everything stays.
    kept = {item.revision: {pool.role: pool.replicas for pool in item.pools} for item in facts}
    serving = [item.revision for item in facts if item.pools and all(pool.ready for pool in item.pools)]
    return RolloutPlan(kept, serving[-1] if serving else None, done=True, reason="the model does not fit")


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


def _pools(
    observed: Observed,
    pools: Sequence[ObservedPool],
    division: RolloutPlan,
    *,
    target: str,
    config: PlanConfig,
    now: float,
) -> tuple[tuple[PodPatch, ...], tuple[manifests.Manifest, ...], list[str]]:
    """Return patches of pods, workloads as they should be, and what is said about them."""
    deployment = observed.deployment
    patches: list[PodPatch] = []
    workloads: list[manifests.Manifest] = []
    sentences: list[str] = []
    replicas: dict[Role, int] = dict(division.replicas.get(target, {}))
    said = {role: worker_facts(deployment, role) for role in deployment.spec.roles}
    live: dict[Role, manifests.Manifest] = {}
    for pool in pools:
        step = shrink(
            pool,
            division.replicas.get(pool.revision, {}).get(pool.role, 0),
            deployment.metadata.namespace,
            now,
        )
        patches += step.patches
        sentences.append(f"{pool.role}: {step.sentence}" if step.sentence else "")
        if pool.revision == target and pool.role in deployment.spec.roles:
            replicas[pool.role] = step.replicas
            live[pool.role] = pool.live
            patches += missing(pool, deployment, said[pool.role])
        elif step.replicas != pool.replicas:
            workloads.append(manifests.with_replicas(pool.live, step.replicas))
    workloads += [
        without_rollout(
            manifests.pool(
                deployment, role, target, count, config.worker_image, facts=said[role].to_annotation()
            ),
            live.get(role),
        )
        for role, count in replicas.items()
        if role in said
    ]
    return tuple(patches), tuple(workloads), sentences


def _emptied(pools: Iterable[ObservedPool], division: RolloutPlan, target: str) -> tuple[Removal, ...]:
    """Return the pools of older revisions that hold nothing and are to hold nothing."""
    return tuple(
        _removal(pool.live)
        for pool in pools
        if pool.revision != target
        and pool.replicas == 0
        and not pool.pods
        and not division.replicas.get(pool.revision, {}).get(pool.role, 0)
    )


def _orphans(observed: Observed, pools: Sequence[ObservedPool]) -> tuple[Removal, ...]:
    """Return services and disruption budgets of roles that neither the spec nor any pool has, and an unwanted NetworkPolicy."""
    spec = observed.deployment.spec
    roles = {*spec.roles, *(pool.role for pool in pools)}

    def unwanted(child: Mapping[str, Any]) -> bool:
        if child["kind"] == "NetworkPolicy":
            return spec.network_policy == "None"
        role = child["metadata"].get("labels", {}).get(terms.LABEL_ROLE)
        return child["kind"] in {"Service", "PodDisruptionBudget"} and role not in roles

    return tuple(_removal(child) for child in observed.own if unwanted(child))


def _removal(raw: Mapping[str, Any]) -> Removal:
    meta = raw["metadata"]
    return Removal(raw["kind"], meta["namespace"], meta["name"], meta["uid"])


def _deployments(observed: Observed) -> list[dict[str, Any]]:
    return [child for child in observed.own if child["kind"] == "Deployment"]


def _scaled(observed: Observed, before: Mapping[Role, int], allowed: Fit) -> dict[str, str] | None:
    """Return the change of replicas that this plan makes, for status and Event. None: there is none."""
    told = any((observed.status.get(half) or {}).get("desired") for half in ("prefill", "decode"))
    if not told or dict(before) == dict(allowed.replicas):
        return None
    decision = observed.decision
    decided = decision is not None and decision.apply and dict(decision.desired) == dict(allowed.replicas)
    change = f"{tally(before)} -> {tally(allowed.replicas)}"
    bounds = f"{change}: the bounds of the spec have changed"
    reason = decision.reason if decision is not None and decided else bounds
    return {"from": tally(before), "to": tally(allowed.replicas), "reason": reason}


def _milestones(
    pools: Sequence[ObservedPool],
    removals: Iterable[Removal],
    target: str,
    division: RolloutPlan,
    misfit: Misfit | None,
) -> tuple[Notice, ...]:
    old = [pool for pool in pools if pool.revision != target]
    if not old or misfit is not None:
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
