"""Names that several deployments claim, and drift."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout_operator.plan.claims import Claim, claim_of, settle
from turnout_operator.plan.drift import holds


def test_the_oldest_claim_wins() -> None:
    """The younger gets what is left, and is told who has the rest."""
    settled = settle(
        [
            Claim("b", "2026-01-02", ("x", "y")),
            Claim("a", "2026-01-03", ("x", "z")),
            Claim("c", "2026-01-01", ("y",)),
        ]
    )
    assert settled["c"].served == ("y",)
    assert (settled["b"].served, settled["b"].refused) == (("x",), (("y", "c"),))
    assert (settled["a"].served, settled["a"].refused) == (("z",), (("x", "b"),))


@given(
    claims=st.lists(
        st.builds(
            Claim,
            st.text("abcd", min_size=1, max_size=2),
            st.sampled_from(["1", "2"]),
            st.lists(st.sampled_from("xyz")).map(tuple),
        ),
        unique_by=lambda claim: claim.deployment,
        max_size=6,
    ),
    random=st.randoms(),
)
def test_a_name_has_one_holder_whatever_the_order(claims: list[Claim], random: Any) -> None:
    """Every claimed name is served exactly once, and every operator comes to the same result."""
    settled = settle(claims)
    served = [name for item in settled.values() for name in item.served]
    assert sorted(served) == sorted({name for claim in claims for name in claim.names})
    random.shuffle(claims)
    assert settle(claims) == settled


@pytest.mark.parametrize(
    "spec", [{}, {"model": None}, {"model": {"servedNames": "text"}}, {"model": {"servedNames": [1]}}]
)
def test_a_broken_spec_claims_its_own_name(spec: dict[str, Any]) -> None:
    """One object that cannot be used does not break the settlement of the others."""
    assert claim_of({"metadata": {"name": "a"}, "spec": spec}).names == ("a",)


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
