"""Other routers' requests in this router's load tracker: tracked like its own, and gone without a trace, whatever is reported."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.routing.load_tracker import LoadTracker, Prompt, Scrape
from turnout.routing.peer_load import PeerLoad
from turnout.routing.policy import PrefixAware
from turnout.routing.work import WorkModel

BLOCK = 4
PROMPT = Prompt(10, (1, 2), expected_output_tokens=6)


def load_tracker_of(*backends: str, capacity: int = 400) -> LoadTracker:
    tracker = LoadTracker(BLOCK)
    tracker.set_backends((id_, capacity) for id_ in backends)
    return tracker


def peer_and_tracker(most: int = 10) -> tuple[PeerLoad, LoadTracker]:
    return PeerLoad(most, 100), load_tracker_of("a", "b")


def report(load: PeerLoad, tracker: LoadTracker, number: int, backend: str = "a", now: float = 1.0) -> bool:
    return load.sent(number, tracker, backend, PROMPT, 0, 0.5, now)


def test_what_a_peer_has_sent_counts_as_waiting_then_running_then_not() -> None:
    """The three messages of a request's life move it through the tracker like an own one."""
    load, tracker = peer_and_tracker()
    state = tracker.states["a"]
    assert report(load, tracker, 7)
    assert (len(state.waiting), state.running, state.queued_tokens, state.queued_seconds) == (1, 0, 10, 0.5)
    assert state.cache.held == 4
    assert load.first_token(7, 2.0)
    assert (len(state.waiting), state.running, state.context_tokens) == (0, 1, 10)
    assert load.finished(7, 3.0)
    assert (state.in_flight, state.context_tokens, state.cache.held, len(load)) == (0, 0, 0, 0)


def test_a_prefix_that_a_peer_sent_is_found_by_the_own_choice() -> None:
    """The shadow learns the blocks: the next prompt that begins alike follows the peer's."""
    load, tracker = peer_and_tracker()
    policy = PrefixAware(tracker, WorkModel())
    prompt = Prompt(4000, tuple(range(1000)))
    for backend in ("a", "b"):
        load = PeerLoad(10, 10_000)
        tracker.set_backends([("a", 8000), ("b", 8000)])
        load.sent(1, tracker, backend, prompt, 0, 0.5, 1.0)
        load.finished(1, 2.0)
        assert policy.choose(prompt, list(tracker.states.values()), 3.0).state.id == backend
        tracker.set_backends([])


def test_a_scrape_counts_only_what_no_router_reported() -> None:
    """Three requests run there, two were reported: one is of other senders."""
    load, tracker = peer_and_tracker()
    report(load, tracker, 1)
    report(load, tracker, 2)
    state = tracker.states["a"]
    tracker.scraped(state, Scrape(running=3, waiting=0, kv_usage=0.1), 2.0)
    assert state.others_running == 1


def test_a_lost_peer_takes_its_requests_along_and_leaves_its_blocks() -> None:
    """Nothing of it is in flight any more; what it had computed is still expected to be cached."""
    load, tracker = peer_and_tracker()
    report(load, tracker, 1)
    report(load, tracker, 2, "b")
    load.first_token(2, 2.0)
    assert load.lost(3.0) == 2
    assert all(state.in_flight == state.cache.held == 0 for state in tracker.states.values())
    assert all(state.queued_tokens == state.context_tokens == 0 for state in tracker.states.values())
    assert tracker.index.match((1, 2), tracker.slots) == [2, 2]
    assert not load.finished(1, 4.0)


def test_a_lost_peer_teaches_nothing_of_how_long_answers_run() -> None:
    """A thousand answers that were cut right after their first token do not make answers look short."""
    load, tracker = PeerLoad(1000, 10_000), load_tracker_of("a", capacity=10**6)
    for number in range(1000):
        report(load, tracker, number)
        load.first_token(number, 1.0)
    before = tracker.residence_seconds
    load.lost(1.5)
    assert tracker.residence_seconds == pytest.approx(before)


def test_a_peers_times_are_counted_in_the_deployments_own() -> None:
    """Of a deployment that runs ten times as fast, one second of the clock is ten."""
    load, tracker = peer_and_tracker()
    before = tracker.residence_seconds
    load.sent(1, tracker, "a", PROMPT, 0, 0.5, 1.0, 10.0)
    assert tracker.states["a"].began == 10.0
    load.first_token(1, 2.0)
    load.finished(1, 7.0)
    assert tracker.residence_seconds == pytest.approx(before + 0.01 * (50.0 - before))


