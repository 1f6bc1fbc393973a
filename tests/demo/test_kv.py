"""KV utilization read from workers' metrics."""

from __future__ import annotations

import httpx
import pytest

from turnout_cli.demo.kv import pool_utilization, utilization

METRICS = b"""# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.375
"""


@pytest.mark.parametrize(
    ("metrics", "value"),
    [
        (METRICS, 0.375),
        (b'vllm:kv_cache_usage_perc{engine="0"} 1e-3\nvllm:kv_cache_usage_perc{engine="1"} 0.5\n', 0.2505),
        (b"vllm:kv_cache_usage_perc{} oops\n", None),
        (b"", None),
    ],
)
def test_a_worker_exposes_its_share(metrics: bytes, value: float | None) -> None:
    """The gauge is found among comments, the mean of several engines; a worker without it counts for nothing."""
    assert utilization(metrics) == value


async def test_pools_are_means_of_those_that_answer() -> None:
    """A worker that fails is left out; a pool in which none answers is absent."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.host == "gone":
            raise httpx.ConnectError("refused")
        if request.url.host == "sick":
            return httpx.Response(500)
        return httpx.Response(200, text=f"vllm:kv_cache_usage_perc{{}} 0.{request.url.host[1:]}\n")

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        means = await pool_utilization(
            http, {"prefill": ["http://w2", "http://w4", "http://gone"], "decode": ["http://sick"]}
        )
    assert means == pytest.approx({"prefill": 0.3})
