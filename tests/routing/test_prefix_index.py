"""The prefix index and the shadow caches: what they hold, what they forget, and that they stay bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.routing.prefix import PrefixIndex
from turnout.routing.shadow import LEAST_SHARE, ShadowCache
from turnout.simulation.kv import Holding, KvCache


def chain(conversation: int, blocks: int) -> tuple[int, ...]:
    return tuple(conversation * 1000 + depth for depth in range(blocks))


def test_one_walk_ranks_all_backends() -> None:
    """A match is the leading blocks without a gap, whatever lies behind the gap."""
    index = PrefixIndex()
    for backend, blocks in ((0, (1, 2, 3)), (1, (1,)), (2, (1, 3)), (3, (2, 3))):
        for block in blocks:
            index.add(block, backend)
    assert index.match((1, 2, 3, 4), 5) == [3, 1, 1, 0, 0]
    assert index.match((), 5) == [0, 0, 0, 0, 0]


def test_the_index_forgets_what_no_one_holds() -> None:
    """A block goes with its last holder; removing what is not there does no harm."""
    index = PrefixIndex()
    index.add(1, 0)
    index.add(1, 70)
    index.remove(1, 0)
    assert (len(index), index.match((1,), 71)[70]) == (1, 1)
    index.remove(1, 70)
    index.remove(1, 70)
    assert len(index) == 0


def test_a_shadow_evicts_the_least_recently_used_and_a_prompts_end_first() -> None:
    """As the engine does: a prefix outlives what hangs on it, and what is in flight stays."""
    index = PrefixIndex()
    shadow = ShadowCache(index, 0, 6)
    old, new = chain(1, 3), chain(2, 3)
    shadow.admit(old, 0)
    shadow.release(old, 0)
    shadow.admit(new, 0)
    shadow.admit(chain(3, 1), 0)
    assert index.match(old, 1) == [2]
    assert index.match(new, 1) == [3]
    shadow.admit((), 2)
    assert index.match(old, 1) == [0]
    assert index.match(new, 1) == [3]


def test_more_in_flight_than_capacity_is_kept_and_reported() -> None:
    """Requests that wait for room count, too: `held` may exceed the capacity, and shrinks when they end."""
    shadow = ShadowCache(PrefixIndex(), 0, 4)
    shadow.admit(chain(1, 3), 1)
    shadow.admit(chain(2, 3), 1)
    assert shadow.held == 8
    shadow.release(chain(1, 3), 1)
    shadow.release(chain(2, 3), 1)
    assert shadow.held == 0


def test_answers_that_contradict_the_shadow_change_its_room() -> None:
    """Fewer cached tokens than thought shrink it, down to a floor; more let it grow again, up to the capacity."""
    index = PrefixIndex()
    shadow = ShadowCache(index, 0, 100)
    shadow.admit(chain(1, 90), 0)
    shadow.release(chain(1, 90), 0)
    for _ in range(1000):
        shadow.correct(expected_blocks=5, found_blocks=0)
    assert index.match(chain(1, 90), 1) == [int(100 * LEAST_SHARE)]
    for _ in range(1000):
        shadow.correct(expected_blocks=0, found_blocks=5)
    shadow.admit(chain(2, 70), 0)
    assert index.match(chain(2, 70), 1) == [70]
    assert index.match(chain(1, 90), 1) == [int(100 * LEAST_SHARE)]


def test_a_backend_that_left_is_out_of_the_index() -> None:
    """Also what was in flight there, whose end may be reported later."""
    index = PrefixIndex()
    shadow = ShadowCache(index, 0, 10)
    shadow.admit(chain(1, 4), 0)
    shadow.drop()
    assert len(index) == 0
    shadow.release(chain(1, 4), 0)
    assert len(index) == 0


def test_a_restarted_engine_is_known_to_be_empty() -> None:
    """Only what is in flight is still expected there."""
    index = PrefixIndex()
    shadow = ShadowCache(index, 0, 10)
    shadow.admit(chain(1, 4), 0)
    shadow.release(chain(1, 4), 0)
    shadow.admit(chain(2, 2), 0)
    shadow.clear()
    assert (index.match(chain(1, 4), 1), index.match(chain(2, 2), 1)) == ([0], [2])


def test_a_cache_without_room_is_refused() -> None:
    """A capacity below one block is a mistake of the caller."""
    with pytest.raises(ValueError, match="at least one block"):
        ShadowCache(PrefixIndex(), 0, 0)
    with pytest.raises(ValueError, match="at least one block"):
        ShadowCache(PrefixIndex(), 0, 1).resize(0)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6), st.integers(0, 3)), max_size=60))
def test_a_shadow_is_the_engines_cache(requests: list[tuple[int, int, int]]) -> None:
    """One request after the other, the shadow knows exactly what the engine's own KV cache holds."""
    index = PrefixIndex()
    shadow, real = ShadowCache(index, 0, 12), KvCache(12)
    for conversation, blocks, private in requests:
        hashes = chain(conversation, blocks)
        assert index.match(hashes, 1) == [real.lookup(hashes, blocks)]
        holding = Holding()
        hits = real.lookup(hashes, blocks)
        assert real.take(holding, hashes[:hits], blocks - hits + private)
        real.publish(holding, hashes, blocks)
        shadow.admit(hashes, private)
        assert shadow.held == real.used
        real.release(holding)
        shadow.release(hashes, private)


@given(
    st.integers(1, 20),
    st.lists(st.tuples(st.booleans(), st.integers(0, 8), st.integers(0, 10), st.integers(0, 4)), max_size=80),
)
def test_a_shadow_is_bounded(capacity: int, steps: list[tuple[bool, int, int, int]]) -> None:
    """Whatever comes, the index holds no more than the capacity or what is in flight."""
    index = PrefixIndex()
    shadow = ShadowCache(index, 0, capacity)
    flights: list[tuple[tuple[int, ...], int]] = []
    for begins, conversation, blocks, private in steps:
        if begins or not flights:
            flights.append((chain(conversation, blocks), private))
            shadow.admit(*flights[-1])
        else:
            shadow.release(*flights.pop(conversation % len(flights)))
        in_flight = {block for hashes, _ in flights for block in hashes}
        assert len(index) <= max(capacity, len(in_flight))
        assert shadow.held == len(in_flight) + sum(each for _, each in flights)
