"""Turnout's choice: by cached prefix, queue, room and adapter; several routers; pairs; and its reasons."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.routing import Backend
from turnout.routing.by_prefix import PrefixChooser
from turnout.routing.candidates import Constraints
from turnout.routing.load_tracker import LoadTracker, Prompt, Scrape
from turnout.routing.policy import PrefixAware
from turnout.routing.work import WorkModel

if TYPE_CHECKING:
    from turnout.routing.load_tracker import BackendState, InFlightRequest

BLOCK = 512


def router(*names: str, tokens: int = 400_000) -> PrefixAware:
    tracker = LoadTracker(BLOCK)
    tracker.set_backends((name, tokens) for name in names)
    return PrefixAware(tracker, WorkModel())


def states(policy: PrefixAware, *names: str) -> list[BackendState]:
    return [policy.tracker.states[name] for name in names or policy.tracker.states]


def prompt(conversation: int, blocks: int = 10, **more: object) -> Prompt:
    hashes = (0, *(conversation * 1000 + depth for depth in range(1, blocks)))
    return Prompt(blocks * BLOCK, hashes, **more)  # type: ignore[arg-type]


def send(policy: PrefixAware, to: str, what: Prompt, now: float = 0.0) -> InFlightRequest:
    return policy.sent(policy.choose(what, states(policy, to), now), what, now)


def serve(policy: PrefixAware, what: Prompt, now: float = 0.0) -> str:
    """Choose, send, and let it run to its end at once."""
    pick = policy.choose(what, states(policy), now)
    request = policy.sent(pick, what, now)
    policy.tracker.first_token(request, now)
    policy.tracker.finished(request, now)
    return pick.state.id


def test_a_conversation_goes_where_its_prefix_is() -> None:
    """Each further turn goes to the backend of the first, others notwithstanding."""
    policy = router("a", "b", "c")
    first, requests = {}, []
    for each in range(1, 7):
        pick = policy.choose(prompt(each), states(policy), 0.0)
        first[each] = pick.state.id
        requests.append(policy.sent(pick, prompt(each), 0.0))
    for request in requests:
        policy.tracker.finished(request, 1.0)
    assert set(first.values()) == {"a", "b", "c"}
    assert {each: serve(policy, prompt(each, 14)) for each in first} == first


@given(
    st.lists(st.floats(0, 1e-3) | st.floats(0, 0.1), min_size=1, max_size=30),
    st.sampled_from([1, 11, 1000]),
)
def test_prompts_of_little_work_are_shared_out(gaps: list[float], tokens: int) -> None:
    """However they come: two idle workers get as many, but for one that is taken to have got further with its own.

    Such answers come in one piece, so that the end of a prefill cannot be observed; it is assumed to be when it was
    expected. Those that come at the same moment are shared out evenly.
    """
    policy = router("a", "b")
    now, counts = 0.0, {"a": 0, "b": 0}
    for gap in gaps:
        now += gap
        what = Prompt(tokens)
        pick = policy.choose(what, states(policy), now)
        policy.sent(pick, what, now).expected_at = now + pick.wait
        counts[pick.state.id] += 1
    assert abs(counts["a"] - counts["b"]) <= (2 if any(gaps[1:]) else len(gaps) % 2)


def test_a_long_queue_outweighs_a_cached_prefix() -> None:
    """Ten long prompts wait where the prefix is: computing it elsewhere is quicker for all requests."""
    policy = router("a", "b")
    served = serve(policy, prompt(1))
    for each in range(10):
        send(policy, served, prompt(100 + each, 60))
    assert policy.choose(prompt(1), states(policy), 0.0).state.id != served


def test_under_overload_a_cached_prefix_weighs_more() -> None:
    """The same difference between two queues, once with no other request waiting and once with many: work decides then."""
    choices = []
    for everywhere in (0, 20):
        policy = router("a", "b")
        done = send(policy, "a", prompt(1, 20))
        policy.tracker.first_token(done, 0.0)
        policy.tracker.finished(done, 0.0)
        for each in range(everywhere):
            for name in ("a", "b"):
                send(policy, name, prompt(500 + each + 100 * (name == "b"), 4))
        send(policy, "a", prompt(2, 70))
        choices.append(policy.choose(prompt(1, 20), states(policy), 0.0).state.id)
    assert choices == ["b", "a"]


def test_a_full_kv_cache_is_avoided() -> None:
    """A backend whose running requests leave no room costs a wait, even if it computes nothing just now."""
    policy = router("a", "b", tokens=100 * BLOCK)
    for each in range(10):
        policy.tracker.first_token(send(policy, "a", prompt(each + 1)), 0.0)
    [b, a] = policy.choose(prompt(99), states(policy), 0.0).costs()
    assert (b.backend, b.kv_wait) == ("b", 0.0)
    assert (a.backend, a.kv_wait > 1) == ("a", True)


def test_decodes_in_flight_are_spread() -> None:
    """Among backends without a queue the one with the least context in its decode steps wins."""
    policy = router("a", "b")
    policy.tracker.first_token(send(policy, "a", prompt(1, 40)), 0.0)
    policy.tracker.first_token(send(policy, "b", prompt(2, 4)), 0.0)
    for each in range(3, 9):
        assert policy.choose(prompt(each, 2), states(policy), 0.0).state.id == "b"


def test_an_adapter_is_looked_for_where_it_is_loaded() -> None:
    """A loaded LoRA adapter outweighs a small cached prefix, not a long queue."""
    policy = router("a", "b")
    policy.tracker.states["b"].adapters = frozenset({"sql"})
    serve_at_a = send(policy, "a", prompt(1, 3))
    policy.tracker.finished(serve_at_a, 0.0)
    with_adapter = prompt(1, 3, adapter="sql")
    assert policy.choose(prompt(1, 3), states(policy), 0.0).state.id == "a"
    assert policy.choose(with_adapter, states(policy), 0.0).state.id == "b"
    for each in range(6):
        send(policy, "b", prompt(50 + each, 60))
    assert policy.choose(with_adapter, states(policy), 0.0).state.id == "a"


def test_the_prompt_under_way_makes_progress() -> None:
    """A backend's queue is the shorter the longer its first prompt has been computed, and never below zero."""
    policy = router("a")
    send(policy, "a", prompt(1, 60))
    queues = [
        policy.choose(prompt(2), states(policy), now).costs()[0].queue for now in (0.0, 0.2, 0.4, 1000.0)
    ]
    assert queues[0] > queues[1] > queues[2] > queues[3]
    assert queues[3] == pytest.approx(0.0, abs=1e-9)


