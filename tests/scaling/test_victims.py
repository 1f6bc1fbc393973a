"""Which pods leave, when they may go, and when they stay after all."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from turnout.scaling.victims import COST_DRAINING, COST_GOING, PodFacts, choose_victims, drain_progress


def pod(name: str, requests: int | None = 0, since: float | None = None, **more: float | bool) -> PodFacts:
    return PodFacts(
        name,
        **{"ready": True, "created_seconds": 0.0, **more},
        requests=requests,
        draining_since_seconds=since,
    )  # type: ignore[arg-type]


def test_who_loses_least_goes_first() -> None:
    """Not ready, then fewest requests, then least cache, then newest, then by name; a silent one last."""
    pods = [
        pod("silent", None),
        pod("busy", 9),
        pod("warm", 2, kv_utilization=0.5),
        pod("cold", 2, kv_utilization=0.1),
        pod("old-idle", 0, created_seconds=1.0),
        pod("new-idle", 0, created_seconds=2.0),
        pod("starting", None, ready=False),
    ]
    expected = ("starting", "new-idle", "old-idle", "cold", "warm", "busy", "silent")
    assert choose_victims(reversed(pods), 7) == expected
    assert choose_victims(pods, 2) == expected[:2]
    assert choose_victims(pods, -1) == ()


def test_a_victim_is_labeled_first_and_goes_when_idle() -> None:
    """Label, let routers see it, and let it go once it is known to be idle."""
    assert drain_progress([pod("a", 3), pod("b", 1)], 1, 100.0).drain == ("b",)
    for requests, since, leave in ((1, 90.0, ()), (0, 99.0, ()), (0, 97.0, ("b",)), (None, 97.0, ())):
        plan = drain_progress([pod("a", 3), pod("b", requests, since)], 1, 100.0)
        assert (plan.drain, plan.leave) == ((), leave)
        assert plan.deletion_costs == {"b": COST_GOING if leave else COST_DRAINING}


def test_the_deadline_ends_a_drain() -> None:
    """After the deadline a pod goes with what it still has, also when it never answers."""
    for requests in (5, None):
        assert drain_progress([pod("a"), pod("b", requests, 0.0)], 1, 120.0).leave == ("b",)


def test_returned_demand_takes_pods_back() -> None:
    """When fewer must leave, those with the most requests serve again instead of new pods being started."""
    pods = [pod("a", 4, 1.0), pod("b", 1, 2.0), pod("c", 7)]
    plan = drain_progress(pods, 1, 10.0)
    assert (plan.drain, plan.undrain, plan.leave) == ((), ("a",), ())
    assert plan.reason == "back in service a; 1 still finishing requests"
    assert drain_progress(pods, 0, 10.0).undrain == ("b", "a")


def test_a_pod_that_is_not_ready_is_the_victim_instead() -> None:
    """Kubernetes would remove the pod that is not ready first; so the draining one serves again."""
    plan = drain_progress([pod("a", 4, 1.0), pod("new", None, ready=False)], 1, 10.0)
    assert (plan.drain, plan.undrain) == (("new",), ("a",))


pods_of_any_kind = st.lists(
    st.builds(
        PodFacts,
        name=st.text("abcdef", min_size=1, max_size=4),
        ready=st.booleans(),
        created_seconds=st.floats(0, 100),
        requests=st.none() | st.integers(0, 5),
        kv_utilization=st.none() | st.floats(0, 1),
        draining_since_seconds=st.none() | st.floats(0, 100),
    ),
    max_size=8,
    unique_by=lambda one: one.name,
)


@given(pods_of_any_kind, st.integers(-1, 10))
def test_any_pool_loses_exactly_what_must_leave(pods: list[PodFacts], leaving: int) -> None:
    """As many as must leave drain, none of them serves again, only they go, and the order of the list is no matter."""
    plan = drain_progress(pods, leaving, 100.0)
    draining = {one.name for one in pods if one.draining_since_seconds is not None}
    victims = (draining - set(plan.undrain)) | set(plan.drain)
    assert len(victims) == min(max(0, leaving), len(pods))
    assert set(plan.leave) <= draining - set(plan.undrain)
    assert set(plan.deletion_costs) == victims
    assert drain_progress(list(reversed(pods)), leaving, 100.0) == plan
