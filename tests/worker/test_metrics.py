"""The worker's /metrics: a scraper can read them, and they say what happened."""

from __future__ import annotations

import httpx
from prometheus_client.parser import text_string_to_metric_families

from support.worker_process import NAME, running_worker

WANTED = {
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:num_requests_waiting_by_reason",
    "vllm:kv_cache_usage_perc",
    "vllm:cache_config_info",
    "vllm:prefix_cache_queries",
    "vllm:prefix_cache_hits",
    "vllm:prompt_tokens",
    "vllm:generation_tokens",
    "vllm:prompt_tokens_by_source",
    "vllm:num_preemptions",
    "vllm:request_success",
    "vllm:admission_rejections",
    "vllm:time_to_first_token_seconds",
    "vllm:inter_token_latency_seconds",
    "vllm:request_time_per_output_token_seconds",
    "vllm:e2e_request_latency_seconds",
    "vllm:request_queue_time_seconds",
    "vllm:request_prefill_time_seconds",
    "vllm:request_decode_time_seconds",
    "vllm:request_inference_time_seconds",
    "vllm:nixl_xfer_time_seconds",
    "vllm:nixl_bytes_transferred",
    "vllm:nixl_num_kv_expired_reqs",
}


def test_metrics_say_what_happened_under_vllms_names() -> None:
    """After known requests every metric is there once, labeled, and the sums are right, in engine seconds."""
    with running_worker(time_scale=10) as worker:
        for _ in range(2):
            ask = {"prompt": "x" * 640, "max_tokens": 21, "ignore_eos": True}
            httpx.post(f"{worker.url}/v1/completions", json=ask).raise_for_status()
        text = httpx.get(f"{worker.url}/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert set(families) >= WANTED
    assert all(family.documentation for family in families.values())
    tasks = families.pop("turnout_worker_task_failures").samples
    assert {sample.value for sample in tasks} == {0}
    samples = [sample for family in families.values() for sample in family.samples]
    refusals = families["vllm:admission_rejections"].samples  # counted before a request gets to an engine
    assert {sample.labels["reason"] for sample in refusals} == {
        "max_num_queued_reqs",
        "max_num_queued_tokens",
    }
    assert all(sample.labels["model_name"] == NAME for sample in samples)
    assert all(sample.labels["engine"] == "0" for sample in samples if sample not in refusals)
    assert len({(sample.name, *sorted(sample.labels.items())) for sample in samples}) == len(samples)
    value = {sample.name: sample.value for sample in samples if len(sample.labels) == 2}
    assert value["vllm:prompt_tokens_total"] == 320
    assert value["vllm:generation_tokens_total"] == 42
    assert value["vllm:prefix_cache_queries_total"] == 320
    assert value["vllm:prefix_cache_hits_total"] == 144
    assert value["vllm:time_to_first_token_seconds_count"] == 2
    assert value["vllm:inter_token_latency_seconds_count"] == 40
    # 6.42 ms of kernels and 3.5 ms of overhead a step, and a little for the context
    assert 40 * 0.00992 < value["vllm:inter_token_latency_seconds_sum"] < 40 * 0.0102
