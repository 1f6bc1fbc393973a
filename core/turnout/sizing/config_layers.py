"""Which layers of a model attend to everything, which to a window, and which keep a state, by its config.json.

Families say it in many ways: a list with one entry for each layer, a period, a pattern of letters. `_kinds` has one branch for
each, in the order in which they override one another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from turnout.sizing.architecture import AttentionLayers
from turnout.sizing.config_fields import MAX_HEADS, MAX_LAYERS, MAX_WIDTH, Unreadable

if TYPE_CHECKING:
    from turnout.sizing.config_fields import Fields

Kind = Literal["full", "window", "state", "both", "dense", "experts"]
"""What one layer keeps; `both`: of every token, and a state; `dense` and `experts`: nothing, they are feed-forward networks."""

_NAMED: Final[dict[str, Kind]] = {
    "full_attention": "full",
    "attention": "full",
    "sliding_attention": "window",
    "chunked_attention": "window",
    "linear_attention": "state",
    "mamba": "state",
    "mamba2": "state",
    "conv": "state",
    "hybrid": "both",
    "mlp": "dense",
    "moe": "experts",
}
"""Entries of `layer_types` and `layers_block_type`."""
_LETTERS: Final[dict[str, Kind]] = {"M": "state", "*": "full", "-": "dense", "E": "experts"}
"""Of Nemotron-H's `hybrid_override_pattern`."""
_PERIODS: Final = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "cohere2": 4, "llama4": 4, "llama4_text": 4}
"""Every how many layers one has full attention, where the family's code knows it and its files do not say it."""
_UNCOUNTED: Final = {
    "compress_ratios": "compressed attention",
    "block_configs": "layers that differ from one another",
    "attn_type_list": "lightning attention",
    "lru_width": "recurrent layers",
    "ssm_cfg": "a model without attention",
    "attention_hidden_size": "a model without attention",
}
_STATES: Final = ("mamba_d_state", "ssm_state_size", "linear_num_value_heads", "mamba_expand")
_STATE_BYTES: Final = 4
"""Of a recurrent state's value: engines keep it in fp32."""
_CONVOLUTION_BYTES: Final = 2


@dataclass(frozen=True, slots=True)
class LayerSplit:
    """What the layers of a model keep."""

    attention: tuple[AttentionLayers, ...]
    query_dimension: int
    state_layers: int
    state_bytes: int
    """Of one sequence in all of them."""
    expert_layers: int
    """That may have a mixture of experts."""
    alike: bool
    """Whether every layer has attention and a feed-forward network and nothing else, so that weights follow from shapes."""


def split_layers(fields: Fields, layers: int, heads: int, hidden: int) -> LayerSplit:
    """Return what the *layers* of a model keep. Raise Unreadable where *fields* do not say it."""
    kinds = _kinds(fields, layers)
    # The last layers of some models use the keys and values of earlier ones.
    keeping = kinds[: layers - fields.integer("num_kv_shared_layers", least=0, most=layers, default=0)]
    full = sum(kind in {"full", "both"} for kind in keeping)
    window = keeping.count("window")
    if not full and not window:
        raise Unreadable("no layer has attention")
    states = sum(kind in {"state", "both"} for kind in kinds)
    attention, query = _attention(fields, full, window, heads, hidden)
    return LayerSplit(
        attention=attention,
        query_dimension=query,
        state_layers=states,
        state_bytes=states * _state_bytes(fields, hidden) if states else 0,
        expert_layers=kinds.count("experts") or layers,
        alike=set(kinds) <= {"full", "window"},
    )


def window_of(fields: Fields) -> int:
    """Return the tokens of the sliding window, 0 where there is none. Raise Unreadable."""
    if fields.flag("use_sliding_window") is False:
        return 0
    return fields.integer(
        "sliding_window", "sliding_window_size", "attention_chunk_size", least=0, most=1 << 32, default=0
    )


