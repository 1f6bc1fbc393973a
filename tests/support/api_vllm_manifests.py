"""Settings of vLLM that are accepted, with the arguments that they become, and those that are refused, with the words for it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from turnout.api import Role


@dataclass(frozen=True, slots=True)
class Argued:
    """Settings below `spec`, and what `vllm serve` is given for them by the workers of *role*."""

    name: str
    spec: dict[str, Any]
    arguments: tuple[str, ...]
    """In a row."""
    role: Role = "aggregated"
    absent: tuple[str, ...] = ()
    """Options that are not given."""


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"))


def _vllm(settings: dict[str, Any]) -> dict[str, Any]:
    return {f"spec.engine.vllm.{path}": value for path, value in settings.items()}


def _count(accelerators: int) -> dict[str, Any]:
    return {"spec.decode.accelerator.count": accelerators}


ADAPTERS = [{"name": "sql", "source": "hf://acme/sql-lora"}, {"name": "fr", "source": "hf://acme/fr-lora"}]
NIXL_DECODE = {"kv_connector": "NixlConnector", "kv_role": "kv_consumer"}
NIXL_PREFILL = {"kv_connector": "NixlConnector", "kv_role": "kv_producer"}
OFFLOAD = {
    "kv_connector": "OffloadingConnector",
    "kv_role": "kv_both",
    "kv_connector_extra_config": {"cpu_bytes_to_use": 64 << 30},
}


def _speculative(method: str, **more: Any) -> dict[str, Any]:
    return _vllm({"speculation": {"method": method, **more}})


ARGUED = [
    Argued(
        "nothing-set",
        {},
        ("--gpu-memory-utilization", "0.92"),
        absent=(
            "--dtype",
            "--quantization",
            "--kv-cache-dtype",
            "--kv-cache-memory-bytes",
            "--trust-remote-code",
            "--enforce-eager",
            "--tensor-parallel-size",
            "--pipeline-parallel-size",
            "--data-parallel-size",
            "--enable-expert-parallel",
            "--max-num-seqs",
            "--max-num-batched-tokens",
            "--max-num-queued-reqs",
            "--no-enable-prefix-caching",
            "--no-enable-chunked-prefill",
            "--enable-auto-tool-choice",
            "--reasoning-parser",
            "--chat-template",
            "--structured-outputs-config",
            "--speculative-config",
            "--enable-lora",
            "--kv-transfer-config",
            "--kv-events-config",
        ),
    ),
    Argued("names", {"spec.model.servedNames": ["a", "b"]}, ("--served-model-name", "a", "b")),
    Argued("length", {"spec.model.maxLength": 4096}, ("--max-model-len", "4096")),
    Argued("dtype", _vllm({"dtype": "bfloat16"}), ("--dtype", "bfloat16")),
    Argued("quantization", _vllm({"quantization": "awq_marlin"}), ("--quantization", "awq_marlin")),
    Argued("kv-cache-type", _vllm({"kvCacheType": "fp8"}), ("--kv-cache-dtype", "fp8")),
    Argued(
        "kv-cache-memory",
        _vllm({"kvCacheMemoryMib": 8}),
        ("--kv-cache-memory-bytes", "8388608"),
        absent=("--gpu-memory-utilization",),
    ),
    Argued("memory-percent", _vllm({"memoryPercent": 85}), ("--gpu-memory-utilization", "0.85")),
    Argued("remote-code", _vllm({"trustRemoteCode": True}), ("--trust-remote-code",)),
    Argued("eager", _vllm({"compile": False}), ("--enforce-eager",)),
    Argued("tensor", _count(4), ("--tensor-parallel-size", "4")),
    Argued(
        "pipeline",
        {**_count(8), **_vllm({"parallelism": {"pipeline": 2}})},
        ("--tensor-parallel-size", "4", "--pipeline-parallel-size", "2"),
    ),
    Argued(
        "data-and-experts",
        {**_count(8), **_vllm({"parallelism": {"data": 8, "expert": True}})},
        ("--data-parallel-size", "8", "--enable-expert-parallel"),
        absent=("--tensor-parallel-size",),
    ),
    Argued("batch-requests", _vllm({"maxBatchRequests": 64}), ("--max-num-seqs", "64")),
    Argued("batch-tokens", _vllm({"maxBatchTokens": 4096}), ("--max-num-batched-tokens", "4096")),
    Argued("queue", _vllm({"maxQueuedRequests": 8}), ("--max-num-queued-reqs", "8")),
    Argued("no-prefix-caching", _vllm({"prefixCaching": False}), ("--no-enable-prefix-caching",)),
    Argued("no-chunks", _vllm({"chunkedPrefill": False}), ("--no-enable-chunked-prefill",)),
    Argued(
        "tools",
        _vllm({"chat": {"toolParser": "hermes"}}),
        ("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
    ),
    Argued("reasoning", _vllm({"chat": {"reasoningParser": "qwen3"}}), ("--reasoning-parser", "qwen3")),
    Argued(
        "template",
        _vllm({"chat": {"template": "{{ messages[0].content }}"}}),
        ("--chat-template", "{{ messages[0].content }}"),
    ),
    Argued(
        "structured-output",
        _vllm({"structuredOutput": "guidance"}),
        ("--structured-outputs-config", '{"backend":"guidance"}'),
    ),
    Argued(
        "n-gram",
        _speculative("NGram", tokens=4, lookupMin=2, lookupMax=5),
        (
            "--speculative-config",
            _json(
                {
                    "method": "ngram",
                    "prompt_lookup_min": 2,
                    "prompt_lookup_max": 5,
                    "num_speculative_tokens": 4,
                }
            ),
        ),
    ),
    Argued("n-gram-prefill", _speculative("NGram"), (), role="prefill", absent=("--speculative-config",)),
    Argued(
        "draft-model",
        _speculative("DraftModel", model="acme/small", tokens=5),
        (
            "--speculative-config",
            _json({"method": "draft_model", "model": "acme/small", "num_speculative_tokens": 5}),
        ),
    ),
    Argued(
        "eagle-on-both",
        _speculative("Eagle3", model="acme/head"),
        (
            "--speculative-config",
            _json({"method": "eagle3", "model": "acme/head", "num_speculative_tokens": 3}),
        ),
        role="prefill",
    ),
    Argued(
        "eagle",
        _speculative("Eagle", model="acme/head"),
        (
            "--speculative-config",
            _json({"method": "eagle", "model": "acme/head", "num_speculative_tokens": 3}),
        ),
        role="decode",
    ),
    Argued(
        "mtp-up-to-a-batch",
        _speculative("MTP", tokens=1, maxBatch=32),
        (
            "--speculative-config",
            _json(
                {
                    "method": "mtp",
                    "num_speculative_tokens": 1,
                    "num_speculative_tokens_per_batch_size": [[1, 32, 1], [33, 65536, 0]],
                }
            ),
        ),
    ),
    Argued(
        "adapters",
        {"spec.lora.adapters": ADAPTERS, **_vllm({"maxLoraRank": 64})},
        (
            "--enable-lora",
            "--max-loras",
            "1",
            "--max-cpu-loras",
            "2",
            "--max-lora-rank",
            "64",
            "--lora-modules",
            "sql={adapter:sql}",
            "fr={adapter:fr}",
        ),
    ),
    Argued("nixl-prefill", {}, ("--kv-transfer-config", _json(NIXL_PREFILL)), role="prefill"),
    Argued("nixl-decode", {}, ("--kv-transfer-config", _json(NIXL_DECODE)), role="decode"),
    Argued(
        "recompute",
        _vllm({"kvLoadFailure": "Recompute"}),
        ("--kv-transfer-config", _json({**NIXL_DECODE, "kv_load_failure_policy": "recompute"})),
        role="decode",
    ),
    Argued(
        "recompute-is-for-decode",
        _vllm({"kvLoadFailure": "Recompute"}),
        ("--kv-transfer-config", _json(NIXL_PREFILL)),
        role="prefill",
    ),
    Argued(
        "offload",
        _vllm({"kvOffload": {"backend": "CPU", "gib": 64}}),
        ("--kv-transfer-config", _json(OFFLOAD)),
    ),
    Argued(
        "offload-beside-nixl",
        _vllm({"kvOffload": {"backend": "CPU", "gib": 64}}),
        (
            "--kv-transfer-config",
            _json(
                {
                    "kv_connector": "MultiConnector",
                    "kv_role": "kv_consumer",
                    "kv_connector_extra_config": {"connectors": [NIXL_DECODE, OFFLOAD]},
                }
            ),
        ),
        role="decode",
        absent=("--kv-offloading-size",),
    ),
    Argued(
        "lmcache",
        _vllm({"kvOffload": {"backend": "LMCache", "host": "lmcache.models", "port": 6555}}),
        (
            "--kv-transfer-config",
            _json(
                {
                    "kv_connector": "LMCacheMPConnector",
                    "kv_role": "kv_both",
                    "kv_connector_extra_config": {
                        "lmcache.mp.host": "tcp://lmcache.models",
                        "lmcache.mp.port": 6555,
                    },
                }
            ),
        ),
    ),
    Argued(
        "mooncake-store",
        _vllm({"kvOffload": {"backend": "MooncakeStore"}}),
        ("--kv-transfer-config", _json({"kv_connector": "MooncakeStoreConnector", "kv_role": "kv_both"})),
    ),
    Argued("extra-last", _vllm({"extraArgs": ["--seed", "7"]}), ("--seed", "7")),
]

REFUSED_VLLM = [
    # name, settings, whether there is a prefill pool, words
    (
        "without-the-type",
        {"spec.engine.type": "simulated", **_vllm({"dtype": "auto"})},
        "engine.vllm has no effect with engine.type simulated",
    ),
    (
        "simulated-settings",
        {"spec.engine.simulated.timeScale": 5},
        "engine.simulated has no effect with engine.type vllm",
    ),
    ("image", {"spec.engine.image": "worker vllm"}, "engine.image holds white space"),
    ("quantization-method", _vllm({"quantization": "fp8 --x"}), "not a quantization method"),
    (
        "memory-twice",
        _vllm({"memoryPercent": 80, "kvCacheMemoryMib": 100}),
        "memoryPercent has no effect beside kvCacheMemoryMib",
    ),
    (
        "uneven",
        {**_count(6), **_vllm({"parallelism": {"pipeline": 4}})},
        "is not a multiple of engine.vllm.parallelism.pipeline times data",
    ),
    (
        "small-steps",
        _vllm({"chunkedPrefill": False, "maxBatchTokens": 16, "maxBatchRequests": 64}),
        "maxBatchTokens is below maxBatchRequests",
    ),
    ("parser", _vllm({"chat": {"toolParser": "a b"}}), "a parser's name holds letters"),
    ("no-draft", _speculative("DraftModel"), "speculation.model is needed by the methods DraftModel"),
    (
        "needless-draft",
        _speculative("NGram", model="acme/small"),
        "speculation.model is needed by the methods",
    ),
    ("lookup", _speculative("NGram", lookupMin=5, lookupMax=2), "speculation.lookupMin is greater"),
    (
        "needless-lookup",
        _speculative("MTP", lookupMax=8),
        "speculation.lookupMin and lookupMax have an effect with the method NGram only",
    ),
    (
        "batches-and-data",
        {**_count(2), **_vllm({"parallelism": {"data": 2}}), **_speculative("NGram", maxBatch=8)},
        "speculation.maxBatch has no effect with parallelism.data above 1",
    ),
    ("rank", _vllm({"maxLoraRank": 64}), "engine.vllm.maxLoraRank has no effect without adapters"),
    (
        "load-failure",
        _vllm({"kvLoadFailure": "Recompute"}),
        "engine.vllm.kvLoadFailure has no effect without a prefill pool",
    ),
    ("offload-where", _vllm({"kvOffload": {"backend": "CPU"}}), "kvOffload.gib is needed by the backend CPU"),
    (
        "offload-how-much",
        _vllm({"kvOffload": {"backend": "LMCache", "gib": 3}}),
        "kvOffload.gib is needed by the backend CPU",
    ),
    (
        "offload-host",
        _vllm({"kvOffload": {"backend": "CPU", "gib": 3, "host": "x"}}),
        "kvOffload.host and port have an effect with the backend LMCache only",
    ),
    (
        "offload-of-nothing",
        _vllm({"prefixCaching": False, "kvOffload": {"backend": "CPU", "gib": 3}}),
        "kvOffload has no effect without prefixCaching",
    ),
    (
        "events-of-nothing",
        {"spec.routing.cacheKnowledge": "Exact", **_vllm({"prefixCaching": False})},
        "routing.cacheKnowledge Exact has no effect with engine.vllm.prefixCaching false",
    ),
    *(
        (f"extra-{number}", _vllm({"extraArgs": [argument]}), "extraArgs repeats an option that Turnout sets")
        for number, argument in enumerate(
            (
                "--port",
                "--port=9",
                "--host=0.0.0.0",
                "--api-key=x",
                "--kv-transfer-config",
                "-tp",
                "--tensor-parallel-size=2",
                "--ssl-keyfile=x",
                "--served-model-name",
                "--data-parallel-size",
                "--config=x.yaml",
                "--lora-modules",
            )
        )
    ),
    ("variable", _vllm({"env": [{"name": "VLLM_API_KEY", "value": "x"}]}), "this variable is set by Turnout"),
    ("variable-name", _vllm({"env": [{"name": "A-B"}]}), "a variable's name holds letters, digits and '_'"),
]
