"""Moving replicas from older revisions to the target one, prefill and decode in step.

The planner is stateless: the next step follows from what is observed, so it may be interrupted anywhere.

Shares. A revision serves the share s = min over roles of ready / desired, for a prefill worker without its decode
worker serves nothing. With share s ready on the target, older revisions keep ceil((1 - s) * desired) replicas of each
role: what serves does not fall below what is desired, and a revision's pools stay within one replica of the desired
ratio. The target grows in steps to the next share s' at which some role needs one replica more, to ceil(s' * desired)
replicas of each role, as many steps at once as surge and accelerator budget leave room for.

No room. Where the budget is too small for the next step, or its pods find no node for ``Surge.stuck_seconds``, older
revisions give way until one replica of a role is missing, if that makes the room, but never with the last one that
serves: a deployment of one replica per role waits for room, and the plan says so.

Serving. Until its first prefill and decode replica serve, the target gets no more than these two, and the newest older
revision that serves follows scaling; afterwards the target does.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from turnout.scaling.rollout_facts import RolloutPlan, Surge
from turnout.scaling.rollout_room import Room, room_for
from turnout.scaling.rollout_state import RolloutState, ceiling, serves

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from turnout.scaling.policy import ScalingPolicy
    from turnout.scaling.rollout_facts import RevisionFacts
    from turnout.terms import Role

DEFAULT_SURGE: Final = Surge()


def serving_revision(revisions: Sequence[RevisionFacts]) -> str | None:
    """Return the newest of *revisions* that has a ready pod of each of its roles; None where there is none."""
    serving = [revision for revision in revisions if serves(revision)]
    return max(serving, key=lambda one: (one.created_seconds, one.revision)).revision if serving else None


def rollout(
    desired: Mapping[Role, int],
    revisions: Sequence[RevisionFacts],
    target: str,
    policy: ScalingPolicy,
    surge: Surge = DEFAULT_SURGE,
) -> RolloutPlan:
    """Return the replicas that every revision should have next, on the way to *desired* of *target* alone.

    *revisions* are all that have a pool or a pod left; *target* may be missing among them (its pools are to be made).
    A revision that gets 0 replicas of a role and has no pod of it left may be deleted.
    """
    state = RolloutState.of(desired, revisions, target)
    room = room_for(state, policy, surge)
    keep = _keep(state, room, policy)
    grown = _grown(state, keep, policy, surge)
    done = not state.holds_older() and all(
        state.new.pool(role).replicas == n <= state.new.pool(role).ready for role, n in state.desired.items()
    )
    return RolloutPlan(
        replicas=MappingProxyType(
            {revision: MappingProxyType(pools) for revision, pools in {**keep, target: grown}.items()}
        ),
        serving=serving_revision(revisions),
        done=done,
        reason=_sentence(state, keep, grown, room),
    )


def _keep(state: RolloutState, room: Room, policy: ScalingPolicy) -> dict[str, dict[Role, int]]:
    """Return what older revisions keep: whole pairs first, newest revision first, then whatever fills a role up."""
    keep: dict[str, dict[Role, int]] = {}
    share_left = 1 - state.share
    for revision in state.older:
        take = min(state.share_of(revision), share_left)
        share_left -= take
        keep[revision.revision] = {role: ceiling(take, n) for role, n in state.desired.items()}
    for role, total in state.needed_of_older(room.at_most).items():
        _fill(keep, role, total, state)
    if room.message == "":
        _follow_scaling(keep, state, policy)
    for revision in state.older:
        for pool in revision.pools:
            if pool.role not in state.desired:
                # Pools of another shape (aggregated before, split now) leave once the target serves everything.
                keep[revision.revision][pool.role] = pool.replicas if state.share < 1 else 0
    return keep


def _fill(keep: dict[str, dict[Role, int]], role: Role, total: int, state: RolloutState) -> None:
    """Bring what older revisions keep of *role* to *total*, as far as they have it. Changes *keep*."""
    missing = total - sum(pools[role] for pools in keep.values())
    for revision in reversed(state.older):
        cut = min(max(0, -missing), keep[revision.revision][role])
        keep[revision.revision][role] -= cut
        missing += cut
    # Pods that serve come before those that may.
    for serving in (True, False):
        for revision in state.older_to_fill():
            pool = revision.pool(role)
            has = min(pool.ready, pool.replicas) if serving else pool.replicas
            add = max(0, min(missing, has - keep[revision.revision][role]))
            keep[revision.revision][role] += add
            missing -= add


def _follow_scaling(keep: dict[str, dict[Role, int]], state: RolloutState, policy: ScalingPolicy) -> None:
    """Grow the older revision that serves while the target does not, within the budget. Changes *keep*.

    The target's first replica of a role counts as if it served, or a replica given up for it would be taken back.
    """
    carrier = state.carrier()
    if carrier is None:
        return
    held = state.held_by_older(keep)
    for role, n in state.desired.items():
        missing = n - sum(pools[role] for pools in keep.values()) - min(1, state.new.pool(role).replicas)
        if missing > 0 and policy.max_accelerators is not None:
            used = sum(
                policy.accelerators_of(one) * (held.get(one, 0) + state.held_by_new(one)) for one in held
            )
            missing = min(missing, (policy.max_accelerators - used) // policy.accelerators_of(role))
        if missing > 0:
            keep[carrier.revision][role] += missing
            held = state.held_by_older(keep)


def _grown(
    state: RolloutState, keep: Mapping[str, Mapping[Role, int]], policy: ScalingPolicy, surge: Surge
) -> dict[Role, int]:
    """Return the target's replicas: as many whole steps as there is room for, never fewer than it has."""
    base = {role: min(state.new.pool(role).replicas, n) for role, n in state.desired.items()}
    if not state.holds_older():
        draining = any(state.new.pool(role).draining for role in state.desired)
        return base if draining and not _affordable(state.desired, {}, state, policy) else dict(state.desired)
    if any(state.new.pool(role).unschedulable for role in state.desired):
        return _without_excess(base, state)
    held = state.held_by_older(keep)
    # The first prefill and decode replica prove the revision before more of it is asked for.
    steps = state.steps if state.share > 0 else state.steps[:1]
    for share in reversed(steps):
        wanted = {role: max(base[role], n) for role, n in state.at_step(share).items()}
        within_surge = all(
            wanted[role] == base[role] or wanted[role] + held.get(role, 0) <= n + surge.replicas(n)
            for role, n in state.desired.items()
        )
        if wanted == base or (within_surge and _affordable(wanted, held, state, policy)):
            return wanted
    return base


