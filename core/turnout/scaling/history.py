"""What decisions remember: smoothed load, demands within the stabilization window, and which load was too much."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from turnout.scaling.decision import MAX_BUCKETS, Bucket, Memory, Overload, PoolMemory
from turnout.scaling.demand import occupancy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from turnout.scaling.facts import LoadFacts, PoolFacts
    from turnout.scaling.policy import ScalingPolicy
    from turnout.terms import Role

SMOOTHING_SECONDS: Final = 15.0
"""Time constant of the occupancy's moving average: several samples of a queue that comes and goes within a second,
and still half of a step after two decisions."""
OVERLOAD_SECONDS: Final = 3600.0
"""So long a load at which the goodput fell counts as too much; by then other requests may have come."""


@dataclass(frozen=True, slots=True)
class StabilizationWindow:
    """The stabilization window up to now."""

    demands: tuple[int, ...]
    """Highest demand of each pool within it, in the order of the policy's pools."""
    missing_seconds: float
    """How much of it has not been seen yet: 0 when it is whole."""


def observe(memory: Memory, load: LoadFacts, policy: ScalingPolicy, now: float) -> Memory:
    """Return *memory* with the usable facts of *now*: smoothed occupancies, a window begun afresh after a gap."""
    if tuple(pool.role for pool in memory.pools) != policy.roles:
        memory = Memory(pools=tuple(PoolMemory(role) for role in policy.roles))
    elapsed = now - memory.last_seconds if memory.last_seconds is not None else math.inf
    whole = 0 <= elapsed <= policy.stale_after_seconds
    weight = 1 - math.exp(-elapsed / SMOOTHING_SECONDS) if whole else 1.0
    return Memory(
        since_seconds=memory.since_seconds if whole else now,
        last_seconds=now,
        buckets=memory.buckets if whole else (),
        pools=tuple(_seen(pool, load.pool(pool.role), weight, now) for pool in memory.pools),
    )


def _seen(pool: PoolMemory, facts: PoolFacts, weight: float, now: float) -> PoolMemory:
    requests = occupancy(facts)
    before = requests if pool.occupancy is None else pool.occupancy
    moving = facts.starting > 0 or facts.draining > 0 or pool.last_change_seconds is None
    return replace(
        pool,
        occupancy=before + weight * (requests - before),
        last_change_seconds=now if moving else pool.last_change_seconds,
        overload=pool.overload
        if pool.overload and now - pool.overload.at_seconds < OVERLOAD_SECONDS
        else None,
    )


def record(
    memory: Memory, demands: tuple[int, ...], policy: ScalingPolicy, now: float
) -> tuple[Memory, StabilizationWindow]:
    """Return *memory* with the *demands* at *now*, and the window that ends here. Buckets stay bounded."""
    width = max(policy.interval_seconds, policy.stabilization_seconds / (MAX_BUCKETS - 2))
    start = now - policy.stabilization_seconds
    buckets = tuple(bucket for bucket in memory.buckets if bucket.start_seconds + width >= start)
    if buckets and now < buckets[-1].start_seconds + width:
        last = buckets[-1]
        highest = tuple(max(pair) for pair in zip(last.demands, demands, strict=True))
        buckets = (*buckets[:-1], Bucket(last.start_seconds, highest))
    else:
        buckets = (*buckets, Bucket(now, demands))
    since = now if memory.since_seconds is None else memory.since_seconds
    window = StabilizationWindow(
        demands=tuple(max(column) for column in zip(*(bucket.demands for bucket in buckets), strict=True)),
        missing_seconds=max(0.0, policy.stabilization_seconds - (now - since)),
    )
    return replace(memory, buckets=buckets[-MAX_BUCKETS:]), window


def changed(memory: Memory, roles: frozenset[Role], overloads: Mapping[Role, float], now: float) -> Memory:
    """Return *memory* after a decision changed *roles*; *overloads* has the load per replica that was too much."""
    return replace(
        memory,
        pools=tuple(
            replace(
                pool,
                scaled_seconds=now if pool.role in roles else pool.scaled_seconds,
                last_change_seconds=now if pool.role in roles else pool.last_change_seconds,
                overload=Overload(overloads[pool.role], now) if pool.role in overloads else pool.overload,
            )
            for pool in memory.pools
        ),
    )
