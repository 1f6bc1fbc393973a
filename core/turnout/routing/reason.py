"""The reason of a choice: kept as figures, and formatted only on request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnout.routing.fleet import Backend

Phase = Literal["decode", "prefill"]

LOCAL_SENTENCES = {
    "aggregated": "it computes prompts itself",
    "short_prompt": "it computes the prompt itself, which is too short to be worth moving",
    "no_prefill": "it computes the prompt itself, for no prefill worker of its revision can be used",
    "prefill_failed": "it computes the prompt itself, for the prefill workers that were tried have failed",
    "request_form": "it computes the prompt itself, for the request's form allows nothing else",
    "cheaper_locally": "it computes what is not cached there itself, for that costs less than moving the cache",
    "handed_over": "it takes over the cache that a prefill worker computed for an earlier try",
    "no_generation": "nothing is generated, so there is no cache to be moved",
}
"""Why the worker that decodes computes the prompt, by `LocalReason`."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A backend that was compared, and the figures by which it was, in order of weight."""

    backend: str
    phase: Phase
    chosen: bool
    figures: tuple[tuple[str, float], ...]


class Reason(Protocol):
    """Why a choice was made."""

    @property
    def sentence(self) -> str:
        """One line for people."""

    @property
    def weight(self) -> int:
        """About how many figures it holds: what keeping it costs."""

    def candidates(self) -> tuple[Candidate, ...]:
        """Return the backends that were compared."""


class Ranking(NamedTuple):
    """The backends compared for one phase of a request. `costs` stand in the same order; the least one is chosen."""

    phase: Phase
    chosen: Backend
    backends: Sequence[Backend]
    costs: Sequence[tuple[int, int, int]]

    @property
    def sentence(self) -> str:
        """One clause for people."""
        tokens, requests, _ = self.costs[self.backends.index(self.chosen)]
        among = "the only one" if len(self.costs) == 1 else f"the least of {len(self.costs)}"
        return f"{self.phase} on {self.chosen.id}: {tokens} tokens in {requests} requests in flight, {among}"

    def candidates(self) -> tuple[Candidate, ...]:
        """Return the backends that were compared, cheapest first."""
        ranked = sorted(zip(self.costs, self.backends, strict=True), key=lambda entry: entry[0])
        return tuple(
            Candidate(
                backend=backend.id,
                phase=self.phase,
                chosen=backend is self.chosen,
                figures=(("tokensInFlight", tokens), ("requestsInFlight", requests), ("lastPick", last)),
            )
            for (tokens, requests, last), backend in ranked
        )


class LeastLoaded(NamedTuple):
    """The least loaded worker was chosen, see `turnout.routing.by_load`. `local` is the `LocalReason`, if there is one."""

    decode: Ranking
    prefill: Ranking | None
    local: str | None
    prompt_tokens: int
    excluded: frozenset[str]
    avoided: frozenset[str]

    @property
    def sentence(self) -> str:
        """One line for people."""
        parts = [self.decode.sentence]
        if self.prefill is not None:
            parts.append(self.prefill.sentence)
        if self.local is not None:
            parts.append(LOCAL_SENTENCES.get(self.local, self.local))
        parts.append(f"the prompt has about {self.prompt_tokens} tokens")
        if self.excluded:
            parts.append(f"not used again: {', '.join(sorted(self.excluded))}")
        if self.avoided:
            parts.append(f"avoided: {', '.join(sorted(self.avoided))}")
        return "; ".join(parts)

    @property
    def weight(self) -> int:
        """Count the costs that it holds."""
        return len(self.decode.costs) + (0 if self.prefill is None else len(self.prefill.costs))

    def candidates(self) -> tuple[Candidate, ...]:
        """Return the backends that were compared."""
        return self.decode.candidates() + (() if self.prefill is None else self.prefill.candidates())
