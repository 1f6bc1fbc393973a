"""What a trace is like: rate, burstiness, lengths and how much of it a prefix cache could reuse."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from turnout_simulator.traces import Trace


@dataclass(frozen=True, slots=True)
class TraceStatistics:
    """Figures by which traces are compared."""

    requests: int
    requests_per_second: float
    dispersion: float
    """Variance of the arrivals of 3 s divided by their mean: 1 for Poisson arrivals, more for bursts."""
    input_tokens_mean: float
    input_tokens_median: float
    output_tokens_mean: float
    output_tokens_median: float
    reusable_block_percent: float
    """Share of prompt blocks that an earlier request had at the same place: hits of one infinite cache."""
    followup_percent: float
    """Share of requests that reuse more than their first block, which is what continues a conversation."""


def describe(trace: Trace) -> TraceStatistics:
    """Return *trace*'s statistics. Raise ValueError for fewer than two requests: they have no rate."""
    requests = trace.requests
    if len(requests) < 2:  # noqa: PLR2004 - a rate needs two
        raise ValueError(f"{trace.name} has {len(requests)} requests: statistics need at least two")
    seen: set[int] = set()
    blocks = reused = followups = 0
    for request in requests:
        prefix = 0
        for block in request.block_ids:
            if block not in seen:
                break
            prefix += 1
        blocks += len(request.block_ids)
        reused += prefix
        followups += prefix > 1
        seen.update(request.block_ids)
    span = trace.duration_seconds - requests[0].arrival_seconds
    per_quantum = Counter(int(request.arrival_seconds // 3) for request in requests)
    first, last = min(per_quantum), max(per_quantum)
    arrivals = [per_quantum[quantum] for quantum in range(first, last + 1)]
    inputs = [request.input_tokens for request in requests]
    outputs = [request.output_tokens for request in requests]
    return TraceStatistics(
        requests=len(requests),
        requests_per_second=len(requests) / span if span else float(len(requests)),
        dispersion=statistics.pvariance(arrivals) / statistics.fmean(arrivals),
        input_tokens_mean=statistics.fmean(inputs),
        input_tokens_median=statistics.median(inputs),
        output_tokens_mean=statistics.fmean(outputs),
        output_tokens_median=statistics.median(outputs),
        reusable_block_percent=100 * reused / blocks,
        followup_percent=100 * followups / len(requests),
    )
