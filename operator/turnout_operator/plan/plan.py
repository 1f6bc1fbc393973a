"""The plan for one LLMDeployment: everything that should be done now, from what is observed.

The steps, in order: check whether the model fits; take the replicas that scaling wants; let the rollout divide
them between revisions; drain what leaves; name the children that differ from what they should be, and those
that are no longer needed; report all of it in status.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from turnout import terms
from turnout.sizing.capacity import DoesNotFit
from turnout_operator.plan import manifests
from turnout_operator.plan.draining import shrink
from turnout_operator.plan.drift import differs
from turnout_operator.plan.effects import Plan, PodPatch, Removal, removal_of
from turnout_operator.plan.facts import missing, without_rollout, worker_facts
from turnout_operator.plan.model_volumes import host_path_refusal
from turnout_operator.plan.notices import notices
from turnout_operator.plan.prefetch import prefetch
from turnout_operator.plan.revision import model_revision
from turnout_operator.plan.rollout import divide, emptied, milestones
from turnout_operator.plan.scaling import advised_change, allocation, scaling_change
from turnout_operator.plan.sizes import obstacle
from turnout_operator.plan.status import StatusInput, status

if TYPE_CHECKING:
    from collections.abc import Mapping

    from turnout.api import Role
    from turnout.scaling.decision import ScalingDecision
    from turnout.scaling.rollout_facts import RolloutPlan
    from turnout_operator.plan.config import PlanConfig
    from turnout_operator.plan.observed import Observed
    from turnout_operator.plan.prefetch import Prefetch

BUSY_REQUEUE_SECONDS: Final = 2.0
"""How soon to look again while something drains or rolls out: its deadlines pass without an event."""

MARKED_REQUEUE_SECONDS: Final = 0.2
"""How soon to go on once pods were marked: our own writes cause no event."""


def plan(observed: Observed, decision: ScalingDecision | None, config: PlanConfig, now: float) -> Plan:
    """Return what to do about a deployment. *now* is in seconds since the epoch.

    *decision* is the last one about its scaling; None: none was made since this operator started. Raise ValueError for
    a spec whose durations cannot be read (an object of an older schema).
    """
    deployment = observed.deployment
    fit = obstacle(deployment)
    forbidden = "" if config.allow_host_paths else host_path_refusal(deployment)
    possible = not isinstance(fit, DoesNotFit) and not forbidden
    allowed = allocation(observed, decision)
    target = model_revision(deployment, config.image_of(deployment))
    pools = observed.pools
    cache = prefetch(observed, target, config.fetch_image_of(deployment))
    waits = cache is not None and not cache.done and not any(pool.revision == target for pool in pools)
    held = (
        "folders of nodes are not allowed"
        if forbidden
        else "the model does not fit"
        if not possible
        else "the model is being copied"
        if waits
        else ""
    )
    division = divide(pools, allowed.replicas, target, observed.policy, now, obstacle=held)

    patches, workloads, sentences = _pools(observed, division, target=target, config=config, now=now)
    removals = (*emptied(pools, division, target), *_orphans(observed, cache))
    constants = manifests.constants(deployment, config.namespace)
    jobs = () if cache is None or cache.live else (manifests.prefetch(deployment, target, cache),)
    wanted = (*constants, *jobs, *workloads) if possible else workloads
    live = {(child["kind"], child["metadata"]["name"]): child for child in observed.own}
    apply = tuple(
        manifest
        for manifest in wanted
        if differs(live.get((manifest["kind"], manifest["metadata"]["name"])), manifest)
    )

    rolling = not division.done and any(pool.revision != target for pool in pools)
    advised = advised_change(decision)
    facts = StatusInput(
        deployment=deployment,
        pods=observed.pods,
        desired=allowed.replicas,
        serving=division.serving,
        target=target,
        rollout=division.reason if rolling else "",
        fit=fit,
        names=observed.names,
        goodput_percent=observed.goodput_percent,
        advised=advised,
        limit=allowed.limit or (decision.limit if decision else None),
        endpoint=config.endpoint,
        pools=pools,
        failed=observed.failed,
        cache=cache,
        forbidden=forbidden,
    )
    scaled = scaling_change(observed, decision, allowed)
    written = status(facts, observed.status, scaled, now)
    draining = any(pod.draining for pod in observed.pods)
    return Plan(
        patches=patches,
        apply=apply,
        delete=removals,
        status=written,
        notices=notices(observed.status, written, observed.names, scaled=scaled, advised=advised),
        milestones=milestones(pools, removals, target, division, possible=not held),
        requeue_seconds=MARKED_REQUEUE_SECONDS
        if patches
        else BUSY_REQUEUE_SECONDS
        if rolling or draining
        else None,
        summary="; ".join(part for part in (division.reason, *sentences) if part),
    )


def _pools(
    observed: Observed,
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
    for pool in observed.pools:
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
                deployment, role, target, count, config.image_of(deployment), facts=said[role].to_annotation()
            ),
            live.get(role),
        )
        for role, count in replicas.items()
        if role in said
    ]
    return tuple(patches), tuple(workloads), sentences


def _orphans(observed: Observed, cache: Prefetch | None) -> tuple[Removal, ...]:
    """Return services and budgets of roles that neither spec nor pools have, an unwanted NetworkPolicy, and old prefetches."""
    spec = observed.deployment.spec
    roles = {*spec.roles, *(pool.role for pool in observed.pools)}

    def unwanted(child: Mapping[str, Any]) -> bool:
        if child["kind"] == "NetworkPolicy":
            return spec.network_policy == "None"
        if child["kind"] == "Job":
            return cache is None or child["metadata"]["name"] != cache.name
        role = child["metadata"].get("labels", {}).get(terms.LABEL_ROLE)
        return child["kind"] in {"Service", "PodDisruptionBudget"} and role not in roles

    return tuple(removal_of(child) for child in observed.own if unwanted(child))