def test_every_end_is_accounted_for() -> None:
    """Finished, failed before its first token, ended twice: nothing stays in flight."""
    policy = router("a")
    tracker, [state] = policy.tracker, states(policy)
    normal, failed, twice = (send(policy, "a", prompt(each)) for each in (1, 2, 3))
    tracker.first_token(normal, 1.0)
    tracker.finished(normal, 2.0, cached_tokens=0)
    tracker.finished(failed, 2.0)
    tracker.first_token(twice, 2.0)
    tracker.first_token(twice, 2.5)
    tracker.finished(twice, 3.0)
    tracker.finished(twice, 3.0)
    tracker.first_token(twice, 3.0)
    in_flight = (
        state.in_flight,
        state.queued_seconds,
        state.queued_tokens,
        state.context_tokens,
        state.cache.held,
    )
    assert in_flight == (0, 0.0, 0, 0, 0)


def test_backends_come_and_go() -> None:
    """One that left is forgotten, its number is used again, and what ends there later does no harm."""
    policy = router("a", "b")
    on_a = send(policy, "a", prompt(1))
    policy.tracker.set_backends([("b", 400_000), ("c", 400_000)])
    assert {state.slot for state in states(policy)} == {0, 1}
    assert policy.tracker.index.match(prompt(1).blocks, 2) == [0, 0]
    policy.tracker.first_token(on_a, 1.0)
    policy.tracker.finished(on_a, 2.0, cached_tokens=0)
    assert serve(policy, prompt(1)) in {"b", "c"}


