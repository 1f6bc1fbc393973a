"""Compare routing policies on a trace, replayed in virtual time over engines of `turnout.simulation`.

    python benchmarks/routing/compare.py --trace FILE [--quick]

Prints a table, writes build/bench/routing.json and a plot. Without --trace: the conversation trace of TURNOUT_DATA,
and where there is none, generated traffic of the same statistics. The engines are an 8B model on one H100 each.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from contenders import NUMBERS, OWN, PAIRED, aggregated, paired

from chart import draw, mean_over_seeds
from turnout.routing.work import work_of
from turnout_simulator.generate import generate
from turnout_simulator.outcomes import figures
from turnout_simulator.policies.peer_exchange import PeerExchange
from turnout_simulator.replay import (
    Setting,
    at_rate,
    default_latency,
    replay,
    replay_pairs,
    saturated_rate,
)
from turnout_simulator.traces import Trace, TraceError, read_trace, spread

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

REPOSITORY: Final = Path(__file__).resolve().parents[2]
TRACE_PATH: Final = Path("traces/mooncake_conversation.jsonl")
GENERATED_SECONDS: Final = 3600.0
QUICK_REQUESTS: Final = 4000
SCRAPE_SECONDS: Final = 0.1
ROUTERS: Final = 4


@dataclass(frozen=True, slots=True)
class Case:
    """One run."""

    engines: int
    prefill: int
    blocks: int
    load: float
    policy: int
    seed: int
    routers: int = 1
    scraping: bool = False
    """Whether several routers know of each other by scraping only; otherwise they exchange their requests."""

    @property
    def routed_by(self) -> str:
        """What follows the policy's name."""
        if self.routers == 1:
            return ""
        return f", {self.routers} routers{', scraping only' if self.scraping else ''}"

    @property
    def pools(self) -> str:
        """The engines as people write them: 8, or 4+4 for prefill and decode."""
        return f"{self.prefill}+{self.engines - self.prefill}" if self.prefill else str(self.engines)


def cases(*, quick: bool, seeds: Sequence[int]) -> Iterator[Case]:
    """Yield every run: aggregated pools, prefill/decode pools, several routers."""
    engines = (8,) if quick else (4, 8, 16)
    loads = (0.7, 1.1) if quick else (0.7, 0.9, 1.1)
    for seed in seeds:
        for number in engines:
            for blocks in (850, 6000):
                for load in loads:
                    yield from (Case(number, 0, blocks, load, policy, seed) for policy in NUMBERS)
                    yield Case(number, 0, blocks, load, OWN, seed, ROUTERS)
                    if number == 8:
                        yield Case(number, 0, blocks, load, OWN, seed, ROUTERS, scraping=True)
        for prefill in () if quick else (4, 6):
            for blocks in (850, 6000):
                for load in loads:
                    yield from (Case(8, prefill, blocks, load, policy, seed) for policy in PAIRED)
                    yield Case(8, prefill, blocks, load, OWN, seed, ROUTERS)


