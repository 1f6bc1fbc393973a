"""vLLM's container: the arguments of `vllm serve`, behind those of the worker that starts it.

Written for vLLM 0.32. Of the worker's placeholders `{model}` is the model's folder, `{host}` the address to listen on and
`{adapter:NAME}` a LoRA adapter's folder.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from turnout import terms
from turnout_operator.plan.engines.container import (
    GRACE_PERIOD_SECONDS,
    KV_EVENTS,
    EngineContainer,
    Probed,
    worker_ports,
)
from turnout_operator.plan.model_volumes import model_volumes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from turnout.api import LLMDeployment, Role, VllmEngine
    from turnout.api.engine import KvOffload, Speculation
    from turnout_operator.plan.model_volumes import ModelVolumes

_PROBED: Final = Probed(terms.WORKER_STATUS_PORT_NAME, "/startup", "/ready", "/live")
_POD_IP: Final = {"valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
_HOME: Final = "/home/turnout"
_KV_ROLES: Final = {"prefill": "kv_producer", "decode": "kv_consumer", "aggregated": "kv_both"}
WORKER_SHUTDOWN_SECONDS: Final = GRACE_PERIOD_SECONDS - 2
"""What the engine has after SIGTERM before the worker kills it: the worker has to end before the pod is killed."""
ENGINE_SHUTDOWN_SECONDS: Final = WORKER_SHUTDOWN_SECONDS - 3
"""What running requests have: the engine itself needs some time to end."""
_LARGEST_BATCH: Final = 65_536
_DRAFTED: Final = {"DraftModel": "draft_model", "Eagle": "eagle", "Eagle3": "eagle3", "MTP": "mtp"}


def container(deployment: LLMDeployment, role: Role) -> EngineContainer:
    """Return the container of a worker of *role*."""
    spec = deployment.spec
    publishes = spec.routing.cache_knowledge == "Exact"
    needs = model_volumes(deployment)
    ports = worker_ports(hands_out_cache=role == "prefill", publishes=publishes)
    return EngineContainer(
        arguments=(*_worker(needs, role), "--", "vllm", "serve", "{model}", *_engine(deployment, role)),
        ports={**ports, terms.WORKER_STATUS_PORT_NAME: terms.WORKER_STATUS_PORT},
        probed=_PROBED,
        environment=(*needs.env, *_environment(deployment, role)),
        model=needs,
        scratch={
            # Processes of one replica exchange tensors in shared memory; the default of 64 MiB is too little.
            "/dev/shm": {"medium": "Memory"},  # noqa: S108 - the pod's own
            "/tmp": {},  # noqa: S108 - likewise
            _HOME: {},
        },
    )


def _worker(needs: ModelVolumes, role: Role) -> Iterator[str]:
    """Return the arguments of the worker itself."""
    yield "serve"
    yield from ("--engine", "vllm", "--role", role)
    yield from needs.arguments
    yield from ("--port", str(terms.WORKER_PORT), "--status-port", str(terms.WORKER_STATUS_PORT))
    yield from ("--shutdown-timeout", str(WORKER_SHUTDOWN_SECONDS))


def _engine(deployment: LLMDeployment, role: Role) -> Iterator[str]:
    """Return the arguments of `vllm serve` after the model."""
    spec, vllm = deployment.spec, deployment.spec.engine.vllm_settings
    yield from ("--host", "{host}", "--port", str(terms.WORKER_PORT), "--disable-uvicorn-access-log")
    yield from ("--shutdown-timeout", str(ENGINE_SHUTDOWN_SECONDS))
    yield from ("--served-model-name", *deployment.served_names)
    yield from ("--max-model-len", str(spec.model.max_length))
    # Routers learn from usage how much of a prompt was cached.
    yield "--enable-prompt-tokens-details"
    yield from _numbers(vllm)
    yield from _parallelism(deployment, role)
    yield from _batches(vllm)
    yield from _chat(vllm)
    if vllm.speculation is not None:
        yield from _speculation(vllm.speculation, role)
    yield from _lora(deployment)
    transfer = _kv_transfer(deployment, role)
    if transfer is not None:
        yield from ("--kv-transfer-config", _json(transfer))
    if spec.routing.cache_knowledge == "Exact":
        yield from ("--kv-events-config", KV_EVENTS)
    yield from vllm.extra_args


def _numbers(vllm: VllmEngine) -> Iterator[str]:
    """How weights, activations and caches are stored, and how much memory they may take."""
    if vllm.dtype != "auto":
        yield from ("--dtype", vllm.dtype)
    if vllm.quantization:
        yield from ("--quantization", vllm.quantization)
    if vllm.kv_cache_type != "auto":
        yield from ("--kv-cache-dtype", vllm.kv_cache_type)
    if vllm.kv_cache_memory_mib is None:
        yield from ("--gpu-memory-utilization", f"{vllm.memory_percent / 100:g}")
    else:
        yield from ("--kv-cache-memory-bytes", str(vllm.kv_cache_memory_mib << 20))
    if vllm.trust_remote_code:
        yield "--trust-remote-code"
    if not vllm.compile:
        yield "--enforce-eager"


def _parallelism(deployment: LLMDeployment, role: Role) -> Iterator[str]:
    parallelism = deployment.spec.engine.vllm_settings.parallelism
    tensor = deployment.spec.pool(role).accelerator.count // parallelism.groups
    for option, size in (
        ("--tensor-parallel-size", tensor),
        ("--pipeline-parallel-size", parallelism.pipeline),
        ("--data-parallel-size", parallelism.data),
    ):
        if size > 1:
            yield from (option, str(size))
    if parallelism.expert:
        yield "--enable-expert-parallel"


def _batches(vllm: VllmEngine) -> Iterator[str]:
    for option, most in (
        ("--max-num-seqs", vllm.max_batch_requests),
        ("--max-num-batched-tokens", vllm.max_batch_tokens),
        ("--max-num-queued-reqs", vllm.max_queued_requests),
    ):
        if most is not None:
            yield from (option, str(most))
    if not vllm.prefix_caching:
        yield "--no-enable-prefix-caching"
    if not vllm.chunked_prefill:
        yield "--no-enable-chunked-prefill"


def _chat(vllm: VllmEngine) -> Iterator[str]:
    if vllm.chat.tool_parser:
        yield from ("--enable-auto-tool-choice", "--tool-call-parser", vllm.chat.tool_parser)
    if vllm.chat.reasoning_parser:
        yield from ("--reasoning-parser", vllm.chat.reasoning_parser)
    if vllm.chat.template:
        yield from ("--chat-template", vllm.chat.template)
    if vllm.structured_output != "auto":
        yield from ("--structured-outputs-config", _json({"backend": vllm.structured_output}))


def _speculation(speculation: Speculation, role: Role) -> Iterator[str]:
    """Speculative decoding.

    A draft model or head has layers in the KV cache, so prefill and decode workers need the same one. Proposals that are
    copied from the prompt need none, and a prefill worker generates one token only.
    """
    if speculation.method == "NGram" and role == "prefill":
        return
    config: dict[str, Any] = {}
    if speculation.method == "NGram":
        config["method"] = "ngram"
        config["prompt_lookup_min"] = speculation.lookup_min
        config["prompt_lookup_max"] = speculation.lookup_max
    else:
        config["method"] = _DRAFTED[speculation.method]
        if speculation.model:
            config["model"] = speculation.model
    config["num_speculative_tokens"] = speculation.tokens
    if speculation.max_batch is not None:
        config["num_speculative_tokens_per_batch_size"] = [
            [1, speculation.max_batch, speculation.tokens],
            [speculation.max_batch + 1, _LARGEST_BATCH, 0],
        ]
    yield from ("--speculative-config", _json(config))


def _lora(deployment: LLMDeployment) -> Iterator[str]:
    lora = deployment.spec.lora
    if not lora.adapters:
        return
    yield from ("--enable-lora", "--max-loras", str(lora.max_loaded))
    yield from ("--max-cpu-loras", str(max(lora.max_loaded, len(lora.adapters))))
    yield from ("--max-lora-rank", str(deployment.spec.engine.vllm_settings.max_lora_rank))
    yield "--lora-modules"
    for adapter in lora.adapters:
        yield f"{adapter.name}={{adapter:{adapter.name}}}"


def _kv_transfer(deployment: LLMDeployment, role: Role) -> dict[str, Any] | None:
    """Return vLLM's --kv-transfer-config, None where no cache moves.

    `--kv-offloading-size` is not used: it silently replaces the connector that prefill and decode workers need.
    """
    vllm = deployment.spec.engine.vllm_settings
    connectors = []
    if role != "aggregated":
        nixl: dict[str, Any] = {"kv_connector": "NixlConnector", "kv_role": _KV_ROLES[role]}
        if deployment.spec.pool(role).accelerator.type == "CPU":
            nixl["kv_buffer_device"] = "cpu"
        connectors.append(nixl)
    if vllm.kv_offload is not None:
        connectors.append(_offload(vllm.kv_offload))
    if not connectors:
        return None
    if len(connectors) == 1:
        config = connectors[0]
    else:
        config = {
            "kv_connector": "MultiConnector",
            "kv_role": _KV_ROLES[role],
            "kv_connector_extra_config": {"connectors": connectors},
        }
    if role == "decode" and vllm.kv_load_failure == "Recompute":
        config["kv_load_failure_policy"] = "recompute"
    return config


def _offload(offload: KvOffload) -> dict[str, Any]:
    match offload.backend:
        case "CPU":
            extra: dict[str, Any] = {"cpu_bytes_to_use": (offload.gib or 0) << 30}
            return {
                "kv_connector": "OffloadingConnector",
                "kv_role": "kv_both",
                "kv_connector_extra_config": extra,
            }
        case "LMCache":
            extra = {
                "lmcache.mp.host": f"tcp://{offload.host or 'localhost'}",
                "lmcache.mp.port": offload.port,
            }
            return {
                "kv_connector": "LMCacheMPConnector",
                "kv_role": "kv_both",
                "kv_connector_extra_config": extra,
            }
        case "MooncakeStore":
            return {"kv_connector": "MooncakeStoreConnector", "kv_role": "kv_both"}


def _environment(deployment: LLMDeployment, role: Role) -> Iterator[dict[str, Any]]:
    vllm = deployment.spec.engine.vllm_settings
    yield {"name": "HOME", "value": _HOME}
    yield {"name": "VLLM_NO_USAGE_STATS", "value": "1"}
    yield {"name": "VLLM_HOST_IP", **_POD_IP}
    if role != "aggregated":
        yield {"name": "VLLM_NIXL_SIDE_CHANNEL_HOST", **_POD_IP}
        yield {"name": "VLLM_NIXL_SIDE_CHANNEL_PORT", "value": str(terms.KV_SIDE_CHANNEL_PORT)}
    for variable in vllm.env:
        yield {"name": variable.name, "value": variable.value}


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"))
