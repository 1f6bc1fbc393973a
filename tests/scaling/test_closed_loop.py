"""Scaling in closed loop with a model of the pools, an hour of traffic in virtual time."""

from __future__ import annotations

import pytest

from support.scaling_values import policy_of
from turnout_simulator.scaling.run import TRAFFIC, Run, run
from turnout_simulator.scaling.scalers import hpa_on_queue, turnout

POLICY = policy_of(prefill=(1, 8), decode=(1, 8), ratio=("1:4", "4:1"), budget=14)


def goodput_after(result: Run, seconds: float) -> list[float]:
    return [goodput for at, goodput in result.goodput if at >= seconds and goodput is not None]


@pytest.mark.parametrize("traffic", sorted(TRAFFIC))
def test_bounds_budget_and_ratio_hold_on_any_traffic(traffic: str) -> None:
    """Whatever comes, no decision leaves the rules, and each has its sentence."""
    result = run(turnout(POLICY), TRAFFIC[traffic], seconds=2400.0)
    for _, replicas in result.replicas:
        assert 1 <= replicas["prefill"] <= 8
        assert 1 <= replicas["decode"] <= 8
        assert sum(replicas.values()) <= 14
        assert replicas["prefill"] <= 4 * replicas["decode"]
        assert replicas["decode"] <= 4 * replicas["prefill"]
    assert all(result.reasons)


def test_steady_load_does_not_swing() -> None:
    """Once the start is over, half an hour of steady load moves at most two replicas and keeps its goodput."""
    result = run(turnout(POLICY), TRAFFIC["steady"], startup_seconds=60.0)
    assert result.changes(since=1800.0) <= 2
    late = goodput_after(result, 1800.0)
    assert sum(late) / len(late) >= 99.0


def test_a_step_is_answered() -> None:
    """Seven times the load is served within the objectives again after 100 decisions, pods starting for a minute."""
    result = run(turnout(POLICY), TRAFFIC["step"], seconds=1800.0, startup_seconds=60.0)
    recovered = [goodput for at, goodput in result.goodput if at >= 900.0 + 500.0 and goodput is not None]
    assert sum(recovered) / len(recovered) >= 99.0


def test_the_night_shrinks_both_pools() -> None:
    """Half an hour after the traffic has gone, one replica of each is left."""
    result = run(turnout(POLICY), TRAFFIC["night"], startup_seconds=60.0)
    assert result.replicas[-1][1] == {"prefill": 1, "decode": 1}


def test_pods_without_a_node_never_pile_up() -> None:
    """With room for four pods, what one decision asked for too much stays all that is Pending."""
    result = run(turnout(POLICY), TRAFFIC["step"], seconds=1800.0, nodes=4)
    assert max(result.pending) > 0
    for before, after in zip(result.pending, result.pending[1:], strict=False):
        assert after <= before or before == 0, "asked for more beside a Pending pod"
    assert any("finds no node" in reason or "find no node" in reason for reason in result.reasons)


def test_growth_ends_where_the_prompt_alone_breaks_the_objective() -> None:
    """Prompts that alone take twice the objective never meet it: growth ends once the replicas are nearly idle."""
    result = run(turnout(POLICY), lambda _: 0.25, prefill_seconds=2.0)
    assert result.goodput_percent < 5.0
    assert max(sum(replicas.values()) for _, replicas in result.replicas) <= 4
    assert any("replicas are nearly idle" in reason for reason in result.reasons)


@pytest.mark.parametrize("traffic", ["steady", "step", "ramp", "night"])
def test_better_and_cheaper_than_queue_length(traffic: str) -> None:
    """More goodput for fewer replica-hours than HPA on queue length, which cannot see replicas on their way."""
    ours = run(turnout(POLICY), TRAFFIC[traffic], startup_seconds=60.0)
    theirs = run(hpa_on_queue(POLICY), TRAFFIC[traffic], startup_seconds=60.0)
    assert ours.goodput_percent > theirs.goodput_percent
    assert ours.replica_hours < theirs.replica_hours
