"""From metrics pages to facts: reading, summing, and what is made of it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from support.operator_values import raw_deployment
from turnout.api import load_deployment
from turnout.api.worker_facts import MAX_KV_TOKENS
from turnout.scaling.demand import demand_of
from turnout_operator.load import pages
from turnout_operator.load.facts import load_facts, missed_share
from turnout_operator.load.pages import RouterPage, bucket, router_page, worker_page
from turnout_operator.load.traffic import Traffic
from turnout_operator.load.window import CounterWindow
from turnout_operator.plan.pods import ObservedPod, WorkerLoad
from turnout_operator.plan.policy import policy_of


@pytest.mark.parametrize(
    ("lines", "tokens"),
    [
        ('vllm:cache_config_info{block_size="16",num_gpu_blocks="100"} 1', 1600),
        (
            (
                'vllm:cache_config_info{engine="0",block_size="16",num_gpu_blocks="100"} 1\n'
                'vllm:cache_config_info{engine="1",block_size="16",num_gpu_blocks="50"} 1'
            ),
            2400,
        ),
        ('vllm:cache_config_info{block_size="16",num_gpu_blocks="None"} 1', 0),
        ('vllm:cache_config_info{block_size="16",num_gpu_blocks="-4"} 1', 0),
        ('vllm:cache_config_info{block_size="16",num_gpu_blocks="' + "9" * 30 + '"} 1', 0),
        ('vllm:cache_config_info{block_size="16",num_gpu_blocks="99999999999"} 1', MAX_KV_TOKENS),
        ("", 0),
    ],
)
def test_how_much_a_cache_holds_is_read(lines: str, tokens: int) -> None:
    """Summed over a worker's engines; what is no number counts as not said, and nothing exceeds what routers accept."""
    figures = "vllm:num_requests_running 0\nvllm:num_requests_waiting 0\nvllm:kv_cache_usage_perc 0\n"
    page = worker_page(f"{figures}{lines}\n")
    assert page is not None
    assert page.kv_tokens == tokens


def test_a_worker_page_without_the_figures_that_matter_is_none() -> None:
    """A pod that answers something else counts as one that did not answer."""
    assert worker_page("vllm:num_requests_running 3\n") is None
    page = worker_page(
        'vllm:num_requests_running{engine="0"} 3\nvllm:num_requests_running{engine="1"} 2\nvllm:num_requests_waiting 1\nvllm:kv_cache_usage_perc 0.5\n'
    )
    assert page is not None
    assert (page.running, page.waiting, page.kv_utilization, page.prefill_seconds) == (5, 1, 0.5, None)


def test_waiting_for_kv_is_not_waiting_for_room() -> None:
    """Requests whose KV cache is on its way are counted apart where the engine exposes them; for draining they count."""
    page = worker_page(
        "vllm:num_requests_running 2\nvllm:num_requests_waiting 14\nvllm:kv_cache_usage_perc 0.12\n"
        'vllm:num_requests_waiting_by_reason{reason="capacity"} 1\n'
        'vllm:num_requests_waiting_by_reason{reason="deferred"} 13\n'
    )
    assert page is not None
    assert (page.waiting, page.deferred) == (14, 13)


def test_requests_that_wait_for_their_kv_ask_for_no_replica() -> None:
    """A decode pool at 12 % of its cache does not grow because transfers are under way."""
    load = WorkerLoad(99.0, running=16, waiting=14, kv_utilization=0.12, deferred=14)
    policy = policy_of(load_deployment(raw_deployment()).spec)
    facts = load_facts(
        policy,
        {"prefill": 1, "decode": 2},
        [pod(load=load), pod(load=load)],
        Traffic({}, 60.0, answered=True),
        {},
        now=100.0,
        scale=1,
    )
    assert facts.pool("decode").waiting == 0
    demand = demand_of(facts.pool("decode"), 0.0, policy)
    assert demand.replicas == 1
    assert "waiting" not in demand.because


def test_a_router_page_is_split_by_deployment() -> None:
    """Refusals are its 503s; a histogram keeps its buckets."""
    page = router_page(
        'turnout_router_finished_total{deployment="a/b"} 10\n'
        'turnout_router_good_total{deployment="a/b"} 9\n'
        'turnout_router_requests_total{code="503",deployment="a/b"} 2\n'
        'turnout_router_requests_total{code="200",deployment="a/b"} 8\n'
        'turnout_router_time_to_first_token_seconds_bucket{deployment="a/b",le="0.5"} 4\n'
        'turnout_router_finished_total{deployment="c/d"} 1\n'
    )
    assert page["a/b"].counters == {
        pages.FINISHED: 10,
        pages.GOOD: 9,
        pages.REFUSED: 2,
        bucket(pages.TTFT, 0.5): 4,
    }
    assert page["c/d"] == RouterPage({pages.FINISHED: 1})


def test_a_router_page_has_what_is_held() -> None:
    """By the role that could not begin; it is no counter of the window's."""
    page = router_page(
        'turnout_router_held{deployment="a/b",role="prefill"} 3.0\n'
        'turnout_router_held{deployment="a/b",role="decode"} 0.0\n'
        'turnout_router_held_seconds_total{deployment="a/b",role="prefill"} 12.5\n'
        'turnout_router_held_seconds_total{deployment="a/b",role="decode"} 4.0\n'
        'turnout_router_held_seconds_created{deployment="a/b",role="decode"} 1.7e9\n'
    )
    assert page == {
        "a/b": RouterPage({}, {"prefill": 3, "decode": 0}, {"prefill": 12.5, "decode": 4.0}),
    }