def test_two_routers_send_a_new_session_to_one_home() -> None:
    """Without a word between them: where nothing else differs, both name the same backend, and sessions spread."""
    homes = []
    for _ in range(2):
        policy = router("a", "b", "c", "d")
        for name in ("a", "b", "c", "d"):
            policy.tracker.finished(send(policy, name, Prompt(BLOCK, (0,))), 0.0)
        homes.append([policy.choose(prompt(each), states(policy), 0.0).state.id for each in range(1, 60)])
    assert homes[0] == homes[1]
    assert len(set(homes[0])) == 4


def test_what_others_sent_counts_and_ages() -> None:
    """Requests of other routers, seen in a scrape, turn the choice; with time they are taken to be worked off."""
    policy = router("a", "b")
    busy = serve(policy, prompt(1))
    policy.scraped(busy, Scrape(running=3, waiting=2, kv_usage=0.2, pending_tokens=300_000), 0.0)
    policy.scraped("gone", Scrape(1, 0, 0.1), 0.0)
    assert policy.choose(prompt(1), states(policy), 0.0).state.id != busy
    assert policy.choose(prompt(1), states(policy), 600.0).state.id == busy


def test_a_scrape_of_own_requests_says_nothing_new() -> None:
    """A router that is alone chooses with scrapes as it does without."""
    policy = router("a", "b")
    request = send(policy, "a", prompt(1, 30))
    before = [cost.figures() for cost in policy.choose(prompt(2), states(policy), 1.0).costs()]
    policy.scraped(
        "a", Scrape(1, 0, request.state.cache.held / request.state.cache.capacity, 30 * BLOCK), 1.0
    )  # type: ignore[union-attr]
    assert [cost.figures() for cost in policy.choose(prompt(2), states(policy), 1.0).costs()] == before


def test_the_reasons_add_up_and_agree_with_the_choice() -> None:
    """Every backend's cost is the sum of its terms, cheapest first, and the first is the one chosen."""
    policy = router("a", "b", "c", tokens=60 * BLOCK)
    for each in range(12):
        request = send(policy, "abc"[each % 3], prompt(each % 5 + 1, 5 + each))
        if each % 2:
            policy.tracker.first_token(request, 0.1 * each)
    pick = policy.choose(prompt(3, 12), states(policy), 2.0)
    costs = pick.costs()
    for each in costs:
        total = (
            each.queue
            + each.prefill
            + each.congestion
            + each.decode
            + each.kv_wait
            + each.adapter
            - each.affinity_bonus
        )
        assert each.total == pytest.approx(total)
    assert [each.total for each in costs] == sorted(each.total for each in costs)
    assert (costs[0].backend, costs[0].total) == (pick.state.id, pick.cost)


def test_no_worker_to_choose_from_is_an_error() -> None:
    """Neither of a whole worker nor of one that decodes."""
    policy = router("a")
    with pytest.raises(ValueError, match="no backend"):
        policy.choose(prompt(1), [], 0.0)
    with pytest.raises(ValueError, match="no backend"):
        policy.choose_pair(prompt(1), states(policy), [], 0.0)


def test_a_long_new_prompt_is_computed_by_a_prefill_worker() -> None:
    """Where streams run on the decode workers, a prompt is moved; once it is cached there, the rest is local."""
    policy = router("p", "d")
    for each in range(20):
        policy.tracker.first_token(send(policy, "d", prompt(100 + each, 4)), 0.0)
    pair = policy.choose_pair(prompt(1, 20), states(policy, "p"), states(policy, "d"), 0.0)
    assert (pair.prefill.state.id if pair.prefill else None, pair.decode.state.id) == ("p", "d")
    policy.tracker.finished(policy.sent(pair.decode, prompt(1, 20), 0.0), 0.0)
    for each in range(3):
        send(policy, "p", prompt(200 + each, 30))
    again = policy.choose_pair(prompt(1, 21), states(policy, "p"), states(policy, "d"), 0.0)
    assert again.prefill is None


