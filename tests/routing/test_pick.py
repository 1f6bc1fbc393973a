"""The workers that serve a request: least loaded, of one revision, and why there is no prefill worker."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.routing import UNCONSTRAINED, Backend, Constraints, LoadChooser, WorkerPair
from turnout.routing.load_tracker import Prompt


@dataclass(frozen=True)
class Loaded:
    tokens: int = 0
    requests: int = 0
    last_pick: int = 0


def backend(name: str, role: str, revision: str = "a") -> Backend:
    return Backend(name, "d/m", "h", 1, role, revision, ("m",))  # type: ignore[arg-type]


P, D = backend("p", "prefill"), backend("d", "decode")
P2, D2 = backend("p2", "prefill"), backend("d2", "decode")
NEW_P, NEW_D = backend("np", "prefill", "b"), backend("nd", "decode", "b")
WHOLE = backend("w", "aggregated")


def choose(
    backends: list[Backend], loads: dict[str, Loaded], tokens: int, constraints: Constraints = UNCONSTRAINED
) -> WorkerPair | None:
    return LoadChooser(loads, 256).choose(backends, Prompt(tokens), constraints, 0.0)


@pytest.mark.parametrize(
    ("situation", "backends", "loads", "tokens", "expected"),
    [
        ("a pair", [P, D], {}, 1000, ("d", "p", None)),
        ("a short prompt", [P, D], {}, 10, ("d", None, "short_prompt")),
        ("no prefill worker", [D], {}, 1000, ("d", None, "no_prefill")),
        ("no decode worker", [P], {}, 1000, None),
        ("no worker at all", [], {}, 1000, None),
        ("one pool for both phases", [WHOLE], {}, 1000, ("w", None, "aggregated")),
        ("the less loaded of each", [P, P2, D, D2], {"p": Loaded(9), "d2": Loaded(1)}, 1000, ("d", "p2", None)),
        ("equal tokens, fewer requests", [D, D2], {"d": Loaded(5, 2), "d2": Loaded(5, 1)}, 9, ("d2", None, "short_prompt")),
        ("equals take turns", [D, D2], {"d": Loaded(0, 0, 8), "d2": Loaded(0, 0, 7)}, 9, ("d2", None, "short_prompt")),
        ("only one revision has prefill", [P, D, NEW_D], {"d": Loaded(99)}, 1000, ("d", "p", None)),
        ("a short prompt goes to any revision", [P, D, NEW_D], {"d": Loaded(99)}, 1, ("nd", None, "short_prompt")),
        ("revisions are never mixed", [P, NEW_D], {}, 1000, ("nd", None, "no_prefill")),
        ("two generations", [P, D, NEW_P, NEW_D], {"d": Loaded(5), "np": Loaded(50)}, 1000, ("nd", "np", None)),
    ],
)  # fmt: skip
def test_situations(
    situation: str,
    backends: list[Backend],
    loads: dict[str, Loaded],
    tokens: int,
    expected: tuple[str, str | None, str | None] | None,
) -> None:
    """Each situation of the table leads to its choice."""
    choice = choose(backends, loads, tokens)
    found = choice and (choice.decode.id, choice.prefill and choice.prefill.id, choice.local_reason)
    assert found == expected, situation


def test_avoided_backends_are_the_last_resort_and_excluded_ones_none() -> None:
    """A retry goes elsewhere where it can."""
    avoided = choose([D, D2], {}, 1, UNCONSTRAINED.avoiding("d"))
    assert avoided is not None
    assert avoided.decode == D2
    alone = choose([D], {}, 1, UNCONSTRAINED.avoiding("d"))
    assert alone is not None
    assert alone.decode == D
    assert choose([D], {}, 1, UNCONSTRAINED.excluding("d")) is None


fleets = st.lists(
    st.tuples(st.sampled_from(["prefill", "decode", "aggregated"]), st.sampled_from(["a", "b", "c"])),
    max_size=12,
).map(lambda kinds: [backend(f"x{i}", role, revision) for i, (role, revision) in enumerate(kinds)])


@given(data=st.data(), fleet=fleets, tokens=st.integers(0, 10_000))
def test_whatever_the_fleet_the_choice_keeps_its_promises(
    data: st.DataObject, fleet: list[Backend], tokens: int
) -> None:
    """One revision, the right roles, none of them excluded, a reason exactly where there is no prefill."""
    ids = [b.id for b in fleet]
    excluded = frozenset(data.draw(st.sets(st.sampled_from(ids)) if ids else st.just(set())))
    loads = {i: Loaded(data.draw(st.integers(0, 100))) for i in ids}
    choice = choose(fleet, loads, tokens, Constraints(excluded))
    can_decode = [b for b in fleet if b.role != "prefill" and b.id not in excluded]
    if choice is None:
        assert not can_decode
        return
    assert choice.decode in can_decode
    assert (choice.prefill is None) == (choice.local_reason is not None)
    if choice.prefill is not None:
        assert choice.prefill.role == "prefill"
        assert choice.prefill.id not in excluded
        assert choice.prefill.revision == choice.decode.revision
        assert tokens >= 256
    elif choice.local_reason == "no_prefill":
        assert not any(
            b.role == "prefill" and b.id not in excluded and b.revision == d.revision
            for b in fleet
            for d in can_decode
        )


@given(st.integers(1, 6), st.integers(1, 60))
def test_equal_requests_spread_evenly(workers: int, requests: int) -> None:
    """After n equal requests no worker has more than one above another."""
    fleet = [backend(f"d{i}", "decode") for i in range(workers)]
    tokens = dict.fromkeys((b.id for b in fleet), 0)
    for _ in range(requests):
        choice = choose(fleet, {i: Loaded(t) for i, t in tokens.items()}, 10)
        assert choice is not None
        tokens[choice.decode.id] += 10
    assert max(tokens.values()) - min(tokens.values()) <= 10
