"""Allocating recommended replicas within bounds, ratio and accelerator budget."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.scaling_values import policy_of
from turnout.scaling.allocate import accelerators, allocate

if TYPE_CHECKING:
    from turnout.scaling.policy import ScalingPolicy


def pair(prefill: int, decode: int) -> dict[str, int]:
    return {"prefill": prefill, "decode": decode}


@pytest.mark.parametrize(
    ("situation", "policy", "desired", "expected", "reason"),
    [
        ("within all rules", policy_of(), (2, 3), (2, 3), None),
        ("above the maximum", policy_of(prefill=(1, 4), decode=(1, 4)), (2, 9), (2, 4), "MaxReplicas"),
        ("below the minimum", policy_of(prefill=(2, 4), decode=(3, 4)), (1, 1), (2, 3), None),
        (
            "too little prefill for the ratio: it is raised",
            policy_of(ratio=("1:2", "2:1")),
            (1, 6),
            (3, 6),
            None,
        ),
        (
            "too little decode for the ratio: it is raised",
            policy_of(ratio=("1:2", "2:1")),
            (6, 1),
            (6, 3),
            None,
        ),
        (
            "the ratio asks for more than the budget: the larger pool is lowered",
            policy_of(ratio=("1:2", "2:1"), budget=6),
            (1, 6),
            (2, 4),
            "MaxAccelerators",
        ),
        ("both want more than the budget: both give", policy_of(budget=6), (4, 8), (2, 4), "MaxAccelerators"),
        (
            "the ratio and the other pool's maximum",
            policy_of(prefill=(1, 2), ratio=("1:2", "2:1")),
            (2, 6),
            (2, 4),
            "PrefillToDecode",
        ),
        (
            "dear prefill replicas",
            policy_of(prefill_accelerators=4, budget=8),
            (2, 3),
            (1, 3),
            "MaxAccelerators",
        ),
        (
            "no pair within the bounds meets the ratio",
            policy_of(prefill=(4, 4), decode=(1, 1), ratio=("1:2", "2:1")),
            (4, 1),
            (4, 1),
            "Infeasible",
        ),
        (
            "a budget below the minimum",
            policy_of(prefill=(2, 4), decode=(2, 4), budget=3),
            (3, 3),
            (2, 2),
            "Infeasible",
        ),
    ],
)
def test_situations(
    situation: str,
    policy: ScalingPolicy,
    desired: tuple[int, int],
    expected: tuple[int, int],
    reason: str | None,
) -> None:
    """Each situation has one answer, and a limit that names its cause."""
    result = allocate(pair(*desired), policy)
    assert result.replicas == pair(*expected), situation
    assert (result.limit.reason if result.limit else None) == reason, result.limit


def test_a_pool_that_wants_more_takes_nothing_from_the_other() -> None:
    """With a floor, a full budget stops the growth instead of taking a replica away from the other pool."""
    policy = policy_of(budget=8)
    assert allocate(pair(4, 6), policy, floor=pair(2, 6)).replicas == pair(2, 6)
    assert allocate(pair(4, 6), policy).replicas == pair(3, 5)


def test_pods_on_their_way_out_delay_growth() -> None:
    """The accelerators of draining pods are not given away twice, but cost no running replica."""
    policy = policy_of(budget=8)
    assert allocate(pair(3, 5), policy, floor=pair(2, 5), held_accelerators=1).replicas == pair(2, 5)
    assert allocate(pair(2, 6), policy, floor=pair(2, 6), held_accelerators=4).replicas == pair(2, 6)


def test_a_raised_pool_says_why() -> None:
    """A pool that is larger than its load asks for carries the rule that made it so."""
    asked = {"prefill": "prefillToDecode 1:2 to 2:1 asks for 3"}
    assert allocate(pair(1, 6), policy_of(ratio=("1:2", "2:1"))).raised == asked
    assert allocate(pair(1, 1), policy_of(decode=(3, 6))).raised == {"decode": "replicas.min is 3"}


def test_an_aggregated_pool_has_bounds_and_budget_only() -> None:
    """A deployment that is not split knows no ratio."""
    policy = policy_of(prefill=None, decode=(1, 10), budget=4, ratio=("1:1", "1:1"))
    assert allocate({"aggregated": 7}, policy).replicas == {"aggregated": 4}
    assert allocate({"aggregated": 2}, policy).replicas == {"aggregated": 2}


bounds = st.tuples(st.integers(1, 6), st.integers(0, 6)).map(lambda b: (b[0], b[0] + b[1]))
ratios = st.tuples(st.integers(1, 4), st.integers(1, 4))


@given(
    prefill=bounds,
    decode=bounds,
    one_ratio=ratios,
    other_ratio=ratios,
    budget=st.none() | st.integers(1, 40),
    price=st.integers(1, 3),
    desired=st.tuples(st.integers(0, 15), st.integers(0, 15)),
)
def test_no_allowed_pair_is_closer(
    *,
    prefill: tuple[int, int],
    decode: tuple[int, int],
    one_ratio: tuple[int, int],
    other_ratio: tuple[int, int],
    budget: int | None,
    price: int,
    desired: tuple[int, int],
) -> None:
    """Against all pairs: bounds always hold, the other rules where any pair meets them, and none falls less short."""
    low, high = sorted((Fraction(*one_ratio), Fraction(*other_ratio)))
    policy = policy_of(
        prefill=prefill,
        decode=decode,
        ratio=(f"{low.numerator}:{low.denominator}", f"{high.numerator}:{high.denominator}"),
        budget=budget,
        prefill_accelerators=price,
    )
    result = allocate(pair(*desired), policy)
    got = (result.replicas["prefill"], result.replicas["decode"])
    everything = [(p, d) for p in range(prefill[0], prefill[1] + 1) for d in range(decode[0], decode[1] + 1)]
    affordable = [(p, d) for p, d in everything if budget is None or p * price + d <= budget]
    allowed = [(p, d) for p, d in affordable if low <= Fraction(p, d) <= high]
    assert got in (allowed or affordable or everything)
    if not allowed:
        assert result.limit is not None
        assert result.limit.reason == "Infeasible"
        return
    wanted = [min(max(desired[0], prefill[0]), prefill[1]), min(max(desired[1], decode[0]), decode[1])]

    def shortfall(candidate: tuple[int, int]) -> float:
        return max(max(0, w - n) / w for w, n in zip(wanted, candidate, strict=True))

    assert shortfall(got) == min(shortfall(candidate) for candidate in allowed)
    assert (result.limit is None) == (got[0] >= desired[0] and got[1] >= desired[1])
    assert accelerators(result.replicas, policy) == got[0] * price + got[1]
    assert allocate(result.replicas, policy).replicas == result.replicas, "allocating twice changes nothing"
