"""The journal of an engine's KV cache: read in order, it amounts to what is cached."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from turnout.simulation import (
    BlocksCached,
    BlocksEvicted,
    CacheCleared,
    Engine,
    EngineRequest,
    EngineSettings,
    JournaledKvCache,
)
from turnout.sizing.latency import LatencyModel

if TYPE_CHECKING:
    from collections.abc import Iterable

    from turnout.simulation.journal import Entry

LATENCY = LatencyModel(0.0045, 1.7e-5, 5e-10, 0.0064, 1e-5, 4e-8)
BLOCK = 4
FOREVER = 1e9


def follow(cached: dict[int, int | None], journal: Iterable[Entry]) -> None:
    for entry in journal:
        if isinstance(entry, CacheCleared):
            cached.clear()
        elif isinstance(entry, BlocksEvicted):
            for block in entry.blocks:
                del cached[block]
        else:
            parent = entry.parent
            assert parent is None or parent in cached, "a block is cached behind one that is not"
            for block in entry.blocks:
                assert block not in cached, "a block is cached twice"
                cached[block] = parent
                parent = block


@settings(max_examples=150)
@given(
    st.lists(
        st.tuples(
            st.floats(0, 0.05), st.integers(1, 60), st.integers(1, 30), st.integers(0, 3), st.booleans()
        ),
        max_size=25,
    ),
    st.integers(23, 60),
)
def test_the_journal_amounts_to_what_is_cached(
    requests: list[tuple[float, int, int, int, bool]], blocks: int
) -> None:
    """Under shared prefixes, eviction, preemption and aborts, a reader of the journal knows every cached block."""
    kv = JournaledKvCache(blocks)
    engine = Engine(
        EngineSettings(blocks, block_size=BLOCK, max_num_seqs=8, max_num_batched_tokens=64), LATENCY, kv
    )
    cached: dict[int, int | None] = {}
    now = 0.0
    for index, (wait, prompt, output, family, aborted) in enumerate(requests):
        now += wait
        hashes = tuple(hash((family, block)) for block in range((prompt + output) // BLOCK))
        engine.submit(EngineRequest(str(index), prompt, output, hashes), now)
        follow(cached, kv.read())
        if aborted:
            engine.abort(str(index), now)
        engine.advance(now)
        follow(cached, kv.read())
        assert set(cached) == set(kv._references)
    engine.advance(now + FOREVER)
    follow(cached, kv.read())
    assert set(cached) == set(kv._references)
    assert kv.read() == []


def test_a_reset_empties_an_idle_cache_only() -> None:
    """While a request holds blocks nothing is forgotten, as with vLLM; afterwards all is, and the journal says so."""
    kv = JournaledKvCache(40)
    engine = Engine(
        EngineSettings(40, block_size=BLOCK, max_num_seqs=8, max_num_batched_tokens=64), LATENCY, kv
    )
    engine.submit(EngineRequest("a", 16, 4, (1, 2, 3, 4)), 0.0)
    engine.advance(0.006)
    assert not engine.reset_prefix_cache(0.007)
    engine.advance(FOREVER)
    assert engine.reset_prefix_cache(FOREVER)
    assert kv.read() == [BlocksCached((1, 2, 3, 4), None), CacheCleared()]
    assert kv.cached == 0
    kv.check()
