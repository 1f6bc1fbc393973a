"""Latency fits against the grid that they come from, and how they carry over to other hardware."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from turnout.sizing.latency import LatencyModel, UnknownLatency, latency_model

GRID = Path(__file__).parent / "data" / "h100_llama31_vllm_aiconfigurator.json"
EIGHT = "hf://meta-llama/Llama-3.1-8B-Instruct"
SEVENTY = "hf://meta-llama/Llama-3.1-70B-Instruct"


def known(source: str, accelerator: str = "H100-SXM", tensor_parallel: int = 1) -> LatencyModel:
    model = latency_model(source, accelerator, tensor_parallel)
    assert isinstance(model, LatencyModel)
    return model


@pytest.mark.parametrize(
    ("name", "model", "phase", "mean_below", "worst_below"),
    [
        ("8B", known(EIGHT), "p", 0.08, 0.15),
        ("8B", known(EIGHT), "d", 0.04, 0.10),
        ("70B", known(SEVENTY, tensor_parallel=4), "p", 0.08, 0.15),
        ("70B", known(SEVENTY, tensor_parallel=4), "d", 0.04, 0.10),
    ],
)
def test_the_fits_reproduce_the_measured_grid(
    name: str, model: LatencyModel, phase: str, mean_below: float, worst_below: float
) -> None:
    """Each fit stays within its error bounds on every point of the grid it was made from."""
    points = [p for p in json.loads(GRID.read_text()) if name in p[0] and p[1] == phase]
    assert points
    errors = [
        abs((model.prefill_seconds(n) if phase == "p" else model.decode_seconds(batch, n)) * 1e3 / ms - 1)
        for _, _, n, batch, ms in points
    ]
    mean, worst = sum(errors) / len(errors), max(errors)
    print(f"{name} {phase}: mean {mean:.1%}, worst {worst:.1%} of {len(errors)} points")  # noqa: T201 - with pytest -s
    assert mean < mean_below
    assert worst < worst_below


def test_chunks_of_a_prompt_add_up_to_the_whole() -> None:
    """A prompt computed in chunks takes the kernel time of the whole, but for the constant part of each chunk."""
    model = known(EIGHT)
    chunks = sum(model.prefill_seconds(1024, 1024 * k) for k in range(8)) - 7 * model.prefill_base
    assert chunks == pytest.approx(model.prefill_seconds(8192))


def test_a_mixed_iteration_reads_the_weights_once() -> None:
    """Prefill and decode in one iteration cost less than in two, and more than either alone."""
    model = known(EIGHT)
    mixed = model.iteration_seconds([(512, 0)], 32, 32 * 1000)
    prefill, decode = model.iteration_seconds([(512, 0)], 0, 0), model.iteration_seconds([], 32, 32 * 1000)
    assert max(prefill, decode) < mixed < prefill + decode
    assert decode == pytest.approx(model.decode_seconds(32, 1000) + model.overhead)


def test_other_accelerators_scale_by_the_roofline() -> None:
    """An H200 computes as fast as an H100 and reads faster; an L40S does both slower."""
    h100, h200, l40s = (known(EIGHT, accelerator) for accelerator in ("H100-SXM", "H200-SXM", "L40S"))
    assert h200.prefill_per_token == h100.prefill_per_token
    assert h200.decode_base / h100.decode_base == pytest.approx(3352 / 4800)
    assert l40s.prefill_per_token / h100.prefill_per_token == pytest.approx(989 / 362)
    assert l40s.decode_base > h100.decode_base


def test_tensor_parallelism_speeds_up_less_than_it_costs() -> None:
    """Twice the accelerators are faster, but not twice as fast."""
    one, two = known(EIGHT), known(EIGHT, tensor_parallel=2)
    assert 1 < one.prefill_per_token / two.prefill_per_token < 2
    assert 1 < one.decode_base / two.decode_base < 2


@pytest.mark.parametrize(
    ("source", "accelerator", "count", "word"),
    [
        ("hf://acme/unknown", "H100-SXM", 1, "meta-llama/Llama-3.1-8B"),
        (EIGHT, "TPU", 1, "H100-SXM"),
        (EIGHT, "H100-SXM", 0, "at least 1"),
    ],
)
def test_what_is_unknown_names_what_is_known(source: str, accelerator: str, count: int, word: str) -> None:
    """Unknown models and accelerators come back as a sentence that names the known ones."""
    unknown = latency_model(source, accelerator, count)
    assert isinstance(unknown, UnknownLatency)
    assert word in unknown.message
