"""What a model's config.json says of its size: every way in which families say it, and whatever else may stand there."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from turnout.sizing.architecture import AttentionLayers, ModelArchitecture
from turnout.sizing.catalog import catalog
from turnout.sizing.config import UnknownArchitecture, read_config

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}
QWEN3_MOE: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "num_hidden_layers": 48,
    "hidden_size": 2048,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "sliding_window": None,
    "use_sliding_window": False,
    "vocab_size": 151936,
    "tie_word_embeddings": False,
}
DEEPSEEK_V3: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "num_hidden_layers": 61,
    "hidden_size": 7168,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "q_lora_rank": 1536,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "n_shared_experts": 1,
    "first_k_dense_replace": 3,
    "vocab_size": 129280,
    "tie_word_embeddings": False,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}
# Hybrids and others as far as attention goes: 8 KV heads of 128 in 48 layers unless said otherwise.
PLAIN: dict[str, Any] = {
    "num_hidden_layers": 48,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
LINEAR = {
    "linear_num_value_heads": 32,
    "linear_num_key_heads": 16,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
}
MAMBA_2 = {
    "mamba_n_heads": 64,
    "mamba_d_head": 64,
    "mamba_d_state": 128,
    "mamba_n_groups": 8,
    "mamba_d_conv": 4,
}
MAMBA_2_BYTES = 64 * 64 * 128 * 4 + (64 * 64 + 2 * 8 * 128) * 3 * 2
SIZED: dict[str, Any] = {"index": {"metadata": {"total_size": 16_000_000_000}}}


def read(config: object, **more: Any) -> ModelArchitecture:
    found = read_config(config, "case", **more)
    assert isinstance(found, ModelArchitecture), found
    return found


def refused(config: object, **more: Any) -> str:
    found = read_config(config, "case", **more)
    assert isinstance(found, UnknownArchitecture), found
    return found.message


def full(layers: int, heads: int = 8, values: int = 256) -> AttentionLayers:
    return AttentionLayers(layers, heads, values)


@pytest.mark.parametrize(
    ("config", "parameters", "active", "kv_bytes"),
    [
        (LLAMA, 8.03e9, 8.03e9, 131_072),
        (QWEN3_MOE, 30.53e9, 3.35e9, 98_304),
        # 671 billion; the published 685 count the layer that predicts a second token.
        (DEEPSEEK_V3, 671e9, 37.55e9, 70_272),
    ],
    ids=["llama-3.1-8b", "qwen3-30b-a3b", "deepseek-v3"],
)
def test_known_models(config: dict[str, Any], parameters: float, active: float, kv_bytes: int) -> None:
    """Parameters by the shapes within 1 % of the published ones, KV bytes exactly."""
    model = read(config)
    assert model.parameters == pytest.approx(parameters, rel=0.01)
    assert model.active_parameters == pytest.approx(active, rel=0.01)
    assert model.kv_bytes_per_token() == kv_bytes


def test_a_context_is_read() -> None:
    """0 where it is not said."""
    assert read(LLAMA).max_context == 131_072
    assert read(QWEN3_MOE).max_context == 0


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # Heads
        ({"num_key_value_heads": None}, [full(48, heads=32)]),
        ({"head_dim": 64}, [full(48, values=128)]),
        ({"num_key_value_heads": None, "multi_query": True}, [full(48, heads=1)]),
        ({"num_key_value_heads": None, "multi_query_group_num": 2}, [full(48, heads=2)]),
        ({"head_dim": 192, "v_head_dim": 128}, [full(48, values=320)]),
        ({"kv_lora_rank": 512, "qk_rope_head_dim": 64}, [full(48, heads=1, values=576)]),
        # Windows
        ({"sliding_window": 4096}, [AttentionLayers(48, 8, 256, 4096)]),
        ({"sliding_window": None}, [full(48)]),
        ({"sliding_window": 4096, "use_sliding_window": False}, [full(48)]),
        (
            {"sliding_window": 4096, "use_sliding_window": True, "max_window_layers": 28},
            [full(28), AttentionLayers(20, 8, 256, 4096)],
        ),
        ({"sliding_window": 1024, "sliding_window_pattern": 6}, [full(8), AttentionLayers(40, 8, 256, 1024)]),
        (
            {"sliding_window": 4096, "sliding_window_pattern": "LLLG"},
            [full(12), AttentionLayers(36, 8, 256, 4096)],
        ),
        ({"model_type": "gemma2", "sliding_window": 4096}, [full(24), AttentionLayers(24, 8, 256, 4096)]),
        (
            {"sliding_window": 128, "layer_types": ["sliding_attention", "full_attention"] * 24},
            [full(24), AttentionLayers(24, 8, 256, 128)],
        ),
        (
            {
                "attention_chunk_size": 8192,
                "layer_types": [*["chunked_attention"] * 3, "full_attention"] * 12,
            },
            [full(12), AttentionLayers(36, 8, 256, 8192)],
        ),
        (
            {"sliding_window": 128, "hybrid_layer_pattern": [0, 1, 1, 1] * 12, "swa_num_key_value_heads": 16},
            [full(12), AttentionLayers(36, 16, 256, 128)],
        ),
        (
            {
                "sliding_window": 1024,
                "layer_types": [*["sliding_attention"] * 5, "full_attention"] * 8,
                "global_head_dim": 512,
                "num_global_key_value_heads": 4,
            },
            [full(8, heads=4, values=1024), AttentionLayers(40, 8, 256, 1024)],
        ),
        (
            {
                "sliding_window": 512,
                "layer_types": [*["sliding_attention"] * 5, "full_attention"] * 8,
                "num_kv_shared_layers": 18,
            },
            [full(5), AttentionLayers(25, 8, 256, 512)],
        ),
    ],
)
def test_which_layers_keep_what(changes: dict[str, Any], expected: list[AttentionLayers]) -> None:
    """Every way in which a family says it."""
    assert list(read(PLAIN | changes, **SIZED).attention) == expected


@pytest.mark.parametrize(
    ("changes", "attention", "states", "state_bytes"),
    [
        ({"full_attention_interval": 4, **LINEAR}, 12, 36, 2_097_152 + 49_152),
        (
            {"layer_types": [*["linear_attention"] * 3, "full_attention"] * 12, **LINEAR},
            12,
            36,
            2_097_152 + 49_152,
        ),
        ({"layer_types": ["mamba", "mamba", "attention"] * 16, **MAMBA_2}, 16, 32, MAMBA_2_BYTES),
        ({"attn_layer_indices": [9, 18, 27], **MAMBA_2}, 3, 45, MAMBA_2_BYTES),
        ({"model_type": "falcon_h1", **MAMBA_2}, 48, 48, MAMBA_2_BYTES),
        ({"layers_block_type": ["mamba", "hybrid"] * 24, **MAMBA_2}, 24, 48, MAMBA_2_BYTES),
        (
            {
                "hybrid_override_pattern": "MEM*M-" * 8,
                "mamba_num_heads": 64,
                "mamba_head_dim": 64,
                "ssm_state_size": 128,
                "n_groups": 8,
                "conv_kernel": 4,
            },
            8,
            24,
            MAMBA_2_BYTES,
        ),
        (
            {
                "attn_layer_period": 8,
                "attn_layer_offset": 4,
                "mamba_d_state": 16,
                "mamba_expand": 2,
                "mamba_d_conv": 4,
            },
            6,
            42,
            8192 * 16 * 4 + 8192 * 3 * 2,
        ),
        (
            {
                "linear_attn_config": {
                    "full_attn_layers": [4, 8, 48],
                    "num_heads": 32,
                    "head_dim": 128,
                    "short_conv_kernel_size": 4,
                }
            },
            3,
            45,
            32 * 128 * 128 * 4 + 3 * 32 * 128 * 3 * 2,
        ),
        ({"layer_types": ["conv", "full_attention"] * 24, "conv_L_cache": 3}, 24, 24, 4096 * 3 * 2),
    ],
)
def test_layers_with_a_state(changes: dict[str, Any], attention: int, states: int, state_bytes: int) -> None:
    """Qwen3-Next, Granite, Bamba, Falcon-H1, Zamba, Nemotron-H, Jamba, Kimi Linear, LFM2."""
    model = read(PLAIN | changes, **SIZED)
    assert sum(group.layers for group in model.attention) == attention
    assert (model.state_layers, model.state_bytes) == (states, states * state_bytes)


def test_jamba_keeps_4_gib_of_a_sequence_of_256k() -> None:
    """As its authors say: 4 GB, where a Llama of its size keeps 32."""
    jamba = {
        "model_type": "jamba",
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "attn_layer_period": 8,
        "attn_layer_offset": 4,
        "mamba_d_state": 16,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
    }
    assert read(jamba, **SIZED).kv_bytes(262_144) == pytest.approx(4 * 2**30, rel=0.01)


@pytest.mark.parametrize(
    ("quantization", "bytes_per_parameter"),
    [
        (None, 2.0),
        ({"quant_method": "fp8"}, 1.0),
        ({"quant_method": "fbgemm_fp8"}, 1.0),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, (4 + 20 / 128) / 8),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, 1.0),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 4.5 / 8),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 1.0),
        ({"quant_method": "mxfp4"}, 4.25 / 8),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, 4.5 / 8),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, 1.0),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int", "group_size": 32}}},
            },
            4.5 / 8,
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {
                    "group_0": {"weights": {"num_bits": 8, "type": "float", "group_size": None}}
                },
            },
            1.0,
        ),
    ],
)
def test_quantized_weights(quantization: dict[str, Any] | None, bytes_per_parameter: float) -> None:
    """Input and output layers keep 2 bytes a parameter."""
    model = read(LLAMA | {"quantization_config": quantization})
    embeddings = 2 * 128_256 * 4096
    expected = embeddings * 2 + (model.parameters - embeddings) * bytes_per_parameter
    assert model.weight_bytes == pytest.approx(expected, rel=1e-6)


def test_a_checkpoint_overrides_the_shapes() -> None:
    """Its index, or else the size of its files; nonsense there counts as nothing."""
    index = {"metadata": {"total_size": 16_060_522_496}}
    assert read(LLAMA, index=index, file_bytes=7).weight_bytes == 16_060_522_496
    assert read(LLAMA, index={"metadata": {"total_size": 1.5e10}}).weight_bytes == 15_000_000_000
    assert read(LLAMA, file_bytes=16_060_000_000).weight_bytes == 16_060_000_000
    by_shapes = read(LLAMA).weight_bytes
    odd: tuple[object, ...] = (None, [], {"metadata": []}, {"metadata": {"total_size": -1}}, {"metadata": {}})
    for nothing in odd:
        assert read(LLAMA, index=nothing).weight_bytes == by_shapes


def test_checkpoints_of_32_bits_are_loaded_as_16() -> None:
    """As engines do unless they are asked for more."""
    assert read(LLAMA | {"torch_dtype": "float32"}, file_bytes=32_000_000_000).weight_bytes == 16_000_000_000
    assert read(LLAMA | {"dtype": "float32", "torch_dtype": None}, file_bytes=32_000).weight_bytes == 16_000


def test_tied_embeddings_are_counted_once() -> None:
    """Whether the text's configuration says it or the one around it."""
    untied = read(LLAMA).parameters
    assert untied - read(LLAMA | {"tie_word_embeddings": True}).parameters == 128_256 * 4096
    inner = {key: value for key, value in LLAMA.items() if key != "tie_word_embeddings"}
    assert read({"text_config": inner, "tie_word_embeddings": True}).parameters == untied - 128_256 * 4096


