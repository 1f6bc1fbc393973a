"""What became of the requests, and the figures drawn from it: percentiles, goodput, totals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True, slots=True)
class Objectives:
    """What a request must meet to count as good, in the deployment's seconds."""

    time_to_first_token_seconds: float
    inter_token_latency_seconds: float


@dataclass(frozen=True, slots=True)
class ReplayOutcome:
    """One request that ended. Times are the deployment's seconds: wall seconds times the time scale."""

    index: int
    """Place in the trace."""
    sent_at: float
    """Since the replay began."""
    lag_seconds: float
    """How much later than planned it was sent: what the client itself was too slow by."""
    status: int
    """HTTP status; 0 where no answer began."""
    failure: str | None
    """Why it failed; None where it succeeded."""
    ttft_seconds: float | None
    """From sending to the first text."""
    itl_seconds: float | None
    """Mean time between tokens: first text to last text, by the tokens of usage. None for a single token."""
    duration_seconds: float
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int

    @property
    def ended_at(self) -> float:
        """Since the replay began."""
        return self.sent_at + self.duration_seconds

    def meets(self, objectives: Objectives) -> bool:
        """Return whether it succeeded within both objectives."""
        return (
            self.failure is None
            and self.ttft_seconds is not None
            and self.ttft_seconds <= objectives.time_to_first_token_seconds
            and (self.itl_seconds or 0.0) <= objectives.inter_token_latency_seconds
        )


@dataclass(frozen=True, slots=True)
class Figures:
    """What a set of ended requests adds up to. Absent figures: nothing to draw them from."""

    requests: int
    succeeded: int
    failed: int
    ttft_p50_seconds: float | None
    ttft_p99_seconds: float | None
    itl_p50_seconds: float | None
    itl_p99_seconds: float | None
    goodput_percent: float | None
    """Share of ended requests that met both objectives; failed ones did not."""
    lag_p99_seconds: float | None
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Return the *percent*-th percentile of *values*, in any order, linear between neighbors.

    The definition that numpy and most tools default to (Hyndman and Fan's type 7). None for no values.
    """
    if not values:
        return None
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def figures(outcomes: Iterable[ReplayOutcome], objectives: Objectives) -> Figures:
    """Add *outcomes* up. Latencies are drawn from the requests that succeeded."""
    ended = list(outcomes)
    succeeded = [outcome for outcome in ended if outcome.failure is None]
    ttft = [outcome.ttft_seconds for outcome in succeeded if outcome.ttft_seconds is not None]
    itl = [outcome.itl_seconds for outcome in succeeded if outcome.itl_seconds is not None]
    good = sum(outcome.meets(objectives) for outcome in ended)
    return Figures(
        requests=len(ended),
        succeeded=len(succeeded),
        failed=len(ended) - len(succeeded),
        ttft_p50_seconds=percentile(ttft, 50),
        ttft_p99_seconds=percentile(ttft, 99),
        itl_p50_seconds=percentile(itl, 50),
        itl_p99_seconds=percentile(itl, 99),
        goodput_percent=100 * good / len(ended) if ended else None,
        lag_p99_seconds=percentile([outcome.lag_seconds for outcome in ended], 99),
        prompt_tokens=sum(outcome.prompt_tokens for outcome in ended),
        output_tokens=sum(outcome.output_tokens for outcome in ended),
        cached_tokens=sum(outcome.cached_tokens for outcome in ended),
    )
