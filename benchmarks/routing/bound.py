"""What is left to wait for when prefixes are everywhere: the same engines with one cache for all of them.

    python benchmarks/routing/bound.py --trace FILE

Prints a table for 6,000 blocks an engine. "No queue": every prompt on an engine of its own that does nothing else, the
cache as large as all engines' together, least recently used first. "One cache": the real engines, which decode
meanwhile and can be busy, over that cache, behind Turnout's policy without and with holding: what is left there is no
matter of where prefixes are.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Final

from compare import Bench, find_trace

from turnout_simulator.outcomes import figures
from turnout_simulator.policies.holding import HoldingTurnout
from turnout_simulator.policies.own import Turnout
from turnout_simulator.policies.shadows import Shadows
from turnout_simulator.replay import Setting, arrival_of, at_rate, replay
from turnout_simulator.traces import TraceError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from turnout.sizing.latency import LatencyModel
    from turnout_simulator.policies.port import Arrival, Sample
    from turnout_simulator.traces import Trace

BLOCKS: Final = 6000
BLOCK: Final = 512


class Everywhere:
    """A policy that receives only the part of each prompt that one cache for all engines lacks."""

    scrape_seconds: float | None = None

    def __init__(self, policy: Turnout, blocks: int) -> None:
        self.name = policy.name
        self._policy = policy
        self._cache = Shadows(1, blocks, BLOCK)

    def choose(self, arrival: Arrival) -> int | None:  # noqa: D102 - the protocol says it
        [matched] = self._cache.match(arrival.blocks)
        self._cache.sent(arrival, 0, matched)
        rest = max(1, arrival.prompt_tokens - matched * BLOCK)
        return self._policy.choose(replace(arrival, prompt_tokens=rest, blocks=()))

    def first_token(self, number: int, now: float) -> None:  # noqa: D102 - the protocol says it
        self._policy.first_token(number, now)

    def finished(self, number: int, now: float, cached_tokens: int, output_tokens: int) -> None:  # noqa: D102
        self._cache.finished(number, cached_tokens)
        self._policy.finished(number, now, 0, output_tokens)

    def scraped(self, now: float, samples: Sequence[Sample]) -> None:
        """Learn nothing."""

    def released(self, now: float) -> Iterable[tuple[int, int]]:  # noqa: D102 - the protocol says it
        return self._policy.released(now) if isinstance(self._policy, HoldingTurnout) else ()


def no_queue(trace: Trace, blocks: int, latency: LatencyModel) -> float:
    """Return the mean prefill time of *trace* alone behind one cache of *blocks*."""
    cache = Shadows(1, blocks, BLOCK)
    seconds = []
    for number, request in enumerate(trace.requests):
        arrival = arrival_of(number, request, BLOCK)
        [matched] = cache.match(arrival.blocks)
        cached = min(matched * BLOCK, arrival.prompt_tokens - 1)
        seconds.append(latency.prefill_seconds(arrival.prompt_tokens - cached, cached))
        cache.sent(arrival, 0, matched)
        cache.finished(number, cached)
    return fmean(seconds)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trace", type=Path, metavar="FILE", help="a trace in Mooncake's format")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each case, with other arrival times")
    options = parser.parse_args(argv)
    try:
        trace = find_trace(options.trace)
    except TraceError as error:
        print(f"bound.py: {error}", file=sys.stderr)
        return 2
    bench = Bench(trace)
    print(
        "| engines | load | no queue | one cache, Turnout | one cache, Turnout, holding |\n|---|---|---|---|---|"
    )
    for engines in (4, 8, 16):
        setting = Setting(engines, BLOCKS, pooled=True)
        for load in (0.7, 0.9):
            means: list[list[float]] = [[], []]
            for seed in range(options.seeds):
                arrivals = at_rate(bench.spread(seed), bench.rate(replace(setting, pooled=False)) * load)
                for mean, policy in zip(means, (Turnout, HoldingTurnout), strict=True):
                    own = policy(engines, BLOCKS, BLOCK, bench.work)
                    everywhere = Everywhere(own, engines * BLOCKS)
                    outcomes = replay(arrivals, setting, [everywhere], bench.latency)
                    mean.append(figures(outcomes).ttft_mean_s)
            alone = no_queue(bench.spread(0), engines * BLOCKS, bench.latency)
            pushed, held = map(fmean, means)
            print(f"| {engines} | {load:.0%} | {alone:.3f} s | {pushed:.3f} s | {held:.3f} s |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