@pytest.mark.parametrize("path", [["text_config"], ["llm_config"], ["thinker_config", "text_config"]])
def test_models_of_several_modalities(path: list[str]) -> None:
    """The language model's configuration lies within."""
    config: dict[str, Any] = LLAMA
    for key in reversed(path):
        config = {"model_type": "outer", key: config}
    assert read(config) == read(LLAMA)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (None, "it is not an object"),
        ([], "it is not an object"),
        ({}, "num_hidden_layers is missing"),
        ({"text_config": 7}, "text_config is not an object"),
        (LLAMA | {"num_hidden_layers": -1}, "num_hidden_layers is not a whole number from 1"),
        (LLAMA | {"num_hidden_layers": 10**30}, "num_hidden_layers is not a whole number"),
        (LLAMA | {"num_hidden_layers": True}, "num_hidden_layers is not a whole number"),
        (LLAMA | {"num_attention_heads": [32]}, "num_attention_heads is not a whole number"),
        (LLAMA | {"num_key_value_heads": [8] * 32}, "num_key_value_heads is not a whole number"),
        (LLAMA | {"hidden_size": 16}, "head_dim is missing"),
        (LLAMA | {"use_sliding_window": "yes"}, "use_sliding_window is neither true nor false"),
        (LLAMA | {"layer_types": "full_attention"}, "layer_types is not a list"),
        (LLAMA | {"layer_types": ["full_attention"]}, "lists the kinds of 1"),
        (LLAMA | {"layer_types": ["quantum_attention"] * 32}, "'quantum_attention' are not counted"),
        (LLAMA | {"layer_types": ["sliding_attention"] * 32}, "sliding_window is missing"),
        (LLAMA | {"layer_types": ["mamba"] * 32, **MAMBA_2}, "no layer has attention"),
        (LLAMA | {"hybrid_override_pattern": "M?" * 16}, "'?' are not counted"),
        (LLAMA | {"full_attention_interval": 4}, "the size of its state layers' state"),
        (LLAMA | {"mamba_d_state": 16}, "layer_types is missing"),
        (LLAMA | {"compress_ratios": [4]}, "compressed attention is not counted"),
        (LLAMA | {"block_configs": []}, "layers that differ"),
        (LLAMA | {"is_encoder_decoder": True}, "only decoders are counted"),
        (LLAMA | {"vocab_size": None}, "model.safetensors.index.json is needed"),
        (
            LLAMA | {"layer_types": ["mamba", "attention"] * 16, **MAMBA_2},
            "model.safetensors.index.json is needed",
        ),
        (LLAMA | {"quantization_config": {"quant_method": "secret"}}, "of an unknown method"),
        (LLAMA | {"quantization_config": "fp8"}, "quantization_config is not an object"),
        (
            LLAMA | {"num_experts": 8, "num_experts_per_tok": 9},
            "num_experts_per_tok is not a whole number from 1 to 8",
        ),
        (
            LLAMA | {"num_hidden_layers": 10_000, "hidden_size": 10_000_000, "intermediate_size": 10_000_000},
            "beyond what a model has",
        ),
    ],
)
def test_what_cannot_be_read_is_unknown_with_its_reason(config: object, says: str) -> None:
    """One sentence that names the field."""
    message = refused(config)
    assert message.startswith("config.json of 'case': ")
    assert says in message
    assert message.isprintable()