class Bench:
    """Runs cases on one trace."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self.latency = default_latency()
        self.work = work_of(self.latency)
        self._spread = cache(lambda seed: spread(trace, seed=seed))
        self._rate = cache(lambda setting: saturated_rate(trace, setting, self.latency))

    def spread(self, seed: int) -> Trace:
        """Return the trace with the arrival times of *seed*."""
        return self._spread(seed)

    def rate(self, setting: Setting) -> float:
        """Return the saturated requests/s of the whole fleet, without hits."""
        return float(self._rate(setting)) * (1 if setting.prefill else setting.engines)

    def run(self, case: Case) -> dict[str, Any]:
        """Return the row of *case*."""
        setting = Setting(case.engines, case.blocks, case.prefill)
        trace = at_rate(self._spread(case.seed), self.rate(setting) * case.load)
        began = time.monotonic()
        exchange = PeerExchange() if case.routers > 1 and not case.scraping else None
        if case.prefill:
            pairs = [paired(case.policy, setting, self.work, exchange) for _ in range(case.routers)]
            name, outcomes = pairs[0].name, replay_pairs(trace, setting, pairs, self.latency)
        else:
            scrape = SCRAPE_SECONDS if case.scraping else None
            routers = [
                aggregated(case.policy, setting, self.work, scrape, exchange) for _ in range(case.routers)
            ]
            name, outcomes = routers[0].name, replay(trace, setting, routers, self.latency)
        row = asdict(figures(outcomes))
        return {
            "pools": case.pools,
            "engines": case.engines,
            "blocks": case.blocks,
            "load": case.load,
            "routers": case.routers,
            "policy": f"{name}{case.routed_by}",
            "seed": case.seed,
            "requests_per_second": self.rate(setting) * case.load,
            **row,
            "wall_seconds": time.monotonic() - began,
        }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison and return the exit status."""
    options = _options(argv)
    try:
        trace = find_trace(options.trace)
    except TraceError as error:
        print(f"compare.py: {error}", file=sys.stderr)
        return 2
    if options.quick:
        trace = replace(trace, requests=trace.requests[:QUICK_REQUESTS])
    print(f"trace: {trace.name}, {len(trace.requests):,} requests", file=sys.stderr)
    todo = list(cases(quick=options.quick, seeds=range(1 if options.quick else options.seeds)))
    rows = []
    for number, row in enumerate(_run(trace, todo, options.jobs), start=1):
        rows.append(row)
        print(f"[{number}/{len(todo)}] {_progress(row)}", file=sys.stderr, flush=True)
    folder: Path = options.output
    folder.mkdir(parents=True, exist_ok=True)
    document = {"trace": trace.name, "requests": len(trace.requests), "quick": options.quick, "rows": rows}
    (folder / "routing.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    draw(rows, trace.name, folder / "routing.svg")
    print("\n".join(table(rows)))
    print(f"written: {folder / 'routing.json'}, {folder / 'routing.svg'}", file=sys.stderr)
    return 0


def find_trace(path: Path | None) -> Trace:
    """Return the trace at *path*, else the conversation trace, else generated traffic. Raise TraceError."""
    if path is not None:
        return read_trace(path)
    data = Path(os.environ.get("TURNOUT_DATA") or REPOSITORY.parent / "shared" / "data") / TRACE_PATH
    if data.exists():
        return read_trace(data)
    print(f"{data} does not exist (TURNOUT_DATA says where data lies): generating traffic", file=sys.stderr)
    return generate(GENERATED_SECONDS, seed=0)


def table(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield a Markdown table of the means over the seeds."""
    yield "| engines | blocks | load | policy | hits | TTFT mean | p50 | p90 | p99 | ITL p99 | goodput |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for row in mean_over_seeds(rows):
        yield (
            f"| {row['pools']} | {row['blocks']:,} | {row['load']:.0%} | {row['policy']} "
            f"| {row['hit_rate']:.1%} | {row['ttft_mean_s']:.3f} s | {row['ttft_p50_s']:.3f} s "
            f"| {row['ttft_p90_s']:.3f} s | {row['ttft_p99_s']:.2f} s | {row['itl_p99_s'] * 1e3:.0f} ms "
            f"| {row['goodput_percent']:.1f} % |"
        )


_bench: Bench | None = None


def _run(trace: Trace, todo: Sequence[Case], jobs: int) -> Iterator[dict[str, Any]]:
    if jobs == 1:
        bench = Bench(trace)
        yield from map(bench.run, todo)
        return
    with ProcessPoolExecutor(jobs, initializer=_begin, initargs=(trace,)) as pool:
        yield from pool.map(_run_one, todo)


def _begin(trace: Trace) -> None:
    global _bench  # noqa: PLW0603 - one bench for each worker process
    _bench = Bench(trace)


def _run_one(case: Case) -> dict[str, Any]:
    assert _bench is not None
    return _bench.run(case)


def _progress(row: dict[str, Any]) -> str:
    return (
        f"{row['pools']} x {row['blocks']} blocks at {row['load']:.0%}, {row['policy']}: "
        f"mean {row['ttft_mean_s']:.3f} s, hits {row['hit_rate']:.1%} ({row['wall_seconds']:.1f} s)"
    )


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trace", type=Path, metavar="FILE", help="a trace in Mooncake's format")
    parser.add_argument("--quick", action="store_true", help="a part of the trace, 8 engines, one seed")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each case, with other arrival times")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    folder = REPOSITORY / "build" / "bench"
    parser.add_argument(
        "--output", type=Path, default=folder, metavar="FOLDER", help="where figures and plot go"
    )
    options = parser.parse_args(argv)
    if options.seeds < 1 or options.jobs < 1:
        parser.error("--seeds and --jobs must be at least 1")
    return options


if __name__ == "__main__":
    sys.exit(main())
