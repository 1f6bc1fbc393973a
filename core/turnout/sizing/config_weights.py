"""How large a model's weights are, by the shapes and the quantization in its config.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from turnout.sizing.config_fields import MAX_HEADS, MAX_LAYERS, MAX_WIDTH
from turnout.sizing.config_layers import gqa_dimensions, mla_dimensions

if TYPE_CHECKING:
    from turnout.sizing.config_fields import Fields

FULL_BITS: Final = 16.0
"""Of a weight that is not quantized. Engines convert 32-bit checkpoints to 16 bits unless told otherwise."""
_SCALE_BITS: Final = 16
_ZERO_BITS: Final = 4
"""Of the scale and the zero point that a group of 4-bit weights shares."""
_FIXED_BITS: Final = {"fp8": 8.0, "fbgemm_fp8": 8.0, "mxfp4": 4.25, "nvfp4": 4.5, "modelopt_fp4": 4.5}
_UNGATED: Final = frozenset({"gelu", "gelu_new", "gelu_fast", "relu", "relu2"})
"""Activations of feed-forward networks with two matrices; others have a third, the gate."""


@dataclass(frozen=True, slots=True)
class Counted:
    """Parameters by the shapes. Norms and biases are left out: less than 0.1 %."""

    total: int
    embeddings: int
    """Of the input and the output layer, which quantization leaves alone."""
    idle: int
    """Of experts that a token is not sent to."""

    def bytes(self, bits: float) -> int:
        """Bytes of the weights where all but the embeddings have *bits* each."""
        return int(self.embeddings * FULL_BITS / 8 + (self.total - self.embeddings) * bits / 8)


@dataclass(frozen=True, slots=True)
class Experts:
    """The mixture of experts of a model; without one, all are 0."""

    count: int
    active: int
    width: int
    shared_width: int
    layers: int
    matrices: int

    def parameters(self, hidden: int, *, idle: bool = False) -> int:
        """Parameters of all experts, or of those that a token is not sent to."""
        routed = self.count - self.active if idle else self.count
        return (
            self.layers * self.matrices * hidden * (routed * self.width + (0 if idle else self.shared_width))
        )


def experts(fields: Fields, layers: int) -> Experts:
    """Return the experts of a model with so many layers that may have some. Raise Unreadable."""
    count = fields.integer(
        "num_experts",
        "n_routed_experts",
        "num_local_experts",
        "moe_num_experts",
        least=0,
        most=MAX_HEADS,
        default=0,
    )
    if count <= 1:
        return Experts(0, 0, 0, 0, 0, 0)
    active = fields.integer(
        "num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "experts_per_token", most=count
    )
    width = fields.integer(
        "moe_intermediate_size", "expert_ffn_hidden_size", "intermediate_size", most=MAX_WIDTH
    )
    shared = width * fields.integer("n_shared_experts", "num_shared_experts", least=0, most=1000, default=0)
    shared = fields.integer("shared_expert_intermediate_size", least=0, most=MAX_WIDTH, default=shared)
    if fields.text("model_type").startswith("llama4"):
        shared = width
    dense = fields.integer("first_k_dense_replace", least=0, most=layers, default=0)
    dense = max(dense, len(fields.integers("mlp_only_layers") or ()))
    step = fields.integer("decoder_sparse_step", "interleave_moe_layer_step", most=MAX_LAYERS, default=1)
    return Experts(count, active, width, shared, max(0, layers - dense) // step, _matrices(fields))


def count_parameters(fields: Fields, outer: Fields, layers: int, heads: int, hidden: int) -> Counted | None:
    """Return the parameters of a model whose layers all have attention and a feed-forward network; None: not said."""
    if not (fields.has("vocab_size") or outer.has("vocab_size")):
        return None
    vocabulary = (fields if fields.has("vocab_size") else outer).integer("vocab_size", most=MAX_WIDTH)
    mixture = experts(fields, layers)
    width = fields.integer(
        "intermediate_size_mlp",
        "intermediate_size",
        "n_inner",
        "ffn_hidden_size",
        most=MAX_WIDTH,
        default=4 * hidden,
    )
    feed_forward = (layers - mixture.layers) * _matrices(fields) * hidden * width + mixture.parameters(hidden)
    tied = fields.flag("tie_word_embeddings")
    if tied is None:
        tied = outer.flag("tie_word_embeddings")
    if tied is None:
        tied = fields.text("model_type").startswith("gemma")
    embeddings = vocabulary * hidden * (1 if tied else 2)
    attention = layers * _attention_parameters(fields, heads, hidden)
    return Counted(
        total=embeddings + attention + feed_forward,
        embeddings=embeddings,
        idle=mixture.parameters(hidden, idle=True),
    )


def weight_bits(fields: Fields) -> float | None:
    """Return the bits of a weight beside the embeddings, scales included; None: its quantization is not known.

    *fields* are those that may hold `quantization_config`.
    """
    if not fields.has("quantization_config"):
        return FULL_BITS
    quantization = fields.section("quantization_config")
    method = quantization.text("quant_method").lower()
    if method in {"", "modelopt"}:
        method = quantization.text("quant_algo").lower()
    if method in _FIXED_BITS:
        return _FIXED_BITS[method]
    if method in {"awq", "gptq"}:
        bits = quantization.integer("bits", "w_bit", most=16, default=4)
        return _grouped(quantization, bits, _SCALE_BITS + _ZERO_BITS, default=128)
    if method == "bitsandbytes":
        return 4.5 if quantization.flag("load_in_4bit") else 8.0
    if method == "compressed-tensors":
        groups = [
            group.section("weights")
            for group in quantization.sections("config_groups")
            if group.has("weights")
        ]
        return max(
            (_grouped(group, group.integer("num_bits", most=16), _SCALE_BITS) for group in groups),
            default=None,
        )
    return None


def _matrices(fields: Fields) -> int:
    """Return how many matrices a feed-forward network has."""
    activation = fields.text("hidden_act", "mlp_hidden_act", "activation_function", "activation")
    return 2 if activation in _UNGATED else 3


def _grouped(fields: Fields, bits: int, shared_bits: int, default: int = -1) -> float:
    size = fields.integer("group_size", "q_group_size", least=-1, most=MAX_WIDTH, default=default)
    return bits + shared_bits / size if size > 0 else float(bits)


def _attention_parameters(fields: Fields, heads: int, hidden: int) -> int:
    """Return the parameters of one layer's projections."""
    if fields.has("kv_lora_rank"):
        rank, rope, plain, value = mla_dimensions(fields)
        queries = heads * (plain + rope)
        lora = fields.integer("q_lora_rank", least=0, most=MAX_WIDTH, default=0)
        asking = (hidden + queries) * lora if lora else hidden * queries
        return asking + hidden * (rank + rope) + rank * heads * (plain + value) + heads * value * hidden
    kv_heads, key, value = gqa_dimensions(fields, heads, hidden)
    return hidden * (heads + kv_heads) * (key + value)