def _kinds(fields: Fields, layers: int) -> list[Kind]:
    for name, what in _UNCOUNTED.items():
        if fields.has(name):
            raise Unreadable(f"{name}: {what} is not counted")
    listed = _listed(fields)
    if listed is not None:
        if len(listed) != layers:
            raise Unreadable(f"it has {layers} layers and lists the kinds of {len(listed)}")
        return listed
    full = _full_layers(fields, layers)
    if full is not None:
        return ["full" if number in full else "state" for number in range(layers)]
    if fields.text("model_type") == "falcon_h1":
        return ["both"] * layers
    if fields.has(*_STATES):
        raise Unreadable("layer_types is missing: it has state layers, and which ones is not said")
    return _windowed(fields, layers)


def _listed(fields: Fields) -> list[Kind] | None:
    """Return what a list with one entry for each layer says."""
    named = fields.texts("layer_types") or fields.texts("layers_block_type")
    if named is not None:
        return [_look_up(_NAMED, name) for name in named]
    if fields.has("hybrid_override_pattern"):
        return [
            _look_up(_LETTERS, letter) for letter in fields.text("hybrid_override_pattern")[: MAX_LAYERS + 1]
        ]
    numbers = fields.integers("hybrid_layer_pattern")
    return None if numbers is None else ["window" if number else "full" for number in numbers]


def _look_up(table: dict[str, Kind], name: str) -> Kind:
    if name not in table:
        raise Unreadable(f"layers of the kind {name[:64]!a} are not counted")
    return table[name]


def _full_layers(fields: Fields, layers: int) -> set[int] | None:
    """Return the numbers of the layers with attention in a model whose other layers keep a state."""
    if fields.has("attn_layer_period"):
        period = fields.integer("attn_layer_period", most=MAX_LAYERS)
        return set(
            range(fields.integer("attn_layer_offset", least=0, most=MAX_LAYERS, default=0), layers, period)
        )
    if fields.has("full_attention_interval"):
        period = fields.integer("full_attention_interval", most=MAX_LAYERS)
        return set(range(period - 1, layers, period))
    if fields.has("attn_layer_indices"):
        return set(fields.integers("attn_layer_indices") or ())
    if fields.has("linear_attn_config"):
        # Counted from 1.
        return {
            number - 1 for number in fields.section("linear_attn_config").integers("full_attn_layers") or ()
        }
    return None


def _windowed(fields: Fields, layers: int) -> list[Kind]:
    """Return the layers of a model that has attention everywhere."""
    if not window_of(fields):
        return ["full"] * layers
    pattern = fields.text("sliding_window_pattern")
    if pattern:  # such as LLLG: local, global
        return ["window" if pattern[number % len(pattern)] == "L" else "full" for number in range(layers)]
    period = fields.integer(
        "sliding_window_pattern",
        "_sliding_window_pattern",
        "no_rope_layer_interval",
        most=MAX_LAYERS,
        default=_PERIODS.get(fields.text("model_type"), 0),
    )
    if period:
        return ["window" if (number + 1) % period else "full" for number in range(layers)]
    # Qwen 2 counts the layers below, which keep full attention.
    first = fields.integer("max_window_layers", least=0, most=MAX_LAYERS, default=0)
    return ["full" if number < first else "window" for number in range(layers)]


