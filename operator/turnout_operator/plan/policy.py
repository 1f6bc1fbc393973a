"""What an LLMDeployment says of scaling, as the policy that decisions take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnout.quantities import fraction, seconds
from turnout.scaling.policy import PoolPolicy, ScalingPolicy

if TYPE_CHECKING:
    from turnout.api.deployment import LLMDeploymentSpec


def policy_of(spec: LLMDeploymentSpec, interval_seconds: float = 5.0) -> ScalingPolicy:
    """Return what *spec* says, for decisions that are made every *interval_seconds* of the deployment's.

    Raise ValueError for a duration or a ratio of no known form (a stored object of an older schema).
    """
    scaling = spec.scaling
    return ScalingPolicy(
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
