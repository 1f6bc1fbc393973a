"""Whether models fit, how much KV cache is left, and what the message says where they do not, or where that is not known."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest

from turnout.sizing.accelerators import ACCELERATORS
from turnout.sizing.capacity import GIB, Capacity, DoesNotFit, Unknown, fits, tokens_within
from turnout.sizing.catalog import known
from turnout.terms import AcceleratorType

EIGHT = known("hf://meta-llama/Llama-3.1-8B-Instruct")
SEVENTY = known("hf://meta-llama/Llama-3.1-70B-Instruct")


def tokens(name: str, accelerator: str, tensor: int = 1, pipeline: int = 1, max_length: int = 0) -> int:
    found = fits(known(f"hf://{name}"), accelerator, tensor, pipeline, max_length=max_length)
    assert isinstance(found, Capacity)
    return found.kv_cache_tokens


def test_every_accelerator_that_can_be_asked_for_has_its_figures() -> None:
    """The resources' enumeration and the table name the same ones."""
    assert set(ACCELERATORS) == set(get_args(AcceleratorType))


def test_8b_on_one_h100_holds_435_000_tokens() -> None:
    """The known figure for the 8B model on one H100."""
    assert tokens("meta-llama/Llama-3.1-8B-Instruct", "H100-SXM") == pytest.approx(435_000, rel=0.01)


