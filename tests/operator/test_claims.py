"""Names and keys that several resources claim, and drift."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.operator_values import NOW, raw_deployment
from turnout.api import load_budget, load_route
from turnout_operator.plan.budget import budget_status, invalid_budget
from turnout_operator.plan.claims import (
    HOLD_SECONDS,
    Claim,
    Claimant,
    Claims,
    NameAssignment,
    assign_names,
    claim_of,
    claimant_of,
    keys_of,
)
from turnout_operator.plan.drift import holds
from turnout_operator.plan.route import invalid_route, route_status


def claim(key: str, created: str = "", *names: str, kind: str = "LLMDeployment") -> Claim:
    namespace, _, name = key.partition("/")
    return Claim(Claimant(kind, namespace, name), created, names)


def book(*claims: Claim) -> Claims:
    made = Claims()
    for one in claims:
        made.put(one)
    made.assign(0)
    return made


def holder(claims: Claims, name: str, *among: Claim) -> str | None:
    """Return which of *among* has *name*."""
    found = [str(one.owner) for one in among if name in claims.assignment(one.owner).served]
    assert len(found) <= 1
    return found[0] if found else None


def test_the_oldest_claim_wins() -> None:
    """The younger gets what is left, and its status names the holder of the rest, in whatever namespace that is."""
    b, a = claim("n/b", "2026-01-02", "x", "y"), claim("m/a", "2026-01-03", "x", "z")
    c = claim("n/c", "2026-01-01", "y")
    assigned = assign_names([b, a, c])
    assert assigned[c.owner].served == ("y",)
    assert assigned[b.owner] == NameAssignment(("x",), (("y", "served by c"),))
    assert assigned[a.owner] == NameAssignment(("z",), (("x", "served by n/b"),))


def test_equally_old_ones_come_in_a_fixed_order() -> None:
    """Deployments before routes, then by namespace and name: creation times have whole seconds."""
    route = claim("a/a", "1", "x", kind="LLMRoute")
    one, other = claim("b/b", "1", "x"), claim("b/c", "1", "x")
    assert assign_names([route, other, one])[one.owner].served == ("x",)
    assert assign_names([route, other, one])[route.owner].refused == (("x", "served by b/b"),)
    assert assign_names([claim("z/z", "2", "x"), route])[route.owner].served == ("x",)


@given(
    claims=st.lists(
        st.builds(
            claim,
            st.sampled_from(["a/a", "a/b", "b/a", "b/b", "c/a"]),
            st.sampled_from(["1", "2"]),
            st.sampled_from("xyz"),
            st.sampled_from("xyz"),
        ),
        unique_by=lambda claim: claim.owner,
        max_size=6,
    ),
    random=st.randoms(),
)
def test_a_name_has_one_holder_whatever_the_order(claims: list[Claim], random: Any) -> None:
    """Every claimed name is served exactly once, and every operator comes to the same result."""
    assigned = assign_names(claims)
    served = [name for item in assigned.values() for name in item.served]
    assert sorted(served) == sorted({name for claim in claims for name in claim.names})
    random.shuffle(claims)
    assert assign_names(claims) == assigned


def test_who_has_a_name_keeps_it() -> None:
    """Against an older one that comes to claim it, and over a restart of the operator: the status says whose it is."""
    mine, older = claim("a/m", "5", "x"), claim("b/m", "1", "x")
    claims = book(mine)
    claims.put(older)
    assert older.owner not in claims.assign(1), "nothing has changed hands"
    assert holder(claims, "x", mine, older) == str(mine.owner)
    recorded = replace(mine, had=frozenset({"x"}))
    assert assign_names([recorded, older])[mine.owner].served == ("x",)
    both = replace(older, had=frozenset({"x"}))
    assert assign_names([recorded, both])[older.owner].served == ("x",), "of two that had it, the older"


def test_a_name_that_is_given_up_is_free_at_once() -> None:
    """Left out of the spec: the next one gets it, also in another namespace, and is looked at."""
    mine, other = claim("a/m", "1", "x", "y"), claim("b/m", "2", "x")
    claims = book(mine, other)
    claims.put(replace(mine, names=("y",)))
    assert other.owner in claims.assign(1)
    assert claims.assignment(other.owner).served == ("x",)
    assert claims.assignment(mine.owner).served == ("y",)


def test_a_holder_that_is_deleted_may_come_back() -> None:
    """Another namespace waits; its own does not; and a claim that begins meanwhile gets nothing either."""
    mine, other, late = claim("a/m", "1", "x"), claim("b/m", "2", "x"), claim("c/m", "3", "x")
    claims = book(mine, other)
    claims.remove(mine.owner, 10)
    assert claims.assign(10) == {other.owner}, "its status is due"
    assert claims.assignment(other.owner) == NameAssignment(
        (), (("x", "kept for namespace a for 60 s after its holder has gone"),)
    )
    claims.put(late)
    claims.assign(10 + HOLD_SECONDS - 1)
    assert holder(claims, "x", other, late) is None
    again = replace(mine, created="9")
    claims.put(again)
    claims.assign(10 + HOLD_SECONDS - 0.5)
    assert holder(claims, "x", again, other, late) == str(mine.owner)
    assert claims.assign(1000) == set()
    neighbor = claim("a/n", "8", "x")
    claims.put(neighbor)
    claims.remove(mine.owner, 2000)
    assert {neighbor.owner, other.owner, late.owner} == claims.assign(2000)
    assert holder(claims, "x", neighbor, other, late) == str(neighbor.owner)
    claims.remove(neighbor.owner, 3000)
    claims.assign(3000)
    assert other.owner in claims.assign(3000 + HOLD_SECONDS)
    assert holder(claims, "x", other, late) == str(other.owner)


def test_what_was_refused_waits_after_a_restart() -> None:
    """No resource has the name now, but one had: deleted while no operator ran, or in a namespace that cannot be read."""
    waits = replace(claim("b/m", "2", "x"), refused=frozenset({"x"}))
    claims = book(waits)
    assert holder(claims, "x", waits) is None
    assert claims.assign(HOLD_SECONDS) == {waits.owner}
    assert holder(claims, "x", waits) == str(waits.owner)
    comes = claim("a/m", "1", "x")
    claims = book(waits, comes)
    assert holder(claims, "x", waits, comes) == str(comes.owner), (
        "it was not refused, so it is new or comes back"
    )


def test_nothing_is_remembered_of_what_is_gone() -> None:
    """However many names come and go."""
    claims = Claims()
    for number in range(100):
        one = claim("a/m", "1", f"x{number}")
        claims.put(one)
        claims.assign(number)
        claims.remove(one.owner, number)
        claims.assign(number)
    claims.assign(100 + HOLD_SECONDS)
    left = [vars(claims)[name] for name in ("_claims", "_rivals", "_holders", "_kept", "_open")]
    assert not any(left), left


@given(chance=st.randoms(use_true_random=False))
def test_no_other_namespace_gets_a_name_within_the_hold(chance: Any) -> None:
    """Whatever comes and goes: a name has one holder, and passes to another namespace by giving up or after the wait."""
    owners = [claim(key, str(age), "x") for age, key in enumerate(("a/m", "a/n", "b/m", "c/m"))]
    claims, now, present = Claims(), 0.0, dict[Claimant, Claim]()
    had: Claimant | None = None
    gone_at = given_up = -HOLD_SECONDS
    for _ in range(60):
        now += chance.choice([0.0, 1.0, 20.0])
        one = chance.choice(owners)
        if one.owner not in present:
            claims.put(one)
            present[one.owner] = one
        elif chance.random() < 0.5:
            claims.remove(one.owner, now)
            del present[one.owner]
            gone_at = now if one.owner == had else gone_at
        else:
            claims.put(replace(one, names=()))
            claims.assign(now)
            del present[one.owner]
            given_up = now if one.owner == had else given_up
        claims.assign(now)
        got = [owner for owner in present if claims.assignment(owner).served]
        assert len(got) <= 1
        if got and had is not None and got[0].namespace != had.namespace:
            assert given_up >= gone_at or now - gone_at >= HOLD_SECONDS
        if not got and present:
            assert now - gone_at < HOLD_SECONDS
        had = got[0] if got else had


@pytest.mark.parametrize(
    "spec",
    [{}, {"model": None}, {"model": {"servedNames": "text"}}, {"model": {"servedNames": [1]}}, "text", None],
)
def test_a_broken_spec_claims_its_own_name(spec: Any) -> None:
    """One object that cannot be used does not break the assignment of the others."""
    raw = {"kind": "LLMDeployment", "metadata": {"name": "a"}, "spec": spec}
    assert claim_of(raw).names == ("a",)
    for kind in ("LLMRoute", "TokenBudget"):
        assert claim_of({**raw, "kind": kind}).names == ()


def test_what_the_status_says_is_read() -> None:
    """What it has, and, of this very generation, what it did not get."""
    raw = raw_deployment(model={"source": "hf://a/b", "servedNames": ["x", "y"]})
    assert (claim_of(raw).had, claim_of(raw).refused) == (frozenset(), frozenset())
    raw["status"] = {"observedGeneration": 1, "servedNames": ["x", "old"]}
    assert (claim_of(raw).had, claim_of(raw).refused) == ({"x"}, {"y"})
    raw["metadata"]["generation"] = 2
    assert (claim_of(raw).had, claim_of(raw).refused) == ({"x"}, frozenset())


def raw_budget(namespace: str = "team", generation: int = 1, **spec: Any) -> dict[str, Any]:
    keys = [{"name": name, "sha256": name * 64} for name in "ab"]
    return {
        "apiVersion": "turnout.dev/v1alpha1",
        "kind": "TokenBudget",
        "metadata": {"name": "b", "namespace": namespace, "generation": generation},
        "spec": {"keys": keys, **spec},
    }


def ready(status: dict[str, Any]) -> tuple[str, str, str]:
    (found,) = (item for item in status["conditions"] if item["type"] == "Ready")
    return found["status"], found["reason"], found["message"]


def test_keys_are_claimed_by_their_digests() -> None:
    """A status names keys, so it counts for its generation alone: whose digest was replaced has not got the other one."""
    raw = raw_budget()
    assert keys_of(raw) == {"a": "a" * 64, "b": "b" * 64}
    raw["status"] = {"observedGeneration": 1, "acceptedKeys": ["a"]}
    assert (claim_of(raw).had, claim_of(raw).refused) == ({"a" * 64}, {"b" * 64})
    raw["metadata"]["generation"] = 2
    assert (claim_of(raw).had, claim_of(raw).refused) == (frozenset(), frozenset())


def test_a_budget_says_which_keys_are_valid_and_where() -> None:
    """The scope Cluster holds in Turnout's own namespace alone; a key that another one had first is named."""

    def status_of(raw: dict[str, Any], *served: str) -> dict[str, Any]:
        return budget_status(load_budget(raw), NameAssignment(served, ()), "sys", {}, NOW)

    everything = ("a" * 64, "b" * 64)
    assert status_of(raw_budget(), *everything)["acceptedKeys"] == ["a", "b"]
    assert ready(status_of(raw_budget(), *everything)) == (
        "True",
        "KeysValid",
        "keys a, b: valid for namespace team",
    )
    cluster = status_of(raw_budget("sys", scope="Cluster"), *everything)
    assert ready(cluster) == ("True", "KeysValid", "keys a, b: valid for every namespace")
    status, reason, message = ready(status_of(raw_budget(scope="Cluster"), *everything))
    assert (status, reason) == ("False", "ScopeNotAllowed")
    assert "namespace sys alone" in message
    assert "namespace team only" in message
    lost = status_of(raw_budget(), "b" * 64)
    assert lost["acceptedKeys"] == ["b"]
    assert ready(lost)[:2] == ("False", "KeyConflict")
    assert "had key a first" in ready(lost)[2]
    kept = invalid_budget({**raw_budget(), "status": lost}, "nonsense", NOW)
    assert (kept["acceptedKeys"], ready(kept)[1:]) == (["b"], ("InvalidSpec", "nonsense"))


