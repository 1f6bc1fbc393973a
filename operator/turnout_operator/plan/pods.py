"""Worker pods as plain values, read from raw objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast, get_args

from turnout import terms
from turnout.terms import Role
from turnout_operator.plan.conditions import seconds_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROLES: Final = frozenset(get_args(Role))
MAX_WORDS: Final = 512
"""Longest text of Kubernetes or of a container that is repeated in a status."""
_STARTING: Final = frozenset({"ContainerCreating", "PodInitializing"})


@dataclass(frozen=True, slots=True)
class WorkerLoad:
    """What a worker pod said of itself at its last scrape."""

    scraped_at: float
    """When it answered, in seconds since the epoch."""
    running: int
    """Requests it works on."""
    waiting: int
    """Requests that wait in it."""
    kv_utilization: float
    """KV cache in use, 0 to 1."""
    deferred: int = 0
    """Those of the waiting that wait for their KV cache to arrive, not for room."""
    kv_tokens: int = 0
    """Tokens that its KV cache holds. 0: it did not say."""


@dataclass(frozen=True, slots=True)
class ObservedPod:
    """One worker pod."""

    name: str
    role: Role
    revision: str
    created_at: float
    """Seconds since the epoch."""
    ready: bool
    """Ready and not on its way out by deletion."""
    scheduled: bool
    terminating: bool
    """Being deleted: it no longer counts for anything but the accelerators it holds."""
    draining_since: float | None
    """When it was labeled draining, in seconds since the epoch. None: it is in service."""
    deletion_cost: int
    unschedulable_since: float | None = None
    """Since when the scheduler finds no node. None: it has one, or was not looked at yet."""
    unschedulable_reason: str = ""
    """The scheduler's words."""
    trouble: str = ""
    """Why its container does not run, in the node's words; empty where nothing is wrong."""
    load: WorkerLoad | None = None
    facts: str | None = None
    """What routers read of it in its annotation. None: it has none."""
    arguments: Sequence[str] = ()
    """Those of its worker's container."""
    uid: str = ""
    address: str = ""
    """IP address; empty: it has none yet."""

    @property
    def draining(self) -> bool:
        """Whether it is on its way out, by label."""
        return self.draining_since is not None

    @property
    def serving(self) -> bool:
        """Whether it takes new requests."""
        return self.ready and not self.draining


@dataclass(frozen=True, slots=True)
class FailedPod:
    """A pod that ended for good without having been asked to: evicted, or refused by its node."""

    name: str
    role: Role
    created_at: float
    """Seconds since the epoch."""
    why: str
    """In the node's words."""


def words(text: object) -> str:
    """Return *text* as one line of printable characters, at most `MAX_WORDS` of them: its beginning and its end."""
    line = " ".join(
        "".join(char if char.isprintable() else " " for char in str(text or "")[: 1 << 16]).split()
    )
    if len(line) <= MAX_WORDS:
        return line
    half = (MAX_WORDS - 5) // 2
    return f"{line[:half]} ... {line[-half:]}"


def failed_pod(raw: Mapping[str, Any]) -> FailedPod | None:
    """Read a worker pod that failed as a whole, with a reason; None for any other."""
    meta, status = raw["metadata"], raw.get("status", {})
    role = meta.get("labels", {}).get(terms.LABEL_ROLE)
    if role not in ROLES or status.get("phase") != "Failed" or not status.get("reason"):
        return None
    created = seconds_of(meta.get("creationTimestamp") or "") or 0.0
    why = words(f"{status['reason']}: {status.get('message') or ''}".rstrip(": "))
    return FailedPod(meta["name"], cast("Role", role), created, why)


def is_ready(raw: Mapping[str, Any]) -> bool:
    """Return whether a pod is Ready, and not on its way out by deletion."""
    conditions = raw.get("status", {}).get("conditions", [])
    ready = any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)
    return ready and not raw["metadata"].get("deletionTimestamp")


