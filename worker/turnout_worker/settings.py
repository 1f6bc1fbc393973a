"""The simulated worker's options, checked and completed."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Final

from turnout.simulation import EngineSettings, SettingsError
from turnout.sizing.architecture import ModelArchitecture
from turnout.sizing.capacity import GIB, DoesNotFit, Unknown, fits, tokens_within
from turnout.sizing.catalog import known
from turnout.sizing.latency import LatencyModel, UnknownLatency, latency_model
from turnout_worker.errors import ConfigurationError

if TYPE_CHECKING:
    from turnout.terms import Role


CPU_KV_CACHE_BYTES: Final = 4 * GIB
"""KV cache where the memory beside the weights is not known: vLLM's on CPUs."""


@dataclass(frozen=True, slots=True)
class KvEventsSettings:
    """Where KV events are published: vLLM's --kv-events-config, with its defaults."""

    endpoint: str = "tcp://*:5557"
    """PUB. Wildcards, ipc and inproc are bound, everything else is connected to."""
    replay_endpoint: str | None = None
    """ROUTER, always bound. None: what a subscriber misses is lost."""
    topic: str = ""
    buffer_steps: int = 10_000
    """Batches kept for replays."""
    hwm: int = 100_000
    """Batches that may wait for a slow subscriber."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """The simulated worker's settings. Seconds are the engine's unless said otherwise."""

    model: str
    architecture: ModelArchitecture
    served_names: tuple[str, ...]
    adapters: dict[str, str]
    """Paths of LoRA adapters by the names that clients call; answered like the model, with a prefix cache of their own each."""
    max_loras: int
    """Adapters that find room at a time, as metrics report it. Loading one takes the simulated engine no time."""
    role: Role
    accelerator: str
    tensor_parallel: int
    max_length: int
    """Longest prompt plus output, in tokens."""
    seed: int
    time_scale: float
    """Engine seconds that pass in one real second."""
    startup_seconds: float
    host: str
    port: int
    advertised_host: str
    """Where decode workers reach the side channel."""
    side_channel_port: int
    shutdown_timeout: float
    """Real seconds after SIGTERM in which running streams may end and pinned blocks may be fetched."""
    prompt_tokens_details: bool
    """Whether usage reports cached_tokens (vLLM's --enable-prompt-tokens-details)."""
    engine: EngineSettings
    latency: LatencyModel
    kv_events: KvEventsSettings | None = None
    """None: the content of the prefix cache is not published."""

    @property
    def names(self) -> tuple[str, ...]:
        """Everything that it may be called."""
        return (*self.served_names, *self.adapters)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of KV cache that a token takes, for the transfer metrics."""
        return self.architecture.kv_bytes_per_token()


def architecture(model: str, described: str | None) -> ModelArchitecture:
    """Return what *described*, the JSON of --architecture, says, else the catalog of *model*. Raise ConfigurationError."""
    if described is not None:
        try:
            return ModelArchitecture.from_fields(json.loads(described))
        except ValueError as error:
            raise ConfigurationError(f"--architecture: {error}") from error
    found = known(model)
    if found is None:
        raise ConfigurationError(
            f"the size of {model} is not known, so it cannot be simulated: write spec.model.architecture in the LLMDeployment"
            " (--architecture)"
        )
    return found


def engine_settings(
    *,
    model: ModelArchitecture,
    accelerator: str,
    tensor_parallel: int,
    max_length: int,
    kv_cache_tokens: int | None,
    block_size: int,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    max_num_queued: int | None,
    kv_lease_seconds: float,
) -> tuple[EngineSettings, LatencyModel]:
    """Return what the engine needs for *model*. Raise ConfigurationError, saying what to write instead."""
    latency = latency_model(model, accelerator, tensor_parallel)
    if isinstance(latency, UnknownLatency):
        raise ConfigurationError(latency.message)
    if kv_cache_tokens is None:
        fit = fits(model, accelerator, tensor_parallel, max_length=max_length)
        if isinstance(fit, DoesNotFit):
            raise ConfigurationError(fit.message)
        if isinstance(fit, Unknown):
            kv_cache_tokens = max(max_length, tokens_within(CPU_KV_CACHE_BYTES, model, max_length))
        else:
            kv_cache_tokens = fit.kv_cache_tokens
    if kv_cache_tokens < max_length:
        raise ConfigurationError(
            f"--kv-cache-tokens {kv_cache_tokens} cannot hold one request of --max-length {max_length}: "
            "raise the first or lower the second"
        )
    if block_size < 1:
        raise ConfigurationError(f"--block-size {block_size}: it must be at least 1")
    try:
        engine = EngineSettings(
            kv_blocks=-(-kv_cache_tokens // block_size),
            block_size=block_size,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_num_queued=max_num_queued,
            kv_lease_seconds=kv_lease_seconds,
        )
    except SettingsError as error:
        raise ConfigurationError(str(error)) from error
    return engine, latency


def kv_events_settings(text: str | None) -> KvEventsSettings | None:
    """Return what *text*, the JSON of --kv-events-config, asks for. Raise ConfigurationError, saying what to write."""
    if text is None:
        return None
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ConfigurationError(f"--kv-events-config is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise ConfigurationError("--kv-events-config must be a JSON object")
    document.pop("max_queue_size", None)  # batches that wait for vLLM's publishing thread; there is none here
    enabled, publisher = document.pop("enable_kv_cache_events", False), document.pop("publisher", None)
    numbers = {"buffer_steps", "hwm"}
    known = {field.name for field in fields(KvEventsSettings)}
    for name, value in document.items():
        if name not in known:
            raise ConfigurationError(f"--kv-events-config: {name} is none of {', '.join(sorted(known))}")
        fitting = type(value) is int and value > 0 if name in numbers else isinstance(value, str)
        if not fitting and not (value is None and name == "replay_endpoint"):
            raise ConfigurationError(f"--kv-events-config: {name} cannot be {value!r}")
    if publisher not in {None, "null", "zmq"}:
        raise ConfigurationError(f"--kv-events-config: publisher {publisher!r} is neither 'zmq' nor 'null'")
    return KvEventsSettings(**document) if enabled is True and publisher != "null" else None
