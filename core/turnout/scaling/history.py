"""What decisions remember: smoothed load, needs within the stabilization window, and which load was too much."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from turnout.scaling.decision import MAX_BUCKETS, Bucket, Memory, PoolMemory, Strain
from turnout.scaling.need import occupancy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from turnout.scaling.facts import LoadFacts, PoolFacts
    from turnout.scaling.policy import Policy
    from turnout.terms import Role

SMOOTHING_SECONDS: Final = 15.0
"""Time constant of the occupancy's moving average: several samples of a queue that comes and goes within a second,
and still half of a step after two decisions."""
STRAIN_SECONDS: Final = 3600.0
"""So long a load at which the goodput fell counts as too much; by then other requests may have come."""


@dataclass(frozen=True, slots=True)
class Window:
    """The stabilization window up to now."""

    needed: tuple[int, ...]
    """Highest need of each pool within it, in the order of the policy's pools."""
    missing_seconds: float
    """How much of it has not been seen yet: 0 when it is whole."""


def observe(memory: Memory, load: LoadFacts, policy: Policy, now: float) -> Memory:
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
    moving = facts.starting > 0 or facts.draining > 0 or pool.unsettled_seconds is None
    return replace(
        pool,
        occupancy=before + weight * (requests - before),
        unsettled_seconds=now if moving else pool.unsettled_seconds,
        strain=pool.strain if pool.strain and now - pool.strain.at_seconds < STRAIN_SECONDS else None,
    )


def record(memory: Memory, needed: tuple[int, ...], policy: Policy, now: float) -> tuple[Memory, Window]:
    """Return *memory* with the needs of *now*, and the window that ends here. Buckets stay bounded."""
    width = max(policy.interval_seconds, policy.stabilization_seconds / (MAX_BUCKETS - 2))
    start = now - policy.stabilization_seconds
    buckets = tuple(bucket for bucket in memory.buckets if bucket.start_seconds + width >= start)
    if buckets and now < buckets[-1].start_seconds + width:
        last = buckets[-1]
        highest = tuple(max(pair) for pair in zip(last.needed, needed, strict=True))
        buckets = (*buckets[:-1], Bucket(last.start_seconds, highest))
    else:
        buckets = (*buckets, Bucket(now, needed))
    since = now if memory.since_seconds is None else memory.since_seconds
    window = Window(
        needed=tuple(max(column) for column in zip(*(bucket.needed for bucket in buckets), strict=True)),
        missing_seconds=max(0.0, policy.stabilization_seconds - (now - since)),
    )
    return replace(memory, buckets=buckets[-MAX_BUCKETS:]), window


def changed(memory: Memory, roles: frozenset[Role], strained: Mapping[Role, float], now: float) -> Memory:
    """Return *memory* after a decision changed *roles*, of which *strained* had too much load per replica."""
    return replace(
        memory,
        pools=tuple(
            replace(
                pool,
                changed_seconds=now if pool.role in roles else pool.changed_seconds,
                unsettled_seconds=now if pool.role in roles else pool.unsettled_seconds,
                strain=Strain(strained[pool.role], now) if pool.role in strained else pool.strain,
            )
            for pool in memory.pools
        ),
    )
