"""Values that the node's decisions are about: a pod's shape, runs of its containers, refusals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Json = Mapping[str, Any]
"""An object of the API server, or a part of one. Never changed."""
Policy = Literal["Always", "OnFailure", "Never"]
Kind = Literal["init", "sidecar", "main"]


@dataclass(frozen=True, slots=True)
class Refusal:
    """What cannot be done, and why, as people read it in ``kubectl describe pod``."""

    reason: str
    """CamelCase, as an Event's or a waiting container's reason."""
    message: str
    """One sentence that says what to do."""


@dataclass(frozen=True, slots=True)
class ContainerShape:
    """What decides when a container starts and ends."""

    name: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class PodShape:
    """A pod as far as the order of its containers and their restarts go."""

    policy: Policy
    containers: tuple[ContainerShape, ...]
    """Init containers and sidecars in their order, then the main ones."""

    def of_kind(self, *kinds: Kind) -> tuple[ContainerShape, ...]:
        """Return the containers of these kinds, in order."""
        return tuple(c for c in self.containers if c.kind in kinds)


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a container. Times are Unix seconds."""

    attempt: int
    """0 for the first run; what ``kubectl`` shows as restarts."""
    started_at: float
    finished_at: float | None = None
    exit_code: int = 0
    """128 + N where signal N ended it; 128 where it could not be started."""
    signal: int = 0
    reason: str = ""
    message: str = ""

    @property
    def running(self) -> bool:
        """Whether it still runs."""
        return self.finished_at is None

    @property
    def lasted_seconds(self) -> float:
        """How long it ran; 0 while it runs."""
        return 0.0 if self.finished_at is None else max(0.0, self.finished_at - self.started_at)


@dataclass(frozen=True, slots=True)
class ContainerState:
    """What is known of one container."""

    run: Run | None = None
    """The newest run."""
    previous: Run | None = None
    """The run before."""
    streak: int = 0
    """How many restarts in a row led to the newest run."""
    starting: bool = False
    """A start is on its way."""
    started: bool = False
    """Runs, and its startup probe, if any, has passed."""
    ready: bool = False
    """Runs, has started, and its readiness probe, if any, passes."""
    refusal: Refusal | None = None
    """Why the last start was not tried."""
    retry_at: float = 0.0
    """When a refused start is tried again, in Unix seconds."""

    @property
    def running(self) -> bool:
        """Whether a run goes on."""
        return self.run is not None and self.run.running


def shape_of(pod: Json) -> PodShape:
    """Return the shape of *pod*."""
    spec = pod["spec"]
    return PodShape(
        policy=spec.get("restartPolicy", "Always"),
        containers=tuple(
            ContainerShape(c["name"], "sidecar" if c.get("restartPolicy") == "Always" else "init")
            for c in spec.get("initContainers") or ()
        )
        + tuple(ContainerShape(c["name"], "main") for c in spec["containers"]),
    )


def container_of(pod: Json, name: str) -> Json:
    """Return the specification of the container *name*. Raise KeyError where there is none."""
    for container in (*(pod["spec"].get("initContainers") or ()), *pod["spec"]["containers"]):
        if container["name"] == name:
            found: Json = container
            return found
    raise KeyError(name)


def key_of(obj: Json) -> str:
    """Return ``namespace/name``."""
    return f"{obj['metadata'].get('namespace', '')}/{obj['metadata']['name']}"
