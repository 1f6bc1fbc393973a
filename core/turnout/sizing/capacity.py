"""Whether a model fits on its accelerators, and how many tokens of KV cache are left beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from turnout.sizing.accelerators import ACCELERATORS

if TYPE_CHECKING:
    from turnout.reasons import FitReason
    from turnout.sizing.architecture import ModelArchitecture

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
class Capacity:
    """The model fits."""

    kv_cache_tokens: int
    """Tokens whose KV one replica holds, in sequences of the longest length; shorter ones of a model with windows or
    states need more memory a token."""
    weight_bytes_per_accelerator: int


@dataclass(frozen=True, slots=True)
class DoesNotFit:
    """The model does not fit."""

    reason: FitReason
    """Of the condition ModelFits."""
    message: str
    """Why, and what to write instead, in one sentence."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """Too little is known to say whether the model fits. Never a reason to refuse it."""

    reason: FitReason
    """Of the condition ModelFits."""
    message: str
    """What is not known, and what to write, in one sentence."""


def fits(
    architecture: ModelArchitecture | None,
    accelerator: str,
    tensor_parallel: int,
    pipeline_parallel: int = 1,
    *,
    max_length: int = 0,
    kv_bytes_per_value: int = 2,
) -> Capacity | DoesNotFit | Unknown:
    """Say whether a model fits on accelerators of the type *accelerator*; *architecture* is None where it is not known.

    With *max_length* above 0 the KV cache must also hold one request of that many tokens, as vLLM demands.
    """
    if architecture is None:
        return Unknown(
            "UnknownModel",
            "the size of this model is not known before a worker runs, so nothing was checked: to have it checked, write"
            " spec.model.architecture",
        )
    if not _divides(architecture, tensor_parallel):
        allowed = ", ".join(str(c) for c in range(1, 17) if _divides(architecture, c))
        return DoesNotFit(
            "TensorParallelism",
            f"accelerator.count {tensor_parallel} cannot split the {architecture.attention_heads} attention heads and "
            f"{architecture.kv_heads} KV heads of {architecture.name} evenly: write one of {allowed}",
        )
    spec = ACCELERATORS.get(accelerator)
    if spec is None:
        return Unknown(
            "UnknownAccelerator",
            f"accelerator.type {accelerator} is not known: write one of {', '.join(sorted(ACCELERATORS))}",
        )
    if spec.memory_gib is None:
        return Unknown(
            "UnknownMemory",
            f"{spec.type} may have any amount of memory, so nothing was checked: see to it that a worker's node has room"
            f" for {_gib(architecture.weight_bytes)} GiB of weights and the KV cache",
        )
    room = _Room(architecture, spec.memory_gib, kv_bytes_per_value)
    tokens = room.tokens(tensor_parallel, pipeline_parallel, max_length)
    if tokens < max(MIN_KV_TOKENS, max_length):
        return DoesNotFit(
            "TooLittleMemory", _too_little(room, spec.type, tensor_parallel, pipeline_parallel, max_length)
        )
    return Capacity(tokens, architecture.weight_bytes // (tensor_parallel * pipeline_parallel))


def tokens_within(
    memory_bytes: int,
    architecture: ModelArchitecture,
    max_length: int = 0,
    *,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    kv_bytes_per_value: int = 2,
) -> int:
    """Tokens whose KV finds room in *memory_bytes* of each accelerator, in sequences of *max_length*.

    As many sequences as that, times their length: what vLLM calls the size of its KV cache. Where every layer attends to
    every token, the length makes no difference. 0: the length that the model was made for.
    """
    length = max_length or architecture.max_context or MIN_KV_TOKENS
    one = architecture.rank_bytes(
        length,
        kv_bytes_per_value,
        tensor_parallel=tensor_parallel,
        pipeline_parallel=pipeline_parallel,
    )
    return memory_bytes * length // max(1, one)


@dataclass(frozen=True, slots=True)
class _Room:
    """A model and the memory of one accelerator."""

    architecture: ModelArchitecture
    memory_gib: int
    kv_bytes_per_value: int

    def free_bytes(self, tensor: int, pipeline: int) -> int:
        """Bytes of KV cache on each accelerator: 0.92 memory - weights / accelerators - reserve. Below 0: too few."""
        usable = int(MEMORY_UTILIZATION * self.memory_gib * GIB)
        return usable - self.architecture.weight_bytes // (tensor * pipeline) - RESERVE_BYTES

    def tokens(self, tensor: int, pipeline: int, max_length: int) -> int:
        """Tokens of KV cache of one replica."""
        return tokens_within(
            self.free_bytes(tensor, pipeline),
            self.architecture,
            max_length,
            tensor_parallel=tensor,
            pipeline_parallel=pipeline,
            kv_bytes_per_value=self.kv_bytes_per_value,
        )

    def longest(self, tensor: int, pipeline: int, most: int) -> int:
        """Tokens of the longest request that finds room, *most* at the most, by bisection: bytes grow with tokens."""
        free, low, high = self.free_bytes(tensor, pipeline), 0, most
        while low < high:
            middle = (low + high + 1) // 2
            needed = self.architecture.rank_bytes(
                middle, self.kv_bytes_per_value, tensor_parallel=tensor, pipeline_parallel=pipeline
            )
            low, high = (middle, high) if needed <= free else (low, middle - 1)
        return low


def _divides(architecture: ModelArchitecture, count: int) -> bool:
    """Attention heads are split evenly; KV heads are split evenly or, beyond their number, replicated evenly."""
    return (
        count >= 1
        and architecture.attention_heads % count == 0
        and all(
            group.kv_heads % count == 0 or count % group.kv_heads == 0 for group in architecture.attention
        )
    )


def _too_little(room: _Room, accelerator: str, tensor: int, pipeline: int, max_length: int) -> str:
    architecture, needed = room.architecture, max(MIN_KV_TOKENS, max_length)
    tokens, count = room.tokens(tensor, pipeline, max_length), tensor * pipeline
    usable = count * (MEMORY_UTILIZATION * room.memory_gib - RESERVE_BYTES / GIB)
    enough = next(
        (
            c
            for c in _COUNTS
            if c > tensor and _divides(architecture, c) and room.tokens(c, pipeline, max_length) >= needed
        ),
        None,
    )
    advice = [] if enough is None else [f"accelerator.count: {enough}"]
    longest = room.longest(tensor, pipeline, max_length)
    if longest >= MIN_KV_TOKENS:
        advice.append(f"model.maxLength of at most {longest}")
    if not advice:
        advice.append("an accelerator with more memory")
    return (
        f"{architecture.name} has {_gib(architecture.weight_bytes)} GiB of weights and {count} x {accelerator} offers "
        f"{usable:.0f} GiB, which leaves room for {max(tokens, 0)} tokens of KV cache where {needed} are needed: write "
        f"{' or '.join(advice)}"
    )


def _gib(size: int) -> str:
    gib = size / GIB
    return f"{gib:.0f}" if gib >= 10 else f"{gib:.1f}"  # noqa: PLR2004 - two digits are enough