def test_a_first_token_that_no_one_sees_comes_when_it_is_expected() -> None:
    """Of an answer in one piece the peer reports how long its prompt should take."""
    load, tracker = peer_and_tracker()
    state = tracker.states["a"]
    report(load, tracker, 1)
    assert load.expected(1, 0.5, 1.0)
    assert not load.expected(2, 0.5, 1.0)
    tracker.advance([state], 1.4)
    assert (len(state.waiting), state.running) == (1, 0)
    tracker.advance([state], 1.6)
    assert (len(state.waiting), state.running) == (0, 1)


def test_what_makes_no_sense_is_refused_and_books_nothing() -> None:
    """Unknown backends and numbers, numbers reported twice, and more than a peer may have open."""
    load, tracker = peer_and_tracker(most=2)
    assert not report(load, tracker, 1, "unknown")
    assert not load.first_token(1, 1.0)
    assert not load.finished(1, 1.0)
    assert report(load, tracker, 1)
    assert not report(load, tracker, 1, "b")
    assert report(load, tracker, 2)
    assert not report(load, tracker, 3)
    assert sum(state.in_flight for state in tracker.states.values()) == len(load) == 2
    with pytest.raises(ValueError, match="at least one request"):
        PeerLoad(0, 1)


def test_a_peers_blocks_are_bounded_too() -> None:
    """Requests beyond the bound are not tracked; an end makes room again."""
    tracker = load_tracker_of("a")
    load = PeerLoad(10, 4)
    assert report(load, tracker, 1)
    assert report(load, tracker, 2)
    assert not report(load, tracker, 3)
    assert load.finished(1, 2.0)
    assert report(load, tracker, 3)
    load.lost(3.0)
    assert report(load, tracker, 4)


_NUMBERS = st.integers(0, 4)
_BLOCKS = st.lists(st.integers(0, 6), max_size=4, unique=True).map(tuple)
_STEPS = st.one_of(
    st.tuples(
        st.just("sent"),
        st.integers(0, 1),
        _NUMBERS,
        st.sampled_from(["a", "b", "unknown"]),
        _BLOCKS,
        st.integers(-1, 9),
        st.floats(-1, 5),
    ),
    st.tuples(st.just("first"), st.integers(0, 1), _NUMBERS),
    st.tuples(st.just("expected"), st.integers(0, 1), _NUMBERS, st.floats(-1, 2)),
    st.tuples(
        st.just("end"),
        st.integers(0, 1),
        _NUMBERS,
        st.one_of(st.none(), st.integers(0, 99)),
        st.integers(0, 99),
    ),
    st.tuples(st.just("lost"), st.integers(0, 1)),
    st.tuples(st.just("fleet"), st.lists(st.sampled_from(["a", "b", "c"]), unique=True)),
)


@given(st.lists(_STEPS, max_size=60))
def test_reports_in_any_order_leave_the_load_at_zero(steps: list[tuple]) -> None:
    """Two peers, a changing fleet, messages late, twice or never: nothing raises, and nothing stays in flight."""
    tracker = load_tracker_of("a", "b", capacity=20)
    every = {id(state): state for state in tracker.states.values()}
    peers = [PeerLoad(3, 7), PeerLoad(3, 7)]
    now = 0.0
    for kind, *rest in steps:
        now += 0.25
        if kind == "sent":
            who, number, backend, blocks, matched, seconds = rest
            prompt = Prompt(max(1, BLOCK * len(blocks)), blocks)
            peers[who].sent(number, tracker, backend, prompt, matched, seconds, now)
        elif kind == "first":
            peers[rest[0]].first_token(rest[1], now)
        elif kind == "expected":
            peers[rest[0]].expected(rest[1], rest[2], now)
            tracker.advance(list(tracker.states.values()), now)
        elif kind == "end":
            peers[rest[0]].finished(rest[1], now, rest[2], rest[3])
        elif kind == "lost":
            peers[rest[0]].lost(now)
        else:
            tracker.set_backends((id_, 20) for id_ in rest[0])
            every |= {id(state): state for state in tracker.states.values()}
        assert all(len(peer) <= 3 for peer in peers)
    for peer in peers:
        peer.lost(now)
        assert len(peer) == 0
    for state in every.values():
        assert state.in_flight == state.queued_tokens == state.context_tokens == 0
        assert state.queued_seconds == 0.0
        assert state.cache.held == 0
    tracker.set_backends([])
    assert len(tracker.index) == 0
