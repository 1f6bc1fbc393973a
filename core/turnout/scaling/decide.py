"""The scaling decision: load facts, policy and memory in, replicas of every pool with one sentence of reason out.

1. Demand: what the load of each pool asks for (``demand``), and whether clients' goodput blames a pool (``feedback``).
2. Recommendation: grow at once, at most to twice what is ready, credit given for replicas on their way, and not at
   all while some find no node with the same accelerators; shrink by one, when nothing within the stabilization window
   needed the last one, with a margin (``recommend``).
3. Allocation: bounds, ratio, accelerator budget (``allocate``). Growth of one pool takes no replica from the other.

Without figures, or with stale ones, only the bounds move a pool.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from turnout.scaling.allocate import allocate
from turnout.scaling.decision import ScalingDecision, frozen
from turnout.scaling.demand import demand_of
from turnout.scaling.feedback import feedback
from turnout.scaling.history import changed, observe, record
from turnout.scaling.recommend import PoolView, Recommendation, recommend

if TYPE_CHECKING:
    from collections.abc import Mapping

    from turnout.scaling.allocate import Allocation
    from turnout.scaling.decision import Memory, PoolMemory
    from turnout.scaling.demand import Demand
    from turnout.scaling.facts import LoadFacts
    from turnout.scaling.policy import ScalingPolicy
    from turnout.terms import Role

OVERLOAD_MARGIN: Final = 0.8
"""A pool shrinks only where the others stay below this share of the load at which the goodput fell."""


def decide(facts: LoadFacts, policy: ScalingPolicy, memory: Memory, now: float) -> ScalingDecision:
    """Return the replicas that each pool should have at *now* (the deployment's seconds, never going back).

    *facts* must hold every pool of *policy* (KeyError otherwise). The decision's memory goes into the next call; with
    an empty one nothing shrinks until a whole stabilization window has been seen.
    """
    current = {role: facts.pool(role).replicas for role in policy.roles}
    if policy.mode == "Paused":
        reason = f"kept at {_listed(current)}: scaling is paused"
        return ScalingDecision(frozen(current), frozen(current), apply=False, reason=reason, memory=memory)
    unknown = _unknown(facts, policy)
    if unknown:
        return _decided(
            {role: Recommendation(n, unknown) for role, n in current.items()}, facts, policy, memory, now
        )

    memory = observe(memory, facts, policy, now)
    occupancies = {pool.role: pool.occupancy or 0.0 for pool in memory.pools}
    demands = {role: demand_of(facts.pool(role), occupancies[role], policy) for role in policy.roles}
    said = feedback(facts, policy, occupancies)
    memory, window = record(
        memory, tuple(_with_margin(demands[pool.role], pool) for pool in memory.pools), policy, now
    )
    recommendations = {
        pool.role: recommend(
            PoolView(
                facts=facts.pool(pool.role),
                demand=demands[pool.role],
                memory=pool,
                minimum=policy.pool(pool.role).minimum,
                window_demand=window_demand,
                window_missing_seconds=window.missing_seconds,
                window_seconds=policy.stabilization_seconds,
                observation_seconds=facts.window_seconds,
                bottleneck=said.bottlenecks.get(pool.role, ""),
                no_room=_no_room(pool.role, facts, policy),
                incomplete=_incomplete(facts),
            ),
            now,
        )
        for pool, window_demand in zip(memory.pools, window.demands, strict=True)
    }
    return _decided(
        recommendations, facts, policy, memory, now, remark="" if said.bottlenecks else said.message
    )


def _decided(
    recommendations: Mapping[Role, Recommendation],
    facts: LoadFacts,
    policy: ScalingPolicy,
    memory: Memory,
    now: float,
    *,
    remark: str = "",
) -> ScalingDecision:
    """Allocate the *recommendations* together and give the reason."""
    current = {role: facts.pool(role).replicas for role in policy.roles}
    allocated = allocate(
        {role: one.replicas for role, one in recommendations.items()},
        policy,
        floor=current,
        held_accelerators=sum(facts.pool(one.role).draining * one.accelerators for one in policy.pools),
    )
    moved = frozenset(role for role, n in allocated.replicas.items() if n != current[role])
    act = policy.mode == "Automatic"
    if moved and act:
        overloads = {
            role: one.overload
            for role, one in recommendations.items()
            if one.overload is not None and allocated.replicas[role] > current[role]
        }
        memory = changed(memory, moved, overloads, now)
    return ScalingDecision(
        desired=allocated.replicas,
        current=frozen(current),
        apply=act,
        reason=_sentence(recommendations, allocated, current, remark),
        limit=next((one.limit for one in recommendations.values() if one.limit), allocated.limit),
        memory=memory,
    )


def _unknown(facts: LoadFacts, policy: ScalingPolicy) -> str:
    """Return why the load of some pool is not known; empty where all are."""
    for role in policy.roles:
        pool = facts.pool(role)
        if not pool.ready:
            return f"no {role} replica is ready"
        if not pool.scraped:
            return f"none of {pool.ready} {role} pods answers the scrape"
        if pool.age_seconds > policy.stale_after_seconds:
            return f"the figures of {role} are {pool.age_seconds:.0f} s old"
    return ""


def _incomplete(facts: LoadFacts) -> str:
    """Return what is missing to judge a scale-in; empty where nothing is."""
    for pool in facts.pools:
        if pool.scraped < pool.ready:
            return f"{pool.ready - pool.scraped} of {pool.ready} {pool.role} pods did not answer the scrape"
    if not facts.routers_answered:
        return "no router answers the scrape"
    return ""


def _no_room(role: Role, facts: LoadFacts, policy: ScalingPolicy) -> str:
    """Return why further replicas of *role* would find no node; empty where nothing says so."""
    kind = policy.pool(role).accelerator_type
    for other in policy.pools:
        missing = facts.pool(other.role).unschedulable
        if missing and other.accelerator_type == kind:
            return f"{missing} {other.role} {_plural(missing, 'finds', 'find')} no node with free {kind}: add nodes"
    return ""


def _with_margin(demand: Demand, pool: PoolMemory) -> int:
    """Return the replicas that keep the margins of a scale-in, the load that proved too much included."""
    if pool.overload is None or pool.overload.load_per_replica <= 0:
        return demand.with_margin
    return max(
        demand.with_margin, math.ceil(demand.load / (OVERLOAD_MARGIN * pool.overload.load_per_replica))
    )


def _sentence(
    recommendations: Mapping[Role, Recommendation],
    allocated: Allocation,
    current: Mapping[Role, int],
    remark: str,
) -> str:
    moves, stays = [], []
    for role, one in recommendations.items():
        before, after = current[role], allocated.replicas[role]
        why = one.why if after == one.replicas else _overruled(role, one, allocated)
        if after != before:
            moves.append(f"{role} {before} -> {after}: {why}")
        else:
            stays.append(f"{role} {why}")
    if moves:
        return "; ".join(moves)
    # Where one cause holds all pools, it is said once.
    causes = list(dict.fromkeys(one.why for one in recommendations.values()))
    said = causes if len(causes) == 1 and len(recommendations) > 1 else stays
    return f"kept at {_listed(current)}: " + "; ".join([*said, *([remark] if remark else [])])


def _overruled(role: Role, one: Recommendation, allocated: Allocation) -> str:
    """Return why *role* got another number than was recommended."""
    if role in allocated.raised:
        return allocated.raised[role]
    return f"{one.why}; {allocated.limit.message}" if allocated.limit else one.why


def _listed(replicas: Mapping[Role, int]) -> str:
    return ", ".join(f"{role} {n}" for role, n in replicas.items())


def _plural(n: int, one: str, many: str) -> str:
    return one if n == 1 else many
