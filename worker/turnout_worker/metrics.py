"""The worker's /metrics under vLLM's names, written in the Prometheus text format."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Final, NamedTuple

from turnout.metrics import (
    SIMULATED_ITERATIONS,
    SIMULATED_PINNED_REQUESTS,
    SIMULATED_STALE_KV_READS,
    WORKER_TASK_FAILURES,
)

if TYPE_CHECKING:
    from turnout.metrics import Metric
    from turnout.simulation import EngineSettings, EngineStats, Finished, FirstToken

TASKS: Final = (
    "callback", "engine", "kv_events", "kv_fetch", "kv_replay", "request", "side_channel",
)  # fmt: skip
"""What the worker runs as long as it lives, by the names that their failures are counted under."""

_TTFT: Final = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
)  # fmt: skip
_ITL: Final = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
_REQUEST: Final = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
)  # fmt: skip
_TRANSFER: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 5.0)
_BYTES: Final = tuple(float(2**power) for power in range(20, 37, 2))


class Histogram:
    """Counts of observations by upper bound."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count *value*, *times* over."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def lines(self, name: str, labels: str) -> list[str]:
        """Return the samples in the text format."""
        result, total = [], 0
        for bound, count in zip((*map(repr, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            result.append(f'{name}_bucket{{{labels},le="{bound}"}} {total}')
        return [*result, f"{name}_sum{{{labels}}} {self._sum}", f"{name}_count{{{labels}}} {total}"]


class LoraState(NamedTuple):
    """LoRA adapters: how many find room at a time, those of requests under way, and when that was so (Unix time)."""

    most: int
    running: tuple[str, ...]
    at: float


class Metrics:
    """What the engine's events add up to. All times in engine seconds."""

    def __init__(self, model_name: str, engine: EngineSettings, kv_bytes_per_token: int) -> None:
        self._model = f'model_name="{_escape(model_name)}"'
        self._labels = f'{self._model},engine="0"'
        self._engine = engine
        self._kv_bytes_per_token = kv_bytes_per_token
        self.time_to_first_token = Histogram(_TTFT)
        self.inter_token_latency = Histogram(_ITL)
        self.time_per_output_token = Histogram(_ITL)
        self.end_to_end = Histogram(_REQUEST)
        self.queue_time = Histogram(_REQUEST)
        self.prefill_time = Histogram(_REQUEST)
        self.decode_time = Histogram(_REQUEST)
        self.inference_time = Histogram(_REQUEST)
        self.transfer_time = Histogram(_TRANSFER)
        self.transfer_bytes = Histogram(_BYTES)
        self.failed_transfers = 0
        self.stale_reads = 0
        self._task_failures = dict.fromkeys(TASKS, 0)

    def task_failed(self, name: str) -> None:
        """Count a failure of the task *name*."""
        self._task_failures[name] = self._task_failures.get(name, 0) + 1

    def transferred(self, tokens: int) -> None:
        """Count a fetch of the KV of *tokens* tokens."""
        self.transfer_time.observe(tokens * self._engine.transfer_seconds_per_token)
        self.transfer_bytes.observe(float(tokens * self._kv_bytes_per_token))

    def first_token(self, event: FirstToken) -> None:
        """Count a first token."""
        self.time_to_first_token.observe(event.at - event.arrived_at)

    def finished(self, event: Finished) -> None:
        """Count a request that has ended."""
        self.end_to_end.observe(event.at - event.arrived_at)
        if event.scheduled_at is None:
            return
        self.queue_time.observe(event.scheduled_at - event.arrived_at)
        if event.first_token_at is None:
            return
        self.prefill_time.observe(event.first_token_at - event.scheduled_at)
        self.decode_time.observe(event.at - event.first_token_at)
        self.inference_time.observe(event.at - event.scheduled_at)
        if event.output_tokens > 1:
            self.time_per_output_token.observe((event.at - event.first_token_at) / (event.output_tokens - 1))

    def exposition(self, stats: EngineStats, lora: LoraState | None = None) -> bytes:
        """Return everything in the Prometheus text format. *lora*: where adapters are served."""
        counters, labels = stats.counters, self._labels
        lines: list[str] = []

        def sample(kind: str, name: str, value: float, more: str = "") -> None:
            full = f"{name}_total" if kind == "counter" else name
            if not more or f"# TYPE {full} {kind}" not in lines:
                lines.extend((f"# HELP {full} {_HELP[name]}", f"# TYPE {full} {kind}"))
            lines.append(f"{full}{{{labels}{more}}} {value}")

        sample("gauge", "vllm:num_requests_running", stats.running)
        sample("gauge", "vllm:num_requests_waiting", stats.waiting)
        by_reason = "vllm:num_requests_waiting_by_reason"
        sample("gauge", by_reason, stats.waiting - stats.waiting_deferred, ',reason="capacity"')
        sample("gauge", by_reason, stats.waiting_deferred, ',reason="deferred"')
        sample("gauge", "vllm:kv_cache_usage_perc", stats.kv_usage)
        config = f',num_gpu_blocks="{self._engine.kv_blocks}",block_size="{self._engine.block_size}"'
        sample("gauge", "vllm:cache_config_info", 1, config + ',enable_prefix_caching="True"')
        sample("counter", "vllm:prefix_cache_queries", counters.prefix_queries)
        sample("counter", "vllm:prefix_cache_hits", counters.prefix_hits)
        sample("counter", "vllm:external_prefix_cache_queries", counters.external_queries)
        sample("counter", "vllm:external_prefix_cache_hits", counters.external_hits)
        sample("counter", "vllm:prompt_tokens", counters.prompt_tokens)
        sample("counter", "vllm:generation_tokens", counters.generation_tokens)
        by_source = "vllm:prompt_tokens_by_source"
        sample("counter", by_source, counters.prompt_local_compute, ',source="local_compute"')
        sample("counter", by_source, counters.prompt_local_cache_hit, ',source="local_cache_hit"')
        sample("counter", by_source, counters.prompt_external_transfer, ',source="external_kv_transfer"')
        sample("counter", "vllm:num_preemptions", counters.preemptions)
        # vLLM counts no aborted requests there, though it has a series for them.
        for reason, number in (counters.finished | {"abort": 0, "repetition": 0}).items():
            sample("counter", "vllm:request_success", number, f',finished_reason="{reason}"')
        name = "vllm:admission_rejections"
        lines.extend((f"# HELP {name}_total {_HELP[name]}", f"# TYPE {name}_total counter"))
        for reason, number in (("max_num_queued_reqs", counters.rejections), ("max_num_queued_tokens", 0)):
            lines.append(f'{name}_total{{{self._model},reason="{reason}"}} {number}')
        sample("counter", "vllm:nixl_num_kv_expired_reqs", counters.leases_expired)
        sample("counter", "vllm:nixl_num_failed_transfers", self.failed_transfers)
        for metric, value in (
            (SIMULATED_PINNED_REQUESTS, stats.pinned),
            (SIMULATED_STALE_KV_READS, self.stale_reads),
            (SIMULATED_ITERATIONS, counters.iterations),
        ):
            lines.extend((*_described(metric), f"{metric.name}{{{labels}}} {value}"))
        lines.extend(_described(WORKER_TASK_FAILURES))
        name = WORKER_TASK_FAILURES.name
        lines.extend(f'{name}{{task="{_escape(task)}"}} {n}' for task, n in self._task_failures.items())
        if lora is not None:
            name = "vllm:lora_requests_info"
            adapters = f'max_lora="{lora.most}",running_lora_adapters="{_escape(",".join(lora.running))}"'
            lines.extend((f"# HELP {name} {_HELP[name]}", f"# TYPE {name} gauge"))
            lines.append(f'{name}{{{adapters},waiting_lora_adapters=""}} {lora.at}')
        for name, histogram in self._histograms().items():
            lines.extend((f"# HELP {name} {_HELP[name]}", f"# TYPE {name} histogram"))
            lines.extend(histogram.lines(name, labels))
        return ("\n".join(lines) + "\n").encode()

    def _histograms(self) -> dict[str, Histogram]:
        return {
            "vllm:time_to_first_token_seconds": self.time_to_first_token,
            "vllm:inter_token_latency_seconds": self.inter_token_latency,
            "vllm:request_time_per_output_token_seconds": self.time_per_output_token,
            "vllm:e2e_request_latency_seconds": self.end_to_end,
            "vllm:request_queue_time_seconds": self.queue_time,
            "vllm:request_prefill_time_seconds": self.prefill_time,
            "vllm:request_decode_time_seconds": self.decode_time,
            "vllm:request_inference_time_seconds": self.inference_time,
            "vllm:nixl_xfer_time_seconds": self.transfer_time,
            "vllm:nixl_bytes_transferred": self.transfer_bytes,
        }


def _described(metric: Metric) -> tuple[str, str]:
    return f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}"


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


_HELP: Final = {
    "vllm:num_requests_running": "Requests in the batch.",
    "vllm:num_requests_waiting": "Requests that wait for room or for their KV to arrive.",
    "vllm:num_requests_waiting_by_reason": "The same by reason: capacity or deferred (KV on its way).",
    "vllm:kv_cache_usage_perc": "Share of KV blocks in use, 0 to 1.",
    "vllm:cache_config_info": "How the KV cache is configured.",
    "vllm:prefix_cache_queries": "Prompt tokens looked up in the prefix cache.",
    "vllm:prefix_cache_hits": "Prompt tokens found in the prefix cache.",
    "vllm:external_prefix_cache_queries": "Prompt tokens sought at a prefill worker.",
    "vllm:external_prefix_cache_hits": "Prompt tokens found at a prefill worker.",
    "vllm:prompt_tokens": "Prompt tokens of requests whose prefill is complete.",
    "vllm:generation_tokens": "Tokens generated.",
    "vllm:prompt_tokens_by_source": "Prompt tokens by where their KV came from.",
    "vllm:num_preemptions": "Preemptions.",
    "vllm:request_success": "Requests that ended, by reason.",
    "vllm:admission_rejections": "Requests refused because the queue was full.",
    "vllm:nixl_num_kv_expired_reqs": "Prefilled prompts that no worker fetched before their lease ended.",
    "vllm:nixl_num_failed_transfers": "Fetches of KV that failed.",
    "vllm:lora_requests_info": "LoRA adapters of requests under way, and how many find room; the value is the time.",
    "vllm:time_to_first_token_seconds": "From arrival to the first token.",
    "vllm:inter_token_latency_seconds": "Between two tokens of a request.",
    "vllm:request_time_per_output_token_seconds": "Mean time between the tokens of a request.",
    "vllm:e2e_request_latency_seconds": "From arrival to the end.",
    "vllm:request_queue_time_seconds": "From arrival to the first blocks.",
    "vllm:request_prefill_time_seconds": "From the first blocks to the first token.",
    "vllm:request_decode_time_seconds": "From the first token to the end.",
    "vllm:request_inference_time_seconds": "From the first blocks to the end.",
    "vllm:nixl_xfer_time_seconds": "Time to fetch a prompt's KV.",
    "vllm:nixl_bytes_transferred": "Bytes of a prompt's KV fetched.",
}
