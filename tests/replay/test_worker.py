"""The replay against a real simulated worker: every request ends, with exactly the tokens of the trace."""

from __future__ import annotations

import uvloop

from support.worker_process import running_worker
from turnout_cli.replay.client import Client, Target
from turnout_cli.replay.figures import Objectives, ReplayOutcome, figures
from turnout_cli.replay.replay import Replay, ReplaySettings
from turnout_simulator.generate import TrafficShape, generate
from turnout_simulator.traces import Trace, TraceRequest, clip

TIME_SCALE = 20


def replayed(trace: Trace, url: str, model: str) -> list[ReplayOutcome]:
    async def run() -> list[ReplayOutcome]:
        async with Client(Target.parse(url)) as client:
            replay = Replay(trace, client, ReplaySettings(model=model, time_scale=TIME_SCALE))
            await replay.run()
            return replay.progress.outcomes

    return uvloop.run(run())


def test_generated_traffic_is_served_whole() -> None:
    """A minute of conversations: nothing fails, and output tokens are the trace's, to the token."""
    shape = TrafficShape(requests_per_second=0.8)
    trace, _ = clip(generate(60, seed=1, shape=shape), max_tokens=8192 - 64)
    with running_worker(time_scale=TIME_SCALE, max_length=8192) as worker:
        outcomes = replayed(trace, worker.url, worker.name)
    total = figures(outcomes, Objectives(2.0, 0.05))
    assert [outcome.failure for outcome in outcomes] == [None] * len(trace.requests)
    assert total.output_tokens == sum(request.output_tokens for request in trace.requests)
    by_index = {outcome.index: outcome for outcome in outcomes}
    for index, request in enumerate(trace.requests):
        overhead = by_index[index].prompt_tokens - request.input_tokens
        assert 0 <= overhead <= 64
    assert total.ttft_p50_seconds is not None
    assert 0 < total.ttft_p50_seconds < total.ttft_p99_seconds  # type: ignore[operator] - as above


def test_equal_prefixes_meet_the_prefix_cache() -> None:
    """A second turn over the same blocks finds its prefix cached: the text of equal ids is equal."""
    blocks = tuple(range(8))
    trace = Trace(
        "t",
        (TraceRequest(0.0, 8 * 512, 4, blocks), TraceRequest(20.0, 9 * 512, 4, (*blocks, 99))),
    )
    with running_worker(time_scale=TIME_SCALE) as worker:
        first, second = replayed(trace, worker.url, worker.name)
    assert first.cached_tokens == 0
    assert second.cached_tokens >= 8 * 512 - 16


def test_refusals_are_reported_as_the_server_words_them() -> None:
    """A name that the worker does not serve: every request fails with its status and message."""
    trace = Trace("t", (TraceRequest(0.0, 100, 4, (0,)),))
    with running_worker(time_scale=TIME_SCALE) as worker:
        (outcome,) = replayed(trace, worker.url, "unknown")
    assert outcome.status == 404
    assert "unknown" in (outcome.failure or "")
