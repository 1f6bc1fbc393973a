"""The annotation that says to routers what a worker is: on the pods of new pools, and on those that stand already.

It alone replaces no worker. A pool whose template differs from what would be applied in nothing but the annotation (it
was made by the release before, say) keeps its template, for another one would roll all its pods; these, and those that
are made from it later, get the annotation in place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnout import terms
from turnout.api.worker_facts import MAX_KV_TOKENS, WorkerFacts, WorkerPorts
from turnout.sizing.capacity import Capacity
from turnout_operator.plan.drift import holds
from turnout_operator.plan.effects import PodPatch
from turnout_operator.plan.manifests import arguments, with_annotation
from turnout_operator.plan.sizes import fit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnout.api import LLMDeployment, Role
    from turnout_operator.plan.manifests import Manifest
    from turnout_operator.plan.observed import ObservedPool


def worker_facts(deployment: LLMDeployment, role: Role) -> WorkerFacts:
    """Return the facts of a worker that is made from the spec as it is now."""
    spec = deployment.spec
    found = fit(deployment, role)
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

    Others stay as they are: while the pool's template rolls, some of its pods run with other arguments. Pods that leave
    are given no more requests.
    """
    said = facts.to_annotation()
    now: Sequence[str] = arguments(deployment, pool.role)
    body = {"metadata": {"annotations": {terms.ANNOTATION_WORKER: said}}}
    return tuple(
        PodPatch(deployment.metadata.namespace, pod.name, body)
        for pod in pool.alive
        if pod.facts != said and not pod.draining and pod.arguments == now
    )


def _annotation(template: Manifest) -> str | None:
    return (template["metadata"].get("annotations") or {}).get(terms.ANNOTATION_WORKER)
