"""A pod's status from its containers' states: phase, conditions and containerStatuses, as the kubelet's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from turnout_devcluster.node import decide
from turnout_devcluster.node.model import (
    ContainerShape,
    ContainerState,
    Json,
    PodShape,
    Refusal,
    Run,
    container_of,
)

if TYPE_CHECKING:
    from turnout_devcluster.node.backoff import BackOff


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a pod runs, and since when (Unix seconds)."""

    pod_ip: str
    host_ip: str
    start_time: float


def timestamp(seconds: float) -> str:
    """Return Unix *seconds* as the API server writes times."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def differs(desired: Any, actual: Any) -> bool:
    """Return whether *actual*, as the API server stores it, lacks something of *desired*.

    Empty values count as absent, for the server drops them; conditions are compared by their type.
    """
    if isinstance(desired, Mapping):
        known = actual if isinstance(actual, Mapping) else {}
        return any(differs(value, known.get(key)) for key, value in desired.items())
    if isinstance(desired, list):
        known_items = actual if isinstance(actual, list) else []
        if desired and "lastTransitionTime" in desired[0]:
            by_type = {item.get("type"): item for item in known_items}
            return any(differs(item, by_type.get(item["type"])) for item in desired)
        return len(desired) != len(known_items) or any(map(differs, desired, known_items))
    return (desired or None) != (actual or None)


def _terminated(run: Run, container_id: str) -> dict[str, Any]:
    ended: dict[str, Any] = {
        "exitCode": run.exit_code,
        "reason": run.reason,
        "startedAt": timestamp(run.started_at),
        "finishedAt": timestamp(run.finished_at or run.started_at),
        "containerID": container_id,
    }
    if run.signal:
        ended["signal"] = run.signal
    if run.message:
        ended["message"] = run.message
    return {"terminated": ended}


def _state(
    container: ContainerShape,
    state: ContainerState,
    *,
    restarts: bool,
    back_off: BackOff,
    now: float,
    initialized: bool,
    container_id: str,
) -> tuple[dict[str, Any], Run | None]:
    """Return a container's ``state`` and the run that its ``lastState`` describes."""
    run = state.run
    if run is not None and run.running:
        return {"running": {"startedAt": timestamp(run.started_at)}}, state.previous
    if state.refusal is not None:
        return {"waiting": {"reason": state.refusal.reason, "message": state.refusal.message}}, run
    if run is None:
        waits = "ContainerCreating" if initialized or container.kind != "main" else "PodInitializing"
        return {"waiting": {"reason": waits}}, None
    due = decide.due_at(state, back_off)
    if restarts and due > now:
        delay = back_off.delay(run, state.streak)
        message = f"back-off {delay:g}s restarting failed container={container.name}"
        return {"waiting": {"reason": "CrashLoopBackOff", "message": message}}, run
    return _terminated(run, container_id), state.previous


def _phase(shape: PodShape, states: Mapping[str, ContainerState], *, initialized: bool, deleted: bool) -> str:
    """Return the phase, by the kubelet's rules (pkg/kubelet/kubelet_pods.go, getPhase)."""
    if decide.init_failed(shape, states):
        return "Failed"
    mains = [(c, states[c.name]) for c in shape.of_kind("main")]
    if not initialized or any(s.run is None for _, s in mains):
        # A pod deleted before its containers ran has failed: nothing of it will run any more.
        return "Failed" if deleted and not any(s.running for s in states.values()) else "Pending"
    if any(s.running for _, s in mains):
        return "Running"
    if not deleted and any(decide.is_restarted(c, shape.policy, s) for c, s in mains):
        return "Running"
    if any(states[c.name].running for c in shape.of_kind("sidecar")):
        return "Running"
    return "Succeeded" if all(s.run is not None and s.run.exit_code == 0 for _, s in mains) else "Failed"


def _conditions(
    wanted: Mapping[str, tuple[bool, str, str]], previous: Sequence[Json], now: float
) -> list[dict[str, Any]]:
    """Return conditions by type; one whose status stays keeps the time of its last transition."""
    before = {c["type"]: c for c in previous}
    conditions = []
    for kind, (value, reason, message) in wanted.items():
        status = "True" if value else "False"
        old = before.get(kind, {})
        condition: dict[str, Any] = {
            "type": kind,
            "status": status,
            "lastTransitionTime": old["lastTransitionTime"]
            if old.get("status") == status and old.get("lastTransitionTime")
            else timestamp(now),
            "reason": "" if value else reason,
            "message": "" if value else message,
        }
        conditions.append(condition)
    return conditions


