"""Whether models fit, how much KV cache is left, and what the message says where they do not."""

from __future__ import annotations

from typing import get_args

import pytest

from turnout.sizing.accelerators import ACCELERATORS
from turnout.sizing.capacity import Fit, Misfit, fits
from turnout.terms import AcceleratorType

EIGHT = "hf://meta-llama/Llama-3.1-8B-Instruct"
SEVENTY = "hf://meta-llama/Llama-3.1-70B-Instruct"


def test_every_accelerator_that_can_be_asked_for_has_its_figures() -> None:
    """The resources' enumeration and the table name the same ones."""
    assert set(ACCELERATORS) == set(get_args(AcceleratorType))


def test_8b_on_one_h100_holds_435_000_tokens() -> None:
    """The known figure for the 8B model on one H100."""
    fit = fits(EIGHT, "H100-SXM", 1)
    assert isinstance(fit, Fit)
    assert fit.kv_cache_tokens == pytest.approx(435_000, rel=0.01)


@pytest.mark.parametrize(
    ("asked", "reason", "advice"),
    [
        (("hf://acme/unknown", "H100-SXM", 1, 0), "UnknownModel", "write one of hf://"),
        ((EIGHT, "TPU", 1, 0), "UnknownAccelerator", "A100-SXM-80GB"),
        ((EIGHT, "H100-SXM", 3, 0), "TensorParallelism", "write one of 1, 2, 4, 8, 16"),
        ((SEVENTY, "H100-SXM", 1, 0), "TooLittleMemory", "write accelerator.count: 2"),
        (
            (SEVENTY, "H100-SXM", 2, 32768),
            "TooLittleMemory",
            "accelerator.count: 4 or model.maxLength of at most 15391",
        ),
        ((SEVENTY, "L40S", 4, 1_000_000), "TooLittleMemory", "write"),
    ],
)
def test_a_misfit_says_what_to_write_instead(
    asked: tuple[str, str, int, int], reason: str, advice: str
) -> None:
    """Each misfit has a reason for the condition and a sentence with the way out."""
    misfit = fits(*asked)
    assert isinstance(misfit, Misfit)
    assert misfit.reason == reason
    assert advice in misfit.message


def test_more_accelerators_hold_more() -> None:
    """KV cache grows with the accelerators, faster than they do: the weights are shared out."""
    sizes = [fits(SEVENTY, "H100-SXM", count) for count in (2, 4, 8)]
    tokens = [fit.kv_cache_tokens for fit in sizes if isinstance(fit, Fit)]
    assert tokens[0] * 2 < tokens[1]
    assert tokens[1] * 2 < tokens[2]


def test_replicated_kv_heads_gain_nothing() -> None:
    """Beyond the number of KV heads they are replicated: 16 accelerators hold little more than 8."""
    eight, sixteen = fits(SEVENTY, "H100-SXM", 8), fits(SEVENTY, "H100-SXM", 16)
    assert isinstance(eight, Fit)
    assert isinstance(sixteen, Fit)
    assert eight.kv_cache_tokens < sixteen.kv_cache_tokens < eight.kv_cache_tokens * 1.2
