"""What became of the requests of a replay, and the figures by which routing is judged."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from statistics import fmean
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True, slots=True)
class SimulatedOutcome:
    """How one request went. Times are seconds of virtual time."""

    number: int
    arrived_at: float
    first_token_at: float
    finished_at: float
    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens that no engine computed for this request."""
    output_tokens: int
    local_prefill: bool
    """Whether the engine that decoded computed the prompt, too."""

    @property
    def ttft_seconds(self) -> float:
        """Time to first token."""
        return self.first_token_at - self.arrived_at

    @property
    def itl_seconds(self) -> float | None:
        """Mean time between its tokens; None for a single one."""
        if self.output_tokens < 2:  # noqa: PLR2004 - a gap needs two
            return None
        return (self.finished_at - self.first_token_at) / (self.output_tokens - 1)


@dataclass(frozen=True, slots=True)
class Figures:
    """A replay in numbers."""

    requests: int
    hit_rate: float
    """Share of prompt tokens that did not have to be computed, 0 to 1."""
    ttft_mean_s: float
    ttft_p50_s: float
    ttft_p90_s: float
    ttft_p99_s: float
    itl_p99_s: float
    """Of the requests' mean inter-token latencies."""
    goodput_percent: float
    """Requests that met both objectives."""
    local_prefill_percent: float


def figures(
    outcomes: Sequence[SimulatedOutcome], *, ttft_objective: float = 2.0, itl_objective: float = 0.05
) -> Figures:
    """Return the figures of *outcomes*; objectives in seconds. Raise ValueError where there is no outcome."""
    if not outcomes:
        raise ValueError("no request was served: there is nothing to judge")
    ttft = sorted(o.ttft_seconds for o in outcomes)
    itl = sorted(gap for o in outcomes if (gap := o.itl_seconds) is not None)
    good = sum(
        1
        for o in outcomes
        if o.ttft_seconds <= ttft_objective and (o.itl_seconds is None or o.itl_seconds <= itl_objective)
    )
    prompts = sum(o.prompt_tokens for o in outcomes)
    return Figures(
        requests=len(outcomes),
        hit_rate=sum(o.cached_tokens for o in outcomes) / prompts,
        ttft_mean_s=fmean(ttft),
        ttft_p50_s=quantile(ttft, 0.5),
        ttft_p90_s=quantile(ttft, 0.9),
        ttft_p99_s=quantile(ttft, 0.99),
        itl_p99_s=quantile(itl, 0.99) if itl else 0.0,
        goodput_percent=100 * good / len(outcomes),
        local_prefill_percent=100 * sum(o.local_prefill for o in outcomes) / len(outcomes),
    )


def mean_figures(each: Iterable[Figures]) -> Figures:
    """Return the mean of several seeds' figures, field by field. Raise ValueError for none."""
    rows = list(each)
    if not rows:
        raise ValueError("no figures to take the mean of")
    return Figures(
        requests=sum(r.requests for r in rows),
        hit_rate=fmean(r.hit_rate for r in rows),
        ttft_mean_s=fmean(r.ttft_mean_s for r in rows),
        ttft_p50_s=fmean(r.ttft_p50_s for r in rows),
        ttft_p90_s=fmean(r.ttft_p90_s for r in rows),
        ttft_p99_s=fmean(r.ttft_p99_s for r in rows),
        itl_p99_s=fmean(r.itl_p99_s for r in rows),
        goodput_percent=fmean(r.goodput_percent for r in rows),
        local_prefill_percent=fmean(r.local_prefill_percent for r in rows),
    )


def quantile(ascending: Sequence[float], share: float) -> float:
    """Return the smallest value that *share* of the values (0 to 1, in ascending order) do not exceed."""
    return ascending[max(0, ceil(share * len(ascending)) - 1)]
