"""How many replicas the load of one pool needs.

Prefill. Of the number of requests in the pool, l per replica (running or waiting, smoothed), follows how busy a replica
is: in an M/D/1 queue l = rho + rho^2 / (2 (1 - rho)) (Pollaczek and Khinchine), hence rho = 1 + l - sqrt(1 + l^2). The
work of the pool, ready * rho, is spread so that each replica is busy ``PREFILL_BUSY`` of the time. At saturation rho
says little, so the queue is bounded as well: at most ``QUEUE_TARGET`` requests wait per replica. Engines that put
several short prompts into one iteration are less busy than this says: the error is on the safe side.

Decode. What counts is the KV cache: ceil(ready * kv / target), as llm-d's guides do, with the requests that wait for
cache counted at the mean size of those that run: kv * (1 + waiting / running).

Aggregated. Decode's rule, and the bound on the queue.

A request that the routers hold back for a pool waits for it like one in an engine's queue.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from turnout.scaling.facts import PoolFacts
    from turnout.scaling.policy import ScalingPolicy

PREFILL_BUSY: Final = 0.75
"""Share of its time that a prefill replica may compute. At 0.75 an M/D/1 queue waits 1.5 service times on average."""
QUEUE_TARGET: Final = 5
"""Waiting requests of one replica above which it counts as saturated (llm-d's queue threshold)."""
MARGIN: Final = 0.85
"""A pool shrinks only where the others stay below this share of every target: the gap that keeps 2 <-> 1 from swinging."""
_ROUNDING: Final = 1e-9
"""Keeps 0.8 * 3 / 0.8 from becoming 4 replicas."""


@dataclass(frozen=True, slots=True)
class Demand:
    """Replicas that a pool's load needs."""

    replicas: int
    """So that every target is met."""
    with_margin: int
    """So that every target is met with the margin that a scale-in asks for. Never less than *replicas*."""
    load: float
    """Load of the pool: replicas' worth of busy time (prefill), requests in the pool (decode, aggregated)."""
    because: str
    """The figures behind it, such as ``KV cache 91 % in use, target 80 %``."""


def busy_share(requests_per_replica: float) -> float:
    """Return the share of time (0 to 1) that a replica with so many requests in it, on average, is busy."""
    return 1 + requests_per_replica - math.sqrt(1 + requests_per_replica**2)


def occupancy(pool: PoolFacts) -> float:
    """Return the requests in *pool* or held for it now, its silent pods counted like those that answered."""
    if pool.role == "prefill" and pool.occupancy_mean is not None:
        return pool.occupancy_mean
    return _running(pool) + waiting(pool)


def waiting(pool: PoolFacts) -> float:
    """Return the requests that wait for *pool* now: in its engines, silent pods counted like the others, and in routers."""
    return _of_all(pool, pool.waiting) + pool.held


def demand_of(pool: PoolFacts, smoothed_occupancy: float, policy: ScalingPolicy) -> Demand:
    """Return what *pool* needs. It must have ready pods, and at least one that answered."""
    if pool.role == "prefill":
        return _prefill(pool, smoothed_occupancy)
    demands = [_cache(pool, policy.kv_target)]
    if pool.role == "aggregated":
        demands.append(_queue(pool))
    return max(demands, key=lambda demand: demand.replicas)


def _prefill(pool: PoolFacts, requests: float) -> Demand:
    per_replica = requests / pool.ready
    busy = busy_share(per_replica)
    work = pool.ready * busy
    by_work, by_queue = work / PREFILL_BUSY, requests / (1 + QUEUE_TARGET)
    figures = (
        f"{per_replica:.1f} requests per replica, busy {busy:.0%} of the time, target {PREFILL_BUSY:.0%}"
    )
    if by_queue > by_work:
        figures = f"{per_replica:.1f} requests per replica, target at most {1 + QUEUE_TARGET}"
    return _demand(max(by_work, by_queue), work, figures)


def _cache(pool: PoolFacts, target: float) -> Demand:
    kv = pool.kv_utilization_mean or 0.0
    running, queued = _running(pool), waiting(pool)
    queue = f", {queued:.0f} requests waiting" if queued else ""
    load = pool.ready * kv * (1 + queued / running if running else 1.0)
    return _demand(load / target, occupancy(pool), f"KV cache {kv:.0%} in use{queue}, target {target:.0%}")


def _queue(pool: PoolFacts) -> Demand:
    queued = waiting(pool)
    per_replica = queued / pool.ready
    return _demand(
        queued / QUEUE_TARGET,
        occupancy(pool),
        f"{per_replica:.1f} requests waiting per replica, target at most {QUEUE_TARGET}",
    )


def _running(pool: PoolFacts) -> float:
    return _of_all(pool, pool.running)


def _of_all(pool: PoolFacts, requests: int) -> float:
    """Return how many *requests* of the pods that answered are of all pods that are ready."""
    return requests * pool.ready / pool.scraped if pool.scraped else 0.0


def _demand(exact: float, load: float, because: str) -> Demand:
    return Demand(
        max(1, math.ceil(exact - _ROUNDING)), max(1, math.ceil(exact / MARGIN - _ROUNDING)), load, because
    )
