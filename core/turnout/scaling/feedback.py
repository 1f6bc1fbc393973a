"""Which pool is to blame when clients get less goodput than promised.

Capacity that looks sufficient may still miss the objectives: batches too large for the inter-token latency, bursts
between two scrapes. Then the pool that can be the cause grows by one. A pool whose replicas are nearly idle cannot be:
spreading its load further would change nothing (a prompt so long that its own computation takes longer than the
objective), so growth through feedback ends by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from turnout.scaling.demand import busy_share, waiting

if TYPE_CHECKING:
    from collections.abc import Mapping

    from turnout.scaling.facts import LoadFacts, PoolFacts
    from turnout.scaling.policy import ScalingPolicy
    from turnout.terms import Role

MIN_FINISHED: Final = 10
"""With fewer finished requests in the window a goodput says nothing."""
LOADED_BUSY: Final = 0.5
"""A prefill replica that is busy for less of its time makes few requests wait."""
LOADED_REQUESTS: Final = 8
"""A decode replica with fewer requests answers each about as fast as if it were alone: on an H100 with an 8B model
(fits in turnout.sizing.latency) 8 requests of 2,000 tokens cost 8 % of the iteration."""
LOADED_KV: Final = 0.2
"""The same for few requests with long contexts: reading a fifth of an H100's cache costs a third of the iteration."""


@dataclass(frozen=True, slots=True)
class Feedback:
    """What the goodput says."""

    below: bool
    """Whether the goodput is known and below its target."""
    bottlenecks: Mapping[Role, str]
    """Pools that may be the cause, each with the figures that make it one."""
    message: str
    """One clause on the goodput; empty where there is nothing to say."""


def feedback(load: LoadFacts, policy: ScalingPolicy, smoothed_occupancy: Mapping[Role, float]) -> Feedback:
    """Return which pools keep the goodput below its target; none where no pool can be the cause."""
    target = policy.goodput_target_percent
    goodput = load.goodput_percent
    if goodput is None or load.finished < MIN_FINISHED or goodput >= target:
        return Feedback(below=False, bottlenecks={}, message="")
    allowed = 1 - target / 100
    slow_start = load.ttft_missed_share is None or load.ttft_missed_share > allowed or load.refused > 0
    slow_stream = load.itl_missed_share is None or load.itl_missed_share > allowed or load.refused > 0
    message = f"goodput {goodput:.0f} % is below its target {target:.0f} %"
    if not slow_start and not slow_stream:
        return Feedback(
            True, {}, f"{message}, but latencies are within the objectives: requests fail otherwise"
        )
    bottlenecks: dict[Role, str] = {}
    for pool in load.pools:
        figures = _loaded(pool, smoothed_occupancy.get(pool.role, 0.0))
        asked = {"prefill": slow_start, "decode": slow_stream, "aggregated": True}[pool.role]
        if figures and asked:
            bottlenecks[pool.role] = f"{message}, {figures}"
    if bottlenecks:
        return Feedback(True, bottlenecks, message)
    late = " and ".join(
        name
        for name, slow in (("the time to first token", slow_start), ("the inter-token latency", slow_stream))
        if slow
    )
    return Feedback(
        True,
        {},
        f"{message}, but replicas are nearly idle: more of them would not shorten {late} of such requests",
    )


def _loaded(pool: PoolFacts, requests: float) -> str:
    """Return the figures that show that *pool* has enough to do to be slow; empty where it has not."""
    if not pool.ready or not pool.scraped:
        return ""
    per_replica = requests / pool.ready
    if pool.role == "prefill":
        busy = busy_share(per_replica)
        return f"prefill is busy {busy:.0%} of the time" if busy >= LOADED_BUSY else ""
    kv = pool.kv_utilization_mean or 0.0
    if per_replica >= LOADED_REQUESTS:
        return f"{per_replica:.0f} requests share one {pool.role} replica"
    queued = waiting(pool)
    if kv >= LOADED_KV or queued:
        return f"the KV cache of {pool.role} is {kv:.0%} in use with {queued:.0f} requests waiting"
    return ""
