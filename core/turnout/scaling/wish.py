"""What one pool should have by itself: growth at once, shrinking with care, and what holds it where it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from turnout.scaling.decision import ScalingLimit

if TYPE_CHECKING:
    from turnout.scaling.decision import PoolMemory
    from turnout.scaling.facts import PoolFacts
    from turnout.scaling.need import Need

MAX_GROWTH: Final = 2
"""A pool grows to at most so many times what is ready of it, as HPA and AIBrix limit it."""
STEP_SHARE: Final = 0.2
"""Share of the stabilization window between two steps down: the effect of one is seen before the next."""

MIN_EXPERIENCE_SECONDS: Final = 30.0
"""So long clients must have had the replicas of now, also where the goodput is about a shorter time: routers that have
just been found have counted little."""


@dataclass(frozen=True, slots=True)
class PoolView:
    """Everything that the wish of one pool depends on."""

    facts: PoolFacts
    need: Need
    memory: PoolMemory
    minimum: int
    """Fewest replicas that the user allows."""
    window_need: int
    """Highest need, with margin, within the stabilization window."""
    window_missing_seconds: float
    """How much of the window has not been seen yet."""
    window_seconds: float
    """Length of the stabilization window."""
    experience_seconds: float
    """Length of the time that the goodput is about."""
    suspect: str = ""
    """Why this pool may be the cause of a goodput below its target; empty where it cannot be."""
    no_room: str = ""
    """Why further replicas would find no node; empty where nothing says so."""
    incomplete: str = ""
    """What is missing to judge a scale-in; empty where nothing is."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What one pool should have before it is fitted in with the others."""

    replicas: int
    why: str
    limit: ScalingLimit | None = None
    strained_load: float | None = None
    """Load per replica that proved too much; None unless goodput is what makes the pool grow."""


def wish(view: PoolView, now: float) -> Wish:
    """Return what the pool of *view* should have at *now*."""
    replicas = view.facts.replicas
    if view.need.replicas > replicas:
        return _grow(view, view.need.replicas, view.need.because)
    if view.suspect:
        return _grow_by_goodput(view, now)
    if replicas > view.minimum and replicas > view.need.with_margin:
        return _shrink(view, now)
    return Wish(replicas, _kept(view))


def _kept(view: PoolView) -> str:
    facts, need = view.facts, view.need
    if facts.ready < need.replicas <= facts.replicas:
        coming = facts.replicas - facts.ready
        return f"{need.because}; the need of {need.replicas} is covered by {coming} on the way"
    return need.because


def _grow(view: PoolView, needed: int, because: str) -> Wish:
    replicas, ready = view.facts.replicas, view.facts.ready
    if view.no_room:
        message = f"{view.facts.role} needs {needed} replicas, but {view.no_room}"
        return Wish(replicas, f"{because}; {view.no_room}", ScalingLimit("Unschedulable", message))
    target = min(needed, max(replicas, MAX_GROWTH * ready))
    if target <= replicas:
        return Wish(replicas, f"{because}; needs {needed}, waiting for {replicas - ready} on the way first")
    if target < needed:
        because = f"{because}; needs {needed}, at most doubled at once"
    return Wish(target, because)


def _grow_by_goodput(view: PoolView, now: float) -> Wish:
    """Grow by one when what clients experienced since the last change is still too little."""
    facts = view.facts
    since = view.memory.unsettled_seconds
    if since is None or now - since < max(view.experience_seconds, MIN_EXPERIENCE_SECONDS):
        return Wish(facts.replicas, f"{view.suspect}; waiting to see what the replicas of now achieve")
    grown = _grow(view, facts.replicas + 1, view.suspect)
    if grown.replicas == facts.replicas:
        return grown
    return Wish(grown.replicas, grown.why, strained_load=view.need.load / facts.ready)


def _shrink(view: PoolView, now: float) -> Wish:
    held = _held(view, now)
    if held:
        return Wish(view.facts.replicas, f"{view.need.because}; {held}")
    why = f"{view.need.because}; {view.window_need} sufficed for the last {view.window_seconds:.0f} s"
    return Wish(view.facts.replicas - 1, why)


def _held(view: PoolView, now: float) -> str:
    """Return what forbids to take one replica away now; empty where nothing does."""
    facts = view.facts
    pause = STEP_SHARE * view.window_seconds
    since_change = now - view.memory.changed_seconds if view.memory.changed_seconds is not None else pause
    remaining = min(facts.ready, facts.replicas - 1)
    rules = (
        (bool(view.incomplete), f"not shrunk, for {view.incomplete}"),
        (
            view.window_missing_seconds > 0,
            f"may shrink after {view.window_missing_seconds:.0f} s more of the stabilization window",
        ),
        (
            view.window_need >= facts.replicas,
            f"{view.window_need} were needed within the last {view.window_seconds:.0f} s",
        ),
        (remaining < view.window_need, f"only {facts.ready} are ready of {view.window_need} needed"),
        (facts.draining > 0, f"{facts.draining} still draining"),
        (since_change < pause, f"the next step down follows in {pause - since_change:.0f} s"),
    )
    return next((text for applies, text in rules if applies), "")
