"""Scaling decisions, situation by situation: how many replicas, and what is said about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.scaling_values import load, policy_of, pool
from turnout.scaling.allocate import accelerators
from turnout.scaling.decide import decide
from turnout.scaling.decision import MAX_BUCKETS, Memory
from turnout.scaling.demand import busy_share, occupancy

if TYPE_CHECKING:
    from turnout.scaling.decision import ScalingDecision
    from turnout.scaling.facts import LoadFacts, PoolFacts
    from turnout.scaling.policy import ScalingPolicy

NOTHING = Memory()
ANSWERED = {"routers_answered": True}


def facts(prefill: PoolFacts, decode: PoolFacts, **more: float) -> LoadFacts:
    return load(prefill, decode, **{**ANSWERED, **more})


def after(
    load_facts: LoadFacts, policy: ScalingPolicy, seconds: float, memory: Memory = NOTHING, start: float = 0.0
) -> ScalingDecision:
    """Decide on the same facts every interval for *seconds*; return the last decision."""
    now = start
    decision = decide(load_facts, policy, memory, now)
    while now < start + seconds:
        now += policy.interval_seconds
        decision = decide(load_facts, policy, decision.memory, now)
    return decision


IDLE_PREFILL, IDLE_DECODE = pool("prefill", 2, kv=0.0), pool("decode", 2, kv=0.5)


@pytest.mark.parametrize(
    ("situation", "load_facts", "policy", "expected", "said"),
    [
        (
            "decode's cache is full",
            facts(IDLE_PREFILL, pool("decode", 2, kv=0.91, running=40)),
            policy_of(),
            (2, 3),
            "decode 2 -> 3: KV cache 91% in use, target 80%",
        ),
        (
            "requests that wait for cache count at the size of those that run",
            facts(IDLE_PREFILL, pool("decode", 2, kv=1.0, running=40, waiting=20)),
            policy_of(),
            (2, 4),
            "decode 2 -> 4: KV cache 100% in use, 20 requests waiting",
        ),
        (
            "those that routers hold count like those in engines' queues",
            facts(IDLE_PREFILL, pool("decode", 2, kv=1.0, running=40, waiting=5, held=15)),
            policy_of(),
            (2, 4),
            "decode 2 -> 4: KV cache 100% in use, 20 requests waiting",
        ),
        (
            "what routers hold is not estimated anew for pods that are silent",
            facts(IDLE_PREFILL, pool("decode", 4, kv=0.8, running=20, scraped=2, held=10)),
            policy_of(),
            (2, 5),
            "decode 4 -> 5: KV cache 80% in use, 10 requests waiting",
        ),
        (
            "prefill grows by what routers hold for it",
            facts(pool("prefill", 2, running=2, held=100), IDLE_DECODE),
            policy_of(),
            (4, 2),
            "prefill 2 -> 4: 51.0 requests per replica, target at most 6",
        ),
        (
            "a long prefill queue at most doubles the pool",
            facts(pool("prefill", 2, running=2, waiting=100), IDLE_DECODE),
            policy_of(),
            (4, 2),
            "prefill 2 -> 4: 51.0 requests per replica, target at most 6; needs 17, at most doubled at once",
        ),
        (
            "replicas on their way cover the need",
            facts(IDLE_PREFILL, pool("decode", 3, kv=0.91, ready=2, starting=1)),
            policy_of(),
            (2, 3),
            ("decode KV cache 91% in use, target 80%; the need of 3 is covered by 1 on the way"),
        ),
        (
            "a need beyond what is on the way waits for it",
            facts(pool("prefill", 4, ready=2, starting=2, running=2, waiting=100), IDLE_DECODE),
            policy_of(),
            (4, 2),
            "needs 17, waiting for 2 on the way first",
        ),
        (
            "a pod without a node forbids more of the same",
            facts(IDLE_PREFILL, pool("decode", 3, kv=1.0, running=9, ready=2, unschedulable=1, waiting=9)),
            policy_of(),
            (2, 3),
            "1 decode finds no node with free H100-SXM: add nodes",
        ),
        (
            "another accelerator is no hindrance",
            facts(pool("prefill", 2, ready=1, unschedulable=1, kv=0.0), pool("decode", 2, kv=1.0, running=9)),
            policy_of(prefill_type="L40S"),
            (2, 3),
            "decode 2 -> 3",
        ),
        (
            "the accelerator budget",
            facts(IDLE_PREFILL, pool("decode", 2, kv=0.95, running=9)),
            policy_of(budget=4),
            (2, 2),
            "maxAccelerators 4 leaves room for 2",
        ),
        (
            "the maximum",
            facts(IDLE_PREFILL, pool("decode", 2, kv=0.95, running=9)),
            policy_of(decode=(1, 2)),
            (2, 2),
            "the load asks for 3 decode replicas, replicas.max is 2",
        ),
        (
            "the ratio raises the other pool in the same decision",
            facts(pool("prefill", 1, kv=0.0), pool("decode", 2, kv=0.95, running=9)),
            policy_of(ratio=("1:2", "2:1")),
            (2, 3),
            "prefill 1 -> 2: prefillToDecode 1:2 to 2:1 asks for 2; decode 2 -> 3",
        ),
        (
            "no pod answers",
            facts(pool("prefill", 2, scraped=0), pool("decode", 2, kv=0.95)),
            policy_of(),
            (2, 2),
            "kept at prefill 2, decode 2: none of 2 prefill pods answers the scrape",
        ),
        (
            "stale figures",
            facts(IDLE_PREFILL, pool("decode", 2, kv=0.95, age_seconds=90.0)),
            policy_of(),
            (2, 2),
            "kept at prefill 2, decode 2: the figures of decode are 90 s old",
        ),
        (
            "some answer: growth on what is known",
            facts(IDLE_PREFILL, pool("decode", 4, kv=0.9, scraped=2)),
            policy_of(),
            (2, 5),
            "decode 4 -> 5",
        ),
        (
            "nothing is ready yet",
            facts(pool("prefill", 2, ready=0, starting=2), pool("decode", 2, ready=0, starting=2)),
            policy_of(),
            (2, 2),
            "no prefill replica is ready",
        ),
        (
            "bounds moved by the user hold without figures",
            facts(pool("prefill", 2, ready=0), pool("decode", 9)),
            policy_of(prefill=(3, 6), decode=(1, 4)),
            (3, 4),
            "prefill 2 -> 3: replicas.min is 3; decode 9 -> 4",
        ),
        (
            "paused",
            facts(IDLE_PREFILL, pool("decode", 2, kv=0.95)),
            policy_of(mode="Paused"),
            (2, 2),
            "kept at prefill 2, decode 2: scaling is paused",
        ),
    ],
)
def test_situations(
    situation: str, load_facts: LoadFacts, policy: ScalingPolicy, expected: tuple[int, int], said: str
) -> None:
    """Each situation has one answer and one sentence."""
    decision = decide(load_facts, policy, Memory(), 0.0)
    assert tuple(decision.desired.values()) == expected, situation
    assert said in decision.reason
    assert decision.changed == (expected != tuple(one.replicas for one in load_facts.pools))


def test_advisory_says_but_does_not_act() -> None:
    """Mode Advisory returns what it would do, marked as not to be applied, and does not count it as done."""
    decision = decide(
        facts(IDLE_PREFILL, pool("decode", 2, kv=0.95)), policy_of(mode="Advisory"), Memory(), 0.0
    )
    assert (decision.desired["decode"], decision.apply) == (3, False)
    assert all(one.scaled_seconds is None for one in decision.memory.pools)


def test_nothing_shrinks_before_a_whole_window_was_seen() -> None:
    """A restarted operator takes nothing away until it has watched for the stabilization time; then one replica."""
    idle = facts(pool("prefill", 3, kv=0.0), pool("decode", 3, kv=0.01))
    early = after(idle, policy_of(), 295.0)
    assert not early.changed
    assert "may shrink after 5 s more" in early.reason
    late = after(idle, policy_of(), 300.0)
    assert late.desired == {"prefill": 2, "decode": 2}
    assert "decode 3 -> 2: KV cache 1% in use, target 80%; 1 sufficed for the last 300 s" in late.reason


def test_one_step_down_at_a_time() -> None:
    """After one replica left, the next stays until the effect of the first was seen."""
    policy = policy_of()
    decision = after(facts(pool("prefill", 3, kv=0.0), pool("decode", 3, kv=0.01)), policy, 300.0)
    smaller = facts(pool("prefill", 2, kv=0.0), pool("decode", 2, kv=0.01))
    again = decide(smaller, policy, decision.memory, 305.0)
    assert not again.changed
    assert "the next step down follows in 55 s" in again.reason
    assert after(smaller, policy, 60.0, decision.memory, 300.0).desired == {"prefill": 1, "decode": 1}


def test_a_need_within_the_window_holds_replicas() -> None:
    """A peak keeps its replicas for the stabilization time, and the reason says so."""
    policy = policy_of()
    idle = facts(IDLE_PREFILL, pool("decode", 3, kv=0.1))
    seen = after(idle, policy, 200.0).memory
    busy = decide(facts(IDLE_PREFILL, pool("decode", 3, kv=0.7)), policy, seen, 205.0).memory
    held = after(idle, policy, 200.0, busy, 210.0)
    assert held.desired["decode"] == 3
    assert "decode KV cache 10% in use, target 80%; 4 were needed within the last 300 s" in held.reason


@pytest.mark.parametrize(
    ("lacking", "said"),
    [
        (facts(IDLE_PREFILL, pool("decode", 3, kv=0.01, scraped=2)), "1 of 3 decode pods did not answer"),
        (load(IDLE_PREFILL, pool("decode", 3, kv=0.01)), "no router answers"),
    ],
)
def test_what_is_not_known_is_not_taken_away(lacking: LoadFacts, said: str) -> None:
    """Silent pods or routers forbid a scale-in, however idle the rest is."""
    decision = after(lacking, policy_of(prefill=(2, 4)), 600.0)
    assert not decision.changed
    assert said in decision.reason


def test_a_gap_starts_the_window_again() -> None:
    """After figures were missing for longer than they stay fresh, a whole window must be seen again."""
    policy = policy_of()
    idle = facts(IDLE_PREFILL, pool("decode", 3, kv=0.01))
    seen = after(idle, policy, 290.0).memory
    assert not decide(idle, policy, seen, 330.0).changed
    assert decide(idle, policy, after(idle, policy, 295.0).memory, 300.0).changed


def test_two_replicas_near_the_target_do_not_become_one() -> None:
    """2 <-> 1 does not swing: what one replica would hold must stay below the target with a margin."""
    policy = policy_of(prefill=(2, 4))
    held = after(facts(IDLE_PREFILL, pool("decode", 2, kv=0.36)), policy, 600.0)
    assert not held.changed
    assert after(facts(IDLE_PREFILL, pool("decode", 2, kv=0.33)), policy, 600.0).desired["decode"] == 1


def test_low_goodput_grows_the_pool_that_is_loaded() -> None:
    """Latency misses grow the pool that can be their cause by one, once the replicas of now had a chance to show."""
    policy = policy_of()
    slow = facts(
        IDLE_PREFILL,
        pool("decode", 2, kv=0.5, running=80),
        goodput=90.0,
        itl_missed_share=0.1,
        ttft_missed_share=0.0,
    )
    assert not after(slow, policy, 55.0).changed
    decision = after(slow, policy, 60.0)
    assert decision.desired == {"prefill": 2, "decode": 3}
    assert decision.reason == (
        "decode 2 -> 3: goodput 90 % is below its target 99 %, 40 requests share one decode replica"
    )
    grown = facts(IDLE_PREFILL, pool("decode", 3, kv=0.1, running=80))
    held = after(grown, policy, 600.0, decision.memory, 65.0)
    assert held.desired["decode"] == 3, "the load that was too much for two is remembered"


def test_a_prompt_that_alone_breaks_the_objective_scales_nothing() -> None:
    """Misses on nearly idle replicas are reported, not answered with more replicas."""
    lonely = facts(
        pool("prefill", 2, kv=0.0), pool("decode", 2, kv=0.02, running=1), goodput=20.0, ttft_missed_share=0.8
    )
    decision = after(lonely, policy_of(prefill=(2, 9), decode=(2, 9)), 1200.0)
    assert not decision.changed
    assert "goodput 20 % is below its target 99 %, but replicas are nearly idle" in decision.reason


def test_failures_that_are_not_slow_scale_nothing() -> None:
    """Requests that fail without being late are no matter of capacity, and the reason says so."""
    broken = facts(
        IDLE_PREFILL,
        pool("decode", 2, kv=0.5, running=80),
        goodput=50.0,
        ttft_missed_share=0.0,
        itl_missed_share=0.0,
    )
    decision = after(broken, policy_of(prefill=(2, 9), decode=(2, 9)), 300.0)
    assert not decision.changed
    assert "requests fail otherwise" in decision.reason


def test_an_aggregated_pool_grows_by_its_queue_too() -> None:
    """A pool that does both halves grows when requests wait although cache is free."""
    aggregated = load(pool("aggregated", 2, kv=0.2, running=20, waiting=15), **ANSWERED)
    decision = decide(aggregated, policy_of(prefill=None), Memory(), 0.0)
    assert decision.desired == {"aggregated": 3}
    assert "7.5 requests waiting per replica, target at most 5" in decision.reason


def test_an_aggregated_pool_grows_by_what_routers_hold() -> None:
    """Requests that wait in the router are as many as if they waited in the engines."""
    in_engines = load(pool("aggregated", 2, kv=0.2, running=20, waiting=15), **ANSWERED)
    in_router = load(pool("aggregated", 2, kv=0.2, running=20, waiting=2, held=13), **ANSWERED)
    policy = policy_of(prefill=None)
    assert decide(in_router, policy, Memory(), 0.0) == decide(in_engines, policy, Memory(), 0.0)


def test_requests_in_prefill_say_nothing_of_a_decode_pool() -> None:
    """Engines that decode report time in prefill, too; what counts there are the requests in the pool, and held for it."""
    decode = pool("decode", 2, running=20, waiting=3, held=2, occupancy_mean=0.1)
    prefill = pool("prefill", 2, running=20, waiting=3, held=2, occupancy_mean=0.1)
    assert (occupancy(decode), occupancy(prefill)) == (25.0, 0.1)
    late = facts(IDLE_PREFILL, decode, goodput=50.0, itl_missed_share=0.5)
    assert "12 requests share one decode replica" in decide(late, policy_of(), Memory(), 0.0).reason


def test_the_queue_formula() -> None:
    """The busy share inverts the M/D/1 mean number in the system."""
    for busy in (0.0, 0.1, 0.5, 0.9):
        requests = busy + busy**2 / (2 * (1 - busy))
        assert busy_share(requests) == pytest.approx(busy)


pools = st.tuples(
    st.integers(1, 12),
    st.integers(0, 12),
    st.integers(0, 3),
    st.integers(0, 300),
    st.integers(0, 100),
    st.floats(0, 1),
)


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(pools, pools, st.none() | st.floats(0, 100), st.floats(0.5, 30)), min_size=1, max_size=12
    )
)
def test_any_history_stays_within_all_rules(steps: list[tuple[tuple, tuple, float | None, float]]) -> None:
    """Bounds, budget and ratio hold, memory stays bounded, Pending pods never pile up, and something is always said."""
    policy = policy_of(
        prefill=(1, 8), decode=(1, 12), ratio=("1:3", "2:1"), budget=14, stabilization_seconds=40.0
    )
    memory, now = Memory(), 0.0
    replicas = {"prefill": 1, "decode": 2}
    for *described, goodput, elapsed in steps:
        seen = []
        for role, (_, ready, unschedulable, running, waiting, kv) in zip(replicas, described, strict=True):
            n = replicas[role]
            seen.append(
                pool(
                    role,
                    n,
                    kv,
                    ready=min(ready, n),
                    unschedulable=min(unschedulable, n - min(ready, n)),
                    running=running,
                    waiting=waiting,
                )
            )
        decision = decide(facts(*seen, goodput=goodput), policy, memory, now)
        desired = decision.desired
        assert 1 <= desired["prefill"] <= 8
        assert 1 <= desired["decode"] <= 12
        assert accelerators(desired, policy) <= 14
        assert desired["decode"] <= 3 * desired["prefill"]
        assert desired["prefill"] <= 2 * desired["decode"]
        assert decision.reason
        assert len(decision.memory.buckets) <= MAX_BUCKETS
        if any(one.unschedulable for one in seen):
            assert all(desired[role] <= n for role, n in replicas.items()), "grew beside a pod without a node"
        if now < 40.0:
            assert all(desired[role] >= n for role, n in replicas.items()), "shrunk before a whole window"
        assert decide(facts(*seen, goodput=goodput), policy, memory, now) == decision, (
            "same facts, same decision"
        )
        memory, replicas, now = decision.memory, dict(desired), now + elapsed