def test_70b_in_4_bits_on_one_h100_holds_about_thirty_sequences_of_4k() -> None:
    """Field guides say 250: off by eight."""
    assert SEVENTY is not None
    awq = replace(SEVENTY, weight_bytes=SEVENTY.parameters // 2)
    found = fits(awq, "H100-SXM", 1, max_length=4096)
    assert isinstance(found, Capacity)
    assert 25 <= found.kv_cache_tokens // 4096 <= 35


@pytest.mark.parametrize(
    ("name", "asked", "reason", "advice"),
    [
        ("meta-llama/Llama-3.1-8B", ("H100-SXM", 3, 0), "TensorParallelism", "write one of 1, 2, 4, 8, 16"),
        ("meta-llama/Llama-3.1-70B", ("H100-SXM", 1, 0), "TooLittleMemory", "write accelerator.count: 2"),
        (
            "meta-llama/Llama-3.1-70B",
            ("H100-SXM", 2, 32768),
            "TooLittleMemory",
            "accelerator.count: 4 or model.maxLength of at most 15674",
        ),
        ("meta-llama/Llama-3.1-70B", ("L40S", 4, 1_000_000), "TooLittleMemory", "write"),
        ("deepseek-ai/DeepSeek-V3", ("H100-SXM", 8, 0), "TooLittleMemory", "639 GiB of weights"),
        ("deepseek-ai/DeepSeek-V3", ("L40S", 16, 0), "TooLittleMemory", "an accelerator with more memory"),
        # Only sequences of a length that fits count for windows.
        ("google/gemma-3-27b-it", ("L40S", 1, 0), "TooLittleMemory", "accelerator.count: 2"),
    ],
)
def test_a_misfit_says_what_to_write_instead(
    name: str, asked: tuple[str, int, int], reason: str, advice: str
) -> None:
    """Each misfit has a reason for the condition and a sentence with the way out."""
    accelerator, count, max_length = asked
    misfit = fits(known(f"hf://{name}"), accelerator, count, max_length=max_length)
    assert isinstance(misfit, DoesNotFit)
    assert misfit.reason == reason
    assert advice in misfit.message


def test_the_longest_request_that_is_advised_fits_and_one_token_more_does_not() -> None:
    """Also where layers have windows, whose memory does not grow."""
    for name, accelerator, asked in (
        ("meta-llama/Llama-3.1-70B", "H100-SXM", 32_768),
        ("google/gemma-3-27b-it", "A100-SXM-80GB", 1_000_000),
    ):
        model = known(f"hf://{name}")
        refused = fits(model, accelerator, 2 if "70B" in name else 1, max_length=asked)
        assert isinstance(refused, DoesNotFit)
        longest = int(refused.message.rsplit(" ", 1)[1])
        assert isinstance(fits(model, accelerator, 2 if "70B" in name else 1, max_length=longest), Capacity)
        assert isinstance(
            fits(model, accelerator, 2 if "70B" in name else 1, max_length=longest + 1), DoesNotFit
        )


@pytest.mark.parametrize(
    ("model", "accelerator", "reason", "says"),
    [
        (None, "H100-SXM", "UnknownModel", "write spec.model.architecture"),
        (None, "CPU", "UnknownModel", "write spec.model.architecture"),
        (EIGHT, "TPU", "UnknownAccelerator", "A100-SXM-80GB"),
        (EIGHT, "CPU", "UnknownMemory", "room for 15 GiB of weights"),
    ],
)
def test_what_is_not_known_is_no_misfit(model: None, accelerator: str, reason: str, says: str) -> None:
    """And says what is to be written or seen to."""
    unknown = fits(model, accelerator, 1, max_length=1_000_000)
    assert isinstance(unknown, Unknown)
    assert unknown.reason == reason
    assert says in unknown.message


def test_heads_that_do_not_divide_are_no_matter_of_memory() -> None:
    """They are refused on a CPU, too."""
    misfit = fits(EIGHT, "CPU", 3)
    assert isinstance(misfit, DoesNotFit)
    assert misfit.reason == "TensorParallelism"


def test_more_accelerators_hold_more() -> None:
    """KV cache grows with the accelerators, faster than they do: the weights are shared out."""
    two, four, eight = (tokens("meta-llama/Llama-3.1-70B", "H100-SXM", count) for count in (2, 4, 8))
    assert two * 2 < four
    assert four * 2 < eight


def test_replicated_kv_heads_gain_nothing() -> None:
    """Beyond the number of KV heads they are replicated: 16 accelerators hold little more than 8."""
    eight, sixteen = (tokens("meta-llama/Llama-3.1-70B", "H100-SXM", count) for count in (8, 16))
    assert eight < sixteen < eight * 1.2


def test_pipeline_stages_do_not_replicate() -> None:
    """Sixteen accelerators as two stages of eight hold twice what eight hold, and more."""
    eight = tokens("meta-llama/Llama-3.1-70B", "H100-SXM", 8)
    assert tokens("meta-llama/Llama-3.1-70B", "H100-SXM", 8, 2) > 2 * eight


def test_a_latent_is_replicated_over_tensor_parallelism_and_not_over_stages() -> None:
    """DeepSeek-V3 on 16 H200: KV room comes from smaller weights alone, or is shared out by layers."""
    tensor = tokens("deepseek-ai/DeepSeek-V3", "H200-SXM", 16)
    assert tensor * 1.9 < tokens("deepseek-ai/DeepSeek-V3", "H200-SXM", 8, 2)


def test_long_sequences_of_a_model_with_windows_are_cheap() -> None:
    """A token of a long sequence costs less than one of a short, and the capacity says so for the longest."""
    short = tokens("google/gemma-3-27b-it", "H100-SXM", 1, max_length=1_024)
    long = tokens("google/gemma-3-27b-it", "H100-SXM", 1, max_length=32_768)
    assert long > 3 * short
    assert tokens("google/gemma-3-27b-it", "H100-SXM") >= long


def test_room_of_a_given_size() -> None:
    """4 GiB hold 32,768 tokens of 128 KiB, whatever their number in a sequence."""
    assert EIGHT is not None
    assert {tokens_within(4 * GIB, EIGHT, length) for length in (0, 256, 32_768)} == {32_768}


def test_a_cache_of_8_bits_holds_twice_as_much() -> None:
    """Weights stay as they are."""
    one, two = (fits(EIGHT, "H100-SXM", 1, kv_bytes_per_value=size) for size in (1, 2))
    assert isinstance(one, Capacity)
    assert isinstance(two, Capacity)
    assert one.kv_cache_tokens == pytest.approx(2 * two.kv_cache_tokens, abs=1)
