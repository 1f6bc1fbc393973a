"""Whether a model fits on its accelerators, and how many tokens of KV cache are left beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from turnout.sizing.accelerators import ACCELERATORS, AcceleratorSpec
from turnout.sizing.models import MODELS, ModelArchitecture

if TYPE_CHECKING:
    from turnout.reasons import FitReason

GIB: Final = 1 << 30

MEMORY_UTILIZATION: Final = 0.92
"""Share of an accelerator's memory that the engine takes (vLLM's ``--gpu-memory-utilization`` default)."""

RESERVE_BYTES: Final = int(5.5 * GIB)
"""Memory of each accelerator that is neither weights nor KV cache: activations of a batch of 8,192 tokens, CUDA
graphs, communication buffers. Chosen so that the 8B model on one H100 is left with the 435,000 tokens that the
data set's README states."""

MIN_KV_TOKENS: Final = 8192
"""Fewest tokens of KV cache worth starting with: one full batch of prefill."""

_COUNTS: Final = (1, 2, 4, 8, 16)
"""Counts tried for the advice in a message; an LLMDeployment allows up to 16."""


@dataclass(frozen=True, slots=True)
class Fit:
    """The model fits."""

    kv_cache_tokens: int
    """Tokens whose KV one replica holds."""
    weight_bytes_per_accelerator: int


@dataclass(frozen=True, slots=True)
class Misfit:
    """The model does not fit, or nothing is known of it."""

    reason: FitReason
    """Of the condition ModelFits."""
    message: str
    """Why, and what to write instead, in one sentence."""


def kv_cache_tokens(architecture: ModelArchitecture, accelerator: AcceleratorSpec, count: int) -> int:
    """Tokens of KV cache that one replica on *count* accelerators holds; below 0 where not even the weights fit.

    Per accelerator: (0.92 memory - weights / count - reserve) / KV bytes of a token there. Tensor parallelism
    splits the KV heads; beyond their number they are replicated and nothing more is gained.
    """
    free = (
        int(MEMORY_UTILIZATION * accelerator.memory_gib * GIB)
        - architecture.weight_bytes() // count
        - RESERVE_BYTES
    )
    return free * min(count, architecture.kv_heads) // architecture.kv_bytes_per_token()


def fits(source: str, accelerator: str, count: int, max_length: int = 0) -> Fit | Misfit:
    """Say whether the model *source* fits on *count* accelerators of the type *accelerator*, split over all of them.

    With *max_length* above 0 the KV cache must also hold one request of that many tokens, as vLLM demands.
    """
    architecture = MODELS.get(source)
    if architecture is None:
        return Misfit(
            "UnknownModel",
            f"model.source {source} is not among the models whose size is known: write one of {', '.join(sorted(MODELS))}",
        )
    spec = ACCELERATORS.get(accelerator)
    if spec is None:
        return Misfit(
            "UnknownAccelerator",
            f"accelerator.type {accelerator} is not known: write one of {', '.join(sorted(ACCELERATORS))}",
        )
    if not _divides(architecture, count):
        allowed = ", ".join(str(c) for c in range(1, 17) if _divides(architecture, c))
        return Misfit(
            "TensorParallelism",
            f"accelerator.count {count} cannot split the {architecture.attention_heads} attention heads and "
            f"{architecture.kv_heads} KV heads of {architecture.name} evenly: write one of {allowed}",
        )
    tokens = kv_cache_tokens(architecture, spec, count)
    if tokens < max(MIN_KV_TOKENS, max_length):
        return Misfit("TooLittleMemory", _too_little(architecture, spec, count, max_length))
    return Fit(tokens, architecture.weight_bytes() // count)


def _divides(architecture: ModelArchitecture, count: int) -> bool:
    """Attention heads are split evenly; KV heads are split evenly or, beyond their number, replicated evenly."""
    return (
        count >= 1
        and architecture.attention_heads % count == 0
        and (architecture.kv_heads % count == 0 or count % architecture.kv_heads == 0)
    )


def _too_little(
    architecture: ModelArchitecture,
    spec: AcceleratorSpec,
    count: int,
    max_length: int,
) -> str:
    tokens, needed = kv_cache_tokens(architecture, spec, count), max(MIN_KV_TOKENS, max_length)
    weights = architecture.weight_bytes() / GIB
    usable = count * (MEMORY_UTILIZATION * spec.memory_gib - RESERVE_BYTES / GIB)
    enough = next(
        (
            c
            for c in _COUNTS
            if c > count and _divides(architecture, c) and kv_cache_tokens(architecture, spec, c) >= needed
        ),
        None,
    )
    advice = [] if enough is None else [f"accelerator.count: {enough}"]
    if max_length and tokens >= MIN_KV_TOKENS:
        advice.append(f"model.maxLength of at most {tokens}")
    if not advice:
        advice.append("an accelerator with more memory")
    return (
        f"{architecture.name} has {weights:.0f} GiB of weights and {count} x {spec.type} offers {usable:.0f} GiB, which "
        f"leaves room for {max(tokens, 0)} tokens of KV cache where {needed} are needed: write {' or '.join(advice)}"
    )
