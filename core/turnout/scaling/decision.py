"""What scaling decides: replicas of each pool, with one sentence of reason, and what it remembers.

``turnout.scaling.decide.decide(facts, policy, memory, now) -> Decision`` makes them; it is pure. The caller keeps
``decision.memory`` and hands it to the next call; after a restart it hands in ``Memory()``, which is safe.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from turnout.reasons import ScalingReason
    from turnout.terms import Role

MAX_BUCKETS: Final = 32
"""The stabilization window is remembered in at most so many buckets, whatever its length."""


@dataclass(frozen=True, slots=True)
class ScalingLimit:
    """Why a pool is not at the size that its load asks for."""

    reason: ScalingReason
    message: str
    """One sentence that says what to do about it."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """The highest need of each pool within one slice of time."""

    start_seconds: float
    needed: tuple[int, ...]
    """In the order of the policy's pools; held with the margin of a scale-in."""


@dataclass(frozen=True, slots=True)
class Strain:
    """The load of one replica at which the goodput fell below its target."""

    load_per_replica: float
    """In the unit of ``need.Need.load``."""
    at_seconds: float


@dataclass(frozen=True, slots=True)
class PoolMemory:
    """What is remembered about one pool."""

    role: Role
    occupancy: float | None = None
    """Smoothed mean number of requests in the pool (running or waiting)."""
    changed_seconds: float | None = None
    """When its replicas were last changed by a decision."""
    unsettled_seconds: float | None = None
    """When replicas were last changed, or seen on their way in or out: what clients experienced before that says
    nothing about the replicas of now."""
    strain: Strain | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    """What one decision leaves to the next. Bounded; empty after a restart."""

    since_seconds: float | None = None
    """Start of the time that has been seen without a gap."""
    last_seconds: float | None = None
    """When facts were last usable."""
    buckets: tuple[Bucket, ...] = ()
    """Needs within the stabilization window, oldest first."""
    pools: tuple[PoolMemory, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """Replicas of each pool, and why."""

    desired: Mapping[Role, int]
    """Replicas of each pool. In mode Advisory what they should be; see *apply*."""
    current: Mapping[Role, int]
    """Replicas that were asked for when it was decided."""
    apply: bool
    """Whether to act on it: False in the modes Advisory and Paused."""
    reason: str
    """One sentence for people, such as ``decode 2 -> 3: KV cache 91 % in use, target 80 %``."""
    limit: ScalingLimit | None = None
    """Set where the load asks for other replicas than *desired*: the condition ScalingLimited."""
    memory: Memory = field(default_factory=Memory)

    @property
    def changed(self) -> bool:
        """Whether *desired* differs from *current*."""
        return dict(self.desired) != dict(self.current)


def frozen(replicas: Mapping[Role, int]) -> Mapping[Role, int]:
    """Return a read-only copy of *replicas*."""
    return MappingProxyType(dict(replicas))
