"""Moving replicas from revision to revision, prefill and decode in step."""

from __future__ import annotations

from fractions import Fraction
from math import ceil
from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.scaling_cluster import Cluster
from support.scaling_values import policy_of
from turnout.scaling.rollout import rollout, serving_revision
from turnout.scaling.rollout_facts import RevisionFacts, RevisionPool, Surge

if TYPE_CHECKING:
    from turnout.scaling.policy import ScalingPolicy
    from turnout.scaling.rollout_facts import RolloutPlan
    from turnout.terms import Role

MAX_TICKS = 200
Pair = tuple[int, int]


def pair(prefill: int, decode: int) -> dict[Role, int]:
    return {"prefill": prefill, "decode": decode}


def revision(
    name: str, created: float, replicas: Pair, ready: Pair | None = None, **more: float
) -> RevisionFacts:
    prefill, decode = ready if ready is not None else replicas
    return RevisionFacts(
        name,
        created,
        (
            RevisionPool("prefill", replicas[0], prefill, **more),  # type: ignore[arg-type]
            RevisionPool("decode", replicas[1], decode, **more),  # type: ignore[arg-type]
        ),
    )


@pytest.mark.parametrize(
    ("situation", "desired", "revisions", "policy", "expected"),
    [
        ("first of all: everything at once", (2, 3), [], policy_of(), {"new": (2, 3)}),
        (
            "a first pair beside the old",
            (2, 3),
            [("old", (2, 3), (2, 3))],
            policy_of(),
            {"old": (2, 3), "new": (1, 1)},
        ),
        (
            "a prefill worker alone serves nothing",
            (2, 3),
            [("old", (2, 3), (2, 3)), ("new", (1, 1), (1, 0))],
            policy_of(),
            {"old": (2, 3), "new": (1, 1)},
        ),
        (
            "the first pair serves its share",
            (2, 3),
            [("old", (2, 3), (2, 3)), ("new", (1, 1), (1, 1))],
            policy_of(),
            {"old": (2, 2), "new": (1, 1)},
        ),
        (
            "everything is ready: the old leaves",
            (2, 3),
            [("old", (1, 1), (1, 1)), ("new", (2, 3), (2, 3))],
            policy_of(),
            {"old": (0, 0), "new": (2, 3)},
        ),
        (
            "scaling during a rollout that does not serve yet goes to the old",
            (4, 6),
            [("old", (2, 3), (2, 3)), ("new", (1, 1), (0, 0))],
            policy_of(),
            {"old": (3, 5), "new": (1, 1)},
        ),
        (
            "a third revision: one that never served leaves first",
            (2, 2),
            [("old", (2, 2), (2, 2)), ("broken", (1, 1), (0, 0))],
            policy_of(),
            {"old": (2, 2), "broken": (0, 0), "new": (0, 0)},
        ),
        (
            "the budget leaves no room: one of each gives way",
            (2, 2),
            [("old", (2, 2), (2, 2))],
            policy_of(budget=4),
            {"old": (1, 1), "new": (0, 0)},
        ),
        (
            "the last pair is not given away",
            (1, 1),
            [("old", (1, 1), (1, 1))],
            policy_of(budget=2),
            {"old": (1, 1), "new": (0, 0)},
        ),
    ],
)
def test_situations(
    situation: str,
    desired: Pair,
    revisions: list[tuple[str, Pair, Pair]],
    policy: ScalingPolicy,
    expected: dict[str, Pair],
) -> None:
    """Each situation has one next step."""
    facts = [revision(name, float(n), asked, ready) for n, (name, asked, ready) in enumerate(revisions)]
    plan = rollout(pair(*desired), facts, "new", policy)
    assert {name: (pools["prefill"], pools["decode"]) for name, pools in plan.replicas.items()} == expected, (
        situation
    )


def test_a_rollout_without_room_says_what_to_do() -> None:
    """A deployment of one replica per role with no room waits, and names the budget to raise."""
    plan = rollout(pair(1, 1), [revision("old", 0.0, (1, 1))], "new", policy_of(budget=3))
    assert "raise maxAccelerators by 1" in plan.reason
    stuck = revision("new", 1.0, (1, 1), (0, 0), unschedulable=1, unschedulable_seconds=60.0)
    plan = rollout(pair(1, 1), [revision("old", 0.0, (1, 1)), stuck], "new", policy_of())
    assert "add nodes with 2 free H100-SXM" in plan.reason
    assert plan.replicas["old"] == pair(1, 1)


def test_new_pods_without_a_node_get_room_after_a_while() -> None:
    """Pods that find no node make the old revision give up one replica of each role, but not at once."""
    old = revision("old", 0.0, (2, 3))
    for waited, expected in ((10.0, pair(2, 3)), (31.0, pair(1, 2))):
        new = revision("new", 1.0, (1, 1), (0, 0), unschedulable=1, unschedulable_seconds=waited)
        assert (
            rollout(pair(2, 3), [old, new], "new", policy_of(), Surge(stuck_seconds=30)).replicas["old"]
            == expected
        )