def _attention(
    fields: Fields, full: int, window: int, heads: int, hidden: int
) -> tuple[tuple[AttentionLayers, ...], int]:
    """Return the layers that keep keys and values, and the mean size of a query's and a value's head."""
    if fields.has("kv_lora_rank"):
        rank, rope, plain, value = mla_dimensions(fields)
        if window:
            raise Unreadable("kv_lora_rank beside sliding windows is not counted")
        return (AttentionLayers(full, 1, rank + rope),), max(1, (plain + rope + value) // 2)
    kv_heads, key, value = gqa_dimensions(fields, heads, hidden)
    found = []
    if full:
        size = fields.integer("global_head_dim", most=MAX_WIDTH, default=0)
        found.append(
            AttentionLayers(
                full,
                fields.integer("num_global_key_value_heads", most=MAX_HEADS, default=kv_heads),
                2 * size if size else key + value,
            )
        )
    if window:
        tokens = window_of(fields)
        if not tokens:
            raise Unreadable("sliding_window is missing")
        size = fields.integer("swa_head_dim", most=MAX_WIDTH, default=key)
        value = fields.integer("swa_v_head_dim", most=MAX_WIDTH, default=value)
        count = fields.integer("swa_num_key_value_heads", most=MAX_HEADS, default=kv_heads)
        found.append(AttentionLayers(window, count, size + value, tokens))
    return tuple(found), key


def gqa_dimensions(fields: Fields, heads: int, hidden: int) -> tuple[int, int, int]:
    """Return the KV heads of a layer, and the sizes of a key and a value. Raise Unreadable."""
    key = fields.integer("head_dim", "head_size", "kv_channels", most=MAX_WIDTH, default=hidden // heads)
    if not key:
        raise Unreadable("num_attention_heads is greater than hidden_size, and head_dim is missing")
    default = 1 if fields.flag("multi_query") else heads
    kv_heads = fields.integer(
        "num_key_value_heads",
        "num_kv_heads",
        "n_head_kv",
        "multi_query_group_num",
        most=MAX_HEADS,
        default=default,
    )
    return kv_heads, key, fields.integer("v_head_dim", most=MAX_WIDTH, default=key)


def mla_dimensions(fields: Fields) -> tuple[int, int, int, int]:
    """Return the sizes of MLA's latent, and of a head's rotated, other and value parts. Raise Unreadable."""
    return (
        fields.integer("kv_lora_rank", most=MAX_WIDTH),
        fields.integer("qk_rope_head_dim", least=0, most=MAX_WIDTH),
        fields.integer("qk_nope_head_dim", most=MAX_WIDTH, default=128),
        fields.integer("v_head_dim", most=MAX_WIDTH, default=128),
    )


def _state_bytes(fields: Fields, hidden: int) -> int:
    """Return what one state layer keeps of a sequence: the recurrent state and the inputs of its convolution."""

    def number(*names: str, default: int | None = None) -> int:
        return fields.integer(*names, most=MAX_WIDTH, default=default)

    if fields.has("linear_num_value_heads"):  # gated delta rule: Qwen3-Next, Qwen3.5
        values, value = number("linear_num_value_heads"), number("linear_value_head_dim")
        keys, key = number("linear_num_key_heads"), number("linear_key_head_dim")
        kernel = number("linear_conv_kernel_dim", default=4)
        return _recurrent(values * value * key, 2 * keys * key + values * value, kernel)
    if fields.has("linear_attn_config"):  # Kimi delta attention
        linear = fields.section("linear_attn_config")
        heads, size = linear.integer("num_heads", most=MAX_HEADS), linear.integer("head_dim", most=MAX_WIDTH)
        kernel = linear.integer("short_conv_kernel_size", most=MAX_WIDTH, default=4)
        return _recurrent(heads * size * size, 3 * heads * size, kernel)
    if fields.has("mamba_n_heads", "mamba_num_heads"):  # Mamba 2
        inner = number("mamba_n_heads", "mamba_num_heads") * number("mamba_d_head", "mamba_head_dim")
        state = number("mamba_d_state", "ssm_state_size")
        groups = number("mamba_n_groups", "n_groups", default=1)
        kernel = number("mamba_d_conv", "conv_kernel", default=4)
        return _recurrent(inner * state, inner + 2 * groups * state, kernel)
    if fields.has("mamba_d_state"):  # Mamba 1: Jamba
        inner = hidden * number("mamba_expand", default=2)
        return _recurrent(inner * number("mamba_d_state"), inner, number("mamba_d_conv", default=4))
    if fields.has("conv_L_cache"):  # LFM2: a convolution alone
        return hidden * number("conv_L_cache") * _CONVOLUTION_BYTES
    raise Unreadable("the size of its state layers' state is not said in a form that is known")


def _recurrent(values: int, channels: int, kernel: int) -> int:
    return values * _STATE_BYTES + channels * (kernel - 1) * _CONVOLUTION_BYTES
