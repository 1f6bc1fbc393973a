"""The replicas that a plan asks for: the last decision within the bounds as they are now, and the change it makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from turnout.scaling.allocate import Allocation, allocate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from turnout.api import Role
    from turnout.scaling.decision import ScalingDecision
    from turnout_operator.plan.observed import Observed


@dataclass(frozen=True, slots=True)
class ScalingChange:
    """Replicas of each role that are changed now, or would be."""

    before: Mapping[Role, int]
    after: Mapping[Role, int]
    reason: str
    """One sentence for people."""

    @property
    def change(self) -> int:
        """By how many replicas all pools together grow; negative: shrink."""
        return sum(self.after.values()) - sum(self.before.values())

    def __str__(self) -> str:
        """Return the change without its reason, as people read it."""
        return f"{tally(self.before)} -> {tally(self.after)}"


def tally(replicas: Mapping[Role, int]) -> str:
    """Return replicas as people read them: ``prefill 1, decode 2``."""
    return ", ".join(f"{role} {count}" for role, count in replicas.items())


def allocation(observed: Observed, decision: ScalingDecision | None) -> Allocation:
    """Return the replicas to have: what was decided last, within the bounds as they are now."""
    decided = decision is not None and decision.apply and set(decision.desired) == set(observed.desired)
    return allocate(
        decision.desired if decision is not None and decided else observed.desired, observed.policy
    )


def scaling_change(
    observed: Observed, decision: ScalingDecision | None, allowed: Allocation
) -> ScalingChange | None:
    """Return the change of replicas that a plan makes. None: there is none."""
    was_reported = any((observed.status.get(pool) or {}).get("desired") for pool in ("prefill", "decode"))
    if not was_reported or dict(observed.desired) == dict(allowed.replicas):
        return None
    made = ScalingChange(observed.desired, allowed.replicas, "")
    if decision is not None and decision.apply and dict(decision.desired) == dict(allowed.replicas):
        return ScalingChange(made.before, made.after, decision.reason)
    return ScalingChange(made.before, made.after, f"{made}: the bounds of the spec have changed")


def advised_change(decision: ScalingDecision | None) -> ScalingChange | None:
    """Return the change that was decided and is not carried out, for the mode is Advisory. None: there is none."""
    if decision is None or decision.apply or not decision.changed:
        return None
    return ScalingChange(decision.current, decision.desired, decision.reason)