def observed_pod(raw: Mapping[str, Any], load: WorkerLoad | None = None) -> ObservedPod | None:
    """Read a worker pod; None where its labels do not say what it is, or where it has run to its end."""
    meta, status = raw["metadata"], raw.get("status", {})
    labels, annotations = meta.get("labels", {}), meta.get("annotations", {})
    role, revision = labels.get(terms.LABEL_ROLE), labels.get(terms.LABEL_REVISION)
    if role not in ROLES or not revision or status.get("phase") in {"Succeeded", "Failed"}:
        return None
    conditions = {item["type"]: item for item in status.get("conditions", [])}
    scheduling = conditions.get("PodScheduled", {})
    unschedulable = scheduling.get("status") == "False" and scheduling.get("reason") == "Unschedulable"
    created = seconds_of(meta.get("creationTimestamp") or "") or 0.0
    since = seconds_of(annotations.get(terms.ANNOTATION_DRAINING_SINCE, ""))
    terminating = bool(meta.get("deletionTimestamp"))
    return ObservedPod(
        name=meta["name"],
        role=cast("Role", role),
        revision=revision,
        created_at=created,
        ready=is_ready(raw),
        scheduled=bool(raw.get("spec", {}).get("nodeName")) or scheduling.get("status") == "True",
        terminating=terminating,
        # A label without a readable time counts as old: such a pod goes first, it does not stay for good.
        draining_since=(since or 0.0) if labels.get(terms.LABEL_DRAINING) == "true" else None,
        deletion_cost=_integer(annotations.get(terms.ANNOTATION_DELETION_COST, "0")),
        unschedulable_since=(seconds_of(scheduling.get("lastTransitionTime") or "") or created)
        if unschedulable
        else None,
        unschedulable_reason=words(scheduling.get("message")) if unschedulable else "",
        trouble=trouble(status, scheduling),
        load=load,
        facts=annotations.get(terms.ANNOTATION_WORKER),
        arguments=_worker_arguments(raw.get("spec") or {}),
        uid=meta.get("uid", ""),
        address=status.get("podIP", ""),
    )


def _worker_arguments(spec: Mapping[str, Any]) -> Sequence[str]:
    for container in spec.get("containers") or ():
        if container.get("name") == terms.COMPONENT_WORKER:
            return cast("Sequence[str]", container.get("args") or ())
    return ()


def trouble(status: Mapping[str, Any], scheduling: Mapping[str, Any]) -> str:
    """Return why a pod does not run, though it has a node or need not wait for one."""
    if scheduling.get("status") == "False" and scheduling.get("reason") != "Unschedulable":
        return words(f"{scheduling.get('reason', '')}: {scheduling.get('message') or ''}".rstrip(": "))
    for container in (*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])):
        found = _container_trouble(container)
        if found:
            return found
    return ""


def _container_trouble(container: Mapping[str, Any]) -> str:
    state = container.get("state") or {}
    waiting = state.get("waiting") or {}
    reason = waiting.get("reason")
    if reason and reason not in _STARTING and reason != "CrashLoopBackOff":
        return words(f"{reason}: {waiting.get('message') or ''}".rstrip(": "))
    ended = state.get("terminated") or (container.get("lastState") or {}).get("terminated") or {}
    if ended.get("exitCode"):
        # The same words whether it waits, runs once more or has just ended: the cause is the same.
        how = f"{ended.get('reason') or 'Error'}, exit status {ended['exitCode']}"
        crash = "CrashLoopBackOff: " if container.get("restartCount") else ""
        said = ended.get("message") or ""
        return words(f"{crash}{container.get('name', 'container')} ended with {how}: {said}".rstrip(": "))
    return (
        words(f"{reason}: {waiting.get('message') or ''}".rstrip(": "))
        if reason == "CrashLoopBackOff"
        else ""
    )


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        return 0