def test_a_decode_worker_out_of_room_computes_no_prompt() -> None:
    """Even if the prompt is cached there now: by the time there is room it will not be."""
    policy = router("p", "d", tokens=50 * BLOCK)
    for each in range(5):
        policy.tracker.first_token(send(policy, "d", prompt(each + 1, 10)), 0.0)
    for each in range(4):
        send(policy, "p", prompt(200 + each, 30))
    pair = policy.choose_pair(prompt(1, 10), states(policy, "p"), states(policy, "d"), 0.0)
    assert pair.prefill is not None


def worker(name: str, role: str, revision: str = "r") -> Backend:
    return Backend(name, "d/m", "h", 1, role, revision, ("m",))  # type: ignore[arg-type]


P, D, D2 = worker("p", "prefill"), worker("d", "decode"), worker("d2", "decode")
NEW_P, NEW_D = worker("np", "prefill", "new"), worker("nd", "decode", "new")
WHOLE = worker("w", "aggregated")


@pytest.mark.parametrize(
    ("situation", "backends", "tokens", "more", "expected"),
    [
        ("a pair", [P, D], 9000, {}, ("d", "p", None)),
        ("a short prompt", [P, D], 10, {}, ("d", None, "short_prompt")),
        ("no prefill worker", [D], 9000, {}, ("d", None, "no_prefill")),
        ("no decode worker", [P], 9000, {}, None),
        ("one pool for both phases", [WHOLE], 9000, {}, ("w", None, "aggregated")),
        ("the form forbids it", [P, D], 9000, {"local": "request_form"}, ("d", None, "request_form")),
        ("excluded", [P, D, D2], 9000, {"excluded": frozenset({"d"})}, ("d2", "p", None)),
        ("the only one is avoided", [P, D], 9000, {"avoided": frozenset({"d"})}, ("d", "p", None)),
        ("a revision that can do both", [D, NEW_P, NEW_D], 9000, {}, ("nd", "np", None)),
        ("prefill of another revision", [NEW_P, D], 9000, {}, ("d", None, "no_prefill")),
    ],
)
def test_who_may_serve(
    situation: str, backends: list[Backend], tokens: int, more: dict[str, object], expected: object
) -> None:
    """The rules of roles, revisions and exclusions hold as with the least-loaded policy."""
    policy = router(*(each.id for each in backends))
    for each in backends:  # streams run everywhere, so that moving a long prompt is worth it
        if each.role == "decode":
            for other in range(30):
                policy.tracker.first_token(send(policy, each.id, prompt(100 + other, 4)), 0.0)
    found = PrefixChooser(policy, 256).choose(backends, Prompt(tokens), Constraints(**more), 0.0)  # type: ignore[arg-type]
    if found is None:
        assert expected is None, situation
    else:
        prefill = found.prefill.id if found.prefill else None
        assert (found.decode.id, prefill, found.local_reason) == expected, situation
        assert found.estimate is not None
        assert found.estimate.decode.state.id == found.decode.id
        assert found.reason is not None
        assert f"decode on {found.decode.id}: " in found.reason.sentence
        assert [c.backend for c in found.reason.candidates() if c.chosen] == [
            each for each in (found.decode.id, prefill) if each
        ]
        assert found.reason.weight == len(found.reason.candidates())


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 8), st.integers(1, 30)), max_size=40))
def test_whatever_is_in_flight_a_choice_is_made_and_undone(steps: list[tuple[int, int, int]]) -> None:
    """Any order of sending, first tokens and ends leaves exact accounts and finite costs."""
    policy = router("a", "b", "c", tokens=40 * BLOCK)
    open_: list[InFlightRequest] = []
    for now, (kind, conversation, blocks) in enumerate(steps):
        if kind < 2 or not open_:
            what = prompt(conversation, blocks)
            open_.append(policy.sent(policy.choose(what, states(policy), float(now)), what, float(now)))
        elif kind == 2:
            policy.tracker.first_token(open_[conversation % len(open_)], float(now))
        else:
            policy.tracker.finished(
                open_.pop(conversation % len(open_)), float(now), cached_tokens=conversation
            )
        assert sum(state.in_flight for state in states(policy)) == len(open_)
    for request in open_:
        policy.tracker.finished(request, 100.0)
    assert all(state.cache.held == 0 and not state.waiting for state in states(policy))