def test_a_window_counts_what_came_within_it() -> None:
    """A first sight gives the level only; a source that starts again counts from zero; old steps fall out."""
    window = CounterWindow(10.0)
    window.add(0.0, {"r1": {"n": 100.0}})
    assert window.sums() == {}
    window.add(5.0, {"r1": {"n": 103.0}, "r2": {"n": 50.0}})
    assert window.sums() == {"n": 3.0}
    window.add(8.0, {"r1": {"n": 2.0}, "r2": {"n": 51.0, "m": 4.0}})
    assert window.sums() == {"n": 6.0, "m": 4.0}
    window.add(15.5, {"r1": {"n": 2.0}})
    assert window.sums() == {"n": 3.0, "m": 4.0}
    assert window.span(15.5) == 10.5


def test_a_source_that_is_silent_for_a_while_loses_nothing() -> None:
    """What it counted meanwhile arrives when it answers again."""
    window = CounterWindow(60.0)
    window.add(0.0, {"r": {"n": 1.0}})
    window.add(1.0, {})
    window.add(2.0, {"r": {"n": 6.0}})
    assert window.sums() == {"n": 5.0}


@pytest.mark.parametrize(
    ("counts", "objective", "expected"),
    [
        ({0.5: 10, 1.0: 10, math.inf: 10}, 0.5, 0.0),
        ({0.5: 0, 1.0: 0, math.inf: 10}, 0.7, 1.0),
        ({0.5: 0, 1.0: 10, math.inf: 10}, 0.75, 0.5),
        ({0.5: 0, 1.0: 0, math.inf: 0}, 0.75, None),
        ({}, 0.75, None),
    ],
    ids=["all met", "all missed", "half of the bucket", "no observations", "no histogram"],
)
def test_the_share_that_missed_an_objective(
    counts: dict[float, float], objective: float, expected: float | None
) -> None:
    """Read from the histogram's buckets, evenly spread within the one that holds the objective."""
    increases = {bucket(pages.TTFT, bound): float(count) for bound, count in counts.items()}
    assert missed_share(increases, pages.TTFT, objective) == expected


def pod(**more: Any) -> ObservedPod:
    base: dict[str, Any] = {
        "name": "p",
        "role": "decode",
        "revision": "r",
        "created_at": 0.0,
        "ready": True,
        "scheduled": True,
        "terminating": False,
        "draining_since": None,
        "deletion_cost": 0,
    }
    return ObservedPod(**{**base, **more})


def test_pods_become_facts_about_their_pool() -> None:
    """Ready, starting, unschedulable and draining pods are counted apart; times are in the deployment's seconds."""
    loaded = WorkerLoad(scraped_at=98.0, running=3, waiting=1, kv_utilization=0.6)
    pods = [
        pod(load=loaded),
        pod(load=WorkerLoad(99.0, 1, 0, 0.2)),
        pod(),
        pod(ready=False),
        pod(ready=False, scheduled=False, unschedulable_since=1.0),
        pod(draining_since=5.0, load=loaded),
        pod(ready=False, terminating=True),
    ]
    policy = policy_of(load_deployment(raw_deployment()).spec)
    traffic = Traffic({pages.FINISHED: 10.0, pages.GOOD: 9.0}, 6.0, answered=True)
    facts = load_facts(policy, {"prefill": 1, "decode": 4}, pods, traffic, {}, now=100.0, scale=5)
    decode = facts.pool("decode")
    assert (decode.replicas, decode.ready, decode.starting, decode.unschedulable, decode.draining) == (
        4,
        3,
        1,
        1,
        2,
    )
    assert (decode.running, decode.waiting, decode.scraped, decode.age_seconds) == (4, 1, 2, 10.0)
    assert decode.kv_utilization_mean == pytest.approx(0.4)
    assert decode.kv_utilization_max == 0.6
    assert facts.goodput_percent == 90.0
    assert facts.routers_answered
    assert facts.window_seconds == 30.0


@pytest.mark.parametrize(
    ("prefill", "expected"),
    [((1, 4), {"prefill": 4, "decode": 7}), (None, {"aggregated": 7})],
    ids=["both pools", "one pool"],
)
def test_what_routers_hold_is_held_for_a_pool(
    prefill: tuple[int, int] | None, expected: dict[str, int]
) -> None:
    """By the role that is short; an aggregated pool is the one that decodes."""
    policy = policy_of(load_deployment(raw_deployment(prefill=prefill)).spec)
    traffic = Traffic({}, 60.0, answered=True, held={"prefill": 4, "decode": 7})
    facts = load_facts(policy, dict.fromkeys(policy.roles, 1), [], traffic, {}, now=0.0, scale=1)
    assert {pool.role: pool.held for pool in facts.pools} == expected


def test_without_a_router_nothing_is_known_of_the_traffic() -> None:
    """Silence is not taken for idleness."""
    policy = policy_of(load_deployment(raw_deployment()).spec)
    facts = load_facts(
        policy, {"prefill": 1, "decode": 4}, [], Traffic({}, 60.0, answered=False), {}, now=0.0, scale=1
    )
    assert facts.goodput_percent is None
    assert not facts.routers_answered
    assert facts.pool("decode").kv_utilization_mean is None
