"""Metrics pages as vLLM writes them, for tests that read them or have them read."""

from __future__ import annotations


def page(
    *,
    running: float = 0,
    waiting: float = 0,
    deferred: float = 0,
    usage: float = 0.0,
    queried: float = 0,
    hit: float = 0,
    computed: float = 0,
    moved: float = 0,
    engines: int = 1,
    more: str = "",
) -> bytes:
    """Return a page that says the same of each of *engines*."""
    samples = {
        "vllm:num_requests_running{%s}": running,
        "vllm:num_requests_waiting{%s}": waiting,
        'vllm:num_requests_waiting_by_reason{%s,reason="capacity"}': waiting - deferred,
        'vllm:num_requests_waiting_by_reason{%s,reason="deferred"}': deferred,
        "vllm:kv_cache_usage_perc{%s}": usage,
        "vllm:prefix_cache_queries_total{%s}": queried,
        "vllm:prefix_cache_hits_total{%s}": hit,
        "vllm:external_prefix_cache_queries_total{%s}": 2 * moved,
        "vllm:external_prefix_cache_hits_total{%s}": moved,
        'vllm:prompt_tokens_by_source_total{%s,source="local_compute"}': computed,
        'vllm:prompt_tokens_by_source_total{%s,source="local_cache_hit"}': hit,
        'vllm:prompt_tokens_by_source_total{%s,source="external_kv_transfer"}': moved,
    }
    lines = ["# HELP vllm:num_requests_running Number of requests in model execution batches."]
    for name, value in samples.items():
        for engine in range(engines):
            labels = f'engine="{engine}",model_name="a}} {{b"'
            lines.append(f"{name % labels} {float(value)}")
    return ("\n".join(lines) + "\n" + more).encode()
