"""Which workers serve a prompt under a `PrefixAware` policy: roles, revisions, exclusions, local prefill.

The rules are those of `turnout.routing.pick` (prefill and decode of one revision; revisions that can do both halves
first; excluded never, avoided last); only the choice among equals is by cost instead of by load.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from turnout.routing.pick import Choice, LocalReason
from turnout.routing.policy import Picks
from turnout.routing.reason import LOCAL_SENTENCES, Candidate

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from turnout.routing.fleet import Backend
    from turnout.routing.ledger import BackendState, Prompt
    from turnout.routing.policy import Pick, PrefixAware
    from turnout.routing.reason import Half


class PrefixReason:
    """Why a prefix-aware choice was made, see `turnout.routing.cost`. `local` is the `LocalReason`, if there is one."""

    __slots__ = ("decode", "local", "prefill", "prompt_tokens")

    def __init__(self, picks: Picks, local: LocalReason | None) -> None:
        self.decode: Final = picks.decode
        self.prefill: Final = picks.prefill
        self.local: Final = local
        self.prompt_tokens: Final = picks.prompt.tokens

    @property
    def sentence(self) -> str:
        """One line for people."""
        parts = [self._clause("decode", self.decode)]
        if self.prefill is not None:
            parts.append(self._clause("prefill", self.prefill))
        if self.local is not None:
            parts.append(LOCAL_SENTENCES[self.local])
        parts.append(f"the prompt has about {self.prompt_tokens} tokens")
        return "; ".join(parts)

    @property
    def weight(self) -> int:
        """Count the costs that it holds."""
        return len(self.decode.compared) + (0 if self.prefill is None else len(self.prefill.compared))

    def candidates(self) -> tuple[Candidate, ...]:
        """Return who was compared, cheapest first."""
        halves: tuple[tuple[Half, Pick | None], ...] = (("decode", self.decode), ("prefill", self.prefill))
        return tuple(
            Candidate(
                backend=cost.backend,
                half=half,
                chosen=cost.backend == pick.state.id,
                figures=cost.figures(),
            )
            for half, pick in halves
            if pick is not None
            for cost in pick.costs()
        )

    def _clause(self, half: Half, pick: Pick) -> str:
        cached = min(pick.cached, self.prompt_tokens)
        among = "the only one" if len(pick.compared) == 1 else f"the cheapest of {len(pick.compared)}"
        return (
            f"{half} on {pick.state.id}: about {cached} tokens cached, first token expected in {pick.wait:.3f} s, "
            f"cost {pick.cost:.3f} s, {among}"
        )


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
) -> Choice | None:
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
    if any(b.role != "aggregated" for b in decoders):
        if local is None:
            prefillers = [b for b in backends if b.role == "prefill" and b.id not in excluded]
            complete = {b.revision for b in prefillers}
            decoders = [b for b in decoders if b.role == "aggregated" or b.revision in complete] or decoders
        revision = _least_loaded_revision(policy, decoders)
        decoders = [b for b in decoders if b.revision == revision]
        prefillers = [b for b in prefillers if b.revision == revision]
    if all(b.role == "aggregated" for b in decoders):
        pick = policy.choose(prompt, _states(policy, decoders), now)
        return _choice(backends, Picks(policy, prompt, pick, None), "aggregated")
    pair = policy.choose_pair(
        prompt,
        _states(policy, prefillers),
        _states(policy, decoders),
        now,
        local_below_tokens=local_prefill_below_tokens,
    )
    if pair.prefill is not None:
        return _choice(backends, pair, None)
    if local is None:
        if prompt.tokens < local_prefill_below_tokens:
            local = "short_prompt"
        else:
            local = "cheaper_locally" if prefillers else "no_prefill"
    return _choice(backends, pair, local)


def _choice(backends: Sequence[Backend], picks: Picks, local: LocalReason | None) -> Choice:
    decode = _called(backends, picks.decode.state.id)
    prefill = None if picks.prefill is None else _called(backends, picks.prefill.state.id)
    return Choice(decode, prefill, local, PrefixReason(picks, local), picks)


def _called(backends: Sequence[Backend], name: str) -> Backend:
    for backend in backends:
        if backend.id == name:
            return backend
    raise ValueError(f"no backend is called {name}")


def _states(policy: PrefixAware, backends: Iterable[Backend]) -> list[BackendState]:
    states = policy.ledger.states
    return [states[b.id] for b in backends]


def _least_loaded_revision(policy: PrefixAware, decoders: Sequence[Backend]) -> str:
    """Return the revision of the decode worker with the least in flight: in a rollout, load follows ready capacity."""
    revisions = {b.revision for b in decoders}
    if len(revisions) == 1:
        return revisions.pop()
    states = policy.ledger.states
    return min(decoders, key=lambda b: (states[b.id].in_flight, states[b.id].last_pick)).revision
