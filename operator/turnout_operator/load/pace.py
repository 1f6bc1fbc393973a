"""How often a deployment is read and decided about. Pure.

A decision changes with objects of the API server, figures of routers, or figures of workers. Watches report the first, and
routers are read anyway, so a deployment that only these can change is decided about when they change. Where workers matter,
too, but have no requests, they are read less often.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from turnout.scaling.decision import ScalingDecision
    from turnout_operator.plan.observed import Observed

INTERVAL_SECONDS: Final = 5.0
"""Time between two decisions, in the deployment's seconds."""
MIN_INTERVAL_SECONDS: Final = 1.0
"""The same in real seconds: no deployment is read more often."""
IDLE_INTERVALS: Final = 6.0
"""So many intervals pass between two decisions about a deployment that is as small as it may be and has no request."""
RESYNC_SECONDS: Final = 300.0
"""Time after which a deployment is decided about although nothing has changed, in case a change was missed."""


def interval_seconds(time_scale: int) -> float:
    """Return the time between two decisions about a deployment that is busy, in real seconds."""
    return max(MIN_INTERVAL_SECONDS, INTERVAL_SECONDS / time_scale)


def pause_seconds(observed: Observed, decision: ScalingDecision, interval: float) -> float:
    """Return how long after *decision* the next one follows, in real seconds, unless a change is reported earlier.

    *interval* is that of a busy deployment.
    """
    if not observed.traffic.is_quiet or decision.changed:
        return interval
    if not any(pod.ready for pod in observed.pods):
        return RESYNC_SECONDS  # nothing can be read
    if any(pod.draining for pod in observed.pods):
        return interval  # how far they are is seen in their load
    smallest = all(observed.desired[pool.role] <= pool.minimum for pool in observed.policy.pools)
    loads = [pod.load for pod in observed.pods if pod.ready]
    idle = all(load is not None and not load.running and not load.waiting for load in loads)
    return IDLE_INTERVALS * interval if smallest and idle and observed.traffic.answered else interval
