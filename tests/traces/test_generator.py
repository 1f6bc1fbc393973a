"""The traffic generator against the statistics it aims at: the published ones, and the real trace's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from turnout_simulator.generate import SYSTEM_BLOCK, TrafficShape, generate
from turnout_simulator.statistics import TraceStatistics, describe
from turnout_simulator.traces import BLOCK_TOKENS, Trace, TraceRequest, read_trace, spread

HOUR = 3537.0
"""Seconds of Mooncake's conversation trace."""

PART = Path(__file__).parent / "data" / "mooncake_conversation_part.jsonl"
PARTS = 15
"""Of the real trace, each with a fifteenth of its conversations."""


def compare(generated: TraceStatistics, target: TraceStatistics) -> None:
    assert generated.requests_per_second == pytest.approx(target.requests_per_second, rel=0.1)
    assert generated.input_tokens_mean == pytest.approx(target.input_tokens_mean, rel=0.1)
    assert generated.input_tokens_median == pytest.approx(target.input_tokens_median, rel=0.1)
    assert generated.output_tokens_mean == pytest.approx(target.output_tokens_mean, rel=0.1)
    assert generated.output_tokens_median == pytest.approx(target.output_tokens_median, rel=0.1)
    assert generated.reusable_block_percent == pytest.approx(target.reusable_block_percent, abs=5)
    assert generated.followup_percent == pytest.approx(target.followup_percent, abs=5)


@pytest.mark.parametrize("seed", range(3))
def test_an_hour_has_the_published_statistics(seed: int) -> None:
    """Rate, lengths and reuse meet the figures that are published of the conversation trace."""
    published = TraceStatistics(
        requests=12_031,
        requests_per_second=3.4,
        dispersion=1.1,
        input_tokens_mean=12_035,
        input_tokens_median=6_909,
        output_tokens_mean=343,
        output_tokens_median=350,
        reusable_block_percent=36.6,
        followup_percent=38.7,
    )
    compare(describe(generate(HOUR, seed=seed)), published)


def test_an_hour_is_like_the_real_trace() -> None:
    """Measured by the same code, generated and real traffic differ by less than a tenth."""
    part = describe(spread(read_trace(PART), seed=0))
    whole = replace(part, requests_per_second=PARTS * part.requests_per_second)
    compare(describe(generate(HOUR, seed=0)), whole)


def test_arrivals_burst_and_swell() -> None:
    """Arrivals vary more than Poisson's, and the middle third carries more than the ends."""
    trace = generate(HOUR, seed=0)
    assert describe(trace).dispersion > 1.5
    thirds = [0, 0, 0]
    for request in trace.requests:
        thirds[int(request.arrival_seconds * 3 / HOUR)] += 1
    assert thirds[1] > 1.2 * thirds[0]
    assert thirds[1] > 1.2 * thirds[2]


def test_the_same_seed_gives_the_same_trace() -> None:
    """Two runs can be compared: only the seed decides."""
    assert generate(120, seed=3) == generate(120, seed=3)
    assert generate(120, seed=3) != generate(120, seed=4)


def test_every_prompt_is_whole() -> None:
    """Each request opens with the system prompt, has a block per 512 tokens and arrives within the trace."""
    for request in generate(300, seed=0).requests:
        assert request.block_ids[0] == SYSTEM_BLOCK
        assert len(request.block_ids) == -(-request.input_tokens // BLOCK_TOKENS)
        assert 0 <= request.arrival_seconds < 300
        assert request.output_tokens >= 1


def test_a_shape_changes_the_traffic() -> None:
    """Rate and reuse follow what is asked for: no further turns, nothing but the system prompt reused."""
    trace = generate(600, seed=0, shape=TrafficShape(requests_per_second=1.0, another_turn=0.0))
    statistics = describe(trace)
    assert statistics.requests_per_second == pytest.approx(1.0, rel=0.25)
    assert statistics.followup_percent == 0


@pytest.mark.parametrize(
    ("seconds", "shape"),
    [
        (0.0, TrafficShape()),
        (60.0, TrafficShape(requests_per_second=0)),
        (60.0, TrafficShape(swell=1.0)),
        (60.0, TrafficShape(another_turn=1.0)),
    ],
)
def test_a_shape_without_an_end_is_refused(seconds: float, shape: TrafficShape) -> None:
    """Values that would generate nothing or forever are refused with their names."""
    with pytest.raises(ValueError, match="must be"):
        generate(seconds, seed=0, shape=shape)


def test_reuse_counts_prefixes_only() -> None:
    """A known block behind an unknown one cannot be reused, and is not counted."""
    trace = Trace(
        "t",
        (
            TraceRequest(0, 1024, 1, (0, 1)),
            TraceRequest(1, 1536, 1, (0, 2, 1)),
            TraceRequest(2, 1024, 1, (0, 1)),
        ),
    )
    statistics = describe(trace)
    assert statistics.reusable_block_percent == pytest.approx(100 * 3 / 7)
    assert statistics.followup_percent == pytest.approx(100 / 3)


def test_one_request_has_no_rate() -> None:
    """A single request is refused instead of dividing by nothing."""
    with pytest.raises(ValueError, match="at least two"):
        describe(Trace("t", (TraceRequest(0, 1, 1, (0,)),)))