def test_an_unknown_quantization_does_no_harm_where_the_checkpoint_is_known() -> None:
    """Its index says the bytes."""
    assert (
        read(LLAMA | {"quantization_config": {"quant_method": "secret"}}, **SIZED).weight_bytes
        == 16_000_000_000
    )


def config_of(model: ModelArchitecture) -> dict[str, Any]:
    """Return a config.json that says what the catalog says of *model*'s layers."""
    kinds: list[str] = []
    made: dict[str, Any] = {
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.attention_heads,
        "hidden_size": model.attention_heads * model.head_dimension,
    }
    for group in model.attention:
        prefix = "swa_" if group.window_tokens else ""
        kinds += ["sliding_attention" if group.window_tokens else "full_attention"] * group.layers
        made[f"{prefix}num_key_value_heads"] = group.kv_heads
        made[f"{prefix}head_dim"] = group.values_per_head - group.values_per_head // 2
        made[f"{prefix}v_head_dim"] = group.values_per_head // 2
        if group.window_tokens:
            made["sliding_window"] = group.window_tokens
        if group.kv_heads == 1 and group.values_per_head in {320, 576}:
            made |= {"kv_lora_rank": group.values_per_head - 64, "qk_rope_head_dim": 64}
    if model.state_layers:
        kinds += ["linear_attention"] * model.state_layers
        made |= LINEAR
    made["layer_types"] = kinds + ["mlp"] * (model.layers - len(kinds))
    return made


