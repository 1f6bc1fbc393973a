"""What is known of one deployment at one moment: the facts that scaling, rollout and status are decided from."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

from turnout import terms
from turnout_operator.plan.conditions import seconds_of
from turnout_operator.plan.ownership import owns
from turnout_operator.plan.pods import ROLES, failed_pod, observed_pod, words
from turnout_operator.plan.prefetch import troubles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from turnout.api import LLMDeployment, Role
    from turnout.scaling.policy import ScalingPolicy
    from turnout_operator.load.traffic import Traffic
    from turnout_operator.plan.claims import NameAssignment
    from turnout_operator.plan.pods import FailedPod, ObservedPod, WorkerLoad

_REFUSED_POD: Final = re.compile(r'\bpods "[^"]*" is forbidden')


@dataclass(frozen=True, slots=True)
class ObservedPool:
    """The Deployment of one role at one revision, and its pods."""

    role: Role
    revision: str
    replicas: int
    """``spec.replicas``."""
    created_at: float
    live: dict[str, Any]
    """The object."""
    pods: tuple[ObservedPod, ...]
    refused: str = ""
    """Why Kubernetes lets no more pods of it be made (a quota, a policy), in its words; empty where it does."""

    @property
    def alive(self) -> tuple[ObservedPod, ...]:
        """Pods that are not being deleted."""
        return tuple(pod for pod in self.pods if not pod.terminating)


@dataclass(frozen=True, slots=True)
class Specification:
    """What the user asks for."""

    deployment: LLMDeployment
    policy: ScalingPolicy
    """The same as scaling reads it, for decisions at this deployment's pace."""


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything that is known of one deployment."""

    deployment: LLMDeployment
    policy: ScalingPolicy
    status: Mapping[str, Any]
    """The status that was written last, raw."""
    own: Sequence[dict[str, Any]]
    """Objects that it owns, pods aside."""
    pools: Sequence[ObservedPool]
    """Oldest first."""
    pods: Sequence[ObservedPod]
    desired: Mapping[Role, int]
    """Replicas that scaling asked for last, by role.

    Status keeps them, so that edited or half rolled out pools do not count. Where there is no status (a fresh deployment,
    or status was lost) it is read from the pools, and where there are none, it is the minimum.
    """
    names: NameAssignment
    traffic: Traffic
    occupancy: Mapping[Role, float | None]
    """Mean number of requests in prefill, or held for it, by role (see ``PoolFacts.occupancy_mean``)."""
    failed: Sequence[FailedPod] = ()
    """Pods of its workers that ended for good without having been asked to."""
    prefetching: Mapping[str, str] = field(default_factory=dict)
    """Why the pod of a prefetch does not run or has failed last, by its Job; empty: it runs."""

    @property
    def goodput_percent(self) -> float | None:
        """Share of the requests of the last minute that met both objectives. None: none finished."""
        return self.traffic.goodput_percent


def observe(
    specification: Specification,
    status: Mapping[str, Any],
    children: Iterable[dict[str, Any]],
    pods: Sequence[Mapping[str, Any]],
    *,
    load: Callable[[str], WorkerLoad | None],
    names: NameAssignment,
    traffic: Traffic,
    occupancy: Mapping[Role, float | None],
) -> Observed:
    """Read raw objects: the *children* that have its labels and its worker *pods*, whose *load* is known by uid."""
    deployment = specification.deployment
    owner = {"name": deployment.metadata.name, "uid": deployment.metadata.uid}
    own = tuple(child for child in children if owns(owner, child))
    seen = (observed_pod(raw, load(raw["metadata"].get("uid", ""))) for raw in pods)
    known = tuple(pod for pod in seen if pod is not None)
    pools = observed_pools((child for child in own if child["kind"] == "Deployment"), known)
    return Observed(
        deployment=deployment,
        policy=specification.policy,
        status=status,
        own=own,
        pools=pools,
        pods=known,
        desired=_desired(deployment, status, pools),
        names=names,
        traffic=traffic,
        occupancy=occupancy,
        failed=tuple(pod for raw in pods if (pod := failed_pod(raw)) is not None),
        prefetching=troubles(pods),
    )


def _desired(
    deployment: LLMDeployment, status: Mapping[str, Any], pools: Iterable[ObservedPool]
) -> dict[Role, int]:
    running: dict[Role, int] = {}
    for pool in pools:
        running[pool.role] = running.get(pool.role, 0) + pool.replicas
    spec = deployment.spec
    return {
        role: (status.get("prefill" if role == "prefill" else "decode") or {}).get("desired")
        or running.get(role)
        or spec.pool(role).replicas.min
        for role in spec.roles
    }


def observed_pools(
    deployments: Iterable[dict[str, Any]], pods: Iterable[ObservedPod]
) -> tuple[ObservedPool, ...]:
    """Read the pools among *deployments*, oldest first, each with its pods."""
    by_pool: dict[tuple[str, str], list[ObservedPod]] = {}
    for pod in pods:
        by_pool.setdefault((pod.role, pod.revision), []).append(pod)
    found = []
    for raw in deployments:
        meta = raw["metadata"]
        labels = meta.get("labels", {})
        role, revision = labels.get(terms.LABEL_ROLE), labels.get(terms.LABEL_REVISION)
        if role not in ROLES or not revision or meta.get("deletionTimestamp"):
            continue
        found.append(
            ObservedPool(
                role=cast("Role", role),
                revision=revision,
                replicas=int(raw.get("spec", {}).get("replicas", 1)),
                created_at=seconds_of(meta.get("creationTimestamp") or "") or 0.0,
                live=raw,
                pods=tuple(by_pool.get((role, revision), ())),
                refused=_refused(raw.get("status") or {}),
            )
        )
    return tuple(sorted(found, key=lambda pool: (pool.created_at, pool.revision, pool.role)))


def _refused(status: Mapping[str, Any]) -> str:
    for item in status.get("conditions", []):
        if item.get("type") == "ReplicaFailure" and item.get("status") == "True":
            # The name of the pod is another one at each attempt.
            return _REFUSED_POD.sub("pods are forbidden", words(item.get("message") or item.get("reason")))
    return ""
