"""What a model's own files say of its size: config.json, as Hugging Face's transformers writes it, and its weights' bytes.

Everything here comes from whoever made the model. So each number is checked for type and range before it is used, lists are
bounded, and whatever cannot be read ends in `UnknownArchitecture` with the reason, never in an exception.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from turnout.sizing.architecture import MAX_FIELD, ModelArchitecture
from turnout.sizing.config_fields import MAX_HEADS, MAX_LAYERS, MAX_WIDTH, Fields, Unreadable
from turnout.sizing.config_layers import split_layers
from turnout.sizing.config_weights import FULL_BITS, Counted, count_parameters, experts, weight_bits

MAX_WEIGHT_BYTES: Final = 1 << 50
"""A PiB: a size above it is taken for an error."""
_TEXT_CONFIGS: Final = ("text_config", "llm_config", "language_config", "thinker_config")
"""Where models of several modalities keep the language model's configuration."""
_MAX_NESTING: Final = 4
_LAYERS: Final = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


@dataclass(frozen=True, slots=True)
class UnknownArchitecture:
    """Why a model's size is not known."""

    message: str
    """A sentence that names the field."""


def read_config(
    config: object, name: str, *, index: object = None, file_bytes: int | None = None
) -> ModelArchitecture | UnknownArchitecture:
    """Return what *config*, a parsed config.json, says of the model called *name*.

    *index* is the parsed model.safetensors.index.json where there is one, *file_bytes* the sum of the sizes of the weights'
    files. Without either the weights are estimated from the shapes, which models with state layers do not allow.
    """
    try:
        return _read(config, name, _checkpoint_bytes(index, file_bytes))
    except Unreadable as error:
        return UnknownArchitecture(f"config.json of {name[:256]!a}: {error}")


def _read(config: object, name: str, checkpoint: int | None) -> ModelArchitecture:
    outer = Fields.of(config)
    fields = _language_model(outer)
    if outer.flag("is_encoder_decoder") or fields.flag("is_encoder_decoder"):
        raise Unreadable("is_encoder_decoder: only decoders are counted")
    layers = fields.integer(*_LAYERS, most=MAX_LAYERS)
    heads = fields.integer("num_attention_heads", "n_head", "n_heads", "num_heads", most=MAX_HEADS)
    hidden = fields.integer("hidden_size", "n_embd", "d_model", "dim", most=MAX_WIDTH)
    split = split_layers(fields, layers, heads, hidden)
    bits = weight_bits(fields if fields.has("quantization_config") else outer)
    counted = count_parameters(fields, outer, layers, heads, hidden) if split.alike else None
    weights, parameters = _weights(counted, bits, _in_memory(checkpoint, bits, fields, outer))
    if max(weights, parameters, split.state_bytes) > MAX_FIELD:
        raise Unreadable("its sizes are beyond what a model has")
    mixture = experts(fields, split.expert_layers)
    # Experts of another form than the one counted: a token is then taken to meet all of them.
    idle = mixture.parameters(hidden, idle=True)
    return ModelArchitecture(
        name=name,
        parameters=parameters,
        weight_bytes=weights,
        layers=layers,
        attention_heads=heads,
        head_dimension=split.query_dimension,
        attention=split.attention,
        active_parameters=parameters - idle if idle < parameters else parameters,
        experts=mixture.count,
        active_experts=mixture.active,
        state_layers=split.state_layers,
        state_bytes=split.state_bytes,
        max_context=fields.integer(
            "max_position_embeddings",
            "n_positions",
            "max_sequence_length",
            "seq_length",
            most=1 << 32,
            default=0,
        ),
    )


def _language_model(outer: Fields) -> Fields:
    """Return the configuration of the language model within that of a model of several modalities."""
    fields = outer
    for _ in range(_MAX_NESTING):
        inner = next((key for key in _TEXT_CONFIGS if fields.has(key)), None)
        if inner is None or fields.has(*_LAYERS):
            break
        fields = fields.section(inner)
    return fields


def _weights(counted: Counted | None, bits: float | None, checkpoint: int | None) -> tuple[int, int]:
    """Return the weights' bytes and the parameters. What a checkpoint says of bytes overrides the shapes."""
    if checkpoint is not None:
        return checkpoint, counted.total if counted else max(1, int(checkpoint * 8 / (bits or FULL_BITS)))
    if counted is None:
        raise Unreadable(
            "the size of the weights does not follow from it: model.safetensors.index.json is needed"
        )
    if bits is None:
        raise Unreadable(
            "quantization_config is of an unknown method: model.safetensors.index.json is needed for the weights' size"
        )
    return counted.bytes(bits), counted.total


def _in_memory(checkpoint: int | None, bits: float | None, fields: Fields, outer: Fields) -> int | None:
    """Return the bytes that a checkpoint takes in memory: 32-bit weights are loaded as 16-bit ones."""
    if checkpoint is None or bits != FULL_BITS:
        return checkpoint
    stored = fields.text("dtype", "torch_dtype") or outer.text("dtype", "torch_dtype")
    return max(1, checkpoint // 2) if stored in {"float32", "float"} else checkpoint


def _checkpoint_bytes(index: object, file_bytes: int | None) -> int | None:
    """Return the size of the weights by the index, else by the files; None where neither says it."""
    metadata = index.get("metadata") if isinstance(index, dict) else None
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    if isinstance(total, float) and total.is_integer():
        total = int(total)
    for size in (total, file_bytes):
        if type(size) is int and 0 < size <= MAX_WEIGHT_BYTES:
            return size
    return None
