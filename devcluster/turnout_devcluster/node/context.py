"""What a container is run with: its view of its pod, and the node's runtime."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio
    from pathlib import Path

    from turnout_devcluster.node.attempts import PodDisk, PodRecord
    from turnout_devcluster.node.backoff import BackOff
    from turnout_devcluster.node.events import EventRecorder
    from turnout_devcluster.node.model import Json, Refusal
    from turnout_devcluster.node.plan import ContainerPlan
    from turnout_runtime.supervision import Supervisor


class PodView(Protocol):
    """What a container needs of its pod."""

    @property
    def pod(self) -> Json:
        """The newest known version of the pod."""

    @property
    def record(self) -> PodRecord:
        """What is stored of it."""

    @property
    def disk(self) -> PodDisk:
        """Where that is stored."""

    @property
    def deleting(self) -> bool:
        """Whether nothing may be started any more."""

    async def plan(self, name: str) -> ContainerPlan | Refusal:
        """How to run a container. Raise NodeError where the API server cannot be asked."""

    def wake(self) -> None:
        """Notify the pod that a container's state has changed."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """What all containers of the node share."""

    events: EventRecorder
    starts: asyncio.Semaphore
    """Bounds how many containers start at once."""
    back_off: BackOff
    supervisor_file: Path
    supervisor: Supervisor
    """Runs everything that lasts."""
