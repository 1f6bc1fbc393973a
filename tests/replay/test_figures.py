"""Percentiles, goodput and totals of a set of outcomes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout_cli.replay.figures import Objectives, ReplayOutcome, figures, percentile

OBJECTIVES = Objectives(time_to_first_token_seconds=2.0, inter_token_latency_seconds=0.05)
GOOD = ReplayOutcome(
    index=0,
    sent_at=0.0,
    lag_seconds=0.0,
    status=200,
    failure=None,
    ttft_seconds=1.0,
    itl_seconds=0.02,
    duration_seconds=3.0,
    prompt_tokens=100,
    output_tokens=10,
    cached_tokens=50,
)


@given(
    values=st.lists(st.floats(0, 1e6), min_size=1, max_size=50),
    percent=st.sampled_from([0, 1, 50, 90, 99, 100]),
)
def test_percentiles_are_numpys(values: list[float], percent: float) -> None:
    """The definition is the usual one, as numpy has it."""
    assert percentile(values, percent) == pytest.approx(float(np.percentile(values, percent)), rel=1e-9)


def test_nothing_has_no_figures() -> None:
    """Without requests every figure is absent rather than a flattering zero or hundred."""
    none = figures([], OBJECTIVES)
    assert none.goodput_percent is None
    assert none.ttft_p50_seconds is None
    assert percentile([], 50) is None


@pytest.mark.parametrize(
    ("outcome", "meets"),
    [
        (GOOD, True),
        (replace(GOOD, ttft_seconds=2.0, itl_seconds=0.05), True),
        (replace(GOOD, ttft_seconds=2.1), False),
        (replace(GOOD, itl_seconds=0.051), False),
        (replace(GOOD, itl_seconds=None, output_tokens=1), True),
        (replace(GOOD, failure="HTTP 503: nothing serves", ttft_seconds=None), False),
        (replace(GOOD, failure="the stream ended without [DONE]"), False),
        (replace(GOOD, ttft_seconds=None), False),
    ],
)
def test_good_meets_both_objectives(outcome: ReplayOutcome, meets: bool) -> None:  # noqa: FBT001 - a table's column
    """An objective met exactly is met; a failed request never is; one token has no time between tokens."""
    assert outcome.meets(OBJECTIVES) is meets


def test_totals_and_goodput() -> None:
    """Failed requests lower goodput and leave the latencies alone."""
    slow = replace(GOOD, ttft_seconds=3.0)
    failed = replace(GOOD, failure="HTTP 500", ttft_seconds=None, itl_seconds=None, output_tokens=0)
    total = figures([GOOD, GOOD, slow, failed], OBJECTIVES)
    assert (total.requests, total.succeeded, total.failed) == (4, 3, 1)
    assert total.goodput_percent == 50
    assert total.ttft_p50_seconds == 1.0
    assert total.ttft_p99_seconds == pytest.approx(2.96)
    assert total.output_tokens == 30
    assert total.cached_tokens == 200
