"""Traces cut to a window, spread over their rounding, clipped to a model's length; and their prompts."""

from __future__ import annotations

from itertools import takewhile
from operator import eq
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout_simulator.prompts import prompt_text
from turnout_simulator.traces import BLOCK_TOKENS, Trace, TraceRequest, clip, spread, window

if TYPE_CHECKING:
    from collections.abc import Sequence


def common(left: Sequence[object], right: Sequence[object]) -> int:
    return sum(1 for _ in takewhile(bool, map(eq, left, right)))


def requests_at(*seconds: float) -> Trace:
    return Trace("t", tuple(TraceRequest(second, 600, 10, (0, 1)) for second in seconds))


def test_a_window_is_rebased() -> None:
    """Arrivals count from the window's beginning; its end belongs to the next one."""
    cut = window(requests_at(0, 3, 6, 9), offset_seconds=3, duration_seconds=6)
    assert [request.arrival_seconds for request in cut.requests] == [0, 3]


def test_spreading_stays_within_the_rounding() -> None:
    """Each arrival moves by less than the quantum, none backwards, and the order stays that of time."""
    trace = requests_at(*[0.0] * 50, *[3.0] * 50)
    arrivals = [request.arrival_seconds for request in spread(trace, seed=1).requests]
    assert arrivals == sorted(arrivals)
    assert all(0 <= arrival < 3 for arrival in arrivals[:50])
    assert all(3 <= arrival < 6 for arrival in arrivals[50:])
    assert len(set(arrivals)) == 100


def test_a_seed_decides_the_spread() -> None:
    """The same seed gives the same arrivals, another one others."""
    trace = requests_at(*[0.0] * 10)
    assert spread(trace, seed=1) == spread(trace, seed=1)
    assert spread(trace, seed=1) != spread(trace, seed=2)


@given(
    lengths=st.lists(st.tuples(st.integers(1, 200_000), st.integers(1, 60_000)), min_size=1, max_size=20),
    max_tokens=st.integers(2, 40_000),
)
def test_clipped_requests_fit(lengths: list[tuple[int, int]], max_tokens: int) -> None:
    """Whatever comes in: prompt and output fit, neither vanishes, blocks match, and only what was too long is counted."""
    trace = Trace(
        "t",
        tuple(
            TraceRequest(0.0, inputs, outputs, tuple(range(-(-inputs // BLOCK_TOKENS))))
            for inputs, outputs in lengths
        ),
    )
    fitted, clipped = clip(trace, max_tokens=max_tokens)
    for before, after in zip(trace.requests, fitted.requests, strict=True):
        assert after.input_tokens >= 1
        assert after.output_tokens >= 1
        assert after.input_tokens + after.output_tokens <= max_tokens
        assert len(after.block_ids) == -(-after.input_tokens // BLOCK_TOKENS)
        assert after.block_ids == before.block_ids[: len(after.block_ids)]
    assert clipped == sum(
        before != after for before, after in zip(trace.requests, fitted.requests, strict=True)
    )


def test_no_room_is_refused() -> None:
    """One token cannot hold a request, and the error says so."""
    with pytest.raises(ValueError, match="cannot hold"):
        clip(requests_at(0), max_tokens=1)


@given(
    first=st.lists(st.integers(0, 1_000_000), min_size=1, max_size=6, unique=True),
    second=st.lists(st.integers(0, 1_000_000), min_size=1, max_size=6, unique=True),
)
def test_prompts_share_exactly_the_blocks_that_ids_share(first: list[int], second: list[int]) -> None:
    """Equal leading ids give equal bytes, the first different id a different block: what a prefix cache sees."""
    texts = [
        prompt_text(TraceRequest(0.0, len(ids) * BLOCK_TOKENS, 1, tuple(ids))) for ids in (first, second)
    ]
    shared_ids = common(first, second)
    blocks = [[text[at : at + 2048] for at in range(0, len(text), 2048)] for text in texts]
    shared_blocks = common(*blocks)
    assert shared_blocks == shared_ids


@given(tokens=st.integers(1, 3 * BLOCK_TOKENS))
def test_a_prompt_has_four_bytes_a_token(tokens: int) -> None:
    """The engine counts a token per four bytes, so the trace's length arrives as it stands."""
    blocks = tuple(range(-(-tokens // BLOCK_TOKENS)))
    text = prompt_text(TraceRequest(0.0, tokens, 1, blocks))
    assert len(text.encode("ascii")) == 4 * tokens
