"""What the user wants of scaling: an LLMDeployment's bounds and targets as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from turnout.api.quantities import fraction, seconds

if TYPE_CHECKING:
    from fractions import Fraction

    from turnout.api.deployment import LLMDeploymentSpec, Role

Mode = Literal["Automatic", "Advisory", "Paused"]

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
class Policy:
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
    mode: Mode
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

    @classmethod
    def of(cls, spec: LLMDeploymentSpec, interval_seconds: float = 5.0) -> Policy:
        """Return what *spec* says, for decisions that are made every *interval_seconds* of the deployment's.

        Raise ValueError for a duration or a ratio of no known form (a stored object of an older schema).
        """
        scaling = spec.scaling
        return cls(
            pools=tuple(
                PoolPolicy(
                    role,
                    max(1, spec.pool(role).replicas.min),
                    max(1, spec.pool(role).replicas.min, spec.pool(role).replicas.max),
                    spec.pool(role).accelerator.count,
                    spec.pool(role).accelerator.type,
                )
                for role in spec.roles
            ),
            max_accelerators=scaling.max_accelerators,
            kv_target=scaling.kv_cache_utilization_percent / 100,
            ratio_min=fraction(scaling.prefill_to_decode.min),
            ratio_max=fraction(scaling.prefill_to_decode.max),
            stabilization_seconds=seconds(scaling.scale_down.stabilization),
            mode=scaling.mode,
            goodput_target_percent=float(spec.slo.goodput_percent),
            ttft_seconds=seconds(spec.slo.time_to_first_token),
            itl_seconds=seconds(spec.slo.inter_token_latency),
            interval_seconds=interval_seconds,
        )
