"""What the user wants of scaling: an LLMDeployment's bounds and targets as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from fractions import Fraction

    from turnout.terms import Role, ScalingMode

STALE_INTERVALS: Final = 3.0
"""Figures older than so many intervals between decisions are stale: two scrapes in a row went wrong."""


@dataclass(frozen=True, slots=True)
class PoolPolicy:
    """Bounds and price of one pool."""

    role: Role
    minimum: int
    """Fewest replicas, at least 1."""
    maximum: int
    """Most replicas."""
    accelerators: int
    """Accelerators that one replica holds."""
    accelerator_type: str
    """Which ones: pools of one type compete for the same nodes."""


@dataclass(frozen=True, slots=True)
class ScalingPolicy:
    """Bounds and targets of one deployment. Seconds are the deployment's own."""

    pools: tuple[PoolPolicy, ...]
    """Prefill first; a single aggregated one where the deployment is not split."""
    max_accelerators: int | None
    """Most accelerators that all pools may hold together. None: no such bound."""
    kv_target: float
    """Share of KV cache in use (0 to 1) above which a pool grows."""
    ratio_min: Fraction
    """Least prefill replicas per decode replica."""
    ratio_max: Fraction
    """Most prefill replicas per decode replica."""
    stabilization_seconds: float
    """Replicas leave only after so long without a need for them."""
    mode: ScalingMode
    goodput_target_percent: float
    ttft_seconds: float
    """Objective of the time to first token."""
    itl_seconds: float
    """Objective of the mean inter-token latency."""
    interval_seconds: float
    """Time between two decisions."""

    @property
    def roles(self) -> tuple[Role, ...]:
        """Roles of the pools, prefill first."""
        return tuple(pool.role for pool in self.pools)

    @property
    def stale_after_seconds(self) -> float:
        """Age from which figures say nothing any more."""
        return STALE_INTERVALS * self.interval_seconds

    def pool(self, role: Role) -> PoolPolicy:
        """Return the bounds of the pool that plays *role*. Raise KeyError where there is none."""
        for pool in self.pools:
            if pool.role == role:
                return pool
        raise KeyError(role)

    def accelerators_of(self, role: Role) -> int:
        """Return the accelerators of one replica of *role*; a role that the deployment has no more counts one."""
        return next((pool.accelerators for pool in self.pools if pool.role == role), 1)