def test_what_was_aggregated_becomes_split() -> None:
    """A pool of another shape stays whole until prefill and decode of the new revision serve everything."""
    old = RevisionFacts("old", 0.0, (RevisionPool("aggregated", 3, 3),))
    plan = rollout(pair(1, 2), [old, revision("new", 1.0, (1, 1))], "new", policy_of())
    assert plan.replicas["old"]["aggregated"] == 3
    assert plan.serving == "new"
    plan = rollout(pair(1, 2), [old, revision("new", 1.0, (1, 2))], "new", policy_of())
    assert plan.replicas["old"]["aggregated"] == 0
    assert not plan.done


def test_the_newest_complete_revision_serves() -> None:
    """A revision serves when each of its roles has a ready pod, and the newest such one is named."""
    assert serving_revision([]) is None
    old, new = revision("old", 0.0, (1, 1)), revision("new", 1.0, (2, 2), (2, 0))
    assert serving_revision([new, old]) == "old"
    assert serving_revision([revision("new", 1.0, (1, 1)), old]) == "new"


def pairs_ready(cluster: Cluster, desired: dict[Role, int]) -> Fraction:
    """Share of what is desired that serves, counting only prefill and decode of one revision together."""
    return sum(
        (
            min(
                Fraction(sum(pod.ready for pod in cluster.asked(name, role)), n)
                for role, n in desired.items()
            )
            for name in cluster.revisions
        ),
        Fraction(0),
    )


def step(
    cluster: Cluster, desired: dict[Role, int], target: str, policy: ScalingPolicy, interrupted_after: int
) -> RolloutPlan:
    """Plan and apply the first few changes, and check that what serves has not fallen below what it may."""
    ready = {role: cluster.ready(role) for role in desired}
    pairs = pairs_ready(cluster, desired)
    plan = rollout(desired, cluster.observe(), target, policy)
    allowed = int("make room" in plan.reason)
    for name, role, replicas in cluster.changes(plan)[:interrupted_after]:
        cluster.scale(name, role, replicas)
    for role, n in desired.items():
        assert cluster.ready(role) >= min(ready[role], max(1, n - allowed)), f"{role} below what is desired"
    if not allowed:
        # Rounding over several older revisions may split one pair.
        several = len([name for name in cluster.revisions if name != target]) > 1
        least = 1 - Fraction(int(several), min(desired.values()))
        assert pairs_ready(cluster, desired) >= min(pairs, least), "prefill and decode were not moved in step"
    return plan


pairs = st.tuples(st.integers(1, 5), st.integers(1, 8))


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    desired=pairs,
    later=st.lists(
        st.tuples(st.integers(1, 40), st.sampled_from(["scale", "third", "back"]), pairs), max_size=3
    ),
    spare_nodes=st.integers(0, 4),
    spare_budget=st.none() | st.integers(0, 4),
)
def test_any_rollout_arrives_and_never_serves_less(
    *,
    seed: int,
    desired: Pair,
    later: list[tuple[int, str, Pair]],
    spare_nodes: int,
    spare_budget: int | None,
) -> None:
    """Whatever happens on the way, what serves stays, in step and within the budget, and the target is alone in the end.

    Starts take any time, nodes and budget are short, plans are half applied; there are scalings, third revisions and
    roll-backs.
    """
    random = Random(seed)  # noqa: S311 - a simulation
    want = pair(*desired)
    most = pair(*(max([desired[i], *(to[i] for _, kind, to in later if kind == "scale")]) for i in (0, 1)))
    total = sum(most.values())
    # A deployment whose smaller pool is one replica needs room for a pair; otherwise it waits, as above.
    room = (
        2
        if min(want.values()) == 1 or min(most.values()) == 1 or any(min(to) == 1 for _, _, to in later)
        else 0
    )
    cluster = Cluster(total + max(spare_nodes, room), random)
    budget = None if spare_budget is None else total + max(spare_budget, room)
    policy = policy_of(prefill=(1, 20), decode=(1, 20), budget=budget)
    for role, n in want.items():
        for _ in range(n):
            cluster.add("a", role, ready=True)
    target = "b"
    for tick in range(MAX_TICKS):
        for at, kind, to in later:
            if at == tick:
                want = pair(*to) if kind == "scale" else want
                target = {"scale": target, "third": "c", "back": "a"}[kind]
        plan = step(cluster, want, target, policy, random.choice([0, 1, 2, 8, 8]))
        assert budget is None or cluster.held() <= budget
        if tick > 40 and plan.done and cluster.alone(target, want):
            break
        cluster.tick()
    assert cluster.alone(target, want), f"stuck: {plan.reason}"
    assert plan.done


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), desired=pairs)
def test_the_ratio_is_kept_on_the_way(seed: int, desired: Pair) -> None:
    """While nothing else happens, the target always has a whole step: each role within one replica of its share."""
    cluster = Cluster(100, Random(seed))  # noqa: S311 - a simulation
    want = pair(*desired)
    for role, n in want.items():
        for _ in range(n):
            cluster.add("a", role, ready=True)
    shares = {Fraction(k, n) for n in desired for k in range(n + 1)}
    steps = [pair(ceil(share * desired[0]), ceil(share * desired[1])) for share in shares]
    for _ in range(MAX_TICKS):
        plan = step(cluster, want, "b", policy_of(), 99)
        assert dict(plan.replicas["b"]) in steps
        if plan.done:
            return
        cluster.tick()
    raise AssertionError(plan.reason)
