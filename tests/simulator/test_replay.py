"""The replay in virtual time: every policy serves every request, figures are exact, and a run can be repeated."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from turnout.routing.work import work_of
from turnout_simulator.generate import generate
from turnout_simulator.outcomes import SimulatedOutcome, figures, mean_figures, quantile
from turnout_simulator.policies.aibrix import PrefixCache
from turnout_simulator.policies.chwbl import BoundedLoadHashing
from turnout_simulator.policies.dynamo import KvCost
from turnout_simulator.policies.holding import HoldingTurnout, HoldingTurnoutPairs
from turnout_simulator.policies.llmd import Scorers
from turnout_simulator.policies.own import Turnout
from turnout_simulator.policies.pairs import TurnoutPairs, TwoPools
from turnout_simulator.policies.peers import PeerNetwork
from turnout_simulator.policies.plain import LeastRequests, RoundRobin
from turnout_simulator.policies.port import Arrival, EnginePolicy
from turnout_simulator.policies.sglang import CacheAware
from turnout_simulator.replay import (
    Setting,
    at_rate,
    default_latency,
    replay,
    replay_pairs,
    saturated_rate,
)
from turnout_simulator.traces import Trace, TraceRequest

if TYPE_CHECKING:
    from collections.abc import Callable

LATENCY = default_latency()
WORK = work_of(LATENCY)
ENGINES, BLOCKS, BLOCK = 4, 850, 512
SETTING = Setting(ENGINES, BLOCKS)
REPOSITORY = Path(__file__).resolve().parents[2]


def traffic(seconds: float = 240.0, seed: int = 3) -> Trace:
    return generate(seconds, seed=seed)


POLICIES: dict[str, Callable[[], EnginePolicy]] = {
    "round robin": lambda: RoundRobin(ENGINES),
    "least requests": lambda: LeastRequests(ENGINES),
    "CHWBL": lambda: BoundedLoadHashing(ENGINES),
    "SGLang": lambda: CacheAware(ENGINES),
    "AIBrix": lambda: PrefixCache(ENGINES, BLOCKS),
    "llm-d": lambda: Scorers(ENGINES, BLOCKS, BLOCK, 0.05),
    "Dynamo": lambda: KvCost(ENGINES, BLOCKS, BLOCK),
    "Turnout": lambda: Turnout(ENGINES, BLOCKS, BLOCK, WORK),
    "Turnout, scraping": lambda: Turnout(ENGINES, BLOCKS, BLOCK, WORK, 0.1),
    "Turnout, holding": lambda: HoldingTurnout(ENGINES, BLOCKS, BLOCK, WORK),
}


@pytest.mark.parametrize("make", POLICIES.values(), ids=POLICIES.keys())
def test_every_policy_serves_every_request_once(make: Callable[[], EnginePolicy]) -> None:
    """All end, with their own output, not before they could, and the same again in a second run."""
    trace = traffic()
    outcomes = replay(trace, SETTING, [make()], LATENCY)
    assert sorted(o.number for o in outcomes) == list(range(len(trace.requests)))
    for outcome in outcomes:
        request = trace.requests[outcome.number]
        assert (outcome.prompt_tokens, outcome.output_tokens) == (request.input_tokens, request.output_tokens)
        uncached = outcome.prompt_tokens - outcome.cached_tokens
        assert outcome.ttft_seconds >= LATENCY.prefill_seconds(uncached, outcome.cached_tokens) - 1e-9
        assert outcome.finished_at >= outcome.first_token_at
    assert replay(trace, SETTING, [make()], LATENCY) == outcomes


def test_the_policies_prefer_what_they_are_named_for() -> None:
    """Prefix-aware rules hit more than blind ones; Turnout waits least."""
    trace = traffic(900.0)
    seen = {name: figures(replay(trace, SETTING, [make()], LATENCY)) for name, make in POLICIES.items()}
    blind = max(seen[name].hit_rate for name in ("round robin", "least requests"))
    for name in ("CHWBL", "SGLang", "AIBrix", "llm-d", "Dynamo", "Turnout"):
        assert seen[name].hit_rate > blind, name
    assert seen["Turnout"].ttft_mean_s == min(
        each.ttft_mean_s for name, each in seen.items() if not name.startswith("Turnout, ")
    )
    assert seen["Turnout, holding"].ttft_mean_s < seen["Turnout"].ttft_mean_s


def test_several_routers_share_the_engines() -> None:
    """Four routers that know nothing of each other serve all, with scrapes far better than without."""
    trace = traffic(600.0)
    with_scrapes, without = (
        figures(
            replay(trace, SETTING, [Turnout(ENGINES, BLOCKS, BLOCK, WORK, scrape) for _ in range(4)], LATENCY)
        )
        for scrape in (0.05, None)
    )
    assert with_scrapes.requests == without.requests == len(trace.requests)
    assert with_scrapes.ttft_mean_s < 0.8 * without.ttft_mean_s


def test_routers_that_tell_each_other_choose_as_one_would() -> None:
    """Four routers come close to one, where four that only scrape do not, and do no worse than they by any means."""
    trace = traffic(600.0)

    def mean(routers: int, scrape: float | None, network: PeerNetwork | None) -> float:
        policies = [Turnout(ENGINES, BLOCKS, BLOCK, WORK, scrape, network) for _ in range(routers)]
        seen = figures(replay(trace, SETTING, policies, LATENCY))
        assert seen.requests == len(trace.requests)
        return seen.ttft_mean_s

    one, reported, scraped = mean(1, None, None), mean(4, None, PeerNetwork()), mean(4, 0.1, None)
    assert reported <= 1.1 * one
    assert reported < scraped
    at_once = PeerNetwork(batch_seconds=0.0, delay_seconds=0.0)
    assert mean(4, None, at_once) == pytest.approx(one, rel=0.03)


def test_pairs_of_several_routers_come_close_to_one() -> None:
    """Both phases of a request are exchanged, so that prefill and decode engines are seen by all."""
    trace, setting = traffic(600.0), Setting(4, BLOCKS, prefill=2)
    means = []
    for network in (None, PeerNetwork()):
        routers = [TurnoutPairs(2, 4, BLOCKS, BLOCK, WORK, network) for _ in range(4 if network else 1)]
        means.append(figures(replay_pairs(trace, setting, routers, LATENCY)).ttft_mean_s)
    assert means[1] <= 1.1 * means[0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: TwoPools(LeastRequests(2), LeastRequests(2), 2),
        lambda: TwoPools(Scorers(2, BLOCKS, BLOCK, 0.05), Scorers(2, BLOCKS, BLOCK, 0.05), 2),
        lambda: TurnoutPairs(2, 4, BLOCKS, BLOCK, WORK),
        lambda: HoldingTurnoutPairs(2, 4, BLOCKS, BLOCK, WORK),
    ],
    ids=["least requests", "llm-d", "Turnout", "Turnout, holding"],
)
def test_pairs_serve_every_request_once(make: Callable[[], TwoPools | TurnoutPairs]) -> None:
    """Prefill, transfer and decode; a first token costs at least the prefill and the transfer, or a local prefill."""
    trace = traffic()
    outcomes = replay_pairs(trace, Setting(4, BLOCKS, prefill=2), [make()], LATENCY)
    assert sorted(o.number for o in outcomes) == list(range(len(trace.requests)))
    for outcome in outcomes:
        uncached = outcome.prompt_tokens - outcome.cached_tokens
        assert outcome.ttft_seconds >= LATENCY.prefill_seconds(uncached, outcome.cached_tokens) - 1e-9


def test_holding_shortens_an_overload() -> None:
    """Half as much again as the fleet can serve: requests that wait in the router wait less than in the engines' queues."""
    trace = traffic(300.0)
    rate = 1.5 * saturated_rate(trace, SETTING, LATENCY) * ENGINES
    pushed, held = (
        figures(replay(at_rate(trace, rate), SETTING, [make(ENGINES, BLOCKS, BLOCK, WORK)], LATENCY))
        for make in (Turnout, HoldingTurnout)
    )
    assert held.ttft_mean_s < 0.7 * pushed.ttft_mean_s
    assert held.ttft_p50_s < 0.5 * pushed.ttft_p50_s


