"""How long an iteration of an engine takes: fits of measured kernel times, and how they carry over to any model.

Two fits are measured (aiconfigurator's kernel tables for vLLM on H100-SXM, README of the data set): Llama-3.1-8B
on one accelerator and Llama-3.1-70B on four. With *n* uncached prompt tokens behind *c* tokens of context and a
batch of *B* sequences with a mean context of *L*::

    prefill = p0 + p1 n + p2 (n^2 + 2 n c)        decode = d0 + d1 B + d2 B L + e (1 - (1 - k)^B)

The last part is that of a mixture of experts, 0 for others: *e* is the time to read all of them, *k* the share that one
token is sent to, so the bracket is the expected share that *B* tokens need.

The grid holds prompts without context, p2 n^2; a chunk behind a context attends to it too, so that the chunks of a
prompt add up to the whole: (c + n)^2 - c^2 = n^2 + 2 n c. Everything else is derived and only as good as its
assumptions, which stand beside the constants. Another model takes the nearest measured one's times, each part by what it
is bound by:

======================  ==========================================================================================
p0                      bytes of all weights: a prompt reads them once, and of a mixture meets every expert
p1                      active parameters, for each is multiplied once a token
p2                      layers with full attention x query heads x their dimension
d0, e                   bytes of the weights that every token meets, and of the experts; d0 at least `STEP_SECONDS_PER_LAYER`
d1                      active parameters; and what windows and states keep, read like d2
d2                      bytes of KV cache that a token adds on each rank
======================  ==========================================================================================

docs/figures.md says how far that is off.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log, log2
from typing import TYPE_CHECKING, Final

from turnout.sizing.accelerators import ACCELERATORS
from turnout.sizing.architecture import AttentionLayers, ModelArchitecture

if TYPE_CHECKING:
    from turnout.sizing.accelerators import AcceleratorSpec

ITERATION_OVERHEAD_SECONDS: Final = 0.0035
"""What an iteration costs beside its kernels: scheduling, input preparation, sampling, detokenizing. vLLM spends
2 to 5 ms on it at the batch sizes of interest; the middle is taken."""

PREFILL_EFFICIENCY_PER_DOUBLING: Final = 0.823
"""Share of the ideal speed-up that prefill keeps when tensor parallelism doubles. From the two fits: 70B does 8.79
times the work of 8B per token on four accelerators, so 2.198 times the time would be ideal; it is 3.242 times.
(2.198 / 3.242) ** 0.5 = 0.823."""

DECODE_EFFICIENCY_PER_DOUBLING: Final = 0.964
"""The same for decode, which is bound by reading the weights: (2.198 / (15.18 / 6.42)) ** 0.5 = 0.964."""

STEP_SECONDS_PER_LAYER: Final = 0.07e-3
"""Least time of a layer in a decode step, however little it reads: kernel launches. The shortest steps measured are
Qwen3-30B-A3B's on four H100, 3.28 ms for 48 layers."""


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
    expert_base: float = 0.0
    """To read every expert of a mixture."""
    expert_share: float = 0.0
    """Of the experts, that one token is sent to. No time."""

    def prefill_seconds(self, uncached_tokens: int, context: int = 0) -> float:
        """Kernel time to compute *uncached_tokens* of a prompt behind *context* tokens whose KV is there."""
        return self.prefill_base + self._chunk_seconds(uncached_tokens, context)

    def decode_seconds(self, batch: int, mean_context: float) -> float:
        """Kernel time of one decode step of *batch* sequences with *mean_context* tokens each."""
        return self._read_seconds(batch) + batch * (
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
            base = max(base, self._read_seconds(batch))
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
            self.expert_base * factor,
            self.expert_share,
        )

    def _read_seconds(self, batch: int) -> float:
        """Return the time to read the weights that a batch needs."""
        if not self.expert_base:
            return self.decode_base
        return self.decode_base + self.expert_base * (1 - (1 - self.expert_share) ** batch)

    def _chunk_seconds(self, tokens: int, context: int) -> float:
        return tokens * (self.prefill_per_token + self.prefill_per_token_squared * (tokens + 2 * context))


@dataclass(frozen=True, slots=True)
class UnknownLatency:
    """Why there is no latency model, in a sentence that names what is known."""

    message: str


@dataclass(frozen=True, slots=True)
class KernelFit:
    """Measured kernel times of one model."""

    architecture: ModelArchitecture
    accelerator: str
    tensor_parallel: int
    model: LatencyModel


