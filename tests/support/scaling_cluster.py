"""A cluster small enough to think about: pods of several revisions that start, find nodes or not, and drain."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from turnout.scaling.rollout_facts import RevisionFacts, RevisionPool

if TYPE_CHECKING:
    from collections.abc import Mapping
    from random import Random

    from turnout.scaling.rollout_facts import RolloutPlan
    from turnout.terms import Role

TICK_SECONDS = 10.0


@dataclass
class Pod:
    """One pod that holds one accelerator once it has a node."""

    revision: str
    role: Role
    scheduled: bool = False
    ready_in: int = 0
    """Ticks until it is ready, counted from when it has a node."""
    leaves_in: int | None = None
    """Ticks until it has drained; None: it is not draining."""
    pending: int = 0
    """Ticks without a node."""

    @property
    def ready(self) -> bool:
        """Whether it serves."""
        return self.scheduled and self.ready_in <= 0 and self.leaves_in is None


@dataclass
class Cluster:
    """Pods on *nodes* accelerators; what takes time takes a random number of ticks."""

    nodes: int
    random: Random
    pods: list[Pod] = field(default_factory=list)
    revisions: list[str] = field(default_factory=list)
    """In the order of their creation."""

    def add(self, revision: str, role: Role, *, ready: bool = False) -> None:
        """Create a pod; a *ready* one has its node already."""
        if revision not in self.revisions:
            self.revisions.append(revision)
        self.pods.append(Pod(revision, role, ready, 0 if ready else self.random.randint(1, 4)))

    def asked(self, revision: str, role: Role) -> list[Pod]:
        """Pods of a pool that are meant to stay."""
        return [
            pod for pod in self.pods if (pod.revision, pod.role) == (revision, role) and pod.leaves_in is None
        ]

    def ready(self, role: Role) -> int:
        """Pods of *role* that serve, whatever their revision."""
        return sum(pod.ready for pod in self.pods if pod.role == role)

    def held(self) -> int:
        """Accelerators that are held or asked for."""
        return len(self.pods)

    def observe(self) -> list[RevisionFacts]:
        """Return what an operator sees."""
        facts = []
        for index, revision in enumerate(self.revisions):
            pools = []
            for role in sorted({pod.role for pod in self.pods if pod.revision == revision}):
                asked = self.asked(revision, role)
                waiting = [pod.pending for pod in asked if not pod.scheduled]
                pools.append(
                    RevisionPool(
                        role,
                        len(asked),
                        ready=sum(pod.ready for pod in asked),
                        unschedulable=len(waiting),
                        unschedulable_seconds=max(waiting, default=0) * TICK_SECONDS,
                        draining=sum(
                            1
                            for pod in self.pods
                            if (pod.revision, pod.role) == (revision, role) and pod.leaves_in is not None
                        ),
                    )
                )
            if pools:
                facts.append(RevisionFacts(revision, float(index), tuple(pools)))
        return facts

    def changes(self, plan: RolloutPlan) -> list[tuple[str, Role, int]]:
        """Return the pools whose replicas *plan* changes, in an order of chance."""
        changes = [
            (revision, role, n)
            for revision, pools in plan.replicas.items()
            for role, n in pools.items()
            if n != len(self.asked(revision, role))
        ]
        self.random.shuffle(changes)
        return changes

    def scale(self, revision: str, role: Role, replicas: int) -> None:
        """Bring one pool to *replicas*: create pods, or drain those that serve least."""
        asked = sorted(self.asked(revision, role), key=lambda pod: (pod.ready, pod.scheduled))
        for pod in asked[: max(0, len(asked) - replicas)]:
            if pod.ready:
                pod.leaves_in = self.random.randint(1, 3)
            else:
                self.pods.remove(pod)
        for _ in range(replicas - len(asked)):
            self.add(revision, role)

    def tick(self) -> None:
        """Let time pass: pods drain, find nodes, become ready."""
        for pod in self.pods:
            if pod.leaves_in is not None:
                pod.leaves_in -= 1
            elif pod.scheduled:
                pod.ready_in -= 1
        self.pods = [pod for pod in self.pods if pod.leaves_in is None or pod.leaves_in > 0]
        waiting = [pod for pod in self.pods if not pod.scheduled]
        self.random.shuffle(waiting)
        for pod in waiting:
            if sum(other.scheduled for other in self.pods) < self.nodes:
                pod.scheduled = True
            else:
                pod.pending += 1

    def alone(self, revision: str, desired: Mapping[Role, int]) -> bool:
        """Return whether *revision* serves *desired* and nothing else is left."""
        return self.held() == sum(desired.values()) and all(
            len(self.asked(revision, role)) == n == self.ready(role) for role, n in desired.items()
        )
