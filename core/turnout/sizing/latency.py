"""How long an iteration of an engine takes: fits of measured kernel times, and how they carry over.

Two fits are measured (aiconfigurator's kernel tables for vLLM on H100-SXM, README of the data set): Llama-3.1-8B
on one accelerator and Llama-3.1-70B on four. With *n* uncached prompt tokens behind *c* tokens of context and a
batch of *B* sequences with a mean context of *L*::

    prefill = p0 + p1 n + p2 (n^2 + 2 n c)        decode = d0 + d1 B + d2 B L

The grid holds prompts without context, p2 n^2; a chunk behind a context attends to it too, so that the chunks of a
prompt add up to the whole: (c + n)^2 - c^2 = n^2 + 2 n c. Everything else is derived and only as good as its
assumptions, which stand beside the constants.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import log2
from types import MappingProxyType
from typing import Final

from turnout.sizing.accelerators import ACCELERATORS
from turnout.sizing.models import MODELS

ITERATION_OVERHEAD_SECONDS: Final = 0.0035
"""What an iteration costs beside its kernels: scheduling, input preparation, sampling, detokenizing. vLLM spends
2 to 5 ms on it at the batch sizes of interest; the middle is taken."""

PREFILL_EFFICIENCY_PER_DOUBLING: Final = 0.823
"""Share of the ideal speed-up that prefill keeps when tensor parallelism doubles. From the two fits: 70B does 8.79
times the work of 8B per token on four accelerators, so 2.198 times the time would be ideal; it is 3.242 times.
(2.198 / 3.242) ** 0.5 = 0.823."""

DECODE_EFFICIENCY_PER_DOUBLING: Final = 0.964
"""The same for decode, which is bound by reading the weights: (2.198 / (15.18 / 6.42)) ** 0.5 = 0.964."""


@dataclass(frozen=True, slots=True)
class LatencyModel:
    """Kernel times of one engine as polynomials, and the overhead of an iteration. All in seconds."""

    prefill_base: float
    prefill_per_token: float
    prefill_per_token_squared: float
    decode_base: float
    decode_per_sequence: float
    decode_per_context_token: float
    overhead: float = ITERATION_OVERHEAD_SECONDS

    def prefill_seconds(self, uncached_tokens: int, context: int = 0) -> float:
        """Kernel time to compute *uncached_tokens* of a prompt behind *context* tokens whose KV is there."""
        return self.prefill_base + self._chunk_seconds(uncached_tokens, context)

    def decode_seconds(self, batch: int, mean_context: float) -> float:
        """Kernel time of one decode step of *batch* sequences with *mean_context* tokens each."""
        return self.decode_base + batch * (
            self.decode_per_sequence + self.decode_per_context_token * mean_context
        )

    def iteration_seconds(self, chunks: list[tuple[int, int]], batch: int, context_tokens: int) -> float:
        """Time of one iteration, overhead included.

        *chunks* are the prefill chunks as (tokens, context before them), *batch* sequences decode, and
        *context_tokens* is the sum of their contexts. One pass reads the weights once, so of the two constant
        parts only the greater counts; the parts that grow with the work add up.
        """
        base, work = 0.0, 0.0
        if chunks:
            base = self.prefill_base
            work = sum(self._chunk_seconds(tokens, context) for tokens, context in chunks)
        if batch:
            base = max(base, self.decode_base)
            work += batch * self.decode_per_sequence + context_tokens * self.decode_per_context_token
        return base + work + self.overhead

    def slower(self, factor: float) -> LatencyModel:
        """Return this model with every time multiplied by *factor*."""
        return LatencyModel(
            self.prefill_base * factor,
            self.prefill_per_token * factor,
            self.prefill_per_token_squared * factor,
            self.decode_base * factor,
            self.decode_per_sequence * factor,
            self.decode_per_context_token * factor,
            self.overhead * factor,
        )

    def _chunk_seconds(self, tokens: int, context: int) -> float:
        return tokens * (self.prefill_per_token + self.prefill_per_token_squared * (tokens + 2 * context))


@dataclass(frozen=True, slots=True)
class UnknownLatency:
    """Why there is no latency model, in a sentence that names what is known."""

    message: str


@dataclass(frozen=True, slots=True)
class _Fit:
    accelerator: str
    tensor_parallel: int
    model: LatencyModel


def _milliseconds(prefill: tuple[float, float, float], decode: tuple[float, float, float]) -> LatencyModel:
    return LatencyModel(*(value / 1e3 for value in (*prefill, *decode)))


FITS: Final = MappingProxyType(
    {
        "llama-3.1-8b": _Fit(
            "H100-SXM", 1, _milliseconds((4.51, 0.01749, 5.20e-7), (6.42, 0.0107, 4.166e-5))
        ),
        "llama-3.1-70b": _Fit(
            "H100-SXM", 4, _milliseconds((10.93, 0.0567, 6.92e-7), (15.18, 0.0328, 2.643e-5))
        ),
    }
)
"""The measured fits, by the name of the architecture."""


def latency_model(source: str, accelerator: str, tensor_parallel: int) -> LatencyModel | UnknownLatency:
    """Return the latencies of the model *source* on *tensor_parallel* accelerators of the type *accelerator*.

    Another accelerator than the measured one is scaled by the roofline: what grows with prompt tokens is bound by
    arithmetic and scales with dense bf16 throughput; the constant parts (reading the weights) and decode are bound
    by memory bandwidth. Another tensor parallelism divides the work, less the efficiency lost per doubling.
    """
    architecture = MODELS.get(source)
    if architecture is None or architecture.name not in FITS:
        return UnknownLatency(
            f"nothing is known of the model {source!r}: known are {', '.join(sorted(MODELS))}"
        )
    target = ACCELERATORS.get(accelerator)
    if target is None:
        return UnknownLatency(
            f"nothing is known of the accelerator {accelerator!r}: known are {', '.join(sorted(ACCELERATORS))}"
        )
    if tensor_parallel < 1:
        return UnknownLatency(f"tensor parallelism is {tensor_parallel}: it must be at least 1")
    fit = FITS[architecture.name]
    measured = ACCELERATORS[fit.accelerator]
    doublings = log2(tensor_parallel / fit.tensor_parallel)
    share = fit.tensor_parallel / tensor_parallel
    compute = measured.dense_bf16_tflops / target.dense_bf16_tflops * share
    compute /= PREFILL_EFFICIENCY_PER_DOUBLING**doublings
    memory = measured.memory_bandwidth_gbs / target.memory_bandwidth_gbs * share
    memory /= DECODE_EFFICIENCY_PER_DOUBLING**doublings
    base = fit.model
    return replace(
        base,
        prefill_base=base.prefill_base * memory,
        prefill_per_token=base.prefill_per_token * compute,
        prefill_per_token_squared=base.prefill_per_token_squared * compute,
        decode_base=base.decode_base * memory,
        decode_per_sequence=base.decode_per_sequence * memory,
        decode_per_context_token=base.decode_per_context_token * memory,
    )