def _milliseconds(prefill: tuple[float, float, float], decode: tuple[float, float, float]) -> LatencyModel:
    return LatencyModel(*(value / 1e3 for value in (*prefill, *decode)))


def _llama(name: str, parameters: int, layers: int, heads: int) -> ModelArchitecture:
    return ModelArchitecture(
        name=name,
        parameters=parameters,
        weight_bytes=2 * parameters,
        layers=layers,
        attention_heads=heads,
        head_dimension=128,
        attention=(AttentionLayers(layers, 8, 256),),
        active_parameters=parameters,
    )


FITS: Final = (
    KernelFit(
        _llama("Llama-3.1-8B", 8_030_261_248, 32, 32),
        "H100-SXM",
        1,
        _milliseconds((4.51, 0.01749, 5.20e-7), (6.42, 0.0107, 4.166e-5)),
    ),
    KernelFit(
        _llama("Llama-3.1-70B", 70_553_706_496, 80, 64),
        "H100-SXM",
        4,
        _milliseconds((10.93, 0.0567, 6.92e-7), (15.18, 0.0328, 2.643e-5)),
    ),
)
"""What is measured."""


def latency_model(
    architecture: ModelArchitecture, accelerator: str, tensor_parallel: int
) -> LatencyModel | UnknownLatency:
    """Return the latencies of a model on *tensor_parallel* accelerators of the type *accelerator*.

    Another accelerator than the measured one is scaled by the roofline: what grows with prompt tokens is bound by
    arithmetic and scales with dense bf16 throughput; the constant parts (reading the weights) and decode are bound
    by memory bandwidth. Another tensor parallelism divides the work, less the efficiency lost per doubling.
    """
    target = ACCELERATORS.get(accelerator)
    if target is None:
        return UnknownLatency(
            f"nothing is known of the accelerator {accelerator!r}: known are {', '.join(sorted(ACCELERATORS))}"
        )
    if tensor_parallel < 1:
        return UnknownLatency(f"tensor parallelism is {tensor_parallel}: it must be at least 1")
    fit = min(FITS, key=lambda each: _distance(each.architecture, architecture))
    return _carried_over(fit, architecture, target, tensor_parallel)


def _distance(one: ModelArchitecture, other: ModelArchitecture) -> float:
    """How many times more active parameters the larger of two models has, as a logarithm."""
    return abs(log(one.active_parameters / other.active_parameters))


def _carried_over(
    fit: KernelFit, model: ModelArchitecture, target: AcceleratorSpec, tensor_parallel: int
) -> LatencyModel:
    like, base = fit.architecture, fit.model
    measured = ACCELERATORS[fit.accelerator]
    doublings = log2(tensor_parallel / fit.tensor_parallel)
    share = fit.tensor_parallel / tensor_parallel
    compute = measured.dense_bf16_tflops / target.dense_bf16_tflops
    compute /= PREFILL_EFFICIENCY_PER_DOUBLING**doublings
    memory = measured.memory_bandwidth_gbs / target.memory_bandwidth_gbs
    memory /= DECODE_EFFICIENCY_PER_DOUBLING**doublings
    active = model.active_parameters / like.active_parameters
    reading = base.decode_base * memory * share / like.weight_bytes
    caching = (
        base.decode_per_context_token * memory / like.kv_bytes_per_token(tensor_parallel=fit.tensor_parallel)
    )
    experts = model.expert_bytes
    return LatencyModel(
        prefill_base=base.prefill_base * memory * share * (model.weight_bytes / like.weight_bytes),
        prefill_per_token=base.prefill_per_token * compute * share * active,
        prefill_per_token_squared=base.prefill_per_token_squared
        * compute
        * share
        * (_work(model) / _work(like)),
        decode_base=max(reading * (model.weight_bytes - experts), STEP_SECONDS_PER_LAYER * model.layers),
        decode_per_sequence=base.decode_per_sequence * memory * share * active
        + caching * model.fixed_bytes(tensor_parallel=tensor_parallel),
        # No share: the bytes are those of one rank already, with what the ranks replicate.
        decode_per_context_token=caching * model.kv_bytes_per_token(tensor_parallel=tensor_parallel),
        expert_base=reading * experts,
        expert_share=model.active_experts / model.experts if experts else 0.0,
    )


def _work(model: ModelArchitecture) -> int:
    """Multiplications of attention between two tokens, but for a constant factor."""
    return model.full_layers * model.attention_heads * model.head_dimension