def test_one_cache_for_all_engines_hits_wherever_requests_go() -> None:
    """Blind choices over a pooled cache find what any engine has computed; over caches of their own they do not."""
    trace = traffic(600.0)
    apart, pooled = (
        figures(replay(trace, Setting(ENGINES, 6000, pooled=pooled), [RoundRobin(ENGINES)], LATENCY))
        for pooled in (False, True)
    )
    assert pooled.hit_rate > 2 * apart.hit_rate


def test_the_policy_of_one_pool_cannot_hold() -> None:
    """A peer's rule for each phase has to name an engine."""
    pools = TwoPools(HoldingTurnout(2, BLOCKS, BLOCK, WORK), LeastRequests(2), 2)
    with pytest.raises(ValueError, match="holds requests back"):
        replay_pairs(at_rate(traffic(60.0), 50.0), Setting(4, BLOCKS, prefill=2), [pools], LATENCY)


def test_pairs_need_engines_of_both_kinds() -> None:
    """No decode engine, no replay."""
    with pytest.raises(ValueError, match="leave some of each"):
        replay_pairs(
            traffic(60.0), Setting(2, BLOCKS, prefill=2), [TurnoutPairs(2, 2, BLOCKS, BLOCK, WORK)], LATENCY
        )


def test_a_saturated_engine_is_measured_without_hits() -> None:
    """More KV room serves more, and a trace whose prompts are all alike is no faster for it."""
    trace = traffic(1200.0)
    small, large = (saturated_rate(trace, Setting(1, blocks), LATENCY) for blocks in (850, 6000))
    assert 0.5 < small < large < 5
    alike = replace(
        trace,
        requests=tuple(replace(r, block_ids=tuple(range(len(r.block_ids)))) for r in trace.requests),
    )
    assert saturated_rate(alike, Setting(1, 850), LATENCY) == pytest.approx(small)
    with pytest.raises(ValueError, match="too few requests"):
        saturated_rate(Trace("one", trace.requests[:1]), Setting(1, 850), LATENCY)


