"""When a backend is left alone, and how it comes back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from turnout.routing import (
    HEALTHY,
    Backend,
    Health,
    HealthPolicy,
    RetryBudget,
    after_check,
    after_failure,
    after_request,
    after_retry,
    after_success,
    after_trial,
    may_retry,
    may_use,
    needs_trial,
    on_pick,
    on_trial,
    usable,
)

POLICY = HealthPolicy(failures=3, first_seconds=1, longest_seconds=30, probe_seconds=10)


def failed(times: int, now: float = 0.0) -> Health:
    state = HEALTHY
    for _ in range(times):
        state = after_failure(state, now, POLICY)
    return state


def test_failures_in_a_row_eject_and_a_success_between_forgives() -> None:
    """Two are borne, the third ejects; after a success they are counted anew."""
    assert may_use(failed(2), 0)
    assert not may_use(failed(3), 0)
    assert may_use(after_failure(after_success(failed(2)), 0, POLICY), 0)


def test_an_ejected_backend_is_probed_by_one_request_at_a_time() -> None:
    """Half open: the first request is the probe, others wait for its outcome, or for its time to be over."""
    state = after_trial(failed(3))
    assert not may_use(state, 0.9)
    assert may_use(state, 1.0)
    probing = on_pick(state, 1.0, POLICY)
    assert not may_use(probing, 5)
    assert may_use(probing, 11)
    assert after_success(probing) == HEALTHY


def test_each_ejection_is_twice_as_long_up_to_a_bound() -> None:
    """1, 2, 4, 8, 16, 30, 30 seconds."""
    state, now, lengths = failed(3), 0.0, []
    for _ in range(7):
        assert state.ejected_until is not None
        lengths.append(state.ejected_until - now)
        now = state.ejected_until
        state = after_failure(on_pick(state, now, POLICY), now, POLICY)
    assert lengths == [1, 2, 4, 8, 16, 30, 30]


def test_late_failures_do_not_prolong_an_ejection() -> None:
    """Requests that were under way fail together: that is one outage, not many."""
    state = failed(3)
    assert after_failure(state, 0.5, POLICY) == state


@given(
    st.lists(st.tuples(st.sampled_from(["fail", "ok", "pick", "trial"]), st.floats(0, 20)), max_size=60),
)
def test_whatever_happens_an_ejection_ends(events: list[tuple[str, float]]) -> None:
    """No sequence of events leaves a backend alone, untried, for longer than the bound."""
    state, now = HEALTHY, 0.0
    for event, passed in events:
        now += passed
        if event == "fail":
            state = after_failure(state, now, POLICY)
        elif event == "ok":
            state = after_success(state)
        elif event == "trial" and needs_trial(state, now):
            state = after_trial(on_pick(state, now, POLICY))
        elif may_use(state, now):
            state = on_pick(state, now, POLICY)
        later = now + POLICY.longest_seconds + POLICY.probe_seconds
        assert may_use(state, later) or needs_trial(state, later)


@given(st.data())
def test_ejection_leaves_a_worker_that_decodes(data: st.DataObject) -> None:
    """Workers that decode are used where all of them are ejected; a prefill worker that is ejected never is."""
    roles = data.draw(st.lists(st.sampled_from(["prefill", "decode"]), min_size=1, max_size=8))
    fleet = [Backend(str(i), "d", "h", 1, role, "a", ()) for i, role in enumerate(roles)]
    out = data.draw(st.sets(st.sampled_from([b.id for b in fleet])))
    found = usable(fleet, {i: Health(3, 1, ejected_until=100.0) for i in out}, 0)
    for role in set(roles):
        of_role = {b.id for b in fleet if b.role == role}
        healthy = of_role - out
        wanted = healthy if role == "prefill" else healthy or of_role
        assert {b.id for b in found if b.role == role} == wanted


def test_retries_are_a_share_of_the_requests() -> None:
    """With nothing left, five requests pay for one retry."""
    budget = RetryBudget(ratio=0.2, burst=20, tokens=0)
    for _ in range(4):
        budget = after_request(budget)
    assert not may_retry(budget)
    budget = after_request(budget)
    assert may_retry(budget)
    assert not may_retry(after_retry(budget))


@given(st.lists(st.booleans(), max_size=300))
def test_the_retry_budget_stays_within_its_bounds(retries: list[bool]) -> None:
    """Never below nothing, never above the burst; retries never exceed burst + ratio * requests."""
    budget, used = RetryBudget(), 0
    for retry in retries:
        budget = after_request(budget)
        if retry and may_retry(budget):
            budget = after_retry(budget)
            used += 1
        assert 0 <= budget.tokens <= budget.burst
    assert used <= 20 + 0.2 * len(retries)


def test_a_backend_that_is_down_is_not_used_until_it_answers() -> None:
    """However much time has passed; and its first answer ends the ejection at once."""
    down = after_check(failed(3), 0.5, answered=False)
    assert not may_use(down, 1000)
    assert on_pick(down, 1000, POLICY) == down
    back = after_check(down, 0.6, answered=True)
    assert needs_trial(back, 0.6)
    assert may_use(after_trial(back), 0.6)
    assert after_success(back) == HEALTHY


def test_the_router_tries_a_backend_before_clients_do() -> None:
    """Once, when its ejection is over; a failed trial prolongs that like a failed request."""
    state = failed(3)
    assert not needs_trial(state, 0.9)
    assert needs_trial(state, 1.0)
    assert not may_use(state, 1000)
    trying = on_pick(state, 1.0, POLICY)
    assert not needs_trial(trying, 5)
    assert needs_trial(trying, 11)  # its end was never reported
    passed = after_trial(trying)
    assert may_use(passed, 1.5)
    assert not needs_trial(passed, 1.5)
    again = after_failure(trying, 2.0, POLICY)
    assert again.ejected_until == 4.0
    assert needs_trial(again, 4.0)
    assert after_trial(HEALTHY) == HEALTHY


def test_answering_about_its_health_all_along_ends_no_ejection() -> None:
    """What fails is something else: the back-off goes on."""
    state = failed(3)
    assert after_check(state, 0.5, answered=True) == state
    assert after_check(failed(2), 0.5, answered=False) == failed(2)


def test_only_a_request_to_a_half_open_backend_is_a_trial() -> None:
    """Neither those to a healthy one, nor those that are sent because there is no other."""
    state = failed(3)
    assert not on_trial(HEALTHY)
    assert not on_trial(on_pick(state, 0.5, POLICY))
    assert on_trial(on_pick(state, 1.0, POLICY))
