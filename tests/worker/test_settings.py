"""Which engine a simulated worker becomes for a model and an accelerator."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from turnout.sizing.catalog import catalog
from turnout_worker.settings import architecture, engine_settings

if TYPE_CHECKING:
    from turnout.simulation import EngineSettings
    from turnout.sizing.latency import LatencyModel

EIGHT = "hf://meta-llama/Llama-3.1-8B-Instruct"


def engine(model: str, described: str | None = None, **more: Any) -> tuple[EngineSettings, LatencyModel]:
    values: dict[str, Any] = {
        "accelerator": "H100-SXM", "tensor_parallel": 1, "max_length": 4096, "kv_cache_tokens": None, "block_size": 16,
        "max_num_seqs": 64, "max_num_batched_tokens": 8192, "max_num_queued": None, "kv_lease_seconds": 30,
    }  # fmt: skip
    return engine_settings(model=architecture(model, described), **values | more)


def test_what_is_described_overrides_the_catalog() -> None:
    """A model of a known name with weights of 4 bits and twice the KV heads."""
    fields = catalog()["meta-llama/llama-3.1-8b-instruct"].to_fields()
    described = json.dumps(fields | {"attention": [[32, 16, 256]]})
    known, changed = engine(EIGHT), engine(EIGHT, described)
    assert changed[0].kv_blocks == pytest.approx(known[0].kv_blocks / 2, rel=0.01)
    assert changed[1].decode_per_context_token == pytest.approx(2 * known[1].decode_per_context_token)
    assert architecture("hf://acme/own", described) == architecture(EIGHT, described)


def test_on_processors_a_worker_has_the_cache_that_vllm_takes_there() -> None:
    """4 GiB, 32,768 tokens of the 8B model; more where one request needs more."""
    assert engine(EIGHT, accelerator="CPU")[0].kv_blocks * 16 == 32_768
    assert engine(EIGHT, accelerator="CPU", max_length=65_536)[0].kv_blocks * 16 == 65_536
    assert engine(EIGHT, accelerator="CPU")[1].decode_base > 10 * engine(EIGHT)[1].decode_base


def test_every_model_of_the_catalog_can_be_simulated() -> None:
    """On processors, where nothing is too large."""
    for model in catalog().values():
        settings, latency = engine(f"hf://{model.name}", accelerator="CPU")
        assert settings.kv_blocks * 16 >= 4096
        assert latency.decode_seconds(1, 100) > 0
