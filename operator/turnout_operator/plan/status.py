"""The status of an LLMDeployment: what is, told so that a person knows what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from turnout.api import PoolStatus
from turnout_operator.plan.conditions import Finding, conditions, rfc3339
from turnout_operator.plan.scaling import tally

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from turnout.api import LLMDeployment, Role
    from turnout.scaling.decision import ScalingLimit
    from turnout.sizing.capacity import Misfit
    from turnout_operator.plan.claims import Settlement
    from turnout_operator.plan.observed import ObservedPool
    from turnout_operator.plan.pods import FailedPod, ObservedPod
    from turnout_operator.plan.prefetch import Prefetch
    from turnout_operator.plan.scaling import ScalingChange

MAX_REASON: Final = 1024
"""Longest reason that ``status.lastScaling`` takes."""

OVERRIDDEN: Final = "FieldsOverridden"
"""Type of the condition that says who changes what this operator writes."""

CONDITION_OF: Final[Mapping[str, str]] = {
    "prefill": "PrefillReady",
    "decode": "DecodeReady",
    "aggregated": "DecodeReady",
}
"""Condition of each role: an aggregated pool is the one that ``spec.decode`` describes."""


@dataclass(frozen=True, slots=True)
class Picture:
    """All that status tells about one deployment at one moment."""

    deployment: LLMDeployment
    pods: Sequence[ObservedPod]
    desired: Mapping[Role, int]
    serving: str | None
    """Revision that serves, None where nothing does."""
    target: str
    """Revision that the spec asks for."""
    rollout: str
    """The rollout's sentence; empty where none is going on."""
    misfit: Misfit | None
    names: Settlement
    goodput_percent: float | None
    advised: ScalingChange | None
    """What scaling would change if it were let."""
    limit: ScalingLimit | None
    endpoint: str
    pools: Sequence[ObservedPool] = ()
    failed: Sequence[FailedPod] = ()
    """Pods that ended for good without having been asked to."""
    cache: Prefetch | None = None
    """The prefetch of the target revision. None: it has none."""


def status(
    picture: Picture, previous: Mapping[str, Any], scaled: ScalingChange | None, now: float
) -> dict[str, Any]:
    """Return the whole status. *scaled* is the change of replicas that is being made now, if one is."""
    deployment = picture.deployment
    generation = deployment.metadata.generation
    made: dict[str, Any] = {
        "observedGeneration": generation,
        "conditions": conditions(_findings(picture), previous.get("conditions", []), generation, now),
        "revision": picture.serving or previous.get("revision", ""),
        "servedNames": list(picture.names.served),
        "endpoint": picture.endpoint,
    }
    for role in deployment.spec.roles:
        made["prefill" if role == "prefill" else "decode"] = _pool(picture, role)
    if picture.goodput_percent is not None:
        made["goodputPercent"] = int(picture.goodput_percent)
    if scaled is not None:
        made["lastScaling"] = {
            "time": rfc3339(now),
            "from": tally(scaled.before),
            "to": tally(scaled.after),
            "reason": scaled.reason[:MAX_REASON],
        }
    elif previous.get("lastScaling"):
        made["lastScaling"] = previous["lastScaling"]
    return made


def invalid(raw: Mapping[str, Any], message: str, now: float) -> dict[str, Any]:
    """Return the status of an object that cannot be used: everything stays as it is, and why is said."""
    previous = raw.get("status") or {}
    generation = raw["metadata"].get("generation", 0)
    finding = Finding(
        "Ready", "False", "InvalidSpec", f"the spec cannot be used, what runs is left alone: {message}"
    )
    kept = [item for item in previous.get("conditions", []) if item.get("type") != "Ready"]
    ready = conditions([finding], previous.get("conditions", []), generation, now)
    return {**previous, "observedGeneration": generation, "conditions": ready + kept}


def with_overrides(
    status_: dict[str, Any], sentences: Sequence[str], raw: Mapping[str, Any], now: float
) -> dict[str, Any]:
    """Return *status_* with a condition that names what others make of our objects; as it is where there is nothing.

    The condition is there only while there is something to say.
    """
    if not sentences:
        return status_
    finding = Finding(OVERRIDDEN, "True", "OthersInsist", "; ".join(sentences))
    previous = (raw.get("status") or {}).get("conditions", [])
    (made,) = conditions([finding], previous, raw["metadata"].get("generation", 0), now)
    return {**status_, "conditions": [*status_["conditions"], made]}


