"""What one sequence leaves in memory, for every kind of attention, against figures that are published or done by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from turnout.sizing.architecture import AttentionLayers, ModelArchitecture
from turnout.sizing.catalog import known

GIB = 1 << 30
GB = 10**9


def model(name: str) -> ModelArchitecture:
    found = known(f"hf://{name}")
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("name", "tokens", "expected"),
    [
        # GQA: 32 layers x 8 KV heads x (128 + 128) x 2 bytes = 128 KiB a token.
        ("meta-llama/Meta-Llama-3-8B", 8_192, 1.0 * GIB),
        ("meta-llama/Llama-3.1-70B", 131_072, 42.95 * GB),
        # MLA: 61 layers x (512 + 64) x 2 bytes = 70,272 bytes a token.
        ("deepseek-ai/DeepSeek-V3", 4_096, 0.288 * GB),
        # Sliding windows: 10 layers see all, 52 the last 1,024 tokens; each 16 x 256 x 2 bytes.
        ("google/gemma-3-27b-it", 1_024, (10 + 52) * 1_024 * 8_192),
        ("google/gemma-3-27b-it", 131_072, (10 * 131_072 + 52 * 1_024) * 8_192),
        ("openai/gpt-oss-120b", 131_072, (18 * 131_072 + 18 * 128) * 2_048),
        # Hybrid: 12 of 48 layers have attention, of 2 x 512 x 2 bytes; 36 keep 2 MiB of state and 48 KiB of convolution.
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", 262_144, 12 * 262_144 * 2_048 + 36 * (2 * 1_048_576 + 49_152)),
        # Mixtures of experts share their attention: 128 KiB and 96 KiB a token.
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", 32_768, 4.0 * GIB),
        ("Qwen/Qwen3-30B-A3B", 32_768, 3.0 * GIB),
    ],
)
def test_bytes_of_one_sequence(name: str, tokens: int, expected: float) -> None:
    """At 2 bytes a value."""
    assert model(name).kv_bytes(tokens) == pytest.approx(expected, rel=0.002)


def test_about_thirty_sequences_of_4k_of_a_70b_fit_on_80_gb() -> None:
    """Field guides say 250. With weights of 4 bits (35 GB) 40 GB are left, and a sequence takes 1.3 GB of them."""
    assert model("meta-llama/Llama-3.1-70B").sequences(40 * GB, 4_096) == 29


def test_half_the_bytes_a_value_keep_twice_the_sequences() -> None:
    """An 8-bit cache."""
    seventy = model("meta-llama/Llama-3.1-70B")
    assert seventy.sequences(40 * GB, 4_096, 1) in {58, 59}
    assert seventy.kv_bytes_per_token(1) * 2 == seventy.kv_bytes_per_token()


def test_windows_and_states_do_not_grow() -> None:
    """Beyond the window only layers with full attention add bytes, and `kv_bytes_per_token` says how many."""
    for name in ("google/gemma-3-27b-it", "openai/gpt-oss-20b", "Qwen/Qwen3.5-27B", "moonshotai/Kimi-K3"):
        one = model(name)
        grown = one.kv_bytes(50_000) - one.kv_bytes(40_000)
        assert grown == 10_000 * one.kv_bytes_per_token()
        assert one.kv_bytes(40_000) == 40_000 * one.kv_bytes_per_token() + one.fixed_bytes()


def test_ranks_share_out_kv_heads_and_replicate_a_latent() -> None:
    """Eight KV heads on four ranks are two on each, on sixteen one; MLA's latent is whole on every rank."""
    seventy, deepseek = model("meta-llama/Llama-3.1-70B"), model("deepseek-ai/DeepSeek-V3")
    per_rank = [seventy.rank_bytes(4_096, tensor_parallel=ranks) for ranks in (1, 4, 8, 16)]
    assert per_rank == [per_rank[0], per_rank[0] // 4, per_rank[0] // 8, per_rank[0] // 8]
    assert deepseek.rank_bytes(4_096, tensor_parallel=8) == deepseek.kv_bytes(4_096)


def test_pipeline_stages_take_whole_layers() -> None:
    """80 layers on three stages: the fullest has 27."""
    seventy = model("meta-llama/Llama-3.1-70B")
    whole = seventy.kv_bytes(4_096)
    assert seventy.rank_bytes(4_096, pipeline_parallel=3) == -(-whole * 27 // 80)


def test_experts_are_what_a_token_leaves_out_and_what_it_meets() -> None:
    """Qwen3-30B-A3B has 28.99 of its 30.53 billion parameters in experts, of which a token meets 8 of 128."""
    qwen = model("Qwen/Qwen3-30B-A3B")
    assert qwen.expert_bytes == pytest.approx(2 * 28_991_029_248, rel=0.001)
    assert model("meta-llama/Llama-3.1-70B").expert_bytes == 0


def test_what_is_written_is_read() -> None:
    """A worker reads what the operator has written of a model."""
    for name in ("deepseek-ai/DeepSeek-V3", "openai/gpt-oss-20b", "moonshotai/Kimi-K3", "Qwen/Qwen3-0.6B"):
        one = model(name)
        assert ModelArchitecture.from_fields(json.loads(json.dumps(one.to_fields()))) == one


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"layers": 0}, "layers must be a whole number from 1"),
        ({"layers": "32"}, "layers must be a whole number"),
        ({"layers": True}, "layers must be a whole number"),
        ({"parameters": 1 << 60}, "parameters must be a whole number"),
        ({"state_bytes": -1}, "state_bytes must be a whole number from 0"),
        ({"name": 7}, "name must be a text"),
        ({"attention": []}, "attention must list 1 to 64"),
        ({"attention": [[1, 2]]}, "attention must list [layers"),
        ({"attention": [[1, 2, 3, 4, 5]]}, "attention must list [layers"),
        ({"attention": [[1, 2, None]]}, "attention: values_per_head must be"),
        ({"attention": "all"}, "attention must list"),
        ({"color": "red"}, "color is none of"),
    ],
)
def test_an_odd_description_is_refused_with_its_field(changes: dict[str, object], says: str) -> None:
    """It comes from a command line."""
    fields = model("Qwen/Qwen3-0.6B").to_fields() | changes
    with pytest.raises(ValueError, match=r"must|none of") as refused:
        ModelArchitecture.from_fields(fields)
    assert says in str(refused.value)


def test_a_description_is_an_object() -> None:
    """And nothing else that JSON has."""
    for raw in (None, 7, "x", [], [{}]):
        with pytest.raises(ValueError, match="JSON object"):
            ModelArchitecture.from_fields(raw)


def test_the_fullest_rank_decides_where_heads_do_not_divide() -> None:
    """Three KV heads on two ranks: one of them has two."""
    odd = replace(model("Qwen/Qwen3-0.6B"), attention=(AttentionLayers(10, 3, 256),))
    assert odd.rank_bytes(100, tensor_parallel=2) * 3 == odd.rank_bytes(100) * 2
