"""Values that tests of scaling are made of: policies, facts of a pool, facts of a load."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from turnout.quantities import fraction
from turnout.scaling.facts import LoadFacts, PoolFacts
from turnout.scaling.policy import PoolPolicy, ScalingPolicy

if TYPE_CHECKING:
    from turnout.terms import Role, ScalingMode


def policy_of(
    *,
    prefill: tuple[int, int] | None = (1, 10),
    decode: tuple[int, int] = (1, 10),
    ratio: tuple[str, str] = ("1:100", "100:1"),
    budget: int | None = None,
    prefill_accelerators: int = 1,
    decode_accelerators: int = 1,
    prefill_type: str = "H100-SXM",
    kv_target: float = 0.8,
    stabilization_seconds: float = 300.0,
    mode: ScalingMode = "Automatic",
    interval_seconds: float = 5.0,
) -> ScalingPolicy:
    """Return a policy; *prefill* None makes one aggregated pool with *decode*'s bounds."""
    decode_role: Role = "decode" if prefill else "aggregated"
    pools = [PoolPolicy(decode_role, *decode, decode_accelerators, "H100-SXM")]
    if prefill:
        pools.insert(0, PoolPolicy("prefill", *prefill, prefill_accelerators, prefill_type))
    low, high = (fraction(bound) for bound in ratio)
    return ScalingPolicy(
        pools=tuple(pools),
        max_accelerators=budget,
        kv_target=kv_target,
        ratio_min=low,
        ratio_max=high,
        stabilization_seconds=stabilization_seconds,
        mode=mode,
        goodput_target_percent=99.0,
        ttft_seconds=0.5,
        itl_seconds=0.04,
        interval_seconds=interval_seconds,
    )


def pool(role: Role, replicas: int, kv: float | None = 0.3, **more: Any) -> PoolFacts:
    """Return the facts of a pool whose replicas are all ready and answer, unless *more* says otherwise."""
    ready = more.pop("ready", replicas)
    scraped = more.pop("scraped", ready)
    return PoolFacts(
        role,
        replicas,
        ready,
        scraped=scraped,
        kv_utilization_mean=kv if scraped else None,
        kv_utilization_max=kv if scraped else None,
        **more,
    )


def load(*pools: PoolFacts, goodput: float | None = 100.0, finished: int = 100, **more: Any) -> LoadFacts:
    """Return the facts of a load on *pools* of which clients get *goodput* percent."""
    return LoadFacts(pools, goodput_percent=goodput, finished=finished, **more)
