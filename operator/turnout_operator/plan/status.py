"""The status of an LLMDeployment: its state, in words that say what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from turnout.api import PoolStatus
from turnout.sizing.capacity import DoesNotFit
from turnout_operator.plan.conditions import Finding, conditions, rfc3339
from turnout_operator.plan.scaling import tally

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from turnout.api import LLMDeployment, Role
    from turnout.scaling.decision import ScalingLimit
    from turnout.sizing.capacity import Unknown
    from turnout_operator.plan.claims import NameAssignment
    from turnout_operator.plan.observed import ObservedPool
    from turnout_operator.plan.pods import FailedPod, ObservedPod
    from turnout_operator.plan.prefetch import Prefetch
    from turnout_operator.plan.scaling import ScalingChange

MAX_REASON: Final = 1024
"""Longest reason that ``status.lastScaling`` takes."""

OVERRIDDEN: Final = "FieldsOverridden"
"""Type of the condition that names the writers which change what this operator writes."""

CONDITION_OF: Final[Mapping[str, str]] = {
    "prefill": "PrefillReady",
    "decode": "DecodeReady",
    "aggregated": "DecodeReady",
}
"""Condition of each role: an aggregated pool is the one that ``spec.decode`` describes."""


@dataclass(frozen=True, slots=True)
class StatusInput:
    """Everything that the status of one deployment is computed from."""

    deployment: LLMDeployment
    pods: Sequence[ObservedPod]
    desired: Mapping[Role, int]
    serving: str | None
    """Revision that serves, None where nothing does."""
    target: str
    """Revision that the spec asks for."""
    rollout: str
    """The rollout's sentence; empty where none is going on."""
    fit: DoesNotFit | Unknown | None
    """Why the model does not fit, or why that is not known; None: it fits."""
    names: NameAssignment
    goodput_percent: float | None
    advised: ScalingChange | None
    """What scaling would change in mode Automatic."""
    limit: ScalingLimit | None
    endpoint: str
    pools: Sequence[ObservedPool] = ()
    failed: Sequence[FailedPod] = ()
    """Pods that ended for good without having been asked to."""
    cache: Prefetch | None = None
    """The prefetch of the target revision. None: it has none."""
    forbidden: str = ""
    """What this installation does not allow, and what to write instead. Empty: nothing."""


def status(
    facts: StatusInput, previous: Mapping[str, Any], scaled: ScalingChange | None, now: float
) -> dict[str, Any]:
    """Return the whole status. *scaled* is the change of replicas that is being made now, if one is."""
    deployment = facts.deployment
    generation = deployment.metadata.generation
    made: dict[str, Any] = {
        "observedGeneration": generation,
        "conditions": conditions(_findings(facts), previous.get("conditions", []), generation, now),
        "revision": facts.serving or previous.get("revision", ""),
        "servedNames": list(facts.names.served),
        "endpoint": facts.endpoint,
    }
    for role in deployment.spec.roles:
        made["prefill" if role == "prefill" else "decode"] = _pool(facts, role)
    if facts.goodput_percent is not None:
        made["goodputPercent"] = int(facts.goodput_percent)
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
    """Return the status of an object that cannot be used: everything else stays as it is, and Ready gives the reason."""
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
    """Return *status_* with a condition on other writers' changes of our objects; unchanged where there are none.

    The condition is there only while there is something to say.
    """
    if not sentences:
        return status_
    finding = Finding(OVERRIDDEN, "True", "OthersInsist", "; ".join(sentences))
    previous = (raw.get("status") or {}).get("conditions", [])
    (made,) = conditions([finding], previous, raw["metadata"].get("generation", 0), now)
    return {**status_, "conditions": [*status_["conditions"], made]}


