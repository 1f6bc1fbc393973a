"""Whose name and whose key it is, where several namespaces claim the same."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from turnout.routing import DeploymentRoute, Fleet, Grant, NamedRoute, build_fleet, resolve

Names = tuple[str, ...] | None
KEY = "0" * 64


def deployment(key: str, *names: str, settled: Names = None, created: float = 0) -> DeploymentRoute:
    return DeploymentRoute(key, names, settled, created)


def fleet(
    *deployments: DeploymentRoute, before: Fleet | None = None, routes: tuple[NamedRoute, ...] = ()
) -> Fleet:
    return build_fleet(deployments, routes, [], [], before)


def grant(budget: str, *, created: float = 0, settled: bool | None = None, **more: object) -> Grant:
    one = Grant(budget, "k", KEY, namespace=budget.partition("/")[0], created=created, settled=settled)
    return replace(one, **more)  # type: ignore[arg-type]  # a table's columns


def granted(*grants: Grant, before: Fleet | None = None) -> Fleet:
    return build_fleet([], [], grants, [], before)


def test_a_claim_that_is_not_assigned_takes_no_name_that_another_namespace_claims() -> None:
    """Neither the older nor the younger: that is for the operator to say."""
    one, other = deployment("a/m", "x", created=2), deployment("b/m", "x", created=1)
    assert resolve(fleet(one, other), "x", 0) is None
    assert resolve(fleet(replace(one, settled_names=("x",)), other), "x", 0) == "a/m"
    assert resolve(fleet(one, replace(other, settled_names=())), "x", 0) == "a/m", "the other was refused"


def test_what_has_a_name_keeps_it() -> None:
    """Against an older claim that comes later, with the operator's word for both (one of them is out of date) or none."""
    mine, older = deployment("a/m", "x", created=5), deployment("b/m", "x", created=1)
    first = fleet(mine)
    assert resolve(fleet(mine, older, before=first), "x", 0) == "a/m"
    settled = [replace(d, settled_names=("x",)) for d in (mine, older)]
    assert resolve(fleet(*settled, before=first), "x", 0) == "a/m"
    assert resolve(fleet(*settled), "x", 0) == "b/m", "a router that has just started knows only ages"


def test_a_name_that_is_given_up_waits_for_the_operator() -> None:
    """A claim that lay in wait in another namespace does not get it by itself, however often the fleet changes."""
    mine, waits = deployment("a/m", "x", settled=("x",)), deployment("b/m", "x", created=1)
    now = fleet(mine, waits)
    for _ in range(3):
        now = fleet(waits, before=now)
        assert resolve(now, "x", 0) is None
    again = deployment("a/m", "x", created=9)
    assert resolve(fleet(again, replace(waits, settled_names=()), before=now), "x", 0) == "a/m"
    assert resolve(fleet(replace(waits, settled_names=("x",)), before=now), "x", 0) == "b/m"
    assert fleet(before=now).reserved == {}, "what is not claimed is not remembered"


def test_adapters_and_routes_are_names_like_all_others() -> None:
    """A deployment does not take a route's name, nor a route a deployment's, across namespaces."""
    route = NamedRoute("a/r", ("chat",), (("a/m", 1),), created=1, settled_names=("chat",))
    target = deployment("a/m", "m", settled=("m", "sql"))
    thief = deployment("b/m", "chat", "sql", "m")
    first = fleet(target, routes=(route,))
    for now in (fleet(target, thief, routes=(route,)), fleet(target, thief, routes=(route,), before=first)):
        assert {resolve(now, name, 0) for name in ("chat", "m", "sql")} == {"a/m"}
    other = NamedRoute("b/r", ("m", "sql"), (("b/m", 1),))
    assert {resolve(fleet(target, thief, routes=(route, other)), n, 0) for n in ("m", "sql")} == {"a/m"}


def test_a_route_gets_the_names_that_are_settled_on_it() -> None:
    """All that it claims as long as the operator has not decided."""
    target = deployment("a/m", "m")
    route = NamedRoute("a/r", ("r", "s"), (("a/m", 1),))
    assert {name for name in fleet(target, routes=(route,)).names if "/" not in name} == {"m", "r", "s"}
    settled = replace(route, settled_names=("s",))
    assert {name for name in fleet(target, routes=(settled,)).names if "/" not in name} == {"m", "s"}


@given(
    steps=st.lists(
        st.lists(
            st.tuples(
                st.sampled_from(["a/m", "a/n", "b/m", "c/m"]),
                st.sampled_from([None, (), ("x",)]),
                st.integers(0, 3),
            ),
            unique_by=lambda item: item[0],
        ),
        min_size=1,
        max_size=6,
    )
)
def test_no_namespace_gets_anothers_name_without_the_operators_word(
    steps: list[list[tuple[str, Names, int]]],
) -> None:
    """Whatever comes and goes: a name changes its namespace only by a status, or when no other object claims or had it."""
    now, had = Fleet(), ""
    for step in steps:
        parts = [deployment(key, "x", settled=settled, created=created) for key, settled, created in step]
        now = build_fleet(parts, [], [], [], now)
        served = now.names.get("x")
        claimed = {d.key.partition("/")[0] for d in parts if d.settled_names != ()}
        if served is not None:
            by_word = any(d.key == served.owner and d.settled_names == ("x",) for d in parts)
            assert by_word or had in {"", served.namespace}
            had = served.namespace
        elif not claimed:
            had = ""
    orders = {str(build_fleet(order, [], [], [], now).names.get("x")) for order in permutations(parts[:4])}
    assert len(orders) == 1, "the order in which they are read does not matter"


def test_a_key_opens_its_own_namespace() -> None:
    """And every one where it says so; the names that it lists narrow either."""
    own = grant("a/b")
    assert own.allows("m", "a")
    assert not own.allows("m", "b")
    everywhere = grant("sys/b", namespace=None, models=frozenset({"m"}))
    assert everywhere.allows("m", "b")
    assert not everywhere.allows("n", "b")


def test_a_key_is_the_first_budgets() -> None:
    """As with names: as the operator assigned them, else the holder until now; undecided in two namespaces: not assigned yet."""
    mine, copy = grant("a/b", created=5), grant("b/b", created=1)
    assert granted(mine, copy).grants == {}
    first = granted(mine)
    assert granted(copy, mine, before=first).grants[KEY].budget == "a/b"
    assert granted(replace(copy, settled=False), mine).grants[KEY].budget == "a/b"
    assert granted(replace(copy, settled=True), mine).grants[KEY].budget == "b/b"
    assert granted(replace(copy, settled=False)).grants == {}
    now = granted(copy, before=first)
    assert now.grants == {}, "a copy that lay in wait"
    assert granted(copy, before=now).grants == {}
    assert granted(grant("a/c", created=2), grant("a/b", created=1)).grants[KEY].budget == "a/b"


def test_an_unknown_key_opens_namespaces_without_keys() -> None:
    """One tenant's keys do not lock another's clients out; keys for every namespace do, as they are shared by all."""
    unknown = granted(grant("a/b")).unknown
    assert unknown is not None
    assert unknown.allows("m", "b")
    assert not unknown.allows("m", "a")
    assert granted(grant("a/b", namespace=None)).unknown is None
