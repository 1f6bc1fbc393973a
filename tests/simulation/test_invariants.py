"""What holds for the engine whatever comes: hypothesis drives it through random lives."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from turnout.simulation import (
    Engine,
    EngineRequest,
    EngineSettings,
    Event,
    Fetch,
    Finished,
    FirstToken,
)
from turnout.simulation.steps import Steps
from turnout.sizing.latency import LatencyModel

LATENCY = LatencyModel(0.0045, 1.7e-5, 5e-10, 0.0064, 1e-5, 4e-8)
FOREVER = 1e9
BLOCK = 4

arrivals = st.lists(
    st.tuples(
        st.floats(0, 0.05),  # seconds since the last one
        st.integers(1, 60),  # prompt tokens
        st.integers(1, 30),  # output tokens
        st.integers(0, 3),  # which family of prefixes
        st.sampled_from(["plain", "pin", "remote", "undelivered", "aborted"]),
    ),
    min_size=1,
    max_size=25,
)
shapes = st.builds(
    EngineSettings,
    kv_blocks=st.integers(23, 80),
    block_size=st.just(BLOCK),
    max_num_seqs=st.integers(1, 8),
    max_num_batched_tokens=st.integers(8, 64),
    kv_lease_seconds=st.floats(0.001, 1),
)


def make(index: int, prompt: int, output: int, family: int, kind: str) -> EngineRequest:
    hashes = tuple(hash((family, block)) for block in range((prompt + output) // BLOCK))
    remote = prompt if kind in {"remote", "undelivered"} else 0
    return EngineRequest(str(index), prompt, output, hashes, pin=kind == "pin", remote_tokens=remote)


def serve(one: Engine, events: list[Event], kinds: dict[str, str], now: float) -> None:
    """Deliver what is fetched, as a driver does."""
    for event in events:
        if isinstance(event, Fetch) and kinds[event.id] == "remote":
            one.deliver(event.id, now)


@given(shape=shapes, life=arrivals)
@settings(max_examples=150)
def test_every_life_keeps_the_books(
    shape: EngineSettings, life: list[tuple[float, int, int, int, str]]
) -> None:
    """Blocks are conserved, time is monotone, hits never exceed queries, and each request ends exactly once."""
    one = Engine(shape, LATENCY)
    kinds: dict[str, str] = {}
    happened: list[Event] = []
    now = 0.0
    for index, (gap, prompt, output, family, kind) in enumerate(life):
        now += gap
        kinds[str(index)] = kind
        one.submit(make(index, prompt, output, family, kind), now)
        if kind == "aborted" and index:
            one.abort(str(index - 1), now)
        events = one.advance(now)
        happened += events
        serve(one, events, kinds, now)
        one.check()
        assert 0 <= one.stats().kv_usage <= 1
    for _ in range(len(life) + 1):  # each fetch that is delivered may let the next one be made
        if (due := one.next_time()) is None:
            break
        now = max(now, due)
        for name in [n for n, kind in kinds.items() if kind == "undelivered"]:
            one.abort(name, now)
        events = one.advance(now + 100)
        now += 100
        happened += events
        serve(one, events, kinds, now)
        one.check()
    happened += one.advance(FOREVER)

    ended = Counter(event.id for event in happened if isinstance(event, Finished))
    unfinished = {name for name in kinds if name not in ended}
    assert all(kinds[name] == "undelivered" or _blocked(one) for name in unfinished)
    assert all(number == 1 for number in ended.values())
    times = [event.at for event in happened if not isinstance(event, Finished) or event.reason != "abort"]
    assert times == sorted(times)
    first = {event.id: event.at for event in happened if isinstance(event, FirstToken)}
    for end in (event for event in happened if isinstance(event, Finished)):
        if end.reason == "length":
            assert end.arrived_at <= end.scheduled_at <= first[end.id] <= end.at  # type: ignore[operator]
            assert end.output_tokens == life[int(end.id)][2]
            assert end.cached_tokens < end.prompt_tokens
    counters = one.stats().counters
    assert counters.prefix_hits <= counters.prefix_queries
    assert counters.external_hits <= counters.external_queries
    assert counters.prompt_tokens == (
        counters.prompt_local_compute + counters.prompt_local_cache_hit + counters.prompt_external_transfer
    )
    assert sum(counters.finished.values()) == sum(ended.values())


def _blocked(one: Engine) -> bool:
    """Whether requests whose KV never arrives hold the blocks or the line."""
    return one.stats().waiting_deferred > 0


@given(life=arrivals, looks=st.lists(st.floats(0.0001, 0.02), max_size=60))
@example(  # a look between the growth of a block and its filling must not keep it out of the cache
    life=[(0.0, 1, 8, 0, "plain"), (0.0234375, 1, 1, 0, "plain"), (0.046875, 9, 1, 0, "plain")],
    looks=[0.015625, 0.015625],
)
@settings(max_examples=60)
def test_looking_changes_nothing(life: list[tuple[float, int, int, int, str]], looks: list[float]) -> None:
    """The same requests end at the same times however often the engine is looked at in between."""
    shape = EngineSettings(40, block_size=BLOCK, max_num_seqs=4, max_num_batched_tokens=32)
    seen = []
    for polls in ([], looks):
        one = Engine(shape, LATENCY)
        now, ends = 0.0, {}
        for index, (gap, prompt, output, family, _) in enumerate(life):
            due, now = now, now + gap
            for poll in polls:
                due += poll
                if due < now:
                    ends |= {e.id: e.at for e in one.advance(due) if isinstance(e, Finished)}
                    one.stats()
            one.submit(make(index, prompt, output, family, "plain"), now)
        ends |= {e.id: e.at for e in one.advance(FOREVER) if isinstance(e, Finished)}
        seen.append(ends)
    assert seen[0] == seen[1]
    assert len(seen[0]) == len(life)


@given(
    first=st.floats(1e-4, 0.1),
    growth=st.floats(0, 1e-4),
    count=st.integers(1, 500),
    share=st.floats(0, 1.2),
)
def test_steps_are_over_when_the_sum_says_so(first: float, growth: float, count: int, share: float) -> None:
    """The closed form agrees with adding the steps up one by one."""
    steps = Steps(2.0, first, growth, count)
    assert steps.end(count) == pytest.approx(2.0 + sum(first + growth * k for k in range(count)))
    now = 2.0 + share * (steps.end(count) - 2.0)
    over = steps.over_by(now, 0)
    assert over == count or steps.end(over + 1) > now
    assert over == 0 or steps.end(over) <= now
