"""What scaling knows when it decides: the state and the load of each pool, and what clients experience.

All seconds are the deployment's own (contracts.md, time scale): a simulated deployment at time scale 20 lives
20 of them in one second of the clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from turnout.terms import Role


@dataclass(frozen=True, slots=True)
class PoolFacts:
    """State and load of one pool, over all its revisions."""

    role: Role
    replicas: int
    """Replicas asked for and meant to stay, whether they exist yet or not. During a rollout the number that
    scaling asked for, without the surge. Pods that are draining are not among them."""
    ready: int
    """Pods that serve: Ready and not draining."""
    starting: int = 0
    """Pods that are scheduled, but not Ready yet."""
    unschedulable: int = 0
    """Pods for which the scheduler finds no node."""
    draining: int = 0
    """Pods on their way out. They still hold their accelerators."""
    running: int = 0
    """Requests that the pods which answered are working on (``vllm:num_requests_running``, summed)."""
    waiting: int = 0
    """Requests that wait for room in the pods which answered (``vllm:num_requests_waiting``, summed, without those of
    ``vllm:num_requests_waiting_by_reason{reason="deferred"}``: no replica more brings their KV cache sooner)."""
    held: int = 0
    """Requests that the routers hold back until a pod of this pool could begin with them (``turnout_router_held``,
    summed). They are at no pod, so they are all of them, however many pods answered."""
    kv_utilization_mean: float | None = None
    """KV cache in use, 0 to 1, mean over the pods that answered. None: not one answered."""
    kv_utilization_max: float | None = None
    """KV cache in use, 0 to 1, of the fullest pod."""
    scraped: int = 0
    """How many of the ready pods answered the last scrape."""
    age_seconds: float = 0.0
    """How old the oldest of these figures is."""
    occupancy_mean: float | None = None
    """Mean number of requests that were in the pool's prefill or waiting for it since the last decision, those
    that the routers held for it included, summed over its pods: by Little's law the rates of ``vllm:request_queue_time_seconds_sum`` and
    ``vllm:request_prefill_time_seconds_sum`` (per second of the deployment's), and that of
    ``turnout_router_held_seconds_total``. Steadier than the sample ``running + waiting + held``, which stands in for it
    where it is None. Only read for prefill pools."""


@dataclass(frozen=True, slots=True)
class LoadFacts:
    """What clients asked and experienced over the last *window_seconds*, as the routers counted it."""

    pools: tuple[PoolFacts, ...]
    goodput_percent: float | None = None
    """Share of the finished requests that met both objectives. None: none finished, or no router answered."""
    finished: int = 0
    """Requests that came to an end in the window."""
    refused: int = 0
    """Requests of these that were refused because capacity was missing (503)."""
    ttft_missed_share: float | None = None
    """Share (0 to 1) of the answered requests whose first token came later than its objective. None: unknown."""
    itl_missed_share: float | None = None
    """Share (0 to 1) of the answered requests whose mean inter-token latency missed its objective."""
    routers_answered: bool = False
    """Whether a router answered. Without one it is unknown what clients experience."""
    window_seconds: float = 60.0
    """The time that all of these figures but the pools' are about."""

    def pool(self, role: Role) -> PoolFacts:
        """Return the facts about the pool that plays *role*. Raise KeyError where there are none."""
        for pool in self.pools:
            if pool.role == role:
                return pool
        raise KeyError(role)