@pytest.mark.parametrize("name", sorted(catalog()))
def test_every_model_of_the_catalog_could_have_been_read(name: str) -> None:
    """A config.json with its layers gives its KV bytes, at any length."""
    model = catalog()[name]
    got = read(config_of(model), file_bytes=model.weight_bytes)
    assert (got.layers, got.state_layers, got.attention) == (
        model.layers,
        model.state_layers,
        model.attention,
    )
    for tokens in (1, 100, 8_192, 131_072):
        assert got.kv_bytes(tokens) - got.state_bytes == model.kv_bytes(tokens) - model.state_bytes


NAMES = sorted({*LLAMA, *QWEN3_MOE, *DEEPSEEK_V3, *LINEAR, *MAMBA_2, "text_config", "layer_types", "sliding_window",
    "sliding_window_pattern", "use_sliding_window", "hybrid_override_pattern", "linear_attn_config", "attn_layer_period",
    "full_attention_interval", "attn_layer_indices", "num_kv_shared_layers", "global_head_dim", "mamba_expand"})  # fmt: skip
NUMBERS = st.sampled_from([0, 1, 2, 7, 32, 4096, -1, 1 << 40, 10**40]) | st.integers()
SCALARS = (
    st.none()
    | st.booleans()
    | NUMBERS
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["LG", "gemma2"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=8)
        | st.lists(st.sampled_from(["full_attention", "sliding_attention", "mamba"]), max_size=40)
        | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=4), inner, max_size=8)
    ),
    max_leaves=12,
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    base=st.sampled_from([{}, LLAMA, QWEN3_MOE, DEEPSEEK_V3, PLAIN | LINEAR, PLAIN | MAMBA_2]),
    changes=st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=6),
    index=VALUES | st.fixed_dictionaries({"metadata": st.fixed_dictionaries({"total_size": SCALARS})}),
    file_bytes=st.none() | NUMBERS,
)
def test_anything_is_either_read_or_unknown(
    base: dict[str, Any], changes: dict[str, Any], index: object, file_bytes: int | None
) -> None:
    """No config.json ends in an exception, and whatever is read can be written and used."""
    found = read_config(base | changes, "case", index=index, file_bytes=file_bytes)
    if isinstance(found, UnknownArchitecture):
        assert len(found.message) < 400
        return
    assert ModelArchitecture.from_fields(found.to_fields()) == found
    assert found.kv_bytes(4096) > 0
    assert 0 <= found.expert_bytes <= found.weight_bytes
