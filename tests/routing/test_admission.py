"""Who is let in, who waits, and who is turned away when there is no room for all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.routing.admission import (
    HIGH,
    LOW,
    NORMAL,
    TIERS,
    AdmissionBounds,
    AdmissionLimits,
    Tier,
    Verdict,
    has_room,
    judge,
)

LIMITS = AdmissionLimits(requests_per_worker=2, tokens_per_worker=100, waiting=3, waiting_tokens=90)


@pytest.mark.parametrize(
    ("requests", "tokens", "cost", "workers", "room"),
    [
        (1, 10, 10, 1, True),
        (2, 20, 10, 1, False),  # as many requests as there may be
        (2, 20, 10, 2, True),  # twice the workers, twice the room
        (1, 95, 10, 1, False),  # too many tokens
        (0, 0, 1000, 1, True),  # larger than all the room, but alone
        (1, 1, 1000, 1, False),
        (9, 999, 10, 0, True),  # no worker: not a matter of room
    ],
)
def test_room(requests: int, tokens: int, cost: int, workers: int, room: bool) -> None:  # noqa: FBT001 - a table's column
    """Both bounds grow with the workers that decode."""
    assert has_room(requests, tokens, cost, workers, LIMITS) is room


@pytest.mark.parametrize(
    ("waiting", "tier", "room", "verdict"),
    [
        ((0, 0, 0), NORMAL, True, Verdict("enter")),
        ((0, 0, 0), NORMAL, False, Verdict("wait")),
        ((0, 1, 0), NORMAL, True, Verdict("wait")),  # not past its own tier
        ((0, 1, 0), LOW, True, Verdict("wait")),  # not past a higher one
        ((0, 1, 0), HIGH, True, Verdict("enter")),
        ((0, 3, 0), NORMAL, False, Verdict("leave")),
        ((1, 0, 2), NORMAL, False, Verdict("wait", displaced=LOW)),
        ((0, 2, 1), HIGH, False, Verdict("wait", displaced=LOW)),
        ((0, 3, 0), HIGH, False, Verdict("wait", displaced=NORMAL)),
        ((3, 0, 0), HIGH, False, Verdict("leave")),
    ],
)
def test_verdicts(waiting: tuple[int, int, int], tier: Tier, room: bool, verdict: Verdict) -> None:  # noqa: FBT001 - a table's column
    """Order of tier and arrival; a full queue makes way for a higher tier, from the lowest one."""
    assert judge(waiting, waiting, 1, tier, LIMITS, room=room) == verdict


@pytest.mark.parametrize(
    ("waiting", "tokens", "cost", "tier", "verdict"),
    [
        ((0, 1, 0), (0, 80, 0), 10, NORMAL, Verdict("wait")),
        ((0, 1, 0), (0, 80, 0), 11, NORMAL, Verdict("leave")),
        ((0, 0, 0), (0, 0, 0), 5000, NORMAL, Verdict("wait")),  # alone, however large
        ((0, 0, 2), (0, 0, 90), 50, NORMAL, Verdict("wait", displaced=LOW)),
        ((0, 1, 1), (0, 60, 30), 40, NORMAL, Verdict("leave")),  # none is displaced in vain
        ((0, 1, 1), (0, 60, 30), 40, HIGH, Verdict("wait", displaced=LOW)),
    ],
)
def test_verdicts_by_tokens(
    waiting: tuple[int, int, int], tokens: tuple[int, int, int], cost: int, tier: Tier, verdict: Verdict
) -> None:
    """The tokens that wait are bounded like the requests."""
    assert judge(waiting, tokens, cost, tier, LIMITS, room=False) == verdict


def test_a_deployments_own_bounds_stand_over_the_routers() -> None:
    """What it does not say stays the router's; 0 is a bound like any other."""
    own = AdmissionBounds(waiting=0, wait_seconds=1.5).over(LIMITS)
    assert own == AdmissionLimits(2, 100, 0, 90, 1.5)
    assert judge((0, 0, 0), (0, 0, 0), 1, NORMAL, own, room=False) == Verdict("leave")
    assert judge((0, 0, 0), (0, 0, 0), 1, NORMAL, own, room=True) == Verdict("enter")


@given(
    st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)), st.sampled_from(TIERS), st.booleans()
)
def test_the_queue_never_outgrows_its_bound_and_no_one_is_overtaken_from_below(
    waiting: tuple[int, int, int],
    tier: Tier,
    room: bool,  # noqa: FBT001 - drawn
) -> None:
    """A request that waits on top of a full queue takes the place of one of a lower tier."""
    verdict = judge(waiting, waiting, 1, tier, LIMITS, room=room)
    if verdict.does == "wait" and sum(waiting) >= LIMITS.waiting:
        assert verdict.displaced is not None
        assert verdict.displaced > tier
        assert waiting[verdict.displaced]
    if verdict.does == "enter":
        assert room
        assert not any(waiting[: tier + 1])