def _without_excess(base: Mapping[Role, int], state: RolloutState) -> dict[Role, int]:
    """Withdraw pods without a node that the next step can do without: they would take the room made for it."""
    step = state.next_step()
    with_node = {role: n - min(n, state.new.pool(role).unschedulable) for role, n in base.items()}
    return {role: max(with_node[role], min(n, step[role])) for role, n in base.items()}


def _affordable(
    wanted: Mapping[Role, int], held: Mapping[Role, int], state: RolloutState, policy: ScalingPolicy
) -> bool:
    if policy.max_accelerators is None:
        return True
    total = sum(
        policy.accelerators_of(role)
        * (
            max(wanted.get(role, 0), state.new.pool(role).replicas)
            + state.new.pool(role).draining
            + held.get(role, 0)
        )
        for role in wanted.keys() | held.keys()
    )
    return total <= policy.max_accelerators


def _sentence(
    state: RolloutState, keep: Mapping[str, Mapping[Role, int]], grown: Mapping[Role, int], room: Room
) -> str:
    target = f"{state.new.revision}: " + ", ".join(
        f"{role} {state.new.pool(role).ready}/{n} ready" for role, n in state.desired.items()
    )
    if not state.holds_older():
        return f"revision {target}"
    older = "; ".join(
        f"{revision} keeps " + ", ".join(f"{role} {n}" for role, n in pools.items())
        for revision, pools in keep.items()
        if any(pools.values())
    )
    asked = ", ".join(f"{role} {n}" for role, n in grown.items())
    parts = [f"rolling out {target}, asked for {asked}", older or "older revisions leave", room.message]
    return "; ".join(part for part in parts if part)
