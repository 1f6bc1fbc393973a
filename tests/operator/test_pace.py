"""How often a deployment is read: busy ones always alike, the others when there is news, and none waits for another."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from support.installation import llmdeployment
from support.operator_node import ACCELERATOR
from support.operator_process import apply, condition, get, items, wait_until
from support.operator_values import Fleet, raw_deployment
from turnout.scaling.decision import ScalingDecision
from turnout_operator.load import pages
from turnout_operator.load.pace import IDLE_INTERVALS, RESYNC_SECONDS, interval_seconds, pause_seconds
from turnout_operator.load.traffic import Traffic

if TYPE_CHECKING:
    from support.operator_node import TestNode
    from support.operator_process import OperatorProcess
    from turnout_devcluster.cluster import Cluster
    from turnout_operator.plan.observed import Observed

BUSY, IDLE = 5.0, 5.0 * IDLE_INTERVALS
SILENT = Traffic({}, 0.0, answered=False)
REQUESTED = Traffic({pages.ARRIVALS: 1.0}, 60.0, answered=True)
HELD = Traffic({}, 60.0, answered=True, held={"decode": 1})
QUIET = Traffic({pages.ARRIVALS: 0.0}, 60.0, answered=True, held={"decode": 0})


def kept(observed: Observed, **desired: int) -> ScalingDecision:
    """Return a decision that keeps the replicas, or changes some."""
    return ScalingDecision(
        {**observed.desired, **desired}, observed.desired, apply=True, reason="because the test says so"
    )  # type: ignore[dict-item]


def pause(fleet: Fleet, traffic: Traffic = QUIET, **desired: int) -> float:
    observed = replace(fleet.observed(), traffic=traffic)
    return pause_seconds(observed, kept(observed, **desired), BUSY)


def serving() -> Fleet:
    """Return a deployment that serves with as few replicas as it may have."""
    fleet = Fleet(raw_deployment(prefill=(1, 4), decode=(2, 6)))
    for _ in range(3):
        fleet.step()
    assert fleet.ready("decode") == 2
    return fleet


def test_without_a_worker_there_is_nothing_to_read() -> None:
    """Changes are reported by the API server and by routers; requests that come in vain are counted at full pace."""
    fleet = Fleet(raw_deployment())
    for _ in range(3):
        fleet.step(ready=False)
    assert pause(fleet) == pause(fleet, SILENT) == RESYNC_SECONDS
    assert pause(fleet, REQUESTED) == pause(fleet, HELD) == BUSY
    assert pause(fleet, decode=3) == BUSY


def test_an_idle_deployment_is_read_less_often() -> None:
    """One that cannot shrink and has no request, as far as its routers know; else what it does has to be seen."""
    fleet = serving()
    assert pause(fleet) == IDLE
    assert pause(fleet, SILENT) == pause(fleet, REQUESTED) == pause(fleet, HELD) == BUSY
    fleet.loads = dict.fromkeys(fleet.pods, 1)
    assert pause(fleet) == BUSY


def test_what_may_shrink_is_read_at_full_pace() -> None:
    """Its stabilization window must be seen whole; and what drains leaves as soon as it is idle."""
    fleet = serving()
    for _ in range(5):
        fleet.step(kept(fleet.observed(), decode=3))
    assert fleet.ready("decode") == 3
    assert pause(fleet) == BUSY
    fleet.carry_out(fleet.plan(kept(fleet.observed(), decode=2)))
    assert any(pod.draining for pod in fleet.observed_pods())
    assert pause(fleet) == BUSY


@pytest.mark.parametrize(("scale", "seconds"), [(1, 5.0), (2, 2.5), (5, 1.0), (100, 1.0)])
def test_fast_time_is_read_more_often(scale: int, seconds: float) -> None:
    """Every five seconds of the deployment's own, and once a second at most."""
    assert interval_seconds(scale) == seconds


def manifest(name: str) -> dict[str, Any]:
    made = llmdeployment(name, prefill=None, decode=(1, 2))
    made["spec"]["decode"]["accelerator"]["type"] = ACCELERATOR
    return made


@pytest.mark.cluster
def test_a_worker_that_hangs_delays_its_own_deployment_alone(
    cluster: Cluster, namespace: str, node: TestNode, operator: OperatorProcess
) -> None:
    """Between two questions to the worker that hangs another deployment is read, and decided about, more than once."""
    apply(cluster, namespace, manifest("hangs"), manifest("other"))
    for name in ("hangs", "other"):
        wait_until(
            f"{name} is Ready",
            lambda name=name: (
                condition(get(cluster, namespace, "llmd", name), "Ready").get("status") == "True"
            ),  # type: ignore[misc]
            60,
            (operator,),
        )
    hangs, other = sorted(pod["metadata"]["name"] for pod in items(cluster, namespace, "pods"))
    node.hanging.add(hangs)
    begun = len(node.asked)

    def twice_meanwhile() -> bool:
        asked = node.asked[begun:]
        questions = [at for at, name in enumerate(asked) if name == hangs]
        return any(asked[first:last].count(other) > 1 for first, last in itertools.pairwise(questions))

    try:
        wait_until("the other is read twice", twice_meanwhile, 60, (operator,))
        reasons = wait_until(
            "it is said why",
            lambda: "answers the scrape" in operator.get("/decisions")[1] and operator.get("/decisions")[1],
            60,
            (operator,),
        )
    finally:
        node.hanging.clear()
    assert reasons.count("answers the scrape") == 1