def is_minor(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Return whether two statuses differ only in what may be reported a little later: counts of pods, and words of conditions."""

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


def _pool(facts: StatusInput, role: Role) -> dict[str, Any]:
    pods = [pod for pod in facts.pods if pod.role == role]
    return PoolStatus(
        desired=facts.desired.get(role, 0), replicas=len(pods), ready=sum(pod.serving for pod in pods)
    ).model_dump(by_alias=True)


def _findings(facts: StatusInput) -> Iterable[Finding]:
    yield _ready(facts)
    for role in facts.deployment.spec.roles:
        yield _role_ready(facts, role)
    yield _fits(facts.fit)
    if facts.cache is not None:
        yield _cached(facts.cache)
    yield _objectives(facts)
    yield _limited(facts)


def _ready(facts: StatusInput) -> Finding:
    refused = ", ".join(f"{name} ({why})" for name, why in facts.names.refused)
    if not facts.names.served:
        return Finding(
            "Ready",
            "False",
            "ServedNameConflict",
            f"every served name is taken: {refused}; choose other model.servedNames or have the name given up there",
        )
    tail = f"; rollout: {facts.rollout}" if facts.rollout else ""
    obstacle = _obstacle(facts, facts.deployment.spec.roles)
    if facts.serving is None:
        if facts.forbidden:
            return Finding("Ready", "False", "HostPathNotAllowed", facts.forbidden)
        if isinstance(facts.fit, DoesNotFit):
            return Finding("Ready", "False", "ModelDoesNotFit", facts.fit.message)
        if facts.cache is not None and not facts.cache.done:
            obstacle += f"; {_cached(facts.cache).message}"
        return Finding("Ready", "False", "NoReadyWorkers", f"{_waiting_for(facts)}{obstacle}{tail}")
    if tail:
        tail += obstacle
    called = ", ".join(facts.names.served)
    if refused:
        message = f"serves {called}; not {refused}: choose other names or have these given up there"
        return Finding("Ready", "True", "NameConflict", message + tail)
    return Finding("Ready", "True", "Serves", f"serves {called}{tail}")


def _waiting_for(facts: StatusInput) -> str:
    parts = []
    for role in facts.deployment.spec.roles:
        ready = sum(pod.serving for pod in facts.pods if pod.role == role and pod.revision == facts.target)
        parts.append(f"{role} {ready} of {facts.desired.get(role, 0)} ready")
    return f"waiting for workers: {', '.join(parts)}"


def _obstacle(facts: StatusInput, roles: Iterable[Role]) -> str:
    """Return why workers of these *roles* do not run, in the words of the component that stops them; empty: they run."""
    wanted = frozenset(roles)
    for pool in facts.pools:
        if pool.refused and pool.role in wanted and len(pool.alive) < pool.replicas:
            return f"; {pool.live['metadata']['name']} gets no more pods: {pool.refused}"
    for pod in facts.pods:
        if pod.role not in wanted:
            continue
        if pod.unschedulable_since is not None:
            return f"; {pod.name} finds no node: {pod.unschedulable_reason}"
        if pod.trouble and not pod.ready:
            return f"; {pod.name} does not run: {pod.trouble} (see kubectl logs {pod.name})"
    newest = max((pod for pod in facts.failed if pod.role in wanted), key=_age, default=None)
    # A pod that failed before a ready one of its role was made is no obstacle any more.
    if newest is not None and not any(pod.role == newest.role and pod.ready for pod in facts.pods):
        return f"; {newest.name} has failed: {newest.why}"
    return ""


def _age(pod: FailedPod) -> tuple[float, str]:
    return pod.created_at, pod.name


def _role_ready(facts: StatusInput, role: Role) -> Finding:
    pods = [pod for pod in facts.pods if pod.role == role]
    ready, desired = sum(pod.serving for pod in pods), facts.desired.get(role, 0)
    message = f"{ready} of {desired} {role} workers ready"
    if ready >= desired > 0:
        return Finding(CONDITION_OF[role], "True", "AllReady", message)
    message += _obstacle(facts, [role])
    if ready:
        return Finding(CONDITION_OF[role], "True", "SomeReady", message)
    return Finding(CONDITION_OF[role], "False", "NoneReady", message)


def _fits(fit: DoesNotFit | Unknown | None) -> Finding:
    if fit is None:
        return Finding("ModelFits", "True", "Fits", "weights and KV cache fit on the accelerators")
    return Finding(
        "ModelFits", "False" if isinstance(fit, DoesNotFit) else "Unknown", fit.reason, fit.message
    )


def _cached(cache: Prefetch) -> Finding:
    if cache.done:
        return Finding("ModelCached", "True", "Copied", "the model's files are in the cache")
    if cache.reason:
        return Finding("ModelCached", "False", cache.reason, cache.trouble)
    message = (
        f"the Job {cache.name} copies the model's files into the cache: see kubectl logs job/{cache.name}"
    )
    return Finding("ModelCached", "False", "Copying", message)


def _objectives(facts: StatusInput) -> Finding:
    target = facts.deployment.spec.slo.goodput_percent
    goodput = facts.goodput_percent
    if goodput is None:
        return Finding("SLOMet", "Unknown", "NoTraffic", "no request has ended lately")
    message = f"{int(goodput)} % of recent requests met both objectives, {target} % shall"
    if goodput >= target:
        return Finding("SLOMet", "True", "ObjectivesMet", message)
    return Finding("SLOMet", "False", "ObjectivesMissed", message)


def _limited(facts: StatusInput) -> Finding:
    advised, limit = facts.advised, facts.limit
    if advised is not None:
        message = f"{advice(advised)}: {advised.reason}"
        return Finding("ScalingLimited", "True", "Advisory", message)
    if limit is not None:
        return Finding("ScalingLimited", "True", limit.reason, limit.message)
    return Finding("ScalingLimited", "False", "NotLimited", "replicas follow the load")


def advice(change: ScalingChange) -> str:
    """Return how the condition ScalingLimited begins where *change* is advised."""
    return f"would change {tally(change.before)} to {tally(change.after)}"
