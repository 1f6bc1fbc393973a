"""How long an engine computes: the router's estimate of what a prompt and a running answer cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from turnout.sizing.latency import LatencyModel


@dataclass(frozen=True, slots=True)
class WorkModel:
    """Seconds of one engine; `turnout.sizing.latency` has the formulas and where they come from.

    The defaults are Llama-3.1-8B on one H100. A choice depends on the proportions between them far more than on their
    size: a model that is uniformly slower by some factor is routed alike.
    """

    prefill_per_token: float = 17.49e-6
    prefill_per_token_squared: float = 5.2e-10
    decode_per_sequence: float = 10.7e-6
    """Of one decode step, for each running answer."""
    decode_per_context_token: float = 4.166e-8
    """Of one decode step, for each token of context."""
    full_iteration: float = 0.2
    """An iteration that is filled with prompt tokens (8,192 of them)."""
    transfer_per_token: float = 3e-6
    """Moving the KV of one token from a prefill worker to a decode worker."""

    def prefill(self, tokens: int, context: int) -> float:
        """Seconds to compute *tokens* of a prompt behind *context* cached ones: p1 n + p2 (n^2 + 2 n c)."""
        return tokens * (self.prefill_per_token + self.prefill_per_token_squared * (tokens + 2 * context))

    def decode_step(self, sequences: float, context_tokens: float) -> float:
        """Seconds that *sequences* running answers with *context_tokens* in all add to every iteration."""
        return sequences * self.decode_per_sequence + context_tokens * self.decode_per_context_token


def work_of(latency: LatencyModel, batch_tokens: int = 8192) -> WorkModel:
    """Return the work model of an engine with these latencies that computes *batch_tokens* an iteration."""
    full = latency.iteration_seconds([(batch_tokens, 0)], 0, 0)
    return WorkModel(
        prefill_per_token=latency.prefill_per_token,
        prefill_per_token_squared=latency.prefill_per_token_squared,
        decode_per_sequence=latency.decode_per_sequence,
        decode_per_context_token=latency.decode_per_context_token,
        full_iteration=full,
    )
