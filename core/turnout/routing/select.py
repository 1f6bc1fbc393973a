"""Which workers serve a prompt under a `PrefixAware` policy: roles, revisions, exclusions, local prefill.

The rules are those of `turnout.routing.pick` (prefill and decode of one revision; revisions that can do both halves
first; excluded never, avoided last); only the choice among equals is by cost instead of by load.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from turnout.routing.pick import Choice, LocalReason

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from turnout.routing.fleet import Backend
    from turnout.routing.ledger import BackendState, Prompt
    from turnout.routing.policy import Pick, PrefixAware


@dataclass(frozen=True, slots=True)
class Selection:
    """A choice, and what the policy is to be told once requests are on their way."""

    choice: Choice
    decode: Pick
    prefill: Pick | None


def select(
    policy: PrefixAware,
    backends: Sequence[Backend],
    prompt: Prompt,
    now: float,
    *,
    local_prefill_below_tokens: int,
    excluded: frozenset[str] = frozenset(),
    avoided: frozenset[str] = frozenset(),
    local: LocalReason | None = None,
) -> Selection | None:
    """Return who serves *prompt*, None where nobody can decode. *local* given: no prefill worker takes part.

    Every backend must be known to the policy's ledger. A prompt with fewer uncached tokens than
    *local_prefill_below_tokens* is computed where it is decoded.
    """
    decoders = [b for b in backends if b.role != "prefill" and b.id not in excluded]
    if avoided:
        decoders = [b for b in decoders if b.id not in avoided] or decoders
    if not decoders:
        return None
    prefillers: list[Backend] = []
    if local is None:
        prefillers = [b for b in backends if b.role == "prefill" and b.id not in excluded]
        complete = {b.revision for b in prefillers}
        decoders = [b for b in decoders if b.role == "aggregated" or b.revision in complete] or decoders
    if all(b.role == "aggregated" for b in decoders):
        pick = policy.choose(prompt, _states(policy, decoders), now)
        return Selection(Choice(_backend(decoders, pick), None, "aggregated"), pick, None)
    revision = _least_loaded_revision(policy, decoders)
    decoders = [b for b in decoders if b.revision == revision]
    prefillers = [b for b in prefillers if b.revision == revision]
    pair = policy.choose_pair(
        prompt,
        _states(policy, prefillers),
        _states(policy, decoders),
        now,
        local_below_tokens=local_prefill_below_tokens,
    )
    decode = _backend(decoders, pair.decode)
    if pair.prefill is not None:
        return Selection(Choice(decode, _backend(prefillers, pair.prefill), None), pair.decode, pair.prefill)
    if decode.role == "aggregated":
        reason: LocalReason = "aggregated"
    elif local is not None:
        reason = local
    else:
        reason = "cheaper_locally" if prefillers else "no_prefill"
        if prompt.tokens < local_prefill_below_tokens:
            reason = "short_prompt"
    return Selection(Choice(decode, None, reason), pair.decode, None)


def _states(policy: PrefixAware, backends: Iterable[Backend]) -> list[BackendState]:
    states = policy.ledger.states
    return [states[b.id] for b in backends]


def _backend(backends: Sequence[Backend], pick: Pick) -> Backend:
    return next(b for b in backends if b.id == pick.state.id)


def _least_loaded_revision(policy: PrefixAware, decoders: Sequence[Backend]) -> str:
    """Return the revision of the decode worker with the least in flight: in a rollout, load follows ready capacity."""
    revisions = {b.revision for b in decoders}
    if len(revisions) == 1:
        return revisions.pop()
    states = policy.ledger.states
    return min(decoders, key=lambda b: (states[b.id].in_flight, states[b.id].last_pick)).revision