def test_a_route_says_which_of_its_names_it_has() -> None:
    """All, some or none of them; a route that leads nowhere reports that as before."""
    raw = {
        "apiVersion": "turnout.dev/v1alpha1",
        "kind": "LLMRoute",
        "metadata": {"name": "r", "namespace": "team"},
        "spec": {"names": ["x", "y"], "targets": [{"deployment": "m"}]},
    }
    assert claimant_of(raw) == ("LLMRoute", "team", "r")

    def status_of(served: tuple[str, ...], *refused: tuple[str, str], there: bool = True) -> dict[str, Any]:
        return route_status(load_route(raw), ["m"] if there else [], NameAssignment(served, refused), {}, NOW)

    assert status_of(("x", "y"))["servedNames"] == ["x", "y"]
    assert ready(status_of(("x", "y")))[:2] == ("True", "TargetsExist")
    some = status_of(("x",), ("y", "served by other/m"))
    assert some["servedNames"] == ["x"]
    assert ready(some)[:2] == ("True", "NameConflict")
    assert "y (served by other/m)" in ready(some)[2]
    none = status_of((), ("x", "served by m"), ("y", "served by other/m"))
    assert ready(none)[:2] == ("False", "ServedNameConflict")
    assert ready(status_of(("x", "y"), there=False))[:2] == ("False", "DeploymentNotFound")
    assert invalid_route({**raw, "status": some}, "nonsense", NOW)["servedNames"] == ["x"]


