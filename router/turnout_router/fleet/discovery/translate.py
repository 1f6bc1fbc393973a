"""Kubernetes' objects, as the API server hands them out, into the values that routing decides on."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, cast

from turnout import terms
from turnout.api.loading import load_budget, load_deployment, load_route
from turnout.api.worker_facts import WorkerFacts
from turnout.quantities import seconds
from turnout.routing import Backend, DeploymentRoute, Grant, KvEventPorts, NamedRoute
from turnout.routing.admission import TIER_OF, AdmissionBounds
from turnout_router.fleet.discovery import previous_release

if TYPE_CHECKING:
    from turnout.api import Role, TokenBudget
    from turnout.api.deployment import Admission

_ROLES: Final = ("prefill", "decode", "aggregated")


def deployment_of(raw: dict[str, Any]) -> DeploymentRoute:
    """Return what routing needs of an LLMDeployment. Raise InvalidResource."""
    resource = load_deployment(raw)
    spec, status = resource.spec, resource.status
    return DeploymentRoute(
        key=resource.key,
        claimed_names=(*resource.served_names, *resource.adapter_names),
        settled_names=tuple(status.served_names) if status.observed_generation else None,
        created=_unix(resource.metadata.creation_timestamp),
        time_to_first_token_seconds=seconds(spec.slo.time_to_first_token),
        inter_token_seconds=seconds(spec.slo.inter_token_latency),
        max_output_tokens=spec.routing.max_output_tokens,
        time_scale=spec.engine.simulated.time_scale,
        local_prefill_below_tokens=spec.routing.local_prefill_below_tokens,
        policy=spec.routing.policy,
        adapters=frozenset(resource.adapter_names),
        admission=bounds_of(spec.routing.admission),
        queueing=spec.routing.queueing,
        engine=spec.engine.type,
    )


def bounds_of(admission: Admission) -> AdmissionBounds:
    """Return a deployment's own bounds, from a resource or a file."""
    return AdmissionBounds(
        requests_per_worker=admission.requests_per_worker,
        tokens_per_worker=admission.tokens_per_worker,
        waiting=admission.waiting_requests,
        waiting_tokens=admission.waiting_tokens,
        wait_seconds=None if admission.max_wait is None else seconds(admission.max_wait),
    )


def route_of(raw: dict[str, Any]) -> NamedRoute:
    """Return what routing needs of an LLMRoute. Raise InvalidResource."""
    resource = load_route(raw)
    namespace = resource.metadata.namespace
    return NamedRoute(
        key=resource.key,
        names=tuple(resource.spec.names),
        targets=tuple((f"{namespace}/{t.deployment}", t.weight) for t in resource.spec.targets),
        created=_unix(resource.metadata.creation_timestamp),
        settled_names=None if resource.status.served_names is None else tuple(resource.status.served_names),
    )


def grants_of(raw: dict[str, Any], own_namespace: str) -> tuple[Grant, ...]:
    """Return the keys of a TokenBudget. Raise InvalidResource.

    Only one in *own_namespace*, the router's, opens names of every namespace: users with write access there run Turnout.
    """
    resource = load_budget(raw)
    namespace = resource.metadata.namespace
    everywhere = resource.spec.scope == "Cluster" and namespace == own_namespace
    models = frozenset(resource.spec.models)
    tier = TIER_OF[resource.spec.priority]
    created = _unix(resource.metadata.creation_timestamp)
    return tuple(
        Grant(
            budget=resource.key,
            name=key.name,
            sha256=key.sha256,
            models=models,
            tier=tier,
            explain=resource.spec.explain,
            namespace=None if everywhere else namespace,
            created=created,
            settled=_is_accepted(resource, key.name),
        )
        for key in resource.spec.keys
    )


def _is_accepted(budget: TokenBudget, key: str) -> bool | None:
    """Return whether the operator left *key* to this budget, None where it has not looked at this generation yet."""
    status = budget.status
    if status.accepted_keys is None or status.observed_generation != budget.metadata.generation:
        return None
    return key in status.accepted_keys


def backend_of(raw: dict[str, Any]) -> Backend | None:
    """Return the worker in a Pod, None where it may not be sent anything.

    It may while it has an address, is not being deleted and is not draining. It need not be Ready, as long as it has
    come up: what was ready before is the last resort where nothing is. Raise InvalidResource where what is said of the
    worker cannot be read.
    """
    metadata, status = raw["metadata"], raw.get("status") or {}
    labels = metadata.get("labels") or {}
    role = labels.get(terms.LABEL_ROLE)
    address = status.get("podIP")
    ready = _is_ready(status)
    if (
        role not in _ROLES
        or not address
        or metadata.get("deletionTimestamp")
        or labels.get(terms.LABEL_DRAINING) == "true"
        or not (ready or _has_started(status))
    ):
        return None
    namespace, name = metadata.get("namespace", "default"), metadata["name"]
    facts = _facts_of(raw)
    ports = facts.ports
    return Backend(
        id=f"{namespace}/{name}",
        deployment=f"{namespace}/{labels.get(terms.LABEL_DEPLOYMENT, '')}",
        host=address,
        port=ports.http,
        role=cast("Role", role),
        revision=labels.get(terms.LABEL_REVISION, ""),
        names=facts.names,
        kv_tokens=facts.kv_tokens,
        kv_events=KvEventPorts(ports.kv_events, ports.kv_replay) if ports.kv_events else None,
        ready=ready,
    )


def _facts_of(raw: dict[str, Any]) -> WorkerFacts:
    """Return the operator's annotation on this worker. If there is one, nothing else is read."""
    annotation = (raw["metadata"].get("annotations") or {}).get(terms.ANNOTATION_WORKER)
    return previous_release.facts_of(raw) if annotation is None else WorkerFacts.from_annotation(annotation)


def _is_ready(status: dict[str, Any]) -> bool:
    return any(c.get("type") == "Ready" and c.get("status") == "True" for c in status.get("conditions") or ())


def _has_started(status: dict[str, Any]) -> bool:
    """Return whether the worker runs and has passed its start-up probe, which means that it was ready once."""
    return any(
        c.get("name") == terms.COMPONENT_WORKER
        and c.get("started") is True
        and "running" in (c.get("state") or {})
        for c in status.get("containerStatuses") or ()
    )


def _unix(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp).timestamp() if timestamp else 0.0