def test_a_rate_is_what_was_asked_for() -> None:
    """Arrivals are compressed as a whole; nonsense is refused."""
    trace = at_rate(traffic(), 8.0)
    assert len(trace.requests) / trace.duration_seconds == pytest.approx(8.0)
    with pytest.raises(ValueError, match="greater than 0"):
        at_rate(trace, 0.0)


def test_figures_by_hand() -> None:
    """Quantiles, hits and goodput of four requests that can be counted on fingers."""
    outcomes = [
        SimulatedOutcome(0, 0.0, 0.5, 1.5, 100, 50, 101, local_prefill=True),
        SimulatedOutcome(1, 0.0, 1.0, 1.0, 100, 0, 1, local_prefill=False),
        SimulatedOutcome(2, 0.0, 2.5, 3.5, 100, 0, 101, local_prefill=False),
        SimulatedOutcome(3, 0.0, 1.5, 8.5, 100, 0, 101, local_prefill=False),
    ]
    seen = figures(outcomes)
    assert (seen.hit_rate, seen.ttft_mean_s, seen.ttft_p50_s, seen.ttft_p90_s) == (0.125, 1.375, 1.0, 2.5)
    assert (seen.goodput_percent, seen.local_prefill_percent) == (50.0, 25.0)
    assert seen.itl_p99_s == pytest.approx(0.07)
    assert mean_figures([seen, seen]).ttft_p90_s == 2.5
    assert quantile([1.0], 0.99) == 1.0
    for nothing in (lambda: figures([]), lambda: mean_figures([])):
        with pytest.raises(ValueError, match="no "):
            nothing()


def test_bounded_loads_bound_the_load() -> None:
    """However alike the prompts, no engine gets more than 125 % of the mean (rounded up)."""
    policy = BoundedLoadHashing(4)
    for number in range(100):
        policy.choose(Arrival(number, 0.0, 1024, (1, 2)))
        assert max(policy.requests) <= -(-1.25 * (number + 1) // 4)


def test_the_comparison_runs_on_any_trace(tmp_path: Path) -> None:
    """The benchmark's quick setting on a trace of its own: rows, a plot, a table; a broken trace is named."""
    lines = [
        {
            "timestamp": 300 * n,
            "input_length": 2048,
            "output_length": 20,
            "hash_ids": [0, n % 7 + 1, n % 7 + 100, n % 7 + 200],
        }
        for n in range(200)
    ]
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    command = [
        sys.executable,
        "benchmarks/routing/compare.py",
        "--quick",
        "--output",
        str(tmp_path),
        "--trace",
    ]
    done = subprocess.run(
        [*command, str(path)], cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=200
    )
    rows = json.loads((tmp_path / "routing.json").read_text())["rows"]
    assert {row["policy"] for row in rows} >= {"Turnout", "round robin", "KV cost (Dynamo)"}
    assert {
        "engines",
        "blocks",
        "load",
        "policy",
        "seed",
        "hit_rate",
        "ttft_mean_s",
        "goodput_percent",
    } <= rows[0].keys()
    assert (tmp_path / "routing.svg").read_text().startswith("<?xml")
    assert done.stdout.count("\n") >= 20
    path.write_text("no trace\n")
    failed = subprocess.run(
        [*command, str(path)], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60
    )
    assert (failed.returncode, "line 1" in failed.stderr) == (2, True)


def test_a_request_seen_by_a_router_has_full_blocks_only() -> None:
    """The last, partial block is no prefix that another prompt could reuse."""
    request = TraceRequest(0.0, 1000, 10, (5, 6))
    trace = Trace("one and the same", (request, replace(request, arrival_seconds=50.0)))
    outcomes = replay(trace, Setting(1, BLOCKS), [RoundRobin(1)], LATENCY)
    assert [o.cached_tokens for o in outcomes] == [0, 512]
