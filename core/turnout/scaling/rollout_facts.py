"""What moving a deployment from revision to revision knows and returns.

``turnout.scaling.rollout.rollout(desired, revisions, target, policy, surge) -> RolloutPlan`` plans; it is pure and stateless.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from turnout.terms import Role


@dataclass(frozen=True, slots=True)
class RevisionPool:
    """One pool of one revision."""

    role: Role
    replicas: int
    """Replicas asked for and meant to stay: those of its Deployment less the pods that are draining."""
    ready: int = 0
    """Pods that serve: Ready and not draining."""
    unschedulable: int = 0
    """Pods for which the scheduler finds no node."""
    unschedulable_seconds: float = 0.0
    """How long the one that waits longest has waited for a node, in real seconds."""
    draining: int = 0
    """Pods on their way out. They still hold their accelerators."""


@dataclass(frozen=True, slots=True)
class RevisionFacts:
    """All pools of one revision."""

    revision: str
    created_seconds: float
    """When its first pool was created. It orders revisions by age."""
    pools: tuple[RevisionPool, ...]

    def pool(self, role: Role) -> RevisionPool:
        """Return the pool that plays *role*; an empty one where it does not exist."""
        for pool in self.pools:
            if pool.role == role:
                return pool
        return RevisionPool(role, 0)


@dataclass(frozen=True, slots=True)
class Surge:
    """How boldly a rollout goes."""

    percent: int = 25
    """Replicas above the desired number, in percent of it, rounded up: at least one."""
    stuck_seconds: float = 30.0
    """When new pods find no node for so long (real seconds), old ones make room: one of a role at a time."""

    def replicas(self, desired: int) -> int:
        """Return how many replicas above *desired* there may be."""
        return max(1, -(-desired * self.percent // 100))


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """Replicas of every revision, and why."""

    replicas: Mapping[str, Mapping[Role, int]]
    """Replicas to keep by revision and role. A lower number than now means: drain the difference."""
    serving: str | None
    """The newest revision whose pools are all ready with at least one pod. None: nothing serves."""
    done: bool
    """Whether the target revision alone is left, with all its replicas ready."""
    reason: str
    """One sentence for people."""