def is_minor(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Return whether two statuses differ in what may be told a little later: counts of pods, and words of conditions."""

    def main(status_: Mapping[str, Any]) -> Any:
        said = [(item["type"], item["status"], item["reason"]) for item in status_.get("conditions", [])]
        desired = [(status_.get(pool) or {}).get("desired") for pool in ("prefill", "decode")]
        rest = {
            name: value
            for name, value in status_.items()
            if name not in {"conditions", "prefill", "decode", "goodputPercent"}
        }
        return said, desired, rest

    return bool(before) and main(before) == main(after)


def condition(status_: Mapping[str, Any], type_: str) -> Mapping[str, Any]:
    """Return one condition of a raw status; empty where it is not there."""
    return next((item for item in status_.get("conditions", []) if item.get("type") == type_), {})


def _pool(picture: Picture, role: Role) -> dict[str, Any]:
    pods = [pod for pod in picture.pods if pod.role == role]
    return PoolStatus(
        desired=picture.desired.get(role, 0), replicas=len(pods), ready=sum(pod.serving for pod in pods)
    ).model_dump(by_alias=True)


def _findings(picture: Picture) -> Iterable[Finding]:
    yield _ready(picture)
    for role in picture.deployment.spec.roles:
        yield _role_ready(picture, role)
    yield _fits(picture.misfit)
    if picture.cache is not None:
        yield _cached(picture.cache)
    yield _objectives(picture)
    yield _limited(picture)


def _ready(picture: Picture) -> Finding:
    refused = ", ".join(f"{name} ({why})" for name, why in picture.names.refused)
    if not picture.names.served:
        return Finding(
            "Ready",
            "False",
            "ServedNameConflict",
            f"every served name is taken: {refused}; choose other model.servedNames or have the name given up there",
        )
    tail = f"; rollout: {picture.rollout}" if picture.rollout else ""
    obstacle = _obstacle(picture, picture.deployment.spec.roles)
    if picture.serving is None:
        if picture.misfit is not None:
            return Finding("Ready", "False", "ModelDoesNotFit", picture.misfit.message)
        if picture.cache is not None and not picture.cache.done:
            obstacle += f"; {_cached(picture.cache).message}"
        return Finding("Ready", "False", "NoReadyWorkers", f"{_waiting_for(picture)}{obstacle}{tail}")
    if tail:
        tail += obstacle
    called = ", ".join(picture.names.served)
    if refused:
        message = f"serves {called}; not {refused}: choose other names or have these given up there"
        return Finding("Ready", "True", "NameConflict", message + tail)
    return Finding("Ready", "True", "Serves", f"serves {called}{tail}")


def _waiting_for(picture: Picture) -> str:
    parts = []
    for role in picture.deployment.spec.roles:
        ready = sum(
            pod.serving for pod in picture.pods if pod.role == role and pod.revision == picture.target
        )
        parts.append(f"{role} {ready} of {picture.desired.get(role, 0)} ready")
    return f"waiting for workers: {', '.join(parts)}"


def _obstacle(picture: Picture, roles: Iterable[Role]) -> str:
    """Return what stands in the way of these *roles*' workers, in the words of who put it there; empty: nothing."""
    wanted = frozenset(roles)
    for pool in picture.pools:
        if pool.refused and pool.role in wanted and len(pool.alive) < pool.replicas:
            return f"; {pool.live['metadata']['name']} gets no more pods: {pool.refused}"
    for pod in picture.pods:
        if pod.role not in wanted:
            continue
        if pod.unschedulable_since is not None:
            return f"; {pod.name} finds no node: {pod.unschedulable_reason}"
        if pod.trouble and not pod.ready:
            return f"; {pod.name} does not run: {pod.trouble} (see kubectl logs {pod.name})"
    newest = max((pod for pod in picture.failed if pod.role in wanted), key=_age, default=None)
    # One that failed before its successor was made is history, unless that has come to nothing either.
    if newest is not None and not any(pod.role == newest.role and pod.ready for pod in picture.pods):
        return f"; {newest.name} has failed: {newest.why}"
    return ""


def _age(pod: FailedPod) -> tuple[float, str]:
    return pod.created_at, pod.name


def _role_ready(picture: Picture, role: Role) -> Finding:
    pods = [pod for pod in picture.pods if pod.role == role]
    ready, desired = sum(pod.serving for pod in pods), picture.desired.get(role, 0)
    message = f"{ready} of {desired} {role} workers ready"
    if ready >= desired > 0:
        return Finding(CONDITION_OF[role], "True", "AllReady", message)
    message += _obstacle(picture, [role])
    if ready:
        return Finding(CONDITION_OF[role], "True", "SomeReady", message)
    return Finding(CONDITION_OF[role], "False", "NoneReady", message)


def _fits(misfit: Misfit | None) -> Finding:
    if misfit is None:
        return Finding("ModelFits", "True", "Fits", "weights and KV cache fit on the accelerators")
    return Finding("ModelFits", "False", misfit.reason, misfit.message)


def _cached(cache: Prefetch) -> Finding:
    if cache.done:
        return Finding("ModelCached", "True", "Copied", "the model's files are in the cache")
    if cache.reason:
        return Finding("ModelCached", "False", cache.reason, cache.trouble)
    message = (
        f"the Job {cache.name} copies the model's files into the cache: see kubectl logs job/{cache.name}"
    )
    return Finding("ModelCached", "False", "Copying", message)


def _objectives(picture: Picture) -> Finding:
    target = picture.deployment.spec.slo.goodput_percent
    goodput = picture.goodput_percent
    if goodput is None:
        return Finding("SLOMet", "Unknown", "NoTraffic", "no request has ended lately")
    message = f"{int(goodput)} % of recent requests met both objectives, {target} % shall"
    if goodput >= target:
        return Finding("SLOMet", "True", "ObjectivesMet", message)
    return Finding("SLOMet", "False", "ObjectivesMissed", message)


def _limited(picture: Picture) -> Finding:
    advised, limit = picture.advised, picture.limit
    if advised is not None:
        message = f"{advice(advised)}: {advised.reason}"
        return Finding("ScalingLimited", "True", "Advisory", message)
    if limit is not None:
        return Finding("ScalingLimited", "True", limit.reason, limit.message)
    return Finding("ScalingLimited", "False", "NotLimited", "replicas follow the load")


def advice(change: ScalingChange) -> str:
    """Return how the condition ScalingLimited begins where *change* is advised."""
    return f"would change {tally(change.before)} to {tally(change.after)}"
