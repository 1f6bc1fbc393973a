"""Choice of the workers for a prompt under a `PrefixAware` policy: roles, revisions, exclusions, local prefill.

`turnout.routing.candidates` selects the eligible workers, as for every rule.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mypy_extensions import mypyc_attr

from turnout.routing.candidates import eligible
from turnout.routing.pair import Chooser, WorkerPair
from turnout.routing.policy import PairEstimate
from turnout.routing.reason import LOCAL_SENTENCES, Candidate

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from turnout.routing.candidates import Constraints, LocalReason
    from turnout.routing.fleet import Backend
    from turnout.routing.load_tracker import BackendState, Prompt
    from turnout.routing.policy import Estimate, PrefixAware
    from turnout.routing.reason import Phase


@mypyc_attr(acyclic=True)
class PrefixReason:
    """Why a prefix-aware choice was made, see `turnout.routing.cost`. `local` is the `LocalReason`, if there is one."""

    __slots__ = ("decode", "local", "prefill", "prompt_tokens")

    def __init__(self, estimate: PairEstimate, local: LocalReason | None) -> None:
        self.decode: Final = estimate.decode
        self.prefill: Final = estimate.prefill
        self.local: Final = local
        self.prompt_tokens: Final = estimate.prompt.tokens

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
        """Return the workers that were compared, cheapest first."""
        phases: tuple[tuple[Phase, Estimate | None], ...] = (
            ("decode", self.decode),
            ("prefill", self.prefill),
        )
        return tuple(
            Candidate(
                backend=cost.backend,
                phase=phase,
                chosen=cost.backend == pick.state.id,
                figures=cost.figures(),
            )
            for phase, pick in phases
            if pick is not None
            for cost in pick.costs()
        )

    def _clause(self, phase: Phase, pick: Estimate) -> str:
        cached = min(pick.cached, self.prompt_tokens)
        among = "the only one" if len(pick.compared) == 1 else f"the cheapest of {len(pick.compared)}"
        return (
            f"{phase} on {pick.state.id}: about {cached} tokens cached, first token expected in {pick.wait:.3f} s, "
            f"cost {pick.cost:.3f} s, {among}"
        )


class PrefixChooser(Chooser):
    """Chooses by the costs of *policy*, to whose tracker every worker must be known.

    A prompt with fewer uncached tokens than *local_below_tokens* is computed where it is decoded; without
    *may_compute_locally* none is.
    """

    __slots__ = ("_local_below_tokens", "_may_compute_locally", "_policy")

    def __init__(
        self, policy: PrefixAware, local_below_tokens: int, *, may_compute_locally: bool = True
    ) -> None:
        self._policy = policy
        self._may_compute_locally = may_compute_locally
        self._local_below_tokens = local_below_tokens

    def choose(
        self, backends: Sequence[Backend], prompt: Prompt, constraints: Constraints, now: float
    ) -> WorkerPair | None:
        """Return the cheapest pair, see `Chooser.choose`."""
        found = eligible(backends, constraints)
        if found is None:
            return None
        policy, local = self._policy, constraints.local
        decoders, prefillers = found.decoders, found.prefillers
        if any(b.role != "aggregated" for b in decoders):
            revision = _least_loaded_revision(policy, decoders)
            decoders = [b for b in decoders if b.revision == revision]
            prefillers = [b for b in prefillers if b.revision == revision]
        if all(b.role == "aggregated" for b in decoders):
            estimate = policy.choose(prompt, _states(policy, decoders), now)
            return _pair(backends, PairEstimate(policy, prompt, estimate, None), "aggregated")
        estimates = policy.choose_pair(
            prompt,
            _states(policy, prefillers),
            _states(policy, decoders),
            now,
            local_below_tokens=self._local_below_tokens,
            may_compute_locally=self._may_compute_locally,
        )
        if estimates.prefill is not None:
            return _pair(backends, estimates, None)
        if local is None:
            if prompt.tokens < self._local_below_tokens:
                local = "short_prompt"
            else:
                local = "cheaper_locally" if prefillers else "no_prefill"
        return _pair(backends, estimates, local)


def _pair(backends: Sequence[Backend], estimate: PairEstimate, local: LocalReason | None) -> WorkerPair:
    decode = _called(backends, estimate.decode.state.id)
    prefill = None if estimate.prefill is None else _called(backends, estimate.prefill.state.id)
    return WorkerPair(decode, prefill, local, PrefixReason(estimate, local), estimate)


def _called(backends: Sequence[Backend], name: str) -> Backend:
    for backend in backends:
        if backend.id == name:
            return backend
    raise ValueError(f"no backend is called {name}")


def _states(policy: PrefixAware, backends: Iterable[Backend]) -> list[BackendState]:
    states = policy.tracker.states
    return [states[b.id] for b in backends]


def _least_loaded_revision(policy: PrefixAware, decoders: Sequence[Backend]) -> str:
    """Return the revision of the decode worker with the least in flight: in a rollout, load follows ready capacity."""
    revisions = {b.revision for b in decoders}
    if len(revisions) == 1:
        return revisions.pop()
    states = policy.tracker.states
    return min(decoders, key=lambda b: (states[b.id].in_flight, states[b.id].last_pick)).revision
