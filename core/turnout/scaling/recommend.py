"""What one pool should have by itself: growth at once, shrinking with care, and what holds it where it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from turnout.scaling.decision import ScalingLimit

if TYPE_CHECKING:
    from turnout.scaling.decision import PoolMemory
    from turnout.scaling.demand import Demand
    from turnout.scaling.facts import PoolFacts

MAX_GROWTH: Final = 2
"""A pool grows to at most so many times what is ready of it, as HPA and AIBrix limit it."""
STEP_SHARE: Final = 0.2
"""Share of the stabilization window between two steps down: the effect of one is seen before the next."""

MIN_OBSERVATION_SECONDS: Final = 30.0
"""Clients must have had the present replicas for this long, also where the goodput covers a shorter time: routers that
have just been found have counted little."""


@dataclass(frozen=True, slots=True)
class PoolView:
    """Everything that the recommendation for one pool depends on."""

    facts: PoolFacts
    demand: Demand
    memory: PoolMemory
    minimum: int
    """Fewest replicas that the user allows."""
    window_demand: int
    """Highest demand, with margin, within the stabilization window."""
    window_missing_seconds: float
    """How much of the window has not been seen yet."""
    window_seconds: float
    """Length of the stabilization window."""
    observation_seconds: float
    """Length of the time that the goodput covers."""
    bottleneck: str = ""
    """Why this pool may be the cause of a goodput below its target; empty where it cannot be."""
    no_room: str = ""
    """Why further replicas would find no node; empty where nothing says so."""
    incomplete: str = ""
    """What is missing to judge a scale-in; empty where nothing is."""


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What one pool should have before it is allocated together with the others."""

    replicas: int
    why: str
    limit: ScalingLimit | None = None
    overload: float | None = None
    """Load per replica that proved too much; None unless goodput is what makes the pool grow."""


def recommend(view: PoolView, now: float) -> Recommendation:
    """Return what the pool of *view* should have at *now*."""
    replicas = view.facts.replicas
    if view.demand.replicas > replicas:
        return _grow(view, view.demand.replicas, view.demand.because)
    if view.bottleneck:
        return _grow_by_goodput(view, now)
    if replicas > view.minimum and replicas > view.demand.with_margin:
        return _shrink(view, now)
    return Recommendation(replicas, _kept(view))


def _kept(view: PoolView) -> str:
    facts, demand = view.facts, view.demand
    if facts.ready < demand.replicas <= facts.replicas:
        coming = facts.replicas - facts.ready
        return f"{demand.because}; the need of {demand.replicas} is covered by {coming} on the way"
    return demand.because


def _grow(view: PoolView, needed: int, because: str) -> Recommendation:
    replicas, ready = view.facts.replicas, view.facts.ready
    if view.no_room:
        message = f"{view.facts.role} needs {needed} replicas, but {view.no_room}"
        return Recommendation(replicas, f"{because}; {view.no_room}", ScalingLimit("Unschedulable", message))
    target = min(needed, max(replicas, MAX_GROWTH * ready))
    if target <= replicas:
        return Recommendation(
            replicas, f"{because}; needs {needed}, waiting for {replicas - ready} on the way first"
        )
    if target < needed:
        because = f"{because}; needs {needed}, at most doubled at once"
    return Recommendation(target, because)


def _grow_by_goodput(view: PoolView, now: float) -> Recommendation:
    """Grow by one when what clients experienced since the last change is still too little."""
    facts = view.facts
    since = view.memory.last_change_seconds
    if since is None or now - since < max(view.observation_seconds, MIN_OBSERVATION_SECONDS):
        return Recommendation(
            facts.replicas, f"{view.bottleneck}; waiting to see what the replicas of now achieve"
        )
    grown = _grow(view, facts.replicas + 1, view.bottleneck)
    if grown.replicas == facts.replicas:
        return grown
    return Recommendation(grown.replicas, grown.why, overload=view.demand.load / facts.ready)


def _shrink(view: PoolView, now: float) -> Recommendation:
    obstacle = _obstacle(view, now)
    if obstacle:
        return Recommendation(view.facts.replicas, f"{view.demand.because}; {obstacle}")
    why = f"{view.demand.because}; {view.window_demand} sufficed for the last {view.window_seconds:.0f} s"
    return Recommendation(view.facts.replicas - 1, why)


def _obstacle(view: PoolView, now: float) -> str:
    """Return what forbids removing one replica now; empty where nothing does."""
    facts = view.facts
    pause = STEP_SHARE * view.window_seconds
    since_change = now - view.memory.scaled_seconds if view.memory.scaled_seconds is not None else pause
    remaining = min(facts.ready, facts.replicas - 1)
    rules = (
        (bool(view.incomplete), f"not shrunk, for {view.incomplete}"),
        (
            view.window_missing_seconds > 0,
            f"may shrink after {view.window_missing_seconds:.0f} s more of the stabilization window",
        ),
        (
            view.window_demand >= facts.replicas,
            f"{view.window_demand} were needed within the last {view.window_seconds:.0f} s",
        ),
        (remaining < view.window_demand, f"only {facts.ready} are ready of {view.window_demand} needed"),
        (facts.draining > 0, f"{facts.draining} still draining"),
        (since_change < pause, f"the next step down follows in {pause - since_change:.0f} s"),
    )
    return next((text for applies, text in rules if applies), "")
