"""What scaling decides: replicas of each pool, with one sentence of reason, and what it remembers.

``turnout.scaling.decide.decide(facts, policy, memory, now) -> ScalingDecision`` makes them; it is pure. The caller keeps
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
    """The highest demand of each pool within one slice of time."""

    start_seconds: float
    demands: tuple[int, ...]
    """In the order of the policy's pools; held with the margin of a scale-in."""


@dataclass(frozen=True, slots=True)
class Overload:
    """The load of one replica at which the goodput fell below its target."""

    load_per_replica: float
    """In the unit of ``demand.Demand.load``."""
    at_seconds: float


@dataclass(frozen=True, slots=True)
class PoolMemory:
    """What is remembered about one pool."""

    role: Role
    occupancy: float | None = None
    """Smoothed mean number of requests in the pool (running or waiting)."""
    scaled_seconds: float | None = None
    """When a decision last changed its replicas."""
    last_change_seconds: float | None = None
    """When replicas were last changed, or seen starting or draining. What clients experienced before that says nothing
    about the present replicas."""
    overload: Overload | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    """What one decision leaves to the next. Bounded; empty after a restart."""

    since_seconds: float | None = None
    """Start of the time that has been seen without a gap."""
    last_seconds: float | None = None
    """When facts were last usable."""
    buckets: tuple[Bucket, ...] = ()
    """Demands within the stabilization window, oldest first."""
    pools: tuple[PoolMemory, ...] = ()


@dataclass(frozen=True, slots=True)
class ScalingDecision:
    """Replicas of each pool, and why."""

    desired: Mapping[Role, int]
    """Replicas of each pool. In mode Advisory what they should be; see *apply*."""
    current: Mapping[Role, int]
    """Replicas that were asked for at the time of the decision."""
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