def _readiness(
    pod: Json, shape: PodShape, states: Mapping[str, ContainerState], phase: str
) -> tuple[tuple[bool, str, str], tuple[bool, str, str]]:
    """Return ContainersReady and Ready as (value, reason, message)."""
    if phase in {"Succeeded", "Failed"}:
        reason = "PodCompleted" if phase == "Succeeded" else "PodFailed"
        return (False, reason, ""), (False, reason, "")
    unready = [c.name for c in shape.of_kind("sidecar", "main") if not states[c.name].ready]
    message = f"containers with unready status: [{' '.join(unready)}]"
    containers = (not unready, "ContainersNotReady", message)
    met = {c["type"] for c in (pod.get("status") or {}).get("conditions") or () if c.get("status") == "True"}
    gates = [g["conditionType"] for g in pod["spec"].get("readinessGates") or ()]
    missing = [g for g in gates if g not in met]
    if unready or not missing:
        return containers, containers
    return containers, (False, "ReadinessGatesNotReady", f"conditions not True: {', '.join(missing)}")


def pod_status(
    pod: Json,
    shape: PodShape,
    states: Mapping[str, ContainerState],
    placement: Placement | None,
    *,
    back_off: BackOff,
    now: float,
    failed: Refusal | None = None,
) -> dict[str, Any]:
    """Return the status of *pod* at *now* (Unix seconds).

    *placement* is None until the pod has an address; *failed* ends the pod for good, whatever its
    containers did (a deadline that passed).
    """
    deleted = bool(pod["metadata"].get("deletionTimestamp"))
    initialized = decide.initialized(shape, states)
    phase = _phase(shape, states, initialized=initialized, deleted=deleted)
    if failed is not None and not any(s.running for s in states.values()):
        phase = "Failed"

    def described(container: ContainerShape) -> dict[str, Any]:
        state = states[container.name]
        attempt = state.run.attempt if state.run else 0
        container_id = f"turnout://{pod['metadata']['uid']}/{container.name}/{attempt}"
        ends = deleted or failed is not None
        restarts = not ends and state.run is not None and decide.is_restarted(container, shape.policy, state)
        now_is, last = _state(
            container,
            state,
            restarts=restarts,
            back_off=back_off,
            now=now,
            initialized=initialized,
            container_id=container_id,
        )
        succeeded = state.run is not None and not state.running and state.run.exit_code == 0
        last_id = f"turnout://{pod['metadata']['uid']}/{container.name}/{last.attempt}" if last else ""
        return {
            "name": container.name,
            "state": now_is,
            "lastState": _terminated(last, last_id) if last else {},
            "ready": succeeded if container.kind == "init" else state.ready,
            "started": state.started,
            "restartCount": attempt,
            "image": container_of(pod, container.name).get("image", ""),
            "imageID": "",
            "containerID": container_id if state.run else "",
        }

    containers_ready, ready = _readiness(pod, shape, states, phase)
    incomplete = [
        c.name
        for c in shape.of_kind("init", "sidecar")
        if not (states[c.name].run and (states[c.name].started or not states[c.name].running))
    ]
    status: dict[str, Any] = {
        "phase": phase,
        "reason": failed.reason if failed else "",
        "message": failed.message if failed else "",
        "observedGeneration": pod["metadata"].get("generation", 0),
        "conditions": _conditions(
            {
                "PodReadyToStartContainers": (placement is not None, "", ""),
                "Initialized": (
                    initialized,
                    "ContainersNotInitialized",
                    f"containers with incomplete status: [{' '.join(incomplete)}]",
                ),
                "Ready": ready,
                "ContainersReady": containers_ready,
            },
            (pod.get("status") or {}).get("conditions") or (),
            now,
        ),
        "containerStatuses": [described(c) for c in shape.of_kind("main")],
    }
    if inits := shape.of_kind("init", "sidecar"):
        status["initContainerStatuses"] = [described(c) for c in inits]
    if placement is not None:
        status["hostIP"] = placement.host_ip
        status["hostIPs"] = [{"ip": placement.host_ip}]
        status["podIP"] = placement.pod_ip
        status["podIPs"] = [{"ip": placement.pod_ip}]
        status["startTime"] = timestamp(placement.start_time)
    return status
