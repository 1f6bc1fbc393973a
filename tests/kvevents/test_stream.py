"""Following one engine's events: after any loss, repetition, disorder or restart, a replay leads to the engine's truth."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turnout.routing.events import (
    MAX_FRUITLESS,
    MAX_MEDIA,
    MAX_PENDING,
    MAX_PENDING_WORK,
    WORK_AT_ONCE,
    Batch,
    Cleared,
    EventStream,
    ExactCache,
    KvEvent,
    Removed,
    Stored,
    work_of,
)
from turnout.routing.prefix import PrefixIndex
from turnout.routing.tokens import chain, extra_of

SIZE = 2


def stream(bound: int = 1000) -> tuple[EventStream, PrefixIndex]:
    index = PrefixIndex()
    return EventStream(ExactCache(index, 0, bound)), index


def stored(*blocks: int, parent: int | None = None, **more: object) -> Stored:
    """Blocks 10, 11 ... hold the tokens (10, 10), (11, 11) ..."""
    tokens = tuple(token for block in blocks for token in (block, block))
    return Stored(blocks, parent, tokens, SIZE, **more)  # type: ignore[arg-type]


def matched(index: PrefixIndex, *blocks: int, salt: str | None = None) -> int:
    """How many of the leading blocks of that prompt are cached."""
    tokens = [token for block in blocks for token in (block, block)]
    return index.match(chain(tokens, SIZE, salt), 1)[0]


@dataclass
class Engine:
    """An engine that publishes: its cache, its numbers, and what it keeps for replays."""

    keeps: int = 1000
    cached: dict[int, int | None] = field(default_factory=dict)  # block -> parent
    batches: list[tuple[int, list[KvEvent]]] = field(default_factory=list)
    number: int = 0

    def do(self, what: int) -> tuple[int, list[KvEvent]]:
        """Cache a block under one that is cached, or forget some, and publish it."""
        events: list[KvEvent] = []
        if what == 0:
            self.cached.clear()
            events.append(Cleared())
        elif what < 30 or not self.cached:
            parents: list[int | None] = [None, *self.cached]
            parent = parents[what % len(parents)]
            block = hash((parent, what)) & 0xFFFFFFFF
            self.cached[block] = parent
            events.append(stored(block, parent=parent))
        else:
            leaf = next(b for b in reversed(self.cached) if b not in self.cached.values())
            del self.cached[leaf]
            events.append(Removed((leaf,)))
        self.batches = [*self.batches, (self.number, events)][-self.keeps :]
        self.number += 1
        return self.batches[-1]

    def restart(self) -> None:
        self.cached.clear()
        self.batches.clear()
        self.number = 0

    def replay(self, first: int) -> list[tuple[int, list[KvEvent]]]:
        return [each for each in self.batches if each[0] >= first]


def settle(follower: EventStream, engine: Engine, asked: int | None) -> None:
    """Answer replays until none is asked for."""
    for _ in range(20):
        if asked is None:
            return
        for number, batch in engine.replay(asked):
            follower.replayed(number, batch)
        asked = follower.replay_ended()
    raise AssertionError("it asks for replays without end")


def paths(engine: Engine) -> dict[int, list[int]]:
    """Each cached block with all blocks before it."""
    found: dict[int, list[int]] = {}
    for block, parent in engine.cached.items():
        found[block] = [*(found[parent] if parent is not None else []), block]
    return found


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 40),
            st.sampled_from(["ok", "ok", "ok", "lost", "twice", "late", "restart", "reconnect"]),
        ),
        max_size=60,
    )
)
def test_whatever_happens_on_the_way_it_converges_to_the_engines_cache(
    steps: list[tuple[int, str]],
) -> None:
    """Loss, repetition, disorder, restarts and reconnects: once the last batch is there, both hold the same blocks."""
    follower, index = stream()
    engine = Engine()
    settle(follower, engine, follower.connected())
    late: list[tuple[int, list[KvEvent]]] = []
    for what, fate in steps:
        if fate == "restart":
            engine.restart()
            follower.disconnected()
            late.clear()  # they were on the connection that is gone
            settle(follower, engine, follower.connected())
        number, batch = engine.do(what)
        if fate == "late":
            late.append((number, batch))
        elif fate == "reconnect":
            follower.disconnected()
            late.clear()
            settle(follower, engine, follower.connected())
        elif fate != "lost":
            settle(follower, engine, follower.live(number, batch))
            for delayed in [*late, *([(number, batch)] if fate == "twice" else [])]:
                settle(follower, engine, follower.live(*delayed))
            late.clear()
    settle(follower, engine, follower.live(*engine.do(1)))
    assert follower.complete
    assert len(follower.cache) == len(engine.cached)
    assert len(index) == len(engine.cached)
    for path in paths(engine).values():
        assert matched(index, *path) == len(path)


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.sampled_from(["ok", "lost", "late"])), max_size=40),
    st.integers(1, 5),
)
def test_what_a_short_replay_cannot_give_is_never_made_up(steps: list[tuple[int, str]], keeps: int) -> None:
    """An engine that keeps few batches: what is known is cached there, and `complete` holds only where all is known."""
    follower, index = stream()
    engine = Engine(keeps=keeps)
    for what, _ in steps[:3]:
        engine.do(what)
    settle(follower, engine, follower.connected())
    for what, fate in steps[3:]:
        number, batch = engine.do(what)
        if fate == "ok":
            settle(follower, engine, follower.live(number, batch))
    settle(follower, engine, follower.live(*engine.do(1)))
    known = sum(matched(index, *path) == len(path) for path in paths(engine).values())
    assert len(index) == len(follower.cache) <= known
    if follower.complete:
        assert known == len(engine.cached)


def test_an_engine_that_has_published_nothing_has_nothing_cached() -> None:
    """An empty replay from the start is a complete answer; without a replay it is none."""
    follower, _ = stream()
    assert follower.connected() == 0
    assert not follower.complete
    assert follower.replay_ended() is None
    assert follower.complete
    other, _ = stream()
    other.connected()
    other.replay_failed()
    assert not other.complete
    assert other.live(0, [stored(1)]) is None
    assert other.complete


def test_batches_that_come_during_a_replay_wait_for_its_end() -> None:
    """They are applied after it, those that it held already once only."""
    follower, index = stream()
    follower.connected()
    follower.live(1, [stored(2, parent=1)])
    follower.replayed(0, [stored(1)])
    follower.replayed(1, [stored(2, parent=1)])
    follower.live(2, [stored(3, parent=2)])
    assert matched(index, 1, 2, 3) == 2
    assert follower.replay_ended() is None
    assert matched(index, 1, 2, 3) == 3
    assert (follower.next, follower.gaps, follower.lost) == (3, 0, 0)


def test_a_hole_in_a_replay_is_asked_for_again() -> None:
    """A replay goes over a socket that drops what its reader cannot take: it is continued where the hole begins."""
    follower, _ = stream()
    follower.connected()
    follower.replayed(0, [stored(1)])
    follower.replayed(2, [stored(3)])
    assert follower.replay_ended() == 1
    for number, block in ((1, 2), (2, 3)):
        follower.replayed(number, [stored(block)])
    assert follower.replay_ended() is None
    assert (follower.complete, follower.next, len(follower.cache)) == (True, 3, 3)


def test_a_batch_that_is_nowhere_to_be_had_counts_as_lost() -> None:
    """After so many replays that bring nothing, what is known is given up and following goes on."""
    follower, index = stream()
    settle(follower, Engine(), follower.connected())
    follower.live(0, [stored(1)])
    assert follower.live(5, [stored(9)]) == 1
    asked = 0
    while follower.replay_ended() is not None:
        asked += 1
    assert asked == MAX_FRUITLESS - 1
    assert (follower.lost, follower.complete, follower.next) == (1, False, 6)
    assert (matched(index, 1), matched(index, 9)) == (0, 1)
    follower.live(6, [Cleared()])
    assert follower.complete


def test_without_a_replay_a_gap_loses_what_was_known() -> None:
    """Removals may be among what was missed; what comes afterwards is known again."""
    follower, index = stream()
    settle(follower, Engine(), follower.connected())
    follower.live(0, [stored(1)])
    assert follower.live(2, [stored(9)]) == 1
    follower.replay_failed()
    assert (follower.lost, follower.complete) == (1, False)
    assert (matched(index, 1), matched(index, 9)) == (0, 1)
    assert follower.live(3, [stored(8)]) is None


def test_a_batch_that_no_one_can_read_suspends_until_the_engine_starts_over() -> None:
    """Its content is unknown, so nothing known before counts; a clear or a restart makes it whole."""
    follower, index = stream()
    settle(follower, Engine(), follower.connected())
    follower.live(0, [stored(1)])
    follower.live(1, None)
    assert (follower.unreadable, follower.complete, matched(index, 1)) == (1, False, 0)
    follower.live(2, [stored(2)])
    assert not follower.complete
    assert follower.live(0, [stored(7)]) == 0
    follower.replayed(0, [stored(7)])
    assert follower.replay_ended() is None
    assert (follower.restarts, follower.complete, matched(index, 7), matched(index, 2)) == (1, True, 1, 0)


def test_nothing_grows_without_bound() -> None:
    """Batches that wait for a replay, blocks and kinds of memory: an engine cannot fill the router."""
    follower, index = stream(bound=10)
    follower.connected()
    for number in range(MAX_PENDING + 50):
        follower.live(number, [])
    assert len(follower._pending) == MAX_PENDING
    follower.replay_ended()
    cache = ExactCache(index, 0, 10)
    for block in range(50):
        cache.apply(stored(block, medium=f"medium {block % 20}"))
    assert len(cache) == len(index) <= 10
    assert len(cache._media) == MAX_MEDIA
    assert cache.dropped > 0


def test_a_replay_that_breaks_off_is_continued() -> None:
    """As long as it brings something: one that brings nothing more, and no end either, is over."""
    follower, index = stream()
    follower.connected()
    follower.replayed(0, [stored(1)])
    assert follower.replay_ended(whole=False) == 1
    follower.replayed(1, [stored(2)])
    assert follower.replay_ended(whole=False) == 2
    assert follower.replay_ended(whole=False) is None
    assert (follower.complete, matched(index, 1), matched(index, 2)) == (True, 1, 1)


def test_batches_kept_during_a_replay_are_bounded_in_what_they_hold() -> None:
    """Large ones are dropped sooner, the oldest first, and replayed: an engine cannot fill the router with few of them."""
    follower, _ = stream()
    follower.connected()
    large: list[KvEvent] = [Stored(tuple(range(100)), None, (7,) * 100_000, 1_000)]
    for number in range(50):
        follower.live(number, large)
    assert len(follower._pending) == MAX_PENDING_WORK // sum(map(work_of, large))
    assert follower._pending_work <= MAX_PENDING_WORK
    assert follower.replay_ended() == 0, "what was dropped is asked for"
    follower.disconnected()
    assert (len(follower._pending), follower._pending_work) == (0, 0)


def test_a_large_batch_is_worked_off_in_turns() -> None:
    """No call does more than so much work; in the end it is as if all had been done at once."""
    follower, index = stream(bound=100_000)
    settle(follower, Engine(), follower.connected())
    events: list[KvEvent] = [stored(*range(first, first + 500)) for first in range(0, 20_000, 500)]
    events += [Cleared(), stored(1, 2)]
    assert follower.live(0, events) is None
    calls, before = 1, len(index)
    assert 0 < before * 16 <= WORK_AT_ONCE + work_of(events[0])
    while follower.work():
        calls += 1
        done, before = len(index) - before, len(index)
        assert done * 16 <= WORK_AT_ONCE + work_of(events[0])
    assert calls >= sum(map(work_of, events)) // (WORK_AT_ONCE + work_of(events[0]))
    assert (matched(index, 1, 2), len(index), follower.next) == (2, 2, 1)


@pytest.mark.parametrize("end", ["disconnected", "restarted", "unreadable", "lost"])
def test_what_is_left_to_do_goes_with_what_it_was_about(end: str) -> None:
    """An engine that is gone, starts anew, or sends what cannot be read: nothing of the old comes up afterwards."""
    follower, index = stream(bound=100_000)
    settle(follower, Engine(), follower.connected())
    events: list[KvEvent] = [stored(*range(first, first + 500)) for first in range(0, 20_000, 500)]
    follower.live(0, events)
    assert follower.work()
    if end == "disconnected":
        follower.disconnected()
    elif end == "restarted":
        assert follower.live(0, [stored(1)]) == 0
    elif end == "unreadable":
        follower.live(1, None)
    else:
        assert follower.live(5, []) == 1
        follower.replay_failed()
    assert not follower.work()
    assert len(index) == 0


def test_a_block_counts_wherever_it_lies() -> None:
    """In a slower tier it is cached, too; it is gone when the last kind of memory has let it go."""
    follower, index = stream()
    cache = follower.cache
    cache.apply(stored(1, 2))
    cache.apply(Stored((2,), None, (), 0, "CPU"))  # a tier that names blocks by their hashes alone
    cache.apply(Removed((2,)))
    assert matched(index, 1, 2) == 2
    cache.apply(Removed((2,), "CPU"))
    assert matched(index, 1, 2) == 1
    cache.apply(Removed((2,), "DISK"))
    assert len(cache) == 1


def test_blocks_without_a_known_place_are_left_out() -> None:
    """Behind an unknown parent, or with tokens that do not fit their number; a later event puts them right."""
    follower, index = stream()
    cache = follower.cache
    cache.apply(stored(2, parent=1))
    cache.apply(Stored((1, 2, 3), None, (1, 1, 2), SIZE))
    assert (len(index), cache.unplaced) == (0, 4)
    cache.apply(stored(1, 2))  # reused blocks are named again, from the prompt's beginning on
    assert matched(index, 1, 2) == 2


def test_of_several_groups_of_layers_one_decides() -> None:
    """Sliding windows forget blocks that full attention keeps: only the group named first counts."""
    follower, index = stream()
    cache = follower.cache
    cache.apply(stored(1, 2, group=0))
    cache.apply(stored(1, 2, group=1))
    cache.apply(Removed((1,), group=1))
    assert matched(index, 1, 2) == 2
    cache.apply(Removed((1,), group=0))
    assert matched(index, 1, 2) == 0


def test_salts_and_adapters_part_caches() -> None:
    """The same tokens under another salt or adapter are other blocks."""
    follower, index = stream()
    follower.cache.apply(stored(1, 2, extra=(extra_of(["pepper"]), "")))
    assert matched(index, 1, 2, salt="pepper") == 2
    assert matched(index, 1, 2) == 0
    lora = extra_of(["sql"])
    follower.cache.apply(stored(3, 4, extra=(lora, lora)))
    assert index.match(chain([3, 3, 4, 4], SIZE, adapter="sql"), 1) == [2]
    assert index.match(chain([3, 3, 4, 4], SIZE), 1) == [0]


@pytest.mark.parametrize("engine_hash", [7, b"\x07" * 32])
def test_engines_may_hash_as_they_like(engine_hash: int | bytes) -> None:
    """64-bit numbers or whole digests, whatever the seed: blocks are known by their tokens."""
    follower, index = stream()
    follower.cache.apply(Stored((engine_hash,), None, (1, 1), SIZE))
    follower.cache.apply(Stored((b"other",), engine_hash, (2, 2), SIZE))
    assert matched(index, 1, 2) == 2


def test_replays_that_were_not_asked_for_change_nothing() -> None:
    """Late answers of a replay that was given up are passed over."""
    follower, index = stream()
    settle(follower, Engine(), follower.connected())
    batch: Batch = [stored(1)]
    follower.replayed(0, batch)
    assert follower.replay_ended() is None
    follower.replay_failed()
    assert (len(index), follower.next) == (0, 0)