@pytest.mark.parametrize(
    ("live", "wanted", "expected"),
    [
        ({"a": 1, "b": 2}, {"a": 1}, True),
        ({"a": 2}, {"a": 1}, False),
        ({}, {"a": 1}, False),
        (
            {"c": [{"name": "x", "image": "1", "tty": False}, {"name": "sidecar"}]},
            {"c": [{"name": "x", "image": "1"}]},
            True,
        ),
        ({"c": [{"name": "x", "image": "2"}]}, {"c": [{"name": "x", "image": "1"}]}, False),
        ({"args": ["a", "b", "c"]}, {"args": ["a", "b"]}, False),
        (
            {"o": [{"uid": "1", "name": "n"}, {"uid": "2", "name": "n"}]},
            {"o": [{"uid": "2", "name": "n"}]},
            True,
        ),
        ({"o": []}, {"o": [{"uid": "2", "name": "n"}]}, False),
        ({"a": None}, {"a": {"b": 1}}, False),
    ],
    ids=[
        "added field",
        "edited field",
        "missing field",
        "added container",
        "edited container",
        "added argument",
        "second owner",
        "no owner",
        "null",
    ],
)
def test_what_counts_as_drift(live: Any, wanted: Any, expected: bool) -> None:  # noqa: FBT001 - a table's column
    """What others add is theirs; what we set must stand."""
    assert holds(live, wanted) is expected
