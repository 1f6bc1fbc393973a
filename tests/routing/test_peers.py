"""Other routers' requests in this router's books: booked as own ones, and gone without a trace, whatever is told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.routing.ledger import Ledger, Prompt, Scrape
from turnout.routing.peers import PeerBook
from turnout.routing.policy import PrefixAware
from turnout.routing.work import WorkModel

BLOCK = 4
PROMPT = Prompt(10, (1, 2), expected_output_tokens=6)


def ledger_of(*backends: str, capacity: int = 400) -> Ledger:
    ledger = Ledger(BLOCK)
    ledger.set_backends((id_, capacity) for id_ in backends)
    return ledger


def book_and_ledger(most: int = 10) -> tuple[PeerBook, Ledger]:
    return PeerBook(most, 100), ledger_of("a", "b")


def tell(book: PeerBook, ledger: Ledger, number: int, backend: str = "a", now: float = 1.0) -> bool:
    return book.sent(number, ledger, backend, PROMPT, 0, 0.5, now)


def test_what_a_peer_has_sent_counts_as_waiting_then_running_then_not() -> None:
    """The three messages of a request's life move it through the books like an own one."""
    book, ledger = book_and_ledger()
    state = ledger.states["a"]
    assert tell(book, ledger, 7)
    assert (len(state.waiting), state.running, state.queued_tokens, state.queued_seconds) == (1, 0, 10, 0.5)
    assert state.cache.held == 4
    assert book.first_token(7, 2.0)
    assert (len(state.waiting), state.running, state.context_tokens) == (0, 1, 10)
    assert book.finished(7, 3.0)
    assert (state.in_flight, state.context_tokens, state.cache.held, len(book)) == (0, 0, 0, 0)


def test_a_prefix_that_a_peer_sent_is_found_by_the_own_choice() -> None:
    """The shadow learns the blocks: the next prompt that begins alike follows the peer's."""
    book, ledger = book_and_ledger()
    policy = PrefixAware(ledger, WorkModel())
    prompt = Prompt(4000, tuple(range(1000)))
    for backend in ("a", "b"):
        book = PeerBook(10, 10_000)
        ledger.set_backends([("a", 8000), ("b", 8000)])
        book.sent(1, ledger, backend, prompt, 0, 0.5, 1.0)
        book.finished(1, 2.0)
        assert policy.choose(prompt, list(ledger.states.values()), 3.0).state.id == backend
        ledger.set_backends([])


def test_a_scrape_counts_only_what_nobody_told_of() -> None:
    """Three requests run there, two were told: one is the others'."""
    book, ledger = book_and_ledger()
    tell(book, ledger, 1)
    tell(book, ledger, 2)
    state = ledger.states["a"]
    ledger.scraped(state, Scrape(running=3, waiting=0, kv_usage=0.1), 2.0)
    assert state.others_running == 1


def test_a_lost_peer_takes_its_requests_along_and_leaves_its_blocks() -> None:
    """Nothing of it is in flight any more; what it had computed is still believed to be cached."""
    book, ledger = book_and_ledger()
    tell(book, ledger, 1)
    tell(book, ledger, 2, "b")
    book.first_token(2, 2.0)
    assert book.lost(3.0) == 2
    assert all(state.in_flight == state.cache.held == 0 for state in ledger.states.values())
    assert all(state.queued_tokens == state.context_tokens == 0 for state in ledger.states.values())
    assert ledger.index.match((1, 2), ledger.slots) == [2, 2]
    assert not book.finished(1, 4.0)


def test_a_lost_peer_teaches_nothing_of_how_long_answers_run() -> None:
    """A thousand answers that were cut right after their first token do not make answers look short."""
    book, ledger = PeerBook(1000, 10_000), ledger_of("a", capacity=10**6)
    for number in range(1000):
        tell(book, ledger, number)
        book.first_token(number, 1.0)
    before = ledger.residence_seconds
    book.lost(1.5)
    assert ledger.residence_seconds == pytest.approx(before)


