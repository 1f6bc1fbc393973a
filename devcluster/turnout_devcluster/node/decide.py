"""What a pod needs next: which containers to start, which to stop, and when to look again.

The order: init containers one after the other, a sidecar among them only until it has started; then the
main ones together; when all main ones have ended for good, the sidecars end in reverse order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from turnout_devcluster.node.backoff import BackOff
    from turnout_devcluster.node.model import ContainerShape, ContainerState, PodShape, Policy


@dataclass(frozen=True, slots=True)
class Step:
    """What to do now."""

    start: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    wake_at: float | None = None
    """When a back-off ends, in Unix seconds."""
    finished: bool = False
    """Nothing of this pod will ever run again."""


def policy_of(container: ContainerShape, pod: Policy) -> Policy:
    """Return when *container* is restarted: sidecars always, init containers until they succeed."""
    if container.kind == "sidecar":
        return "Always"
    if container.kind == "init":
        return "Never" if pod == "Never" else "OnFailure"
    return pod


def is_restarted(container: ContainerShape, pod: Policy, state: ContainerState) -> bool:
    """Return whether *container*, whose run has ended, is started again."""
    policy = policy_of(container, pod)
    failed = state.run is not None and state.run.exit_code != 0
    return policy == "Always" or (policy == "OnFailure" and failed)


def due_at(state: ContainerState, back_off: BackOff) -> float:
    """Return when the container may be started (Unix seconds); 0 for at once."""
    if state.run is None or state.run.finished_at is None:
        return state.retry_at
    delay = back_off.delay(state.run, state.streak)
    return max(state.retry_at, state.run.finished_at + delay if delay else 0.0)


class _Round:
    """Collects what one look at the pod finds."""

    def __init__(
        self, shape: PodShape, states: Mapping[str, ContainerState], back_off: BackOff, now: float
    ) -> None:
        self.shape = shape
        self.states = states
        self.back_off = back_off
        self.now = now
        self.start: list[str] = []
        self.wake_at: float | None = None

    def want(self, container: ContainerShape) -> None:
        """Have *container* run: now, or when its back-off ends."""
        state = self.states[container.name]
        if state.running or state.starting:
            return
        due = due_at(state, self.back_off)
        if due <= self.now:
            self.start.append(container.name)
        elif self.wake_at is None or due < self.wake_at:
            self.wake_at = due

    def ended(self, container: ContainerShape) -> bool:
        """Return whether *container* has ended for good."""
        state = self.states[container.name]
        if state.run is None or state.running or state.starting:
            return False
        return not is_restarted(container, self.shape.policy, state)


def initialized(shape: PodShape, states: Mapping[str, ContainerState]) -> bool:
    """Return whether every init container has succeeded and every sidecar has started once."""
    if any(states[c.name].run is not None for c in shape.of_kind("main")):
        return True
    for container in shape.of_kind("init", "sidecar"):
        state = states[container.name]
        if container.kind == "sidecar":
            if not state.started:
                return False
        elif state.run is None or state.running or state.run.exit_code != 0:
            return False
    return True


def init_failed(shape: PodShape, states: Mapping[str, ContainerState]) -> bool:
    """Return whether an init container has failed for good."""
    return shape.policy == "Never" and any(
        (run := states[c.name].run) is not None and not run.running and run.exit_code != 0
        for c in shape.of_kind("init")
    )


def decide(shape: PodShape, states: Mapping[str, ContainerState], back_off: BackOff, now: float) -> Step:
    """Return the next step for a pod that is not being deleted."""
    look = _Round(shape, states, back_off, now)
    mains = shape.of_kind("main")
    if init_failed(shape, states) or all(look.ended(c) for c in mains):
        stop = tuple(c.name for c in reversed(shape.of_kind("sidecar")) if states[c.name].running)
        return Step(stop=stop, finished=not stop)
    if not initialized(shape, states):
        # Only the first that is not through may go on; whatever stands behind it waits.
        for container in shape.of_kind("init", "sidecar"):
            run = states[container.name].run
            if container.kind == "init" and run is not None and not run.running and run.exit_code == 0:
                continue
            look.want(container)
            if container.kind == "init" or not states[container.name].started:
                break
        return Step(start=tuple(look.start), wake_at=look.wake_at)
    for container in (*shape.of_kind("sidecar"), *mains):
        if not look.ended(container):
            look.want(container)
    return Step(start=tuple(look.start), wake_at=look.wake_at)
