"""Room for the next step of a rollout, and which replicas older revisions give up where there is none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from turnout.scaling.policy import ScalingPolicy
    from turnout.scaling.rollout_facts import Surge
    from turnout.scaling.rollout_state import RolloutState
    from turnout.terms import Role


@dataclass(frozen=True, slots=True)
class Room:
    """How far older revisions give way, and why."""

    at_most: Mapping[Role, int] = field(default_factory=dict)
    """Most replicas of a role that older revisions keep together; roles that give nothing up are missing."""
    message: str = ""
    """Empty where there is room."""


def room_for(state: RolloutState, policy: ScalingPolicy, surge: Surge) -> Room:
    """Return how far older revisions give way, so that the next step of the target finds room.

    With what is ready on the target they still have all but one of the desired replicas of each role, and the last one
    that serves never leaves. They give up nothing where that would not be enough: capacity is not given away for no
    progress.
    """
    if state.share == 1 or not state.holds_older():
        return Room()
    return _on_nodes(state, policy, surge) or _within_budget(state, policy) or Room()


def _within_budget(state: RolloutState, policy: ScalingPolicy) -> Room | None:
    budget = policy.max_accelerators
    if budget is None:
        return None
    step = state.next_step()
    older = state.needed_of_older({})
    short = -budget + sum(
        policy.accelerators_of(role) * (older[role] + max(n, state.new.pool(role).replicas))
        for role, n in step.items()
    )
    short += sum(
        policy.accelerators_of(pool.role) * pool.replicas
        for one in state.older
        for pool in one.pools
        if pool.role not in step
    )
    if short <= 0:
        return None
    at_most = _giving(short, older, state, policy, lambda _: True)
    if at_most:
        return Room(at_most, f"{_listed(at_most)} of them make room within maxAccelerators {budget}")
    return Room(
        message=f"waits: the next step needs {short} accelerators more than maxAccelerators {budget}, and the last "
        f"replica that serves is not taken away: raise maxAccelerators by {short}"
    )


def _on_nodes(state: RolloutState, policy: ScalingPolicy, surge: Surge) -> Room | None:
    step = state.next_step()
    pools = {role: state.new.pool(role) for role in step}
    stuck = [
        role
        for role, pool in pools.items()
        if pool.unschedulable and pool.unschedulable_seconds >= surge.stuck_seconds
    ]
    if not stuck:
        return None
    kinds = {policy.pool(role).accelerator_type for role in stuck}
    short = sum(
        policy.accelerators_of(role) * max(0, step[role] - (pools[role].replicas - pools[role].unschedulable))
        for role in stuck
    )
    if not short:
        return None
    older = state.asked_of_older()
    if any(pool.draining for one in (state.new, *state.older) for pool in one.pools):
        return Room(older, "new pods find no node until those that drain make room")
    at_most = _giving(short, older, state, policy, lambda role: policy.pool(role).accelerator_type in kinds)
    if at_most:
        return Room(at_most, f"{_listed(at_most)} of them make room, for new pods find no node")
    return Room(
        message=f"waits: new {' and '.join(stuck)} pods find no node, and the last replica that serves is not taken "
        f"away: add nodes with {short} free {' or '.join(sorted(kinds))}"
    )


def _giving(
    accelerators: int,
    older: Mapping[Role, int],
    state: RolloutState,
    policy: ScalingPolicy,
    fits: Callable[[Role], bool],
) -> dict[Role, int]:
    """Return what *older* revisions are left with when *accelerators* come free; empty where they cannot."""
    last = 1 if state.share == 0 else 0
    needed = state.needed_of_older({})
    left = dict(older)
    # One whole pair may be missing; only where that is not enough, single roles down to one below what is desired.
    floors = (
        {role: max(last, n - 1) for role, n in needed.items()},
        {role: max(last, n - state.new.pool(role).ready - 1) for role, n in state.desired.items()},
    )
    for floor in floors:
        # The larger pool loses the smaller part of itself.
        for role in sorted(left, key=lambda one: -state.desired[one]):
            price = policy.accelerators_of(role)
            given_up = min(left[role] - floor[role], -(-accelerators // price)) if fits(role) else 0
            if given_up > 0:
                left[role] -= given_up
                accelerators -= price * given_up
    return {role: n for role, n in left.items() if n < older[role]} if accelerators <= 0 else {}


def _listed(replicas: Mapping[Role, int]) -> str:
    return ", ".join(f"no more than {role} {n}" for role, n in replicas.items())
