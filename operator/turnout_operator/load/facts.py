"""From scraped figures to the facts that scaling reads. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from turnout.scaling.facts import LoadFacts, PoolFacts
from turnout_operator.load import pages

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from turnout.api import Role
    from turnout.scaling.policy import ScalingPolicy
    from turnout_operator.load.traffic import Traffic
    from turnout_operator.plan.pods import ObservedPod


def load_facts(
    policy: ScalingPolicy,
    desired: Mapping[Role, int],
    pods: Sequence[ObservedPod],
    traffic: Traffic,
    occupancy: Mapping[Role, float | None],
    *,
    now: float,
    scale: int,
) -> LoadFacts:
    """Return what scaling knows at *now* (seconds since the epoch) of a deployment at time scale *scale*.

    *occupancy* is the mean number of requests in prefill, or held for it, by role (see PoolFacts.occupancy_mean).
    """
    increases, span = traffic.increases, traffic.span_seconds * scale
    return LoadFacts(
        pools=tuple(
            _pool_facts(
                pool.role,
                desired[pool.role],
                pods,
                occupancy.get(pool.role),
                held=traffic.held.get("prefill" if pool.role == "prefill" else "decode", 0),
                now=now,
                scale=scale,
            )
            for pool in policy.pools
        ),
        goodput_percent=traffic.goodput_percent if traffic.answered else None,
        finished=round(increases.get(pages.FINISHED, 0.0)),
        refused=round(increases.get(pages.REFUSED, 0.0)),
        ttft_missed_share=missed_share(increases, pages.TTFT, policy.ttft_seconds),
        itl_missed_share=missed_share(increases, pages.ITL, policy.itl_seconds),
        routers_answered=traffic.answered and span > 0,
        window_seconds=span,
    )


def missed_share(increases: Mapping[str, float], histogram: str, objective: float) -> float | None:
    """Return the share of a histogram's observations above *objective*; None where it has none.

    Within the bucket that holds the objective observations are taken to lie evenly, as histogram_quantile does.
    """
    prefix = f"{histogram}<="
    found = sorted(
        (float(name.removeprefix(prefix)), count)
        for name, count in increases.items()
        if name.startswith(prefix)
    )
    if not found or found[-1][1] <= 0:
        return None
    total, below_bound, below_count = found[-1][1], 0.0, 0.0
    for bound, count in found:
        if bound >= objective:
            part = 0.0 if math.isinf(bound) else (objective - below_bound) / (bound - below_bound)
            within = below_count + (count - below_count) * part
            return min(1.0, max(0.0, 1.0 - within / total))
        below_bound, below_count = bound, count
    return 0.0


def _pool_facts(
    role: Role,
    desired: int,
    pods: Sequence[ObservedPod],
    occupancy: float | None,
    *,
    held: int,
    now: float,
    scale: int,
) -> PoolFacts:
    mine = [pod for pod in pods if pod.role == role]
    serving = [pod for pod in mine if pod.serving]
    loads = [pod.load for pod in serving if pod.load is not None]
    waiting_to_start = [pod for pod in mine if not pod.ready and not pod.terminating and not pod.draining]
    return PoolFacts(
        role=role,
        replicas=desired,
        ready=len(serving),
        starting=sum(pod.scheduled for pod in waiting_to_start),
        unschedulable=sum(pod.unschedulable_since is not None for pod in waiting_to_start),
        draining=sum(pod.draining or pod.terminating for pod in mine),
        running=sum(load.running for load in loads),
        waiting=sum(max(0, load.waiting - load.deferred) for load in loads),
        held=held,
        kv_utilization_mean=sum(load.kv_utilization for load in loads) / len(loads) if loads else None,
        kv_utilization_max=max((load.kv_utilization for load in loads), default=None),
        scraped=len(loads),
        age_seconds=max((max(0.0, now - load.scraped_at) for load in loads), default=0.0) * scale,
        occupancy_mean=occupancy,
    )
