"""The engine in virtual time: what it does in situations that can be worked out by hand."""

from __future__ import annotations

import pytest

from turnout.simulation import (
    Decoded,
    DuplicateRequestError,
    Engine,
    EngineRequest,
    EngineSettings,
    Event,
    Fetch,
    Finished,
    FirstToken,
    LeaseExpired,
    Preempted,
    QueueFullError,
    RequestTooLargeError,
    SettingsError,
)
from turnout.sizing.latency import LatencyModel

LATENCY = LatencyModel(0.010, 0.0001, 0.0, 0.010, 0.001, 0.0, overhead=0.0)
"""A prefill takes 10 ms and 0.1 ms a token, a decode step 10 ms and 1 ms a sequence."""
FOREVER = 1e9


def engine(blocks: int = 1000, latency: LatencyModel = LATENCY, **more: int) -> Engine:
    return Engine(EngineSettings(blocks, **more), latency)


def request(name: str, prompt: int, output: int = 1, *, seed: int = 0, **more: int) -> EngineRequest:
    hashes = tuple(hash((seed, index)) for index in range((prompt + output) // 16))
    return EngineRequest(name, prompt, output, hashes, **more)


def ends(events: list[Event]) -> dict[str, Finished]:
    return {event.id: event for event in events if isinstance(event, Finished)}


def first_tokens(events: list[Event]) -> dict[str, float]:
    return {event.id: event.at for event in events if isinstance(event, FirstToken)}


def test_one_request_takes_what_the_formula_says() -> None:
    """A prefill and n-1 decode steps, to the microsecond."""
    one = engine()
    one.submit(request("a", 100, 11), 5.0)
    events = one.advance(FOREVER)
    assert first_tokens(events)["a"] == pytest.approx(5.0 + 0.010 + 0.010)
    end = ends(events)["a"]
    assert end.at == pytest.approx(5.020 + 10 * 0.011)
    assert (end.reason, end.output_tokens, end.cached_tokens) == ("length", 11, 0)
    assert [event.steps for event in events if isinstance(event, Decoded)] == [10]


def test_long_contexts_slow_the_steps_down_in_closed_form() -> None:
    """With a context term each step takes longer than the one before, exactly as the sum says."""
    latency = LatencyModel(0.01, 0.0, 0.0, 0.01, 0.0, 0.0001, overhead=0.0)
    one = engine(latency=latency)
    one.submit(request("a", 100, 11), 0.0)
    end = ends(one.advance(FOREVER))["a"]
    assert end.at == pytest.approx(0.01 + sum(0.01 + 0.0001 * (100 + k) for k in range(1, 11)))


def test_long_prompts_are_computed_in_chunks_beside_decodes() -> None:
    """A prompt beyond the token budget takes several iterations, and running sequences get a token in each."""
    one = engine(max_num_batched_tokens=64, max_num_seqs=8)
    one.submit(request("short", 10, 50), 0.0)
    one.advance(0.0)
    one.submit(request("long", 200, 1, seed=1), 0.001)
    events = one.advance(0.011)  # the first iteration: short's prefill, 11 ms
    assert set(first_tokens(events)) == {"short"}
    events = one.advance(FOREVER)
    before = [e for e in events if isinstance(e, Decoded) and e.at <= first_tokens(events)["long"]]
    assert sum(event.steps for event in before) == 4  # 200 tokens in chunks of 63


def test_the_second_request_finds_the_prefix() -> None:
    """Full blocks of a shared prefix are not computed again, short of the last token, and counted in tokens."""
    one = engine()
    one.submit(request("a", 160), 0.0)
    one.advance(1.0)
    one.submit(request("b", 160), 1.0)
    assert ends(one.advance(2.0))["b"].cached_tokens == 144  # the last token's block is computed again
    counters = one.stats().counters
    assert (counters.prefix_queries, counters.prefix_hits) == (320, 144)
    assert counters.prompt_tokens == 320
    assert counters.prompt_local_compute == 320 - 144


def test_the_least_recently_used_prefix_is_evicted_deepest_block_first() -> None:
    """When the cache is full the oldest prefix goes, from its end, while a newer one stays whole."""
    one = engine(blocks=20)
    one.submit(request("old", 160, seed=1), 0.0)
    one.advance(1.0)
    one.submit(request("new", 160, seed=2), 1.0)
    one.advance(2.0)
    one.submit(request("third", 64, seed=3), 2.0)  # takes 4 of 20 blocks: evicts old's last ones
    one.advance(3.0)
    one.submit(request("old again", 160, seed=1), 3.0)
    one.submit(request("new again", 160, seed=2), 3.0)
    end = ends(one.advance(FOREVER))
    assert end["old again"].cached_tokens == 6 * 16
    one.check()


def test_the_sequence_admitted_last_is_preempted_and_recomputed() -> None:
    """When blocks run out the youngest sequence gives way, waits first in line and still says everything."""
    one = engine(blocks=10)
    one.submit(EngineRequest("a", 64, 40), 0.0)
    one.submit(EngineRequest("b", 64, 40), 0.0)
    events = one.advance(FOREVER)
    assert [event.id for event in events if isinstance(event, Preempted)] == ["b"]
    end = ends(events)
    assert end["a"].at < end["b"].at
    assert end["b"].output_tokens == 40
    assert len([event for event in events if isinstance(event, FirstToken)]) == 2
    assert one.stats().counters.generation_tokens == 80
    assert one.stats().counters.preemptions == 1


def test_the_queue_is_served_first_come_first_served() -> None:
    """A request that does not fit holds up the smaller one behind it."""
    one = engine(blocks=10)
    one.submit(EngineRequest("runs", 96, 30), 0.0)
    one.advance(0.001)
    one.submit(EngineRequest("big", 128, 1), 0.001)
    one.submit(EngineRequest("small", 8, 1), 0.001)
    assert one.stats().waiting == 2
    end = ends(one.advance(FOREVER))
    assert end["runs"].at < end["big"].at <= end["small"].at


def test_a_pinned_prompt_keeps_its_blocks_until_it_is_released() -> None:
    """A prefill for another worker ends with a lease; the blocks are used until the fetch."""
    one = engine(blocks=10)
    one.submit(request("p", 64, pin=True), 0.0)
    end = ends(one.advance(1.0))["p"]
    assert end.pinned_until == pytest.approx(end.at + 30)
    assert one.stats().kv_usage == pytest.approx(0.4)
    assert one.release("p", 1.0)
    assert not one.release("p", 1.0)
    assert one.stats().kv_usage == 0
    assert one.advance(FOREVER) == []


def test_an_unused_lease_expires() -> None:
    """After 30 s the blocks are free, and sequences that waited for them continue."""
    one = engine(blocks=10)
    one.submit(request("p", 128, pin=True), 0.0)
    pinned_until = ends(one.advance(1.0))["p"].pinned_until
    one.submit(request("q", 64, seed=1), 1.0)
    assert one.advance(1.0) == []
    assert one.next_time() == pinned_until
    events = one.advance(FOREVER)
    assert events[0] == LeaseExpired(pinned_until, "p")
    assert ends(events)["q"].scheduled_at == pinned_until
    assert one.stats().counters.leases_expired == 1


def test_remote_kv_is_fetched_before_the_first_token() -> None:
    """A decode request gets its blocks, waits for the transfer and computes one token."""
    one = engine()
    one.submit(request("d", 1000, 2, remote_tokens=1000), 0.0)
    assert one.advance(0.0) == [Fetch(0.0, "d", 999)]
    assert (one.stats().waiting_deferred, one.next_time()) == (1, None)
    assert one.deliver("d", 0.5)
    events = one.advance(FOREVER)
    assert first_tokens(events)["d"] == pytest.approx(0.5 + 999 * 3e-6 + 0.010 + 0.0001)
    assert ends(events)["d"].cached_tokens == 999
    assert one.stats().counters.prompt_external_transfer == 999
    assert one.stats().counters.prompt_local_compute == 1


def test_remote_kv_that_is_cached_here_does_not_travel() -> None:
    """Only what the local prefix cache lacks is transferred."""
    one = engine()
    one.submit(request("a", 160), 0.0)
    one.advance(1.0)
    one.submit(request("d", 160, 1, remote_tokens=160), 1.0)
    assert one.advance(1.0) == [Fetch(1.0, "d", 159 - 144)]


def test_abort_frees_everything_wherever_the_request_stands() -> None:
    """Waiting, fetching, prefilling and decoding requests end at once and leave no block behind."""
    one = engine(blocks=40, max_num_batched_tokens=64, max_num_seqs=3)
    one.submit(request("decoding", 16, 100), 0.0)
    one.advance(0.5)
    one.submit(request("fetching", 64, 10, seed=1, remote_tokens=64), 0.5)
    one.submit(request("prefilling", 320, 10, seed=2), 0.5)
    one.advance(0.55)
    one.submit(request("waiting", 320, 10, seed=3), 0.55)
    names = ["decoding", "fetching", "prefilling", "waiting"]
    assert all(one.abort(name, 0.56) for name in names)
    assert not one.abort("waiting", 0.56)
    assert {end.reason for end in ends(one.advance(FOREVER)).values()} == {"abort"}
    one.check()
    assert one.stats().kv_usage == 0
    assert one.stats().counters.finished["abort"] == 4


def test_the_engine_refuses_what_can_never_run() -> None:
    """More tokens than the whole cache, a taken id, a full queue and settings at odds are refused."""
    one = engine(blocks=4, max_num_queued=1)
    with pytest.raises(RequestTooLargeError, match="64 tokens"):
        one.submit(EngineRequest("big", 60, 6), 0.0)
    one.submit(EngineRequest("a", 60, 5), 0.0)
    with pytest.raises(DuplicateRequestError):
        one.submit(EngineRequest("a", 1, 1), 0.0)
    one.advance(0.0)
    one.submit(EngineRequest("b", 1, 1), 0.0)
    with pytest.raises(QueueFullError):
        one.submit(EngineRequest("c", 1, 1), 0.0)
    assert one.stats().counters.rejections == 1
    with pytest.raises(SettingsError, match="max_num_seqs"):
        EngineSettings(10, max_num_batched_tokens=8)
    with pytest.raises(ValueError, match="time goes back"):
        one.advance(-1.0)


def test_generated_counts_tokens_as_they_come() -> None:
    """Between the first and the last token the count follows the steps that are over."""
    one = engine()
    one.submit(request("a", 100, 11), 0.0)
    one.advance(0.0)
    assert one.generated("a") == 0
    one.advance(0.020 + 3.5 * 0.011)
    assert one.generated("a") == 4
    assert one.next_step_time() == pytest.approx(0.020 + 4 * 0.011)
    assert one.next_time() == pytest.approx(0.020 + 10 * 0.011)


def test_other_latencies_hold_from_the_next_iteration_on() -> None:
    """The iteration in flight ends as planned; those after it take as long as the new model says."""
    one = engine()
    one.submit(request("a", 100, 11), 0.0)
    one.advance(0.025)
    one.set_latency(LATENCY.slower(10))
    assert ends(one.advance(FOREVER))["a"].at == pytest.approx(0.020 + 0.011 + 9 * 0.110)
