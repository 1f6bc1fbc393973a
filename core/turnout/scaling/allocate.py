"""Allocating the recommended replicas within what is allowed: bounds of each pool, prefill to decode ratio, budget."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from turnout.scaling.decision import ScalingLimit, frozen

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from turnout.scaling.policy import PoolPolicy, ScalingPolicy
    from turnout.terms import Role


@dataclass(frozen=True, slots=True)
class Allocation:
    """Replicas that are allowed, and what kept them from being the recommended ones."""

    replicas: Mapping[Role, int]
    limit: ScalingLimit | None
    """Set where a pool got fewer than recommended, or where nothing meets all rules."""
    raised: Mapping[Role, str]
    """Pools that got more than recommended, each with the rule that asks for it."""


@dataclass(frozen=True, slots=True)
class _Rules:
    """Which rules a search obeys; the bounds of the pools always hold."""

    ratio: bool = True
    budget: int | None = None


def accelerators(replicas: Mapping[Role, int], policy: ScalingPolicy) -> int:
    """Return how many accelerators *replicas* hold together."""
    return sum(replicas[pool.role] * pool.accelerators for pool in policy.pools)


def allocate(
    desired: Mapping[Role, int],
    policy: ScalingPolicy,
    *,
    floor: Mapping[Role, int] | None = None,
    held_accelerators: int = 0,
) -> Allocation:
    """Return the allowed replicas closest to *desired*.

    Of all pairs within the bounds, the ratio and the budget (less *held_accelerators*, which pods on their way out
    still hold) it takes the one with, in this order, the least relative shortfall of the worse-off pool, the least
    shortfall in all, and the fewest accelerators. So the pool that is too small for the ratio is raised where the
    budget allows it, and otherwise the other one is lowered. No pool goes below its *floor* (replicas that must not be
    taken away to make room for the other pool) as long as some pair leaves it there.

    What cannot all be met is resolved in a fixed order: first the floor gives way, then the ratio is left unmet; where
    even the minimum replicas are above the budget, the answer is the minimum. The limit then says what to change.
    """
    budget = policy.max_accelerators
    least = {pool.role: pool.minimum for pool in policy.pools}
    if budget is not None and accelerators(least, policy) > budget:
        return Allocation(
            frozen(least),
            _budget_below_minimum(accelerators(least, policy), budget),
            _raised(desired, least, policy),
        )
    wanted = {pool.role: min(max(desired[pool.role], pool.minimum), pool.maximum) for pool in policy.pools}
    floors = {pool.role: min((floor or {}).get(pool.role, 0), wanted[pool.role]) for pool in policy.pools}
    # What is on its way out may delay growth, but never makes others leave.
    left = (
        None if budget is None else min(budget, max(budget - held_accelerators, accelerators(floors, policy)))
    )
    nothing: dict[Role, int] = {}
    attempts: tuple[tuple[dict[Role, int], _Rules], ...] = (
        (floors, _Rules(budget=left)),
        (nothing, _Rules(budget=budget)),
        (nothing, _Rules(ratio=False, budget=budget)),
    )
    for floors_tried, rules in attempts:
        found = _closest(wanted, policy, rules, floors_tried)
        if found is not None:
            return Allocation(
                frozen(found), _limit(desired, found, policy, rules), _raised(desired, found, policy)
            )
    raise AssertionError("the minimum replicas are within the budget")


def _closest(
    wanted: Mapping[Role, int], policy: ScalingPolicy, rules: _Rules, floor: Mapping[Role, int]
) -> dict[Role, int] | None:
    best: tuple[tuple[float, int, int], dict[Role, int]] | None = None
    for replicas in _candidates(wanted, policy, rules, floor):
        short = {role: max(0, wanted[role] - n) for role, n in replicas.items()}
        rank = (
            max(short[role] / wanted[role] for role in replicas),
            sum(short.values()),
            accelerators(replicas, policy),
        )
        if best is None or rank < best[0]:
            best = rank, replicas
    return best[1] if best else None


def _candidates(
    wanted: Mapping[Role, int], policy: ScalingPolicy, rules: _Rules, floor: Mapping[Role, int]
) -> Iterator[dict[Role, int]]:
    """Yield for every count of the first pool the best count of the second: the one nearest to what is wanted."""
    first, *rest = policy.pools
    for n in range(max(first.minimum, floor.get(first.role, 0)), first.maximum + 1):
        left = None if rules.budget is None else rules.budget - n * first.accelerators
        if not rest:
            if left is None or left >= 0:
                yield {first.role: n}
            continue
        second = rest[0]
        low, high = _range(n, second, policy, rules, left)
        low = max(low, floor.get(second.role, 0))
        if low <= high:
            yield {first.role: n, second.role: min(max(wanted[second.role], low), high)}


def _range(
    prefill: int, decode: PoolPolicy, policy: ScalingPolicy, rules: _Rules, left: int | None
) -> tuple[int, int]:
    """Return fewest and most decode replicas beside *prefill*, with *left* accelerators to give."""
    low, high = decode.minimum, decode.maximum
    if rules.ratio:
        low = max(low, -(-prefill * policy.ratio_max.denominator // policy.ratio_max.numerator))
        high = min(high, prefill * policy.ratio_min.denominator // policy.ratio_min.numerator)
    if left is not None:
        high = min(high, left // decode.accelerators)
    return low, high


def _limit(
    desired: Mapping[Role, int], found: Mapping[Role, int], policy: ScalingPolicy, rules: _Rules
) -> ScalingLimit | None:
    budget = policy.max_accelerators
    if not rules.ratio:
        return ScalingLimit(
            "Infeasible",
            f"no prefill and decode replicas within their bounds{_within(budget)} meet prefillToDecode "
            f"{_ratio(policy)}: widen one of them",
        )
    short = [pool for pool in policy.pools if found[pool.role] < desired[pool.role]]
    if not short:
        return None
    capped = [
        pool for pool in short if desired[pool.role] > pool.maximum and found[pool.role] == pool.maximum
    ]
    if len(capped) == len(short):
        pool = capped[0]
        return ScalingLimit(
            "MaxReplicas",
            f"the load asks for {desired[pool.role]} {pool.role} replicas, replicas.max is {pool.maximum}",
        )
    pool = next(pool for pool in short if pool not in capped)
    asked = f"the load asks for {desired[pool.role]} {pool.role} replicas"
    without_budget = _closest(
        {one.role: min(max(desired[one.role], one.minimum), one.maximum) for one in policy.pools},
        policy,
        _Rules(),
        {},
    )
    if budget is not None and (without_budget is None or without_budget[pool.role] > found[pool.role]):
        return ScalingLimit(
            "MaxAccelerators", f"{asked}, maxAccelerators {budget} leaves room for {found[pool.role]}"
        )
    return ScalingLimit(
        "PrefillToDecode",
        f"{asked}, prefillToDecode {_ratio(policy)} with the other pool's bounds allows {found[pool.role]}",
    )


def _budget_below_minimum(least_accelerators: int, budget: int) -> ScalingLimit:
    return ScalingLimit(
        "Infeasible",
        f"the minimum replicas need {least_accelerators} accelerators, maxAccelerators is {budget}: "
        "raise it or lower replicas.min",
    )


def _raised(
    desired: Mapping[Role, int], found: Mapping[Role, int], policy: ScalingPolicy
) -> Mapping[Role, str]:
    return MappingProxyType(
        {
            pool.role: f"replicas.min is {pool.minimum}"
            if found[pool.role] == pool.minimum
            else f"prefillToDecode {_ratio(policy)} asks for {found[pool.role]}"
            for pool in policy.pools
            if found[pool.role] > desired[pool.role]
        }
    )


def _within(budget: int | None) -> str:
    return "" if budget is None else f" and maxAccelerators {budget}"


def _ratio(policy: ScalingPolicy) -> str:
    low, high = policy.ratio_min, policy.ratio_max
    return f"{low.numerator}:{low.denominator} to {high.numerator}:{high.denominator}"
