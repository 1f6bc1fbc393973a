"""The annotation that says to routers what a worker is: on the pods of new pools, and on those that stand already.

It alone replaces no worker. A pool whose template differs from what would be applied in nothing but the annotation (it
was made by the release before, say) keeps its template, for another one would roll all its pods; these, and those that
are made from it later, get the annotation in place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnout import terms
from turnout.api.loading import InvalidResource
from turnout.api.worker_facts import MAX_KV_TOKENS, WorkerFacts, WorkerPorts
from turnout.sizing.capacity import Capacity
from turnout_operator.plan.drift import holds
from turnout_operator.plan.effects import PodPatch
from turnout_operator.plan.engines import engine_container
from turnout_operator.plan.manifests import with_annotation
from turnout_operator.plan.sizes import fit

if TYPE_CHECKING:
    from turnout.api import LLMDeployment, Role
    from turnout_operator.plan.manifests import Manifest
    from turnout_operator.plan.observed import ObservedPool
    from turnout_operator.plan.pods import ObservedPod


def worker_facts(deployment: LLMDeployment, role: Role) -> WorkerFacts:
    """Return the facts of a worker that is made from the spec as it is now."""
    spec = deployment.spec
    # A real engine knows better how much memory is left for its cache.
    found = fit(deployment, role) if spec.engine.type == "simulated" else None
    publishes = spec.routing.cache_knowledge == "Exact"
    return WorkerFacts(
        engine=spec.engine.type,
        names=(*deployment.served_names, *deployment.adapter_names),
        kv_tokens=min(found.kv_cache_tokens, MAX_KV_TOKENS) if isinstance(found, Capacity) else 0,
        ports=WorkerPorts(
            http=terms.WORKER_PORT,
            kv_events=terms.KV_EVENTS_PORT if publishes else 0,
            kv_replay=terms.KV_REPLAY_PORT if publishes else 0,
        ),
    )


def without_rollout(wanted: Manifest, live: Manifest | None) -> Manifest:
    """Return the pool *wanted*, with the annotation that the template of *live* has where nothing else would change that."""
    if live is None:
        return wanted
    template = live["spec"]["template"]
    standing = _annotation(template)
    if standing == _annotation(wanted["spec"]["template"]):
        return wanted
    kept = with_annotation(wanted, standing)
    return kept if holds(template, kept["spec"]["template"]) else wanted


def missing(pool: ObservedPool, deployment: LLMDeployment, facts: WorkerFacts) -> tuple[PodPatch, ...]:
    """Return what puts *facts* on those pods of *pool* that do not carry them although they run as *facts* say.

    Where *facts* do not know how much a KV cache holds, a pod's own engine says it once it serves. Others stay as they are:
    while the pool's template rolls, some of its pods run with other arguments. Pods that leave are given no more requests.
    """
    now = [*engine_container(deployment, pool.role).arguments]
    patches = []
    for pod in pool.alive:
        if pod.draining or [*pod.arguments] != now:
            continue
        said = _measured(facts, pod).to_annotation()
        if pod.facts != said:
            body = {"metadata": {"annotations": {terms.ANNOTATION_WORKER: said}}}
            patches.append(PodPatch(deployment.metadata.namespace, pod.name, body))
    return tuple(patches)


def _measured(facts: WorkerFacts, pod: ObservedPod) -> WorkerFacts:
    """Return *facts*, with the size of *pod*'s KV cache where they lack it: as its engine says, or as it has said before."""
    if facts.kv_tokens:
        return facts
    if pod.load is not None and pod.load.kv_tokens:
        return facts.model_copy(update={"kv_tokens": pod.load.kv_tokens})
    if pod.facts is None:
        return facts
    try:
        before = WorkerFacts.from_annotation(pod.facts)
    except InvalidResource:
        return facts
    return facts.model_copy(update={"kv_tokens": before.kv_tokens})


def _annotation(template: Manifest) -> str | None:
    return (template["metadata"].get("annotations") or {}).get(terms.ANNOTATION_WORKER)