def test_a_peers_times_are_counted_in_the_deployments_own() -> None:
    """Of a deployment that runs ten times as fast, one second of the clock is ten."""
    book, ledger = book_and_ledger()
    before = ledger.residence_seconds
    book.sent(1, ledger, "a", PROMPT, 0, 0.5, 1.0, 10.0)
    assert ledger.states["a"].began == 10.0
    book.first_token(1, 2.0)
    book.finished(1, 7.0)
    assert ledger.residence_seconds == pytest.approx(before + 0.01 * (50.0 - before))


def test_a_first_token_that_nobody_sees_comes_when_it_is_expected() -> None:
    """Of an answer in one piece the peer tells how long its prompt should take."""
    book, ledger = book_and_ledger()
    state = ledger.states["a"]
    tell(book, ledger, 1)
    assert book.expected(1, 0.5, 1.0)
    assert not book.expected(2, 0.5, 1.0)
    ledger.advance([state], 1.4)
    assert (len(state.waiting), state.running) == (1, 0)
    ledger.advance([state], 1.6)
    assert (len(state.waiting), state.running) == (0, 1)


def test_what_makes_no_sense_is_refused_and_books_nothing() -> None:
    """Unknown backends and numbers, numbers told twice, and more than a peer may have open."""
    book, ledger = book_and_ledger(most=2)
    assert not tell(book, ledger, 1, "nobody")
    assert not book.first_token(1, 1.0)
    assert not book.finished(1, 1.0)
    assert tell(book, ledger, 1)
    assert not tell(book, ledger, 1, "b")
    assert tell(book, ledger, 2)
    assert not tell(book, ledger, 3)
    assert sum(state.in_flight for state in ledger.states.values()) == len(book) == 2
    with pytest.raises(ValueError, match="at least one request"):
        PeerBook(0, 1)


def test_a_peers_blocks_are_bounded_too() -> None:
    """What is too long is not booked; what ends makes room again."""
    ledger = ledger_of("a")
    book = PeerBook(10, 4)
    assert tell(book, ledger, 1)
    assert tell(book, ledger, 2)
    assert not tell(book, ledger, 3)
    assert book.finished(1, 2.0)
    assert tell(book, ledger, 3)
    book.lost(3.0)
    assert tell(book, ledger, 4)


_NUMBERS = st.integers(0, 4)
_BLOCKS = st.lists(st.integers(0, 6), max_size=4, unique=True).map(tuple)
_STEPS = st.one_of(
    st.tuples(
        st.just("sent"),
        st.integers(0, 1),
        _NUMBERS,
        st.sampled_from(["a", "b", "nobody"]),
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
def test_whatever_is_told_in_whatever_order_the_books_end_at_zero(steps: list[tuple]) -> None:
    """Two peers, a changing fleet, messages late, twice or never: nothing raises, and nothing stays in flight."""
    ledger = ledger_of("a", "b", capacity=20)
    every = {id(state): state for state in ledger.states.values()}
    peers = [PeerBook(3, 7), PeerBook(3, 7)]
    now = 0.0
    for kind, *rest in steps:
        now += 0.25
        if kind == "sent":
            who, number, backend, blocks, matched, seconds = rest
            prompt = Prompt(max(1, BLOCK * len(blocks)), blocks)
            peers[who].sent(number, ledger, backend, prompt, matched, seconds, now)
        elif kind == "first":
            peers[rest[0]].first_token(rest[1], now)
        elif kind == "expected":
            peers[rest[0]].expected(rest[1], rest[2], now)
            ledger.advance(list(ledger.states.values()), now)
        elif kind == "end":
            peers[rest[0]].finished(rest[1], now, rest[2], rest[3])
        elif kind == "lost":
            peers[rest[0]].lost(now)
        else:
            ledger.set_backends((id_, 20) for id_ in rest[0])
            every |= {id(state): state for state in ledger.states.values()}
        assert all(len(peer) <= 3 for peer in peers)
    for peer in peers:
        peer.lost(now)
        assert len(peer) == 0
    for state in every.values():
        assert state.in_flight == state.queued_tokens == state.context_tokens == 0
        assert state.queued_seconds == 0.0
        assert state.cache.held == 0
    ledger.set_backends([])
    assert len(ledger.index) == 0
